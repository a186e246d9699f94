use super::BoltError;
use super::meta::{META_BYTES, Meta};

/// The beginning of a backend file or of a snapshot: which transaction it is, and how much belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub transaction: u64,
    /// Bytes of both meta pages; behind them the pages of the tree begin.
    pub bytes: usize,
    /// Bytes of the whole file, as far as the transaction uses it.
    pub size_bytes: u64,
}

impl Head {
    /// The most that [`Head::parse`] can ask for: two of the largest pages.
    pub const BYTES_MAX: usize = 2 * 65536;

    /// Reads the meta pages. None: more bytes are needed.
    ///
    /// # Errors
    /// `Corrupt` if neither of them is what etcd wrote.
    pub fn parse(data: &[u8]) -> Result<Option<Self>, BoltError> {
        if data.len() < META_BYTES {
            return Ok(None);
        }
        // A snapshot's first page is always whole. In a living file it may be the one that is being written.
        let first = Meta::parse(data);
        let page_size = first.map_or(crate::bolt::meta::PAGE_SIZES[0], |meta| meta.page_size) as usize;
        if data.len() < 2 * page_size {
            return Ok(None);
        }
        let meta = Meta::newer(first, Meta::parse(&data[page_size..]))?;
        let page_size = u64::from(meta.page_size);
        let bytes = usize::try_from(2 * page_size).unwrap_or(usize::MAX);
        Ok(Some(Self { transaction: meta.transaction, bytes, size_bytes: meta.pages * page_size }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bolt::tests::compacted_sample;

    #[test]
    fn a_head_is_read_as_soon_as_both_pages_are_there() {
        let snapshot = &compacted_sample().snapshot;
        let head = Head::parse(snapshot).unwrap().unwrap();
        // Behind the pages comes etcd's digest.
        assert_eq!(head.size_bytes + 32, snapshot.len() as u64);
        assert!(head.transaction > 0);
        assert_eq!(Head::parse(&snapshot[..head.bytes]).unwrap(), Some(head));
        for bytes in [0, 10, META_BYTES, head.bytes - 1] {
            assert_eq!(Head::parse(&snapshot[..bytes]).unwrap(), None, "{bytes}");
        }
    }

    #[test]
    fn a_page_that_is_being_written_leaves_the_other_one() {
        let mut file = compacted_sample().snapshot.clone();
        let head = Head::parse(&file).unwrap().unwrap();
        file[40] ^= 1;
        assert_eq!(Head::parse(&file).unwrap().unwrap().transaction, head.transaction - 1);
        file[head.bytes / 2 + 40] ^= 1;
        assert!(Head::parse(&file).is_err());
    }
}
