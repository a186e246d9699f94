use std::fmt;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde::Serialize;

use super::manifest::{Finding, Manifest, Sealed, Verification};
use super::{Identities, layout, recovery, unpack, unseal};
use crate::ports::{
    Backups, ByteStream, Compared, ErrorCode, ObjectStore, PortError, PortResult, Reading, RecoverySet, Served,
    SnapshotInfo, Vouched,
};

/// Manifests read at the same time.
const READS: usize = 8;

/// What is known about a snapshot's worth. Reading it back proves that the bytes are there, not that a cluster rises from
/// them: only a start from it makes a snapshot proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Proof {
    /// Nobody has read it back.
    Unproven,
    /// Read back whole.
    Verified { at: Timestamp },
    /// Something rose from it, at that level.
    Proven { level: String, at: Timestamp },
    /// Whoever read it last found it damaged.
    Bad { at: Timestamp, problem: String },
}

impl Proof {
    fn of(verification: Option<&Verification>, finding: Option<Finding>) -> Self {
        let good_at = verification.map(|v| v.at);
        if let Some(Finding { at, problem: Some(problem), .. }) = finding
            && good_at.is_none_or(|good| good <= at)
        {
            return Self::Bad { at, problem };
        }
        match verification {
            None => Self::Unproven,
            Some(v) if v.level == "boot" || v.level == "drill" => Self::Proven { level: v.level.clone(), at: v.at },
            Some(v) => Self::Verified { at: v.at },
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unproven => f.write_str("unproven"),
            Self::Verified { at } => write!(f, "verified {}", at.strftime("%Y-%m-%d %H:%M")),
            Self::Proven { level, at } => write!(f, "proven by {level} {}", at.strftime("%Y-%m-%d %H:%M")),
            Self::Bad { at, problem } => write!(f, "BAD since {}: {problem}", at.strftime("%Y-%m-%d %H:%M")),
        }
    }
}

/// One snapshot in the bucket.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub manifest: Manifest,
    pub proof: Proof,
    pub verification: Option<Verification>,
    /// Who vouches for the manifest.
    pub signature: Vouched,
}

/// The snapshots of a cluster in a bucket.
pub struct Catalog<'a> {
    store: &'a dyn ObjectStore,
    cluster: &'a str,
}

impl<'a> Catalog<'a> {
    /// Nothing is read yet.
    pub fn new(store: &'a dyn ObjectStore, cluster: &'a str) -> Self {
        Self { store, cluster }
    }

    /// All whole snapshots, newest first, and what is wrong with those whose manifest can't be read: one damaged manifest
    /// must not hide the others.
    pub async fn list(&self) -> PortResult<(Vec<Entry>, Vec<PortError>)> {
        let prefix = layout::snapshots(self.cluster);
        let objects = self.store.list(&prefix).await?;
        let ids: Vec<String> = objects
            .iter()
            .filter_map(|object| object.key.strip_prefix(&prefix)?.strip_suffix("/manifest.json").map(str::to_owned))
            .filter(|id| layout::is_snapshot_id(id))
            .rev()
            .collect();
        let there: std::collections::BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
        let judged = |id: &str| {
            [layout::VERIFY, layout::BAD]
                .iter()
                .any(|name| there.contains(layout::beside(self.cluster, id, name).as_str()))
        };
        let reads: Vec<_> = ids.iter().map(|id| self.read(id, judged(id)).boxed()).collect();
        let results: Vec<PortResult<Entry>> = futures::stream::iter(reads).buffered(READS).collect().await;
        let mut entries = Vec::new();
        let mut unreadable = Vec::new();
        for result in results {
            match result {
                Ok(entry) => entries.push(entry),
                Err(e)
                    if matches!(
                        e.code,
                        ErrorCode::Corrupt | ErrorCode::Invalid | ErrorCode::NotFound | ErrorCode::Unsigned
                    ) =>
                {
                    unreadable.push(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok((entries, unreadable))
    }

    /// One snapshot by its name, by the unique beginning of one, or the newest (`latest`). The error says what exists.
    pub async fn find(&self, wanted: &str) -> PortResult<Entry> {
        if layout::is_snapshot_id(wanted) {
            match self.read(wanted, true).await {
                Err(e) if e.code == ErrorCode::NotFound => {}
                found => return found,
            }
        }
        let (entries, unreadable) = self.list().await?;
        // Nothing but what is not believed: that is what must be said, not that there is nothing.
        if entries.is_empty()
            && let Some(refused) = unreadable.into_iter().find(|e| e.code == ErrorCode::Unsigned)
        {
            return Err(refused);
        }
        let matching: Vec<&Entry> = match wanted {
            "latest" => entries.iter().take(1).collect(),
            prefix => entries.iter().filter(|entry| entry.manifest.id.starts_with(prefix)).collect(),
        };
        if let [only] = matching[..] {
            return Ok(only.clone());
        }
        let (problem, shown) =
            if matching.is_empty() { ("does not exist", entries.iter().collect()) } else { ("is ambiguous", matching) };
        let mut names: Vec<&str> = shown.iter().take(10).map(|entry| entry.manifest.id.as_str()).collect();
        if shown.len() > names.len() {
            names.push("…");
        }
        let message = format!("snapshot {wanted:?} of cluster {} {problem} in {}", self.cluster, self.store.name());
        let hint = if names.is_empty() {
            "the bucket holds no snapshot of this cluster: check the cluster's name and backup.bucket in cluster.yaml"
                .to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        Err(PortError::new(ErrorCode::NotFound, message).hint(hint))
    }

    async fn read(&self, id: &str, judged: bool) -> PortResult<Entry> {
        let key = layout::beside(self.cluster, id, layout::MANIFEST);
        let (bytes, signature) = self.store.get_vouched(&key, Manifest::BYTES_MAX).await?;
        let manifest = Manifest::parse(&key, &bytes)?;
        if manifest.id != id || manifest.cluster != self.cluster {
            let message = format!("{key} describes snapshot {} of cluster {}", manifest.id, manifest.cluster);
            return Err(PortError::new(ErrorCode::Corrupt, message).hint("it was copied or changed: do not use it"));
        }
        let (verification, finding) = match judged {
            true => (self.beside(id, layout::VERIFY).await?, self.beside(id, layout::BAD).await?),
            false => (None, None),
        };
        Ok(Entry { proof: Proof::of(verification.as_ref(), finding), verification, manifest, signature })
    }

    /// A document that can't be read, or is not signed, counts as none. For a verification that is the safe side.
    async fn beside<T: serde::de::DeserializeOwned>(&self, id: &str, name: &str) -> PortResult<Option<T>> {
        match self.store.get(&layout::beside(self.cluster, id, name), Manifest::BYTES_MAX).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::LimitExceeded | ErrorCode::Unsigned) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Opens the objects of snapshots, for restore.
pub struct BucketBackups {
    pub store: std::sync::Arc<dyn ObjectStore>,
    pub cluster: String,
    pub identities: Identities,
    /// What snapshots are taken of; none: they can be opened only.
    pub source: Option<super::Source>,
}

impl BucketBackups {
    pub(super) fn source(&self) -> PortResult<&super::Source> {
        let none = || PortError::new(ErrorCode::Invalid, "snapshots can be opened here, not taken");
        self.source.as_ref().ok_or_else(none)
    }

    async fn open(&self, manifest: &Manifest, sealed: &Sealed) -> PortResult<ByteStream> {
        unseal::open(self.store.as_ref(), sealed, &manifest.recipients, &self.identities).await
    }
}

#[async_trait]
impl Backups for BucketBackups {
    async fn snapshots(&self) -> PortResult<Vec<SnapshotInfo>> {
        let (entries, _) = Catalog::new(self.store.as_ref(), &self.cluster).list().await?;
        Ok(entries
            .into_iter()
            .map(|entry| SnapshotInfo {
                proven: matches!(entry.proof, Proof::Proven { .. }),
                id: entry.manifest.id,
                taken_at: entry.manifest.taken_at,
                revision: entry.manifest.revision,
                sha256: entry.manifest.etcd.plain_sha256,
                size_bytes: entry.manifest.etcd.plain_bytes,
                git_commit: entry.manifest.git_commit,
            })
            .collect())
    }

    async fn open_etcd(&self, id: &str) -> PortResult<ByteStream> {
        let entry = Catalog::new(self.store.as_ref(), &self.cluster).find(id).await?;
        self.open(&entry.manifest, &entry.manifest.etcd).await
    }

    async fn open_recovery_set(&self, id: &str) -> PortResult<RecoverySet> {
        let entry = Catalog::new(self.store.as_ref(), &self.cluster).find(id).await?;
        read_recovery(self.store.as_ref(), &entry.manifest, &self.identities).await
    }

    async fn take(&self, etcd: std::sync::Arc<dyn crate::ports::Etcd>, reading: Reading) -> PortResult<String> {
        let progress = std::sync::Arc::default();
        let taken = self.source()?.take(etcd.as_ref(), self.store.as_ref(), reading, &progress).await?;
        Ok(taken.manifest.id)
    }

    async fn verify(&self, id: &str) -> PortResult<()> {
        self.source()?.verify(id, self.store.as_ref(), &self.identities).await
    }

    async fn compare(&self, id: &str, etcd: std::sync::Arc<dyn crate::ports::Etcd>) -> PortResult<Compared> {
        self.compared(id, etcd.as_ref()).await
    }

    async fn served(&self, id: &str, kube: std::sync::Arc<dyn crate::ports::Kube>) -> PortResult<Served> {
        self.found_served(id, kube.as_ref()).await
    }
}

/// Opens and unpacks the recovery set; digests checked before anything of it is believed.
pub(super) async fn read_recovery(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
) -> PortResult<RecoverySet> {
    if manifest.recovery.plain_bytes > recovery::BYTES_MAX {
        let message = format!("the manifest of {} claims an impossible recovery set", manifest.id);
        return Err(PortError::new(ErrorCode::Corrupt, message));
    }
    let mut stream = unseal::open(store, &manifest.recovery, &manifest.recipients, identities).await?;
    let mut plain = zeroize::Zeroizing::new(Vec::new());
    while let Some(chunk) = stream.next().await {
        plain.extend_from_slice(&chunk?);
    }
    unpack(&plain)
}
