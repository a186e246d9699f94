//! Sealed segments on this machine's disk while the bucket is away. They are encrypted as they will be in the bucket.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::SegmentName;
use crate::ports::{ErrorCode, PortError, PortResult};

/// A directory of waiting segments, oldest first.
pub(super) struct Spool {
    dir: PathBuf,
    limit_bytes: u64,
    waiting: Vec<(SegmentName, u64)>,
}

impl Spool {
    /// Opens a directory, with what an earlier process left in it. What was never whole is removed.
    pub fn open(dir: &Path, limit_bytes: u64) -> PortResult<Self> {
        let failed = |e: std::io::Error| local(dir, &e);
        fs::create_dir_all(dir).map_err(failed)?;
        let mut waiting = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".hk-dr-") {
                fs::remove_file(entry.path()).map_err(failed)?;
            } else if let Some(segment) = SegmentName::parse(&name.replacen('_', "/", 1)) {
                waiting.push((segment, entry.metadata().map_err(failed)?.len()));
            }
        }
        waiting.sort();
        Ok(Self { dir: dir.to_owned(), limit_bytes, waiting })
    }

    pub fn bytes(&self) -> u64 {
        self.waiting.iter().map(|(_, bytes)| bytes).sum()
    }

    fn path(&self, name: &SegmentName) -> PathBuf {
        self.dir.join(format!("{:016}_{}", name.epoch, name.file()))
    }

    /// Keeps a segment: on the disk when this returns.
    pub fn add(&mut self, name: SegmentName, sealed: &Bytes) -> PortResult<()> {
        if self.bytes() + sealed.len() as u64 > self.limit_bytes {
            let message = format!(
                "the bucket is away and the spool {} holds its limit of {} bytes: revisions {}-{} could not be kept",
                self.dir.display(),
                self.limit_bytes,
                name.first,
                name.last
            );
            return Err(PortError::new(ErrorCode::LimitExceeded, message).hint(
                "what was spooled stays; etcd keeps the rest until it is compacted. Bring the bucket back or raise \
                 --spool-max, then start `hk-dr log ship` again: it continues, or closes the gap with a new snapshot",
            ));
        }
        let path = self.path(&name);
        let failed = |e: std::io::Error| local(&path, &e);
        let mut file =
            tempfile::Builder::new().prefix(".hk-dr-").tempfile_in(&self.dir).map_err(|e| local(&self.dir, &e))?;
        file.write_all(sealed).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|e| local(&path, &e.error))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        self.waiting.push((name, sealed.len() as u64));
        Ok(())
    }

    /// The segment that is next.
    pub fn oldest(&self) -> PortResult<Option<(SegmentName, Bytes)>> {
        let Some((name, _)) = self.waiting.first() else { return Ok(None) };
        let path = self.path(name);
        let sealed = fs::read(&path).map_err(|e| local(&path, &e))?;
        Ok(Some((name.clone(), Bytes::from(sealed))))
    }

    /// Forgets the oldest: it is in the bucket.
    pub fn stored(&mut self) -> PortResult<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (name, _) = self.waiting.remove(0);
        let path = self.path(&name);
        fs::remove_file(&path).map_err(|e| local(&path, &e))
    }
}

fn local(path: &Path, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("the log's spool at {}: {error}", path.display()))
        .hint("segments that wait there stay; free space or repair the disk, then start `hk-dr log ship` again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_wait_in_order_over_restarts_up_to_the_limit() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let name = |epoch, first| SegmentName { epoch, first, last: first + 1 };
        let mut spool = Spool::open(dir.path(), 100).unwrap();
        spool.add(name(2, 10), &Bytes::from(vec![1; 40])).unwrap();
        spool.add(name(2, 12), &Bytes::from(vec![2; 40])).unwrap();
        let full = spool.add(name(2, 14), &Bytes::from(vec![3; 40])).unwrap_err();
        assert_eq!(full.code, ErrorCode::LimitExceeded);
        assert!(full.message.contains("14-15"), "{full}");
        fs::write(dir.path().join(".hk-dr-half"), "x").unwrap();
        let mut spool = Spool::open(dir.path(), 100).unwrap();
        assert_eq!(spool.bytes(), 80);
        let (first, sealed) = spool.oldest().unwrap().unwrap();
        assert_eq!((first.clone(), sealed.len()), (name(2, 10), 40));
        assert_eq!(fs::metadata(spool.path(&first)).unwrap().permissions().mode() & 0o777, 0o600);
        spool.stored().unwrap();
        assert_eq!(spool.oldest().unwrap().unwrap().0, name(2, 12));
        spool.stored().unwrap();
        assert_eq!((spool.oldest().unwrap(), spool.bytes()), (None, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
