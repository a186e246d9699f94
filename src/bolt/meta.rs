//! The two meta pages at the beginning: the newer valid one says where the tree begins.

use super::BoltError;
use super::page::{HEADER, Header, META, u32_at, u64_at};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of a meta page that are used: header, fields, checksum.
pub(super) const META_BYTES: usize = HEADER + 64;
/// Page sizes that operating systems have.
pub(super) const PAGE_SIZES: [u32; 7] = [4096, 1024, 2048, 8192, 16384, 32768, 65536];

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub page_size: u32,
    pub root: u64,
    /// Pages in the file.
    pub pages: u64,
    pub transaction: u64,
}

impl Meta {
    /// Parses and checks a meta page; the error says which check failed.
    pub fn parse(page: &[u8]) -> Result<Self, &'static str> {
        let short = "the meta page is cut short";
        let header = Header::parse(page).ok_or(short)?;
        let body = page.get(HEADER..META_BYTES).ok_or(short)?;
        if header.flags & META == 0 || u32_at(body, 0) != Some(MAGIC) {
            return Err("no bbolt magic number: not a file of etcd's");
        }
        if u32_at(body, 4) != Some(VERSION) {
            return Err("an unknown version of the bbolt format");
        }
        if u64_at(body, 56) != Some(fnv1a(&body[..56])) {
            return Err("the checksum of the meta page does not match");
        }
        let meta = Self {
            page_size: u32_at(body, 8).ok_or(short)?,
            root: u64_at(body, 16).ok_or(short)?,
            pages: u64_at(body, 40).ok_or(short)?,
            transaction: u64_at(body, 48).ok_or(short)?,
        };
        if !PAGE_SIZES.contains(&meta.page_size) {
            return Err("an impossible page size");
        }
        if meta.root < 2 || meta.root >= meta.pages || meta.pages > u64::from(u32::MAX) {
            return Err("the root page is outside of the file");
        }
        Ok(meta)
    }

    /// The newer of the two that are valid.
    pub fn newer(first: Result<Self, &'static str>, second: Result<Self, &'static str>) -> Result<Self, BoltError> {
        match (first, second) {
            (Ok(a), Ok(b)) if a.page_size != b.page_size => {
                Err(BoltError::corrupt(1, "the two meta pages disagree about the page size"))
            }
            (Ok(a), Ok(b)) => Ok(if b.transaction > a.transaction { b } else { a }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(why), Err(_)) => Err(BoltError::corrupt(0, why)),
        }
    }
}

/// The used bytes of a meta page, as bbolt writes them.
pub(super) fn encode(id: u64, page_size: usize, root: u64, freelist: u64, pages: u64, transaction: u64) -> Vec<u8> {
    // Page sizes are at most 64 KiB.
    let page_size = u32::try_from(page_size).unwrap_or_default();
    let mut page = Vec::with_capacity(META_BYTES);
    page.extend_from_slice(&id.to_le_bytes());
    page.extend_from_slice(&META.to_le_bytes());
    page.resize(HEADER, 0);
    for number in [MAGIC, VERSION, page_size, 0] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    // The root bucket has a sequence as all buckets have; nothing uses it.
    for number in [root, 0, freelist, pages, transaction] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    let checksum = fnv1a(&page[HEADER..]);
    page.extend_from_slice(&checksum.to_le_bytes());
    page
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
