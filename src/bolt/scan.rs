//! Learns what a backend file holds while its pages stream by once.
//!
//! A page can be live, free, or stale: free pages keep the bytes of old transactions, and the inside of a large value can
//! look like anything. Which pages are live is known only from the tree, whose branches may come after their leaves. So
//! every page that calls itself by its own number is a *candidate*, of which 16 bytes are kept (a branch: 4 bytes a
//! child), and when the last page has passed, the tree is walked from the root through the candidates. A page that only
//! looks like one is never referred to, so it is never counted; a live page that is missing means damage.
//!
//! Memory: 4 KiB in, 16 bytes kept: 6 MiB for a database of 1.5 GB, 32 MiB for 8 GB, plus a window that holds the largest
//! leaf page.

use std::collections::HashMap;

use super::BoltError;
use super::key_value;
use super::meta::{META_BYTES, Meta};
use super::page::{self, BRANCH, BucketRoot, Header, LEAF};
use super::reader::compact_revision;

/// The largest page (with overflow) that is looked at: four values of 8 MiB, five times etcd's default limit.
const PAGE_BYTES_MAX: usize = 32 << 20;
/// Children of branch candidates, at 4 bytes each. A database of 8 GB has two million.
const CHILDREN_MAX: usize = 6 << 20;
/// Bytes kept of leaves outside of the bucket `key` (the root, `meta`, and their stale copies).
const SIDE_BYTES_MAX: usize = 8 << 20;
/// Bytes for versions newer than the expected compaction, which are remembered one by one.
const DETAIL_BYTES_MAX: usize = 8 << 20;
/// What a leaf's details take beside the versions themselves.
const DETAIL_OVERHEAD: usize = 64;
/// A tree of 4 KiB pages this deep would hold more than any disk.
const DEPTH_MAX: usize = 24;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Bytes of the file without a snapshot's trailer.
    pub size_bytes: u64,
    /// The newest revision.
    pub revision: i64,
    /// Revision of the last finished compaction; 0: none.
    pub compact_revision: i64,
    /// Entries of the bucket `key`: all retained versions of all keys, deletions included.
    pub versions: u64,
    /// Keys that exist at the newest revision. Unknown while a compaction is half done.
    pub keys: Option<u64>,
    pub consistent_index: u64,
    pub term: u64,
    /// Pages of the file and how many of them the bucket `key` uses.
    pub pages: u64,
    pub page_size: u32,
}

/// Takes a backend file in order, in pieces of any size.
pub struct Scanner {
    /// Where a compaction is expected; versions behind it are remembered one by one, to count keys exactly.
    compact_hint: i64,
    /// The beginning of a page whose end has not come yet.
    window: Vec<u8>,
    /// Number of the page that is looked at next.
    next_page: u64,
    received: u64,
    meta: Option<Meta>,
    found: Candidates,
}

/// What looking at a page came to.
enum Step {
    /// So many bytes are done with.
    Done(usize),
    /// So many bytes must be there first.
    Needs(usize),
}

#[derive(Default)]
struct Candidates {
    leaves: Blocks<KeyLeaf>,
    branches: Blocks<Branch>,
    children: Blocks<u32>,
    side: HashMap<u32, SideLeaf>,
    side_bytes: usize,
    /// In the order of their pages.
    details: Vec<(u32, Box<[Detail]>)>,
    detail_bytes: usize,
    /// Candidates too large to be looked at.
    oversized: Vec<u32>,
}

/// A leaf of the bucket `key`, in 16 bytes.
#[derive(Clone, Copy)]
struct KeyLeaf {
    page: u32,
    count: u16,
    /// Versions that are no deletions.
    present: u16,
    /// First versions of keys, less deletions.
    births_less_deaths: i16,
    /// The last revision, 48 bits of it.
    last_main: [u8; 6],
}

#[derive(Clone, Copy)]
struct Branch {
    page: u32,
    first_child: u32,
    count: u16,
}

/// A leaf of any other bucket.
#[derive(Default)]
struct SideLeaf {
    count: u16,
    buckets: Vec<(Vec<u8>, BucketRoot)>,
    meta: MetaBucket,
}

#[derive(Default, Clone, Copy)]
struct MetaBucket {
    scheduled_compact: Option<i64>,
    finished_compact: Option<i64>,
    consistent_index: Option<u64>,
    term: Option<u64>,
}

#[derive(Clone, Copy)]
struct Detail {
    main: i64,
    present: bool,
    birth: bool,
    death: bool,
}

impl Scanner {
    /// A scanner for a file whose compaction is expected at a revision (0: none, or not known).
    pub fn new(compact_hint: i64) -> Self {
        Self { compact_hint, window: Vec::new(), next_page: 0, received: 0, meta: None, found: Candidates::default() }
    }

    /// Takes the next bytes. What is whole is looked at where it lies; only a page that continues in the next bytes is
    /// copied.
    pub fn push(&mut self, mut data: &[u8]) -> Result<(), BoltError> {
        self.received += data.len() as u64;
        let mut window = std::mem::take(&mut self.window);
        // Moved up once, not for every page of a large value.
        let mut done = 0;
        while done < window.len() {
            match self.step(&window[done..])? {
                Step::Done(bytes) => done += bytes,
                Step::Needs(bytes) => {
                    let missing = bytes.saturating_sub(window.len() - done).min(data.len());
                    if missing == 0 {
                        break;
                    }
                    let (now, later) = data.split_at(missing);
                    window.extend_from_slice(now);
                    data = later;
                }
            }
        }
        window.drain(..done);
        if window.is_empty() {
            while let Step::Done(bytes) = self.step(data)? {
                data = &data[bytes..];
            }
        }
        window.extend_from_slice(data);
        self.window = window;
        Ok(())
    }

    /// Looks at the page that begins `rest`.
    fn step(&mut self, rest: &[u8]) -> Result<Step, BoltError> {
        let Some(meta) = self.meta else {
            if rest.len() < META_BYTES {
                return Ok(Step::Needs(META_BYTES));
            }
            let first = Meta::parse(rest).map_err(|why| BoltError::corrupt(0, why))?;
            let page_size = first.page_size as usize;
            if rest.len() < page_size + META_BYTES {
                return Ok(Step::Needs(page_size + META_BYTES));
            }
            self.meta = Some(Meta::newer(Ok(first), Meta::parse(&rest[page_size..]))?);
            return Ok(Step::Done(0));
        };
        let page_size = meta.page_size as usize;
        if rest.len() < page_size {
            return Ok(Step::Needs(page_size));
        }
        // Most pages are the inside of values: their first bytes settle it.
        if self.next_page >= 2
            && rest[..8] == self.next_page.to_le_bytes()
            && let Some(header) = Header::parse(rest)
            && header.plausible(rest)
            && let Ok(number) = u32::try_from(header.id)
        {
            let pages = 1 + u64::from(header.overflow);
            let bytes = usize::try_from(pages.saturating_mul(page_size as u64)).unwrap_or(usize::MAX);
            if header.id + pages > meta.pages {
                // Beyond the end of the file: stale.
            } else if bytes > PAGE_BYTES_MAX {
                self.found.oversized.push(number);
            } else if rest.len() < bytes {
                return Ok(Step::Needs(bytes));
            } else {
                self.found.take(number, header, &rest[..bytes], self.compact_hint)?;
            }
        }
        // Only one page on, whatever the header claims: behind a stale page its former overflow may be in use again.
        self.next_page += 1;
        Ok(Step::Done(page_size))
    }

    /// Walks the tree once all bytes were taken.
    pub fn finish(self) -> Result<Summary, BoltError> {
        let meta = self.meta.ok_or_else(|| BoltError::corrupt(0, "the data ends before its meta pages do"))?;
        let size_bytes = meta.pages * u64::from(meta.page_size);
        if self.received != size_bytes {
            let what = format!("{} bytes arrived of {size_bytes}", self.received);
            return Err(BoltError::corrupt(self.received / u64::from(meta.page_size), what));
        }
        let found = &self.found;
        let mut buckets: HashMap<&[u8], &BucketRoot> = HashMap::new();
        found.walk(&meta, meta.root, &mut |page| {
            let leaf = found.side.get(&page).ok_or_else(|| missing(page))?;
            buckets.extend(leaf.buckets.iter().map(|(name, root)| (name.as_slice(), root)));
            Ok(())
        })?;
        let bucket = |name: &str| {
            let what = || BoltError::corrupt(meta.root, format!("the bucket `{name}` is not there"));
            buckets.get(name.as_bytes()).copied().ok_or_else(what)
        };

        let mut info = MetaBucket::default();
        match bucket("meta")? {
            BucketRoot::Inline(page) => {
                info = SideLeaf::read(page).ok_or_else(|| BoltError::corrupt(meta.root, "`meta` is damaged"))?.meta;
            }
            BucketRoot::Page(root) => found.walk(&meta, *root, &mut |page| {
                info.merge(found.side.get(&page).ok_or_else(|| missing(page))?.meta);
                Ok(())
            })?,
        }
        let compacted = info.finished_compact.unwrap_or(0);
        let half_done = info.scheduled_compact.unwrap_or(0) > compacted;

        let mut count = Count { compacted, last_main: 0, versions: 0, keys: (!half_done).then_some(0) };
        match bucket("key")? {
            BucketRoot::Inline(page) => {
                let damaged = || BoltError::corrupt(meta.root, "`key` is damaged");
                let header = Header::parse(page).ok_or_else(damaged)?;
                let (leaf, details) = KeyLeaf::read(0, header, page).ok_or_else(damaged)?;
                count.add(leaf, Some(&details), meta.root)?;
            }
            BucketRoot::Page(root) => found.walk(&meta, *root, &mut |page| match found.leaf(page) {
                Some(leaf) => count.add(leaf, found.details(page), page.into()),
                // An empty bucket's only page does not show what bucket it is of.
                None if found.side.get(&page).is_some_and(|leaf| leaf.count == 0) => Ok(()),
                None => Err(missing(page)),
            })?,
        }
        Ok(Summary {
            size_bytes,
            // After a compaction of everything the newest revision is the compaction's; an empty etcd is at 1.
            revision: count.last_main.max(compacted).max(1),
            compact_revision: compacted,
            versions: count.versions,
            keys: count.keys.and_then(|keys| u64::try_from(keys).ok()),
            consistent_index: info.consistent_index.unwrap_or(0),
            term: info.term.unwrap_or(0),
            pages: meta.pages,
            page_size: meta.page_size,
        })
    }
}

fn missing(page: u32) -> BoltError {
    BoltError::corrupt(page.into(), "the tree refers to this page, but it is not a page of the expected kind")
}

impl Candidates {
    /// Keeps what is needed of one candidate. What does not parse is stale bytes, or will be missed by the walk.
    fn take(&mut self, page: u32, header: Header, bytes: &[u8], compact_hint: i64) -> Result<(), BoltError> {
        if header.flags == BRANCH {
            let first_child = self.children.len();
            if first_child + usize::from(header.count) > CHILDREN_MAX {
                return Err(BoltError::TooLarge(format!("more than {CHILDREN_MAX} branches")));
            }
            let children: Option<Vec<u32>> = (0..usize::from(header.count))
                .map(|index| page::child(bytes, index).and_then(|(_, child)| u32::try_from(child).ok()))
                .collect();
            if let (Some(children), Ok(first_child)) = (children, u32::try_from(first_child)) {
                children.into_iter().for_each(|child| self.children.push(child));
                self.branches.push(Branch { page, first_child, count: header.count });
            }
        } else if let Some((leaf, details)) = KeyLeaf::read(page, header, bytes).filter(|_| header.count > 0) {
            self.leaves.push(leaf);
            let weight = DETAIL_OVERHEAD + size_of_val(&*details);
            if leaf.last_main() > compact_hint && self.detail_bytes + weight <= DETAIL_BYTES_MAX {
                self.detail_bytes += weight;
                self.details.push((page, details.into_boxed_slice()));
            }
        } else if let Some(leaf) = SideLeaf::read(bytes) {
            self.side_bytes += leaf.weight();
            if self.side_bytes > SIDE_BYTES_MAX {
                return Err(BoltError::TooLarge("too many pages that look like lists of buckets".to_owned()));
            }
            self.side.insert(page, leaf);
        }
        Ok(())
    }

    fn details(&self, page: u32) -> Option<&[Detail]> {
        let at = self.details.binary_search_by_key(&page, |(page, _)| *page).ok()?;
        Some(&self.details[at].1)
    }

    fn leaf(&self, page: u32) -> Option<KeyLeaf> {
        self.leaves.find(page, |leaf| leaf.page)
    }

    /// Calls back for every leaf page below a root, in key order.
    fn walk(
        &self,
        meta: &Meta,
        root: u64,
        each: &mut dyn FnMut(u32) -> Result<(), BoltError>,
    ) -> Result<(), BoltError> {
        let root = u32::try_from(root).map_err(|_| BoltError::corrupt(root, "a root outside of the file"))?;
        let mut stack = vec![(root, 0)];
        let mut pages = 0;
        while let Some((page, depth)) = stack.pop() {
            pages += 1;
            if depth > DEPTH_MAX || pages > meta.pages {
                return Err(BoltError::corrupt(page.into(), "the pages form a circle"));
            }
            match self.branches.find(page, |branch| branch.page) {
                Some(branch) => {
                    let first = branch.first_child as usize;
                    let children = (first..first + usize::from(branch.count)).rev();
                    stack.extend(children.filter_map(|at| Some((self.children.get(at)?, depth + 1))));
                }
                None if self.oversized.contains(&page) => {
                    let what = format!("page {page} holds values of more than {PAGE_BYTES_MAX} bytes");
                    return Err(BoltError::TooLarge(what));
                }
                None => each(page)?,
            }
        }
        Ok(())
    }
}

/// Adds up the leaves of the bucket `key`.
struct Count {
    compacted: i64,
    last_main: i64,
    versions: u64,
    keys: Option<i64>,
}

impl Count {
    /// Keys are counted without remembering any: behind a finished compaction each key has one version, or none; after
    /// it, each first version adds a key and each deletion removes one.
    fn add(&mut self, leaf: KeyLeaf, details: Option<&[Detail]>, page: u64) -> Result<(), BoltError> {
        let (before, last) = (self.last_main, leaf.last_main());
        if last < before {
            return Err(BoltError::corrupt(page, "revisions are out of order"));
        }
        self.last_main = last;
        self.versions += u64::from(leaf.count);
        let change = if last <= self.compacted {
            Some(i64::from(leaf.present))
        } else if before > self.compacted || self.compacted == 0 {
            Some(leaf.births_less_deaths.into())
        } else {
            // The one leaf in which the compaction lies: every version must be looked at.
            details.map(|details| {
                details.iter().map(|d| if d.main <= self.compacted { d.present.into() } else { d.difference() }).sum()
            })
        };
        self.keys = self.keys.zip(change).map(|(keys, change)| keys + change);
        Ok(())
    }
}

impl Detail {
    fn difference(&self) -> i64 {
        i64::from(self.birth) - i64::from(self.death)
    }
}

impl KeyLeaf {
    /// Reads a leaf all of whose keys are revisions.
    fn read(page: u32, header: Header, bytes: &[u8]) -> Option<(Self, Vec<Detail>)> {
        let mut details = Vec::with_capacity(header.count.into());
        for index in 0..usize::from(header.count) {
            let element = page::leaf(bytes, index)?;
            let (revision, tombstone) = key_value::revision(element.key)?;
            // `etcdutl --bump-revision` leaves an entry without a key: no version of anything.
            let version = if tombstone { 0 } else { key_value::version(element.value)? };
            details.push(Detail { main: revision.main, present: version > 0, birth: version == 1, death: tombstone });
        }
        let last = details.last().map_or(0, |d| d.main);
        let last_main = last.to_be_bytes();
        if last_main[..2] != [0, 0] {
            return None;
        }
        let difference: i64 = details.iter().map(Detail::difference).sum();
        let leaf = Self {
            page,
            count: header.count,
            present: u16::try_from(details.iter().filter(|d| d.present).count()).ok()?,
            births_less_deaths: i16::try_from(difference).ok()?,
            last_main: last_main[2..].try_into().ok()?,
        };
        Some((leaf, details))
    }

    fn last_main(&self) -> i64 {
        let [a, b, c, d, e, f] = self.last_main;
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl SideLeaf {
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = Header::parse(bytes).filter(|header| header.flags == LEAF)?;
        let mut side = Self { count: header.count, ..Self::default() };
        for index in 0..usize::from(header.count) {
            let element = page::leaf(bytes, index)?;
            if element.is_bucket {
                side.buckets.push((element.key.to_vec(), page::bucket_root(element.value)?));
                continue;
            }
            let number = element.value.try_into().ok().map(u64::from_be_bytes);
            match element.key {
                b"scheduledCompactRev" => side.meta.scheduled_compact = Some(compact_revision(element.value)),
                b"finishedCompactRev" => side.meta.finished_compact = Some(compact_revision(element.value)),
                b"consistent_index" => side.meta.consistent_index = number,
                b"term" => side.meta.term = number,
                _ => {}
            }
        }
        Some(side)
    }

    /// Bytes it takes in memory, roughly.
    fn weight(&self) -> usize {
        let bucket = |(name, root): &(Vec<u8>, BucketRoot)| {
            64 + name.len() + if let BucketRoot::Inline(page) = root { page.len() } else { 0 }
        };
        128 + self.buckets.iter().map(bucket).sum::<usize>()
    }
}

impl MetaBucket {
    fn merge(&mut self, other: Self) {
        self.scheduled_compact = other.scheduled_compact.or(self.scheduled_compact);
        self.finished_compact = other.finished_compact.or(self.finished_compact);
        self.consistent_index = other.consistent_index.or(self.consistent_index);
        self.term = other.term.or(self.term);
    }
}

/// A list that grows without ever being copied: a vector would need twice its size while it moves.
struct Blocks<T> {
    blocks: Vec<Vec<T>>,
}

const BLOCK: usize = 4096;

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { blocks: Vec::new() }
    }
}

impl<T: Copy> Blocks<T> {
    fn push(&mut self, item: T) {
        match self.blocks.last_mut().filter(|block| block.len() < BLOCK) {
            Some(block) => block.push(item),
            None => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(item);
                self.blocks.push(block);
            }
        }
    }

    fn len(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len())
    }

    fn get(&self, index: usize) -> Option<T> {
        self.blocks.get(index / BLOCK)?.get(index % BLOCK).copied()
    }

    /// Finds by page number: candidates are kept in the order they passed by.
    fn find(&self, page: u32, page_of: impl Fn(&T) -> u32) -> Option<T> {
        let block = self.blocks.partition_point(|block| block.last().is_some_and(|last| page_of(last) < page));
        let block = self.blocks.get(block)?;
        block.binary_search_by_key(&page, page_of).ok().map(|at| block[at])
    }
}
