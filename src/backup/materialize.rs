//! Any revision as an ordinary etcd snapshot, without an etcd: keys of a snapshot come sorted by revision, the log follows
//! in the same order, and what is later is left out.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

use crate::bolt::{
    Backend, BackendInfo, Revision, Untrailed, Writer, Written, encode_lease, key_and_lease, revision, revision_key,
};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Time to live of a lease of which nothing is known but that a key refers to it, in seconds: long enough that a cluster
/// is up again before the key goes, short enough that it does go. Kubernetes' events live as long.
pub const UNKNOWN_TTL_SECONDS: i64 = 3600;

/// How long what was written may stay in memory while more is written.
const WRITE_BEHIND: Duration = Duration::from_millis(200);

/// One change out of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub tombstone: bool,
    /// `mvccpb.KeyValue`, byte for byte as etcd stores it.
    pub value: Vec<u8>,
}

/// What follows a snapshot in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logged {
    Change(Change),
    /// A lease that a key is attached to, with the time to live it was granted, in seconds.
    Lease {
        id: i64,
        ttl_seconds: i64,
    },
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Materialized {
    pub revision: i64,
    /// Revisions below this one are gone.
    pub compact_revision: i64,
    /// Versions of keys in the file, deletions included.
    pub versions: u64,
    /// Of these, how many came from the log.
    pub from_log: u64,
    /// Leases that keys refer to and that the snapshot did not have.
    pub leases_added: u64,
    /// With etcd's trailer.
    pub size_bytes: u64,
    /// What the trailer holds, once it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Writes the state at a revision (none: the newest there is) into `out`, which must be empty. Blocks; memory is a few
/// pages, 24 bytes for each existing key with a lease, and the leases.
pub fn materialize(
    base: &Backend,
    log: &mut dyn Iterator<Item = PortResult<Logged>>,
    at: Option<i64>,
    out: File,
) -> PortResult<(Materialized, Written)> {
    let (made, file) = rewrite(base, log, at, out)?;
    let written = file.trail()?;
    Ok((Materialized { sha256: Some(super::seal::hex(&written.sha256)), ..made }, written))
}

/// The same without the trailer.
pub(super) fn rewrite(
    base: &Backend,
    log: &mut dyn Iterator<Item = PortResult<Logged>>,
    at: Option<i64>,
    out: File,
) -> PortResult<(Materialized, Untrailed)> {
    let info = base.info()?;
    let newest = base.newest_revision()?;
    check_floor(&info, at)?;
    let mut work = Work {
        writer: Writer::new(out, info.page_size)?,
        hasher: RandomState::new(),
        leased: HashMap::new(),
        ttls: HashMap::new(),
        versions: 0,
    };
    work.writer.begin(b"key")?;
    let mut entries = base.bucket("key")?.ok_or_else(|| damaged("the bucket `key` is not there"))?;
    while let Some((key, value)) = entries.next_entry()? {
        let (revision, tombstone) = revision(key).ok_or_else(|| damaged("a key is not a revision"))?;
        if at.is_some_and(|at| revision.main > at) {
            break;
        }
        work.add(key, value, tombstone)?;
    }
    let in_base = work.versions;
    let reached = if at.is_some_and(|at| at <= newest) { at } else { work.append(log, newest, at)? };
    let reached = reached.unwrap_or(newest);
    if let Some(wanted) = at.filter(|at| *at > reached) {
        return Err(PortError::new(
            ErrorCode::NotFound,
            format!("revision {wanted} is not covered: the snapshot and its log end at revision {reached}"),
        )
        .hint(format!("nothing was written; --at {reached} is the newest that can be had")));
    }
    let leases_added = work.copy_the_rest(base, &info)?;
    let (versions, file) = (work.versions, work.writer.close()?);
    let made = Materialized {
        revision: reached,
        compact_revision: info.finished_compact_revision,
        versions,
        from_log: versions - in_base,
        leases_added,
        size_bytes: file.size_bytes(),
        sha256: None,
    };
    Ok((made, file))
}

/// A compaction that was ordered may have removed any version below it.
fn check_floor(info: &BackendInfo, at: Option<i64>) -> PortResult<()> {
    let floor = info.scheduled_compact_revision.max(info.finished_compact_revision).max(1);
    match at {
        Some(at) if at < floor => Err(PortError::new(
            ErrorCode::NotFound,
            format!("revision {at} is not in this snapshot: it was compacted at revision {floor}"),
        )
        .hint("nothing was written; an older snapshot may have it (hk-dr snapshot list)")),
        _ => Ok(()),
    }
}

fn damaged(what: &str) -> PortError {
    PortError::new(ErrorCode::Corrupt, format!("the snapshot is damaged: {what}"))
}

struct Work {
    writer: Writer,
    hasher: RandomState,
    /// Existing keys with a lease: hash of the key, id of the lease.
    leased: HashMap<u64, i64>,
    /// What the log says about leases.
    ttls: HashMap<i64, i64>,
    versions: u64,
}

impl Work {
    fn add(&mut self, key: &[u8], value: &[u8], tombstone: bool) -> PortResult<()> {
        let (name, lease) = key_and_lease(value).ok_or_else(|| damaged("a value does not decode"))?;
        let name = self.hasher.hash_one(name);
        if tombstone || lease == 0 {
            self.leased.remove(&name);
        } else {
            self.leased.insert(name, lease);
        }
        self.versions += 1;
        Ok(self.writer.put(key, value)?)
    }

    /// Adds what the log has behind the snapshot. Returns the revision that was reached. Each revision of etcd changes
    /// something, so a number that is missing is a gap.
    fn append(
        &mut self,
        log: &mut dyn Iterator<Item = PortResult<Logged>>,
        newest: i64,
        at: Option<i64>,
    ) -> PortResult<Option<i64>> {
        let mut last = Revision { main: newest, sub: i64::MAX };
        for logged in log {
            let change = match logged? {
                Logged::Lease { id, ttl_seconds } => {
                    self.ttls.insert(id, ttl_seconds);
                    continue;
                }
                Logged::Change(change) => change,
            };
            let now = change.revision;
            if now <= last || now.main == newest {
                continue;
            }
            if at.is_some_and(|at| now.main > at) {
                break;
            }
            let follows = if now.main == last.main { now.sub == last.sub + 1 } else { now.sub == 0 };
            if now.main > last.main + 1 || !follows {
                let message = format!(
                    "the log has a gap: revision {}.{} is followed by {}.{}",
                    last.main, last.sub, now.main, now.sub
                );
                return Err(PortError::new(ErrorCode::Corrupt, message)
                    .hint("nothing was written; a later snapshot may cover it (hk-dr log status)"));
            }
            self.add(&revision_key(now, change.tombstone), &change.value, change.tombstone)?;
            last = now;
        }
        Ok(Some(last.main))
    }

    /// Copies every other bucket, and adds leases without which keys would never expire: etcd drops a key's attachment
    /// to a lease that it does not know. Returns how many.
    fn copy_the_rest(&mut self, base: &Backend, info: &BackendInfo) -> PortResult<u64> {
        let mut added = 0;
        for name in info.buckets.iter().filter(|name| *name != "key") {
            self.writer.begin(name.as_bytes())?;
            let Some(mut entries) = base.bucket(name)? else { continue };
            if name == "lease" {
                let mut leases: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
                while let Some((id, lease)) = entries.next_entry()? {
                    leases.insert(id.to_vec(), lease.to_vec());
                }
                for id in self.leased.values() {
                    let ttl = self.ttls.get(id).copied().filter(|ttl| *ttl > 0).unwrap_or(UNKNOWN_TTL_SECONDS);
                    leases.entry(id.to_be_bytes().to_vec()).or_insert_with(|| {
                        added += 1;
                        encode_lease(*id, ttl)
                    });
                }
                for (id, lease) in leases {
                    self.writer.put(&id, &lease)?;
                }
            } else {
                while let Some((key, value)) = entries.next_entry()? {
                    self.writer.put(key, value)?;
                }
            }
        }
        Ok(added)
    }
}

/// Makes a file by its content's writer: private (0600), under a name of its own until it is whole and on the disk, and
/// never over a file that exists.
pub fn place<T>(path: &Path, write: impl FnOnce(File) -> PortResult<T>) -> PortResult<T> {
    let local = |e: &std::io::Error| PortError::new(ErrorCode::Local, format!("write {}: {e}", path.display()));
    refuse_existing(path)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Removed by itself if anything fails below; made with mode 0600.
    let mut temporary = tempfile::Builder::new().prefix(".hk-dr-").tempfile_in(directory).map_err(|e| local(&e))?;
    let out = temporary.as_file().try_clone().map_err(|e| local(&e))?;
    let (written, synced) = write_behind(temporary.as_file(), || write(out));
    let written = written?;
    synced.and_then(|()| temporary.flush()).and_then(|()| temporary.as_file().sync_all()).map_err(|e| local(&e))?;
    temporary.persist_noclobber(path).map_err(|e| local(&e.error))?;
    Ok(written)
}

/// Lets a file go to the disk while it is written, so that little is left to wait for at its end. The kernel tells an error of
/// the disk once for an open file, so what was told here must count.
fn write_behind<T>(file: &File, write: impl FnOnce() -> T) -> (T, io::Result<()>) {
    std::thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let syncing = scope.spawn(move || {
            while end.recv_timeout(WRITE_BEHIND) == Err(mpsc::RecvTimeoutError::Timeout) {
                file.sync_data()?;
            }
            Ok(())
        });
        let written = write();
        drop(ended);
        let died = || Err(io::Error::other("the thread that syncs died"));
        (written, syncing.join().unwrap_or_else(|_| died()))
    })
}

/// What is to be written must not be there.
pub(super) fn refuse_existing(path: &Path) -> PortResult<()> {
    if path.exists() {
        return Err(PortError::new(ErrorCode::Invalid, format!("{} exists already", path.display()))
            .hint("nothing was written; remove it or name another file"));
    }
    Ok(())
}
