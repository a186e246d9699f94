//! Pages: a 16-byte header, an array of elements, and the keys and values the elements point to.

/// Bytes of a page's header, of an element, and of a bucket's header.
pub(super) const HEADER: usize = 16;

/// Kinds of pages we look into.
pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META: u16 = 0x04;
pub(super) const FREELIST: u16 = 0x10;

/// Flag of a leaf element whose value is a bucket.
const BUCKET: u32 = 0x01;

/// What a page says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub id: u64,
    pub flags: u16,
    pub count: u16,
    /// Pages that follow and belong to this one.
    pub overflow: u32,
}

impl Header {
    /// Reads the first 16 bytes of a page.
    pub fn parse(page: &[u8]) -> Option<Self> {
        Some(Self {
            id: u64_at(page, 0)?,
            flags: u16_at(page, 8)?,
            count: u16_at(page, 10)?,
            overflow: u32_at(page, 12)?,
        })
    }

    /// Whether the first element's data begins right behind the elements, as bbolt always writes it. Tells pages from
    /// bytes that merely look like one; needs the first 32 bytes.
    pub fn plausible(&self, page: &[u8]) -> bool {
        let first_position = match self.flags {
            LEAF => u32_at(page, HEADER + 4),
            BRANCH => u32_at(page, HEADER),
            _ => return false,
        };
        if self.count == 0 {
            return self.flags == LEAF && self.overflow == 0;
        }
        first_position == Some(u32::from(self.count) * 16)
    }
}

/// An element of a leaf page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf<'a> {
    pub is_bucket: bool,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// The element at an index; none if it points outside of the page.
pub(super) fn leaf(page: &[u8], index: usize) -> Option<Leaf<'_>> {
    let at = HEADER + index * 16;
    let (flags, position) = (u32_at(page, at)?, u32_at(page, at + 4)? as usize);
    let (key_size, value_size) = (u32_at(page, at + 8)? as usize, u32_at(page, at + 12)? as usize);
    let key_at = at.checked_add(position)?;
    let value_at = key_at.checked_add(key_size)?;
    Some(Leaf {
        is_bucket: flags & BUCKET != 0,
        key: page.get(key_at..value_at)?,
        value: page.get(value_at..value_at.checked_add(value_size)?)?,
    })
}

/// The child page at an index of a branch page, with the first key below it.
pub(super) fn child(page: &[u8], index: usize) -> Option<(&[u8], u64)> {
    let at = HEADER + index * 16;
    let (position, key_size) = (u32_at(page, at)? as usize, u32_at(page, at + 4)? as usize);
    let key_at = at.checked_add(position)?;
    Some((page.get(key_at..key_at.checked_add(key_size)?)?, u64_at(page, at + 8)?))
}

/// Where a bucket's tree begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BucketRoot {
    Page(u64),
    /// A small bucket's only page lives inside of its parent's value.
    Inline(Vec<u8>),
}

/// Reads the value of a bucket element.
pub(super) fn bucket_root(value: &[u8]) -> Option<BucketRoot> {
    match u64_at(value, 0)? {
        0 => {
            let page = value.get(HEADER..)?;
            let header = Header::parse(page)?;
            (header.flags == LEAF).then(|| BucketRoot::Inline(page.to_vec()))
        }
        page => Some(BucketRoot::Page(page)),
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}
