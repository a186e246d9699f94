//! Writes a backend file from nothing: pages of a bucket are filled in key order and written as they get full, branches
//! grow above them (a B+ tree, bottom-up). Memory is one page for each level of the tree, whatever the file's size.
//!
//! The layout is the one bbolt writes: two meta pages, an empty freelist, then pages of the buckets. Behind the last page
//! follows the SHA-256 of all before, as etcd's snapshots carry it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::BoltError;
use super::behind::Behind;
use super::meta;
use super::page::{BRANCH, FREELIST, HEADER, LEAF};

/// Written at once.
const BUFFER_BYTES: usize = 1 << 20;
/// A leaf of values larger than a page is filled up to here, so that little of its last page stays empty.
const LEAF_BYTES_MAX: usize = 16 << 10;
/// Where the freelist lies, and the first page behind it.
const FREELIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;
/// A page counts its elements in 16 bits; bbolt takes the largest number for something else.
const ELEMENTS_MAX: usize = 0xFFFE;
/// Flag of an element that is a bucket.
const BUCKET: u64 = 1;

/// A backend file in the making. Buckets are written one after the other, each in key order.
pub struct Writer {
    pages: Pages,
    bucket: Option<(Vec<u8>, Tree)>,
    /// Finished buckets and what their parent keeps of them.
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file that was written whole.
#[derive(Debug)]
pub struct Written {
    pub file: File,
    /// Bytes with the trailer.
    pub size_bytes: u64,
    /// Of the bytes before the trailer: what the trailer holds.
    pub sha256: [u8; 32],
}

impl Writer {
    /// Begins an empty file. `page_size` is in bytes, one of those bbolt knows.
    pub fn new(file: File, page_size: u32) -> Result<Self, BoltError> {
        if !meta::PAGE_SIZES.contains(&page_size) {
            return Err(BoltError::Misuse(format!("{page_size} is no page size")));
        }
        let page_size = page_size as usize;
        let behind = Behind::begin(file.try_clone().map_err(BoltError::Write)?);
        let flushed = FIRST_PAGE * page_size as u64;
        let pages = Pages { file, behind, page_size, next: FIRST_PAGE, buffer: Vec::new(), flushed };
        Ok(Self { pages, bucket: None, buckets: Vec::new() })
    }

    /// Begins a bucket; the one before it is finished.
    pub fn begin(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.end()?;
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds an entry to the bucket that was begun. Keys must come in order, each once.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        let Some((_, tree)) = &mut self.bucket else {
            return Err(BoltError::Misuse("an entry outside of a bucket".to_owned()));
        };
        tree.put(&mut self.pages, key, value, 0)
    }

    fn end(&mut self) -> Result<(), BoltError> {
        let Some((name, tree)) = self.bucket.take() else { return Ok(()) };
        let inline_max = self.pages.page_size / 4;
        let value = match tree.levels.as_slice() {
            [] => bucket_value(0, &Node::default().page(LEAF, 0, HEADER)),
            [only] if only.bytes() <= inline_max => bucket_value(0, &only.page(LEAF, 0, only.bytes())),
            _ => bucket_value(tree.finish(&mut self.pages)?, &[]),
        };
        self.buckets.push((name, value));
        Ok(())
    }

    /// Writes what is left, the meta pages and the trailer. The file is not synced.
    pub fn finish(self) -> Result<Written, BoltError> {
        self.close()?.trail()
    }

    /// Writes what is left and the meta pages.
    pub fn close(mut self) -> Result<Untrailed, BoltError> {
        self.end()?;
        self.buckets.sort();
        let mut root = Tree::default();
        for (name, value) in std::mem::take(&mut self.buckets) {
            root.put(&mut self.pages, &name, &value, BUCKET)?;
        }
        if root.levels.is_empty() {
            return Err(BoltError::Misuse("a file without buckets".to_owned()));
        }
        let root = root.finish(&mut self.pages)?;
        let (file, page_size, next) = self.pages.flush()?;
        let freelist = header(FREELIST_PAGE, FREELIST, 0, 0);
        write_page(&file, page_size, FREELIST_PAGE, &freelist)?;
        for page in [0, 1] {
            // The page's number is the transaction's parity.
            let content = meta::encode(page, page_size, root, FREELIST_PAGE, next, 2 + page);
            write_page(&file, page_size, page, &content)?;
        }
        Ok(Untrailed { file, bytes: next * page_size as u64 })
    }
}

/// A backend file without a snapshot's trailer. The first pages are known last, so the digest takes a pass of its own: whoever
/// reads the file anyway makes it on the way.
#[derive(Debug)]
pub struct Untrailed {
    pub file: File,
    pub bytes: u64,
}

impl Untrailed {
    /// Bytes that it will have with its trailer.
    pub fn size_bytes(&self) -> u64 {
        self.bytes + Sha256::output_size() as u64
    }

    /// Reads it once and appends the trailer.
    pub fn trail(self) -> Result<Written, BoltError> {
        let Self { file, bytes } = self;
        let sha256 = digest(&file, bytes)?;
        file.write_all_at(&sha256, bytes).map_err(BoltError::Write)?;
        Ok(Written { file, size_bytes: bytes + sha256.len() as u64, sha256 })
    }
}

fn digest(file: &File, bytes: u64) -> Result<[u8; 32], BoltError> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < bytes {
        let now = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..now], at)?;
        digest.update(&buffer[..now]);
        at += now as u64;
    }
    Ok(digest.finalize().into())
}

fn write_page(file: &File, page_size: usize, id: u64, content: &[u8]) -> Result<(), BoltError> {
    let mut page = vec![0; page_size];
    page[..content.len()].copy_from_slice(content);
    file.write_all_at(&page, id * page_size as u64).map_err(BoltError::Write)
}

/// The value of a bucket's element: root page, sequence, and an inline page if there is no root.
fn bucket_value(root: u64, inline: &[u8]) -> Vec<u8> {
    [&root.to_le_bytes(), &0u64.to_le_bytes(), inline].concat()
}

fn header(id: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    [&id.to_le_bytes()[..], &flags.to_le_bytes(), &count.to_le_bytes(), &overflow.to_le_bytes()].concat()
}

/// Pages in file order.
struct Pages {
    file: File,
    behind: Behind,
    page_size: usize,
    /// Number of the next page.
    next: u64,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    flushed: u64,
}

impl Pages {
    /// Writes a node behind the last page; returns its number.
    fn append(&mut self, node: &Node, flags: u16) -> Result<u64, BoltError> {
        let id = self.next;
        let pages = node.bytes().div_ceil(self.page_size);
        // The overflow is known only with the size of a page.
        let overflow =
            u32::try_from(pages - 1).map_err(|_| BoltError::TooLarge(format!("an entry of {} bytes", node.bytes())))?;
        let at = self.buffer.len();
        node.append_page(&mut self.buffer, flags, id, pages * self.page_size);
        self.buffer[at + 12..at + 16].copy_from_slice(&overflow.to_le_bytes());
        self.next += pages as u64;
        if self.buffer.len() >= BUFFER_BYTES {
            self.write()?;
        }
        Ok(id)
    }

    fn write(&mut self) -> Result<(), BoltError> {
        let bytes = self.buffer.len();
        let buffer = std::mem::replace(&mut self.buffer, Vec::with_capacity(bytes));
        self.behind.write(buffer, self.flushed)?;
        self.flushed += bytes as u64;
        Ok(())
    }

    /// The file, the size of its pages, and how many there are.
    fn flush(mut self) -> Result<(File, usize, u64), BoltError> {
        self.write()?;
        self.behind.finish()?;
        Ok((self.file, self.page_size, self.next))
    }
}

/// The right edge of a bucket's tree: leaves at 0, the root last.
#[derive(Default)]
struct Tree {
    levels: Vec<Node>,
    last_key: Vec<u8>,
}

impl Tree {
    fn put(&mut self, pages: &mut Pages, key: &[u8], value: &[u8], flags: u64) -> Result<(), BoltError> {
        if self.levels.is_empty() {
            self.levels.push(Node::default());
        } else if self.last_key.as_slice() >= key {
            return Err(BoltError::Misuse("keys are out of order".to_owned()));
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        let leaf = &mut self.levels[0];
        if leaf.is_full_for(key.len() + value.len(), pages.page_size) {
            let mut full = std::mem::take(leaf);
            self.close(pages, 0, &full)?;
            // Its memory serves the next leaf.
            full.heads.clear();
            full.data.clear();
            self.levels[0] = full;
        }
        self.levels[0].push(key, value, flags)
    }

    /// Writes a full node of a level and adds it to the level above.
    fn close(&mut self, pages: &mut Pages, level: usize, node: &Node) -> Result<(), BoltError> {
        let id = pages.append(node, if level == 0 { LEAF } else { BRANCH })?;
        let key = node.key(0).to_vec();
        if self.levels.len() == level + 1 {
            self.levels.push(Node::default());
        }
        let parent = &mut self.levels[level + 1];
        let crowded = parent.heads.len() > 2 && parent.bytes() + HEADER + key.len() > pages.page_size;
        if crowded || parent.is_counted_out() {
            // The last child moves on, so that no branch ends up with a single one.
            let last = parent.pop();
            let full = std::mem::take(parent);
            parent.push(&last.0, &[], last.1)?;
            parent.push(&key, &[], id)?;
            return self.close(pages, level + 1, &full);
        }
        parent.push(&key, &[], id)
    }

    /// Writes the nodes of the edge; returns the root's page.
    fn finish(mut self, pages: &mut Pages) -> Result<u64, BoltError> {
        let mut level = 0;
        loop {
            let node = std::mem::take(&mut self.levels[level]);
            if level + 1 == self.levels.len() {
                return pages.append(&node, if level == 0 { LEAF } else { BRANCH });
            }
            self.close(pages, level, &node)?;
            level += 1;
        }
    }
}

/// Elements of one page to be.
#[derive(Default)]
struct Node {
    heads: Vec<Head>,
    /// Keys and values, one behind the other.
    data: Vec<u8>,
}

struct Head {
    key: u32,
    value: u32,
    /// Where its key begins in the data.
    at: usize,
    /// Flags of a leaf's element, or the page of a branch's.
    tag: u64,
}

impl Node {
    fn bytes(&self) -> usize {
        HEADER + self.heads.len() * HEADER + self.data.len()
    }

    fn is_counted_out(&self) -> bool {
        self.heads.len() >= ELEMENTS_MAX
    }

    /// Whether a leaf is better closed than given another entry.
    fn is_full_for(&self, entry: usize, page_size: usize) -> bool {
        let (now, then) = (self.bytes(), self.bytes() + HEADER + entry);
        if self.heads.is_empty() || then <= page_size {
            return false;
        }
        let wasted = now.next_multiple_of(page_size) - now;
        self.is_counted_out() || wasted * 8 <= now || then > LEAF_BYTES_MAX.max(page_size)
    }

    fn push(&mut self, key: &[u8], value: &[u8], tag: u64) -> Result<(), BoltError> {
        let size = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| BoltError::TooLarge(format!("an entry of {} bytes", bytes.len())))
        };
        self.heads.push(Head { key: size(key)?, value: size(value)?, at: self.data.len(), tag });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        Ok(())
    }

    /// Takes the last element off a branch: its key and its page.
    fn pop(&mut self) -> (Vec<u8>, u64) {
        self.heads.pop().map_or_else(Default::default, |head| (self.data.split_off(head.at), head.tag))
    }

    fn key(&self, index: usize) -> &[u8] {
        self.heads.get(index).map_or(&[], |head| &self.data[head.at..head.at + head.key as usize])
    }

    /// The page's bytes, filled up with zeros to a size.
    fn page(&self, flags: u16, id: u64, size: usize) -> Vec<u8> {
        let mut page = Vec::with_capacity(size);
        self.append_page(&mut page, flags, id, size);
        page
    }

    /// The same behind what a buffer holds.
    fn append_page(&self, page: &mut Vec<u8>, flags: u16, id: u64, size: usize) {
        // `push` is never called on a node with as many elements as the count can't hold.
        let count = u16::try_from(self.heads.len()).unwrap_or(u16::MAX);
        let end = page.len() + size;
        page.extend_from_slice(&header(id, flags, count, 0));
        for (index, head) in self.heads.iter().enumerate() {
            let position = (self.heads.len() - index) * HEADER + head.at;
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            if flags == BRANCH {
                page.extend_from_slice(&position.to_le_bytes());
                page.extend_from_slice(&head.key.to_le_bytes());
                page.extend_from_slice(&head.tag.to_le_bytes());
            } else {
                let flags = if head.tag == BUCKET { 1u32 } else { 0 };
                for number in [flags, position, head.key, head.value] {
                    page.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        page.extend_from_slice(&self.data);
        page.resize(end.max(page.len()), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bolt::{Backend, Scanner};

    fn key(n: u64) -> Vec<u8> {
        super::super::revision_key(super::super::Revision { main: n.cast_signed() + 1, sub: 0 }, false)
    }

    fn value(n: usize, size: usize) -> Vec<u8> {
        let revision = n as i64 + 1;
        super::super::encode(&crate::ports::KeyValue {
            key: n.to_be_bytes().to_vec(),
            value: vec![n as u8; size],
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        })
    }

    fn write(sizes: &[usize], page_size: u32) -> Written {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), page_size).unwrap();
        writer.begin(b"key").unwrap();
        for (n, size) in sizes.iter().enumerate() {
            writer.put(&key(n as u64), &value(n, *size)).unwrap();
        }
        writer.begin(b"meta").unwrap();
        writer.put(b"consistent_index", &7u64.to_be_bytes()).unwrap();
        writer.begin(b"empty").unwrap();
        writer.finish().unwrap()
    }

    fn check(sizes: &[usize], page_size: u32) -> Written {
        let written = write(sizes, page_size);
        let backend = Backend::open(written.file.try_clone().unwrap()).unwrap();
        let info = backend.info().unwrap();
        assert_eq!((info.size_bytes + 32, info.page_size, info.consistent_index), (written.size_bytes, page_size, 7));
        let mut entries = backend.bucket("key").unwrap().unwrap();
        for (n, size) in sizes.iter().enumerate() {
            let (found, content) = entries.next_entry().unwrap().unwrap();
            assert!(found == key(n as u64) && content == value(n, *size), "entry {n}");
        }
        assert!(entries.next_entry().unwrap().is_none());
        assert!(backend.bucket("empty").unwrap().unwrap().next_entry().unwrap().is_none());
        written
    }

    #[test]
    fn deep_trees_pass_bbolts_own_check() {
        // Three levels of branches on the smallest pages; etcdutl runs bbolt's check of every page.
        let sizes: Vec<usize> = (0..60_000).map(|n| if n % 5000 == 17 { 40_000 } else { n % 90 }).collect();
        let written = check(&sizes, 1024);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.db");
        let mut bytes = vec![0; usize::try_from(written.size_bytes).unwrap()];
        written.file.read_exact_at(&mut bytes, 0).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let status = std::process::Command::new(crate::bolt::tests::binary("etcdutl-3.6.16"))
            .args(["snapshot", "status", "-w", "json"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
    }

    #[test]
    fn values_of_six_kilobytes_waste_little() {
        let written = check(&[6000; 1000], 4096);
        assert!(written.size_bytes < 6000 * 1000 * 11 / 10, "{}", written.size_bytes);
    }

    #[test]
    fn misuse_is_an_error() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), 4096).unwrap();
        assert!(matches!(writer.put(b"a", b""), Err(BoltError::Misuse(_))));
        writer.begin(b"key").unwrap();
        writer.put(b"b", b"").unwrap();
        assert!(matches!(writer.put(b"b", b""), Err(BoltError::Misuse(_))));
        assert!(matches!(Writer::new(tempfile::tempfile().unwrap(), 4097), Err(BoltError::Misuse(_))));
        let empty = Writer::new(tempfile::tempfile().unwrap(), 4096).unwrap();
        assert!(matches!(empty.finish(), Err(BoltError::Misuse(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(
            sizes in proptest::collection::vec(prop_oneof![0..40usize, 500..9000usize, 30_000..80_000usize], 0..200),
            page_size in prop_oneof![Just(1024u32), Just(4096), Just(65536)],
        ) {
            let written = check(&sizes, page_size);
            let mut content = vec![0; usize::try_from(written.size_bytes).unwrap() - 32];
            written.file.read_exact_at(&mut content, 0).unwrap();
            prop_assert_eq!(<[u8; 32]>::from(Sha256::digest(&content)), written.sha256);
            let mut scanner = Scanner::new(0);
            scanner.push(&content).unwrap();
            prop_assert_eq!(scanner.finish().unwrap().versions, sizes.len() as u64);
        }
    }
}
