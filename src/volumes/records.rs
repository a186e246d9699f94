//! What is known of backups of volumes: signed documents beside restic's repository. A backup is named in restic by the digest
//! of its snapshot, which covers every file in it, so a signature over that name vouches for all of it.

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::Proof;
use crate::ports::{ErrorClass, ErrorCode, ObjectStore, PortError, PortResult, PutCondition, Vouched};

const DOCUMENT_BYTES_MAX: u64 = 64 << 10;
/// The version of these documents.
const FORMAT: u32 = 1;
/// Records read at the same time.
const READS: usize = 8;

/// What was backed up.
pub(super) const MANIFEST: &str = "manifest.json";
/// What was found out that proves most.
const VERIFY: &str = "verify.json";
/// What was found damaged last.
const BAD: &str = "bad.json";

/// One backup of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    pub format: u32,
    /// `<time>-<volume>`.
    pub id: String,
    pub cluster: String,
    pub volume: String,
    pub server: String,
    pub path: String,
    pub taken_at: Timestamp,
    pub finished_at: Timestamp,
    /// restic's full name of the snapshot.
    pub snapshot: String,
    pub files: u64,
    pub bytes: u64,
    /// What was new of it, before compression.
    pub added_bytes: u64,
    /// Whether a script quiesced what writes there.
    pub quiesced: bool,
    pub git_commit: Option<String>,
}

impl Backup {
    /// A new one's name.
    pub(super) fn id(at: Timestamp, volume: &str) -> String {
        format!("{}-{volume}", at.strftime("%Y%m%dT%H%M%SZ"))
    }

    pub(super) const FORMAT: u32 = FORMAT;
}

/// What somebody found out about a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    pub at: Timestamp,
    /// `read`: every byte of the repository was read and is whole. `restore`: it was restored, and every file compared.
    pub level: String,
    /// What was wrong; none: nothing.
    pub problem: Option<String>,
    /// Files, directories and all else that a restore brought back and that were compared with the backup's listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<u64>,
    #[serde(default)]
    pub hk_dr_version: String,
}

/// The level of reading every byte.
pub(super) const READ: &str = "read";
/// The level of a restore of which every file was compared.
pub(super) const RESTORE: &str = "restore";

impl Checked {
    /// It was whole.
    pub fn good(level: &str, at: Timestamp) -> Self {
        let hk_dr_version = env!("CARGO_PKG_VERSION").to_owned();
        Self { at, level: level.to_owned(), problem: None, compared: None, hk_dr_version }
    }

    /// It was not.
    pub fn bad(level: &str, at: Timestamp, problem: String) -> Self {
        Self { problem: Some(problem), ..Self::good(level, at) }
    }
}

/// How much a level proves.
fn rank(level: &str) -> u8 {
    match level {
        RESTORE => 2,
        READ => 1,
        _ => 0,
    }
}

/// A backup and what it is worth.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    #[serde(flatten)]
    pub backup: Backup,
    /// In the words of snapshots: unproven until it was read, proven when it was restored.
    pub proof: Proof,
    /// What proved most.
    pub checked: Option<Checked>,
    pub signature: Vouched,
}

/// A finding that something is damaged counts until it was found whole later.
fn proof(checked: Option<&Checked>, finding: Option<&Checked>) -> Proof {
    let good = checked.filter(|checked| checked.problem.is_none());
    if let Some(Checked { at, problem: Some(problem), .. }) = finding
        && good.is_none_or(|good| good.at <= *at)
    {
        return Proof::Bad { at: *at, problem: problem.clone() };
    }
    match good {
        None => Proof::Unproven,
        Some(good) if good.level == RESTORE => Proof::Proven { level: good.level.clone(), at: good.at },
        Some(good) => Proof::Verified { at: good.at },
    }
}

/// The records of a cluster in a bucket.
pub struct Records<'a> {
    pub store: &'a dyn ObjectStore,
    pub cluster: &'a str,
}

impl Records<'_> {
    pub(super) fn prefix(&self) -> String {
        format!("{}/backups/", super::prefix(self.cluster))
    }

    pub(super) fn key(&self, id: &str, name: &str) -> String {
        format!("{}{id}/{name}", self.prefix())
    }

    pub(super) async fn keep(&self, backup: &Backup) -> PortResult<()> {
        let text = json(backup)?;
        self.store.put(&self.key(&backup.id, MANIFEST), text.into(), PutCondition::Absent).await.map(|_| ())
    }

    /// Records what was found out. What proved more stays; that something is damaged stands beside it, until it is found
    /// whole. Nothing of this needs a right to delete.
    pub async fn judge(&self, id: &str, found: &Checked) -> PortResult<()> {
        if found.problem.is_some() {
            return self.put(&self.key(id, BAD), found).await;
        }
        // One of several buckets may be away and have it: what was found now is written to those that are there.
        let known = |read: PortResult<Option<Checked>>| match read {
            Err(e) if e.class() == ErrorClass::Transient => Ok(None),
            other => other,
        };
        let there = known(self.beside(id, VERIFY).await)?;
        if there.is_none_or(|there| rank(&there.level) <= rank(&found.level)) {
            self.put(&self.key(id, VERIFY), found).await?;
        }
        match known(self.beside(id, BAD).await)? {
            Some(Checked { problem: Some(_), .. }) => self.put(&self.key(id, BAD), found).await,
            _ => Ok(()),
        }
    }

    async fn put(&self, key: &str, document: &Checked) -> PortResult<()> {
        self.store.put(key, json(document)?.into(), PutCondition::Any).await.map(|_| ())
    }

    /// All of them, newest first, and what is wrong with those that can't be read or are not signed.
    pub async fn list(&self) -> PortResult<(Vec<Entry>, Vec<PortError>)> {
        let prefix = self.prefix();
        let objects = self.store.list(&prefix).await?;
        let there: BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
        let ids = objects.iter().filter_map(|o| o.key.strip_prefix(&prefix)?.strip_suffix("/manifest.json"));
        let judged = |id: &str| [VERIFY, BAD].iter().any(|name| there.contains(self.key(id, name).as_str()));
        let reads: Vec<_> =
            ids.filter(|id| !id.contains('/')).rev().map(|id| self.read(id, judged(id)).boxed()).collect();
        let results: Vec<PortResult<Entry>> = futures::stream::iter(reads).buffered(READS).collect().await;
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(entry) => entries.push(entry),
                // Removed since it was listed.
                Err(e) if e.code == ErrorCode::NotFound => {}
                Err(e) if matches!(e.code, ErrorCode::Corrupt | ErrorCode::Unsigned | ErrorCode::LimitExceeded) => {
                    unreadable.push(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok((entries, unreadable))
    }

    /// The newest of a volume, or the one of that name.
    pub async fn find(&self, volume: &str, wanted: &str) -> PortResult<Entry> {
        let (entries, unreadable) = self.list().await?;
        let of_volume: Vec<Entry> = entries.into_iter().filter(|e| e.backup.volume == volume).collect();
        let names: Vec<String> = of_volume.iter().take(10).map(|e| e.backup.id.clone()).collect();
        let found = of_volume.into_iter().find(|e| wanted == "latest" || e.backup.id == wanted);
        found.ok_or_else(|| {
            if let Some(refused) = unreadable.into_iter().next() {
                return refused;
            }
            let message = format!("there is no backup {wanted:?} of volume {volume} in {}", self.store.name());
            PortError::new(ErrorCode::NotFound, message).hint(match names.is_empty() {
                true => "nothing was touched; `hk-dr volume backup` makes the first".to_owned(),
                false => format!("nothing was touched; there are: {}", names.join(", ")),
            })
        })
    }

    async fn read(&self, id: &str, judged: bool) -> PortResult<Entry> {
        let key = self.key(id, MANIFEST);
        let (text, signature) = self.store.get_vouched(&key, DOCUMENT_BYTES_MAX).await?;
        let backup: Backup = serde_json::from_slice(&text)
            .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}")))?;
        if backup.format != FORMAT || backup.id != id || backup.cluster != self.cluster {
            let message = format!("{key} describes backup {} of cluster {}", backup.id, backup.cluster);
            return Err(PortError::new(ErrorCode::Corrupt, message).hint("it was copied or changed: do not use it"));
        }
        let (checked, finding) = match judged {
            true => (self.beside(id, VERIFY).await?, self.beside(id, BAD).await?),
            false => (None, None),
        };
        Ok(Entry { proof: proof(checked.as_ref(), finding.as_ref()), backup, checked, signature })
    }

    /// A document that can't be read, or is not signed, counts as none. For a verification that is the safe side.
    async fn beside(&self, id: &str, name: &str) -> PortResult<Option<Checked>> {
        match self.store.get(&self.key(id, name), DOCUMENT_BYTES_MAX).await {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::LimitExceeded | ErrorCode::Unsigned) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

fn json(value: &impl Serialize) -> PortResult<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| PortError::new(ErrorCode::Invalid, format!("write a record: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::MemoryStore;

    #[tokio::test]
    async fn what_proved_more_stays_and_damage_counts_until_it_is_found_whole() {
        let store = MemoryStore::new();
        let records = Records { store: &store, cluster: "demo" };
        let at = |second: i64| Timestamp::from_second(1_795_000_000 + second).unwrap();
        let backup = Backup {
            format: FORMAT,
            id: Backup::id(at(0), "shop"),
            cluster: "demo".to_owned(),
            volume: "shop".to_owned(),
            server: "w1".to_owned(),
            path: "/mnt/shop".to_owned(),
            taken_at: at(0),
            finished_at: at(1),
            snapshot: "ab".repeat(32),
            files: 1,
            bytes: 1,
            added_bytes: 1,
            quiesced: true,
            git_commit: None,
        };
        records.keep(&backup).await.unwrap();
        let judged = async |found: Checked| {
            records.judge(&backup.id, &found).await.unwrap();
            records.find("shop", "latest").await.unwrap().proof
        };
        assert_eq!(records.find("shop", "latest").await.unwrap().proof, Proof::Unproven);
        assert_eq!(judged(Checked::good(READ, at(2))).await, Proof::Verified { at: at(2) });
        let proven = Proof::Proven { level: RESTORE.to_owned(), at: at(3) };
        assert_eq!(judged(Checked::good(RESTORE, at(3))).await, proven);
        assert_eq!(judged(Checked::good(READ, at(4))).await, proven);
        let bad = judged(Checked::bad(READ, at(5), "torn".to_owned())).await;
        assert_eq!(bad, Proof::Bad { at: at(5), problem: "torn".to_owned() });
        assert_eq!(judged(Checked::good(READ, at(6))).await, proven);
        // A record that is gone since it was listed hides no other.
        store.truncate(&records.key(&backup.id, MANIFEST), 10);
        assert_eq!(records.list().await.unwrap().1.len(), 1);
    }
}
