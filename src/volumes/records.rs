//! What is known of backups of volumes: signed documents beside restic's repository. A backup is named in restic by the digest
//! of its snapshot, which covers every file in it, so a signature over that name vouches for all of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition, Vouched};

const DOCUMENT_BYTES_MAX: u64 = 64 << 10;
/// The version of these documents.
const FORMAT: u32 = 1;

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
}

/// A backup and what it is worth.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    #[serde(flatten)]
    pub backup: Backup,
    pub checked: Option<Checked>,
    pub signature: Vouched,
}

impl Entry {
    /// In the words of snapshots: unproven until it was read, proven when it was restored.
    pub fn worth(&self) -> String {
        match &self.checked {
            None => "unproven".to_owned(),
            Some(Checked { at, problem: Some(problem), .. }) => {
                format!("BAD since {}: {problem}", at.strftime("%Y-%m-%d %H:%M"))
            }
            Some(Checked { at, level, .. }) if level == "restore" => {
                format!("proven by restore {}", at.strftime("%Y-%m-%d %H:%M"))
            }
            Some(Checked { at, .. }) => format!("verified {}", at.strftime("%Y-%m-%d %H:%M")),
        }
    }
}

/// The records of a cluster in a bucket.
pub struct Records<'a> {
    pub store: &'a dyn ObjectStore,
    pub cluster: &'a str,
}

impl Records<'_> {
    fn key(&self, id: &str, name: &str) -> String {
        format!("{}/backups/{id}/{name}", super::prefix(self.cluster))
    }

    pub(super) async fn keep(&self, backup: &Backup) -> PortResult<()> {
        let text = json(backup)?;
        self.store.put(&self.key(&backup.id, "manifest.json"), text.into(), PutCondition::Absent).await.map(|_| ())
    }

    /// Records what was found out.
    pub async fn judge(&self, id: &str, checked: &Checked) -> PortResult<()> {
        let text = json(checked)?;
        self.store.put(&self.key(id, "verify.json"), text.into(), PutCondition::Any).await.map(|_| ())
    }

    /// All of them, newest first, and what is wrong with those that can't be read or are not signed.
    pub async fn list(&self) -> PortResult<(Vec<Entry>, Vec<PortError>)> {
        let prefix = format!("{}/backups/", super::prefix(self.cluster));
        let objects = self.store.list(&prefix).await?;
        let ids = objects.iter().filter_map(|o| o.key.strip_prefix(&prefix)?.strip_suffix("/manifest.json"));
        let (mut entries, mut unreadable) = (BTreeMap::new(), Vec::new());
        for id in ids {
            match self.read(id).await {
                Ok(entry) => drop(entries.insert(id.to_owned(), entry)),
                Err(e) if matches!(e.code, ErrorCode::Corrupt | ErrorCode::Unsigned | ErrorCode::LimitExceeded) => {
                    unreadable.push(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok((entries.into_values().rev().collect(), unreadable))
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

    async fn read(&self, id: &str) -> PortResult<Entry> {
        let key = self.key(id, "manifest.json");
        let (text, signature) = self.store.get_vouched(&key, DOCUMENT_BYTES_MAX).await?;
        let backup: Backup = serde_json::from_slice(&text)
            .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}")))?;
        if backup.format != FORMAT || backup.id != id || backup.cluster != self.cluster {
            let message = format!("{key} describes backup {} of cluster {}", backup.id, backup.cluster);
            return Err(PortError::new(ErrorCode::Corrupt, message).hint("it was copied or changed: do not use it"));
        }
        let checked = match self.store.get(&self.key(id, "verify.json"), DOCUMENT_BYTES_MAX).await {
            Ok(text) => serde_json::from_slice(&text).ok(),
            Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::LimitExceeded | ErrorCode::Unsigned) => None,
            Err(e) => return Err(e),
        };
        Ok(Entry { backup, checked, signature })
    }
}

fn json(value: &impl Serialize) -> PortResult<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| PortError::new(ErrorCode::Invalid, format!("write a record: {e}")))
}
