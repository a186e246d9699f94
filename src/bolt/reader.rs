use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;

use super::BoltError;
use super::key_value::{self, Revision, Stored};
use super::meta::{META_BYTES, Meta, PAGE_SIZES};
use super::page::{self, BRANCH, BucketRoot, HEADER, Header, LEAF};

/// A tree of 4 KiB pages this deep would hold more than any disk.
const DEPTH_MAX: usize = 24;

/// A backend file, opened for reading. Memory is bounded by the largest leaf page (a few values of etcd's request limit).
#[derive(Debug)]
pub struct Backend {
    file: File,
    page_size: u64,
    meta: Meta,
    buckets: BTreeMap<Vec<u8>, BucketRoot>,
}

/// What the file says about itself outside of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    pub page_size: u32,
    /// Bytes of the file without a snapshot's trailer.
    pub size_bytes: u64,
    pub transaction: u64,
    pub buckets: Vec<String>,
    pub consistent_index: u64,
    pub term: u64,
    /// Revision of the last compaction that was ordered; 0: none.
    pub scheduled_compact_revision: i64,
    /// Revision of the last compaction that was finished; 0: none.
    pub finished_compact_revision: i64,
}

impl Backend {
    /// Opens a file, with or without a snapshot's SHA-256 trailer (which is not checked here).
    pub fn open(file: File) -> Result<Self, BoltError> {
        let size = file.metadata()?.len();
        let first = read_meta(&file, 0)?;
        let meta = match first {
            Ok(meta) => Meta::newer(Ok(meta), read_meta(&file, u64::from(meta.page_size))?)?,
            // Without the first page its size is unknown: look for the second where it can be.
            Err(why) => {
                let mut found = None;
                for page_size in PAGE_SIZES {
                    found = found.or(read_meta(&file, page_size.into())?.ok().filter(|m| m.page_size == page_size));
                }
                found.ok_or_else(|| BoltError::corrupt(0, why))?
            }
        };
        let page_size = u64::from(meta.page_size);
        if size < meta.pages * page_size {
            let what = format!("the file has {size} bytes of {}: it was cut short", meta.pages * page_size);
            return Err(BoltError::corrupt(size / page_size, what));
        }
        let mut backend = Self { file, page_size, meta, buckets: BTreeMap::new() };
        let mut entries = Cursor::new(&backend, &BucketRoot::Page(meta.root), Direction::Forward)?;
        let mut buckets = BTreeMap::new();
        while entries.advance()? {
            let (at, leaf) = entries.current()?;
            if leaf.is_bucket {
                let root = page::bucket_root(leaf.value)
                    .ok_or_else(|| BoltError::corrupt(at, "a bucket's header is damaged"))?;
                buckets.insert(leaf.key.to_vec(), root);
            }
            if buckets.len() > 64 {
                return Err(BoltError::corrupt(at, "more buckets than etcd has"));
            }
        }
        if !buckets.contains_key(b"key".as_slice()) || !buckets.contains_key(b"meta".as_slice()) {
            return Err(BoltError::corrupt(meta.root, "the buckets of an etcd backend are not there"));
        }
        backend.buckets = buckets;
        Ok(backend)
    }

    /// Reads what the bucket `meta` says.
    pub fn info(&self) -> Result<BackendInfo, BoltError> {
        let mut info = BackendInfo {
            page_size: self.meta.page_size,
            size_bytes: self.meta.pages * self.page_size,
            transaction: self.meta.transaction,
            buckets: self.buckets.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
            consistent_index: 0,
            term: 0,
            scheduled_compact_revision: 0,
            finished_compact_revision: 0,
        };
        self.entries("meta", &mut |key, value| {
            let number = value.try_into().map_or(0, u64::from_be_bytes);
            match key {
                b"consistent_index" => info.consistent_index = number,
                b"term" => info.term = number,
                b"scheduledCompactRev" => info.scheduled_compact_revision = compact_revision(value),
                b"finishedCompactRev" => info.finished_compact_revision = compact_revision(value),
                _ => {}
            }
        })?;
        Ok(info)
    }

    /// Calls back for every entry of a bucket, in key order. A bucket that is not there has no entries.
    pub fn entries(&self, bucket: &str, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BoltError> {
        let Some(root) = self.buckets.get(bucket.as_bytes()) else { return Ok(()) };
        let mut cursor = Cursor::new(self, root, Direction::Forward)?;
        while cursor.advance()? {
            let (_, leaf) = cursor.current()?;
            each(leaf.key, leaf.value);
        }
        Ok(())
    }

    /// The entries of a bucket one by one, in key order. None if the bucket is not there.
    pub fn bucket(&self, name: &str) -> Result<Option<Entries<'_>>, BoltError> {
        let Some(root) = self.buckets.get(name.as_bytes()) else { return Ok(None) };
        Ok(Some(Entries(Cursor::new(self, root, Direction::Forward)?)))
    }

    /// The newest revision: the last one in the bucket `key`, or the compaction that removed it. An empty etcd is at 1.
    pub fn newest_revision(&self) -> Result<i64, BoltError> {
        let last = Versions::new(self, Direction::Backward).next().transpose()?;
        let compacted = self.info()?.finished_compact_revision;
        Ok(last.map_or(0, |version| version.revision.main).max(compacted).max(1))
    }

    /// Every stored version of every key, oldest change first. Ends after an error.
    pub fn key_values(&self) -> impl Iterator<Item = Result<Stored, BoltError>> + '_ {
        Versions::new(self, Direction::Forward)
    }

    /// The state at a revision (`None`: the newest): the last version of each key, newest change first, deleted keys left
    /// out. Remembers 16 bytes for each key. A revision older than the compaction gives a state with gaps.
    pub fn live_at(&self, revision: Option<i64>) -> impl Iterator<Item = Result<Stored, BoltError>> + '_ {
        let hashers = (RandomState::new(), RandomState::new());
        let mut seen: HashSet<(u64, u64)> = HashSet::new();
        Versions::new(self, Direction::Backward).filter(move |version| match version {
            Err(_) => true,
            Ok(version) if revision.is_some_and(|limit| version.revision.main > limit) => false,
            // `etcdutl snapshot restore --bump-revision` leaves an entry without a key.
            Ok(version) if version.key_value.key.is_empty() => false,
            // Two keyed 64-bit hashes: two keys that share both don't happen.
            Ok(version) => {
                let key = &version.key_value.key;
                seen.insert((hashers.0.hash_one(key), hashers.1.hash_one(key))) && !version.tombstone
            }
        })
    }

    /// Reads a page with all that belongs to it, and checks that it is the page it should be.
    fn page(&self, id: u64) -> Result<(Header, Vec<u8>), BoltError> {
        if id < 2 || id >= self.meta.pages {
            return Err(BoltError::corrupt(id, "a reference to a page outside of the file"));
        }
        let mut start = [0; HEADER];
        self.file.read_exact_at(&mut start, id * self.page_size)?;
        let header = Header::parse(&start).ok_or_else(|| BoltError::corrupt(id, "no header"))?;
        if header.id != id {
            return Err(BoltError::corrupt(id, format!("the page claims to be page {}", header.id)));
        }
        if header.flags != BRANCH && header.flags != LEAF {
            return Err(BoltError::corrupt(id, format!("flags {:#x} where a branch or a leaf must be", header.flags)));
        }
        let pages = 1 + u64::from(header.overflow);
        if id + pages > self.meta.pages {
            return Err(BoltError::corrupt(id, "the page reaches beyond the end of the file"));
        }
        // What can't be addressed can't be real: values end at etcd's request limit, far below this.
        let bytes = usize::try_from(pages * self.page_size).unwrap_or(usize::MAX);
        if bytes > 1 << 30 {
            return Err(BoltError::TooLarge(format!("page {id} has {bytes} bytes")));
        }
        let mut page = vec![0; bytes];
        self.file.read_exact_at(&mut page, id * self.page_size)?;
        Ok((header, page))
    }
}

/// Decodes a compaction's revision, which is stored like a key of the bucket `key`.
pub(super) fn compact_revision(value: &[u8]) -> i64 {
    key_value::revision(value).map_or(0, |(revision, _)| revision.main)
}

fn read_meta(file: &File, at: u64) -> Result<Result<Meta, &'static str>, BoltError> {
    let mut page = [0; META_BYTES];
    match file.read_exact_at(&mut page, at) {
        Ok(()) => Ok(Meta::parse(&page)),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Err("the file ends before its meta pages do")),
        Err(e) => Err(e.into()),
    }
}

/// A key and its value.
pub type Entry<'a> = (&'a [u8], &'a [u8]);

/// Entries of one bucket, one borrowed at a time.
pub struct Entries<'a>(Cursor<'a>);

impl Entries<'_> {
    /// The next key and value.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, BoltError> {
        if !self.0.advance()? {
            return Ok(None);
        }
        let (_, leaf) = self.0.current()?;
        Ok(Some((leaf.key, leaf.value)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// One level of the way down: a page and the next index to visit in it.
struct Level {
    header: Header,
    page: Vec<u8>,
    /// Elements visited, in the direction of the walk.
    visited: usize,
}

/// Walks the elements of one bucket in order.
struct Cursor<'a> {
    backend: &'a Backend,
    direction: Direction,
    levels: Vec<Level>,
    pages_read: u64,
    /// The inline page of a small bucket has no number of its own: errors name its parent.
    inline: bool,
}

impl<'a> Cursor<'a> {
    fn new(backend: &'a Backend, root: &BucketRoot, direction: Direction) -> Result<Self, BoltError> {
        let mut cursor = Self { backend, direction, levels: Vec::new(), pages_read: 0, inline: false };
        match root {
            BucketRoot::Page(id) => cursor.descend(*id)?,
            BucketRoot::Inline(page) => {
                let header = Header::parse(page)
                    .ok_or_else(|| BoltError::corrupt(backend.meta.root, "an inline bucket is cut short"))?;
                cursor.inline = true;
                cursor.levels.push(Level { header, page: page.clone(), visited: 0 });
            }
        }
        Ok(cursor)
    }

    fn descend(&mut self, id: u64) -> Result<(), BoltError> {
        self.pages_read += 1;
        // A page that is its own ancestor, or has two parents, would be walked for ever.
        if self.levels.len() >= DEPTH_MAX || self.pages_read > self.backend.meta.pages {
            return Err(BoltError::corrupt(id, "the pages form a circle"));
        }
        let (header, page) = self.backend.page(id)?;
        self.levels.push(Level { header, page, visited: 0 });
        Ok(())
    }

    /// Goes to the next element of a leaf; false at the end.
    fn advance(&mut self) -> Result<bool, BoltError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(false) };
            let count = usize::from(level.header.count);
            if level.visited == count {
                self.levels.pop();
                continue;
            }
            level.visited += 1;
            if level.header.flags == LEAF {
                return Ok(true);
            }
            let index = index(self.direction, level.visited, count);
            let (_, child) = page::child(&level.page, index)
                .ok_or_else(|| BoltError::corrupt(level.header.id, "an element points outside of the page"))?;
            self.descend(child)?;
        }
    }

    /// The element that `advance` went to, and its page.
    fn current(&self) -> Result<(u64, page::Leaf<'_>), BoltError> {
        let root = self.backend.meta.root;
        let level = self.levels.last().ok_or_else(|| BoltError::corrupt(root, "no current element"))?;
        let at = if self.inline { root } else { level.header.id };
        let index = index(self.direction, level.visited, level.header.count.into());
        let leaf = page::leaf(&level.page, index)
            .ok_or_else(|| BoltError::corrupt(at, "an element points outside of the page"))?;
        Ok((at, leaf))
    }
}

fn index(direction: Direction, visited: usize, count: usize) -> usize {
    match direction {
        Direction::Forward => visited - 1,
        Direction::Backward => count - visited,
    }
}

/// Decodes the bucket `key`, checking that revisions keep their order.
struct Versions<'a> {
    cursor: Result<Cursor<'a>, Option<BoltError>>,
    previous: Option<Revision>,
}

impl<'a> Versions<'a> {
    fn new(backend: &'a Backend, direction: Direction) -> Self {
        // `open` made sure that the bucket is there.
        let cursor = match backend.buckets.get(b"key".as_slice()) {
            Some(root) => Cursor::new(backend, root, direction).map_err(Some),
            None => Err(None),
        };
        Self { cursor, previous: None }
    }

    fn step(cursor: &mut Cursor<'_>, previous: &mut Option<Revision>) -> Result<Option<Stored>, BoltError> {
        if !cursor.advance()? {
            return Ok(None);
        }
        let (at, leaf) = cursor.current()?;
        let (revision, tombstone) = key_value::revision(leaf.key)
            .ok_or_else(|| BoltError::corrupt(at, "a key of the bucket `key` is not a revision"))?;
        let ordered = previous.is_none_or(|before| match cursor.direction {
            Direction::Forward => before < revision,
            Direction::Backward => before > revision,
        });
        if !ordered {
            return Err(BoltError::corrupt(at, "revisions are out of order"));
        }
        *previous = Some(revision);
        let key_value = key_value::decode(leaf.value).ok_or_else(|| {
            BoltError::corrupt(at, format!("the value at revision {} does not decode", revision.main))
        })?;
        Ok(Some(Stored { revision, tombstone, key_value }))
    }
}

impl Iterator for Versions<'_> {
    type Item = Result<Stored, BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match &mut self.cursor {
            Ok(cursor) => Self::step(cursor, &mut self.previous),
            Err(error) => return error.take().map(Err),
        };
        if step.is_err() {
            self.cursor = Err(None);
        }
        step.transpose()
    }
}
