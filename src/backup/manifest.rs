use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ports::{ErrorCode, PortError, PortResult};

/// The format this version writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// `manifest.json`: what, when, from whom, digests. Written last: where it is, the snapshot is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The name below `snapshots/`.
    pub id: String,
    pub cluster: String,
    pub taken_at: Timestamp,
    /// When the last byte of the etcd snapshot had been stored.
    pub finished_at: Timestamp,
    /// The member the snapshot came from.
    pub source_member: String,
    pub etcd_version: String,
    /// Hexadecimal, as etcdctl prints it.
    pub etcd_cluster_id: String,
    /// The newest revision in the data.
    pub revision: i64,
    /// The last finished compaction; 0: none.
    pub compact_revision: i64,
    /// Keys that exist at the newest revision; none if a compaction was half done.
    pub keys: Option<u64>,
    /// Retained versions of keys, deletions included.
    pub versions: u64,
    pub etcd: Sealed,
    pub recovery: Sealed,
    /// Public age recipients that can open both objects.
    pub recipients: Vec<String>,
    pub git_commit: Option<String>,
    pub hash_kv: HashKvCheck,
    /// Why the member's file was not read where it lies, though that was tried: it came through etcd's API then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_place: Option<String>,
    /// Set if it was not taken from a member but made from an older snapshot and the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<MadeFrom>,
    pub hk_dr_version: String,
}

/// What a snapshot was made from without the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The snapshot that it began with.
    pub snapshot: String,
    /// Segments of the log that followed.
    pub segments: u64,
    pub made_at: Timestamp,
}

/// One stored object and what is inside of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The object's key in the bucket.
    pub key: String,
    pub plain_bytes: u64,
    /// Of what `age -d | zstd -d` gives.
    pub plain_sha256: String,
    pub stored_bytes: u64,
    /// Of the object as stored.
    pub stored_sha256: String,
}

/// What the comparison of the members' hashes said before the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashKvCheck {
    /// Revision the hashes were compared at.
    pub revision: i64,
    /// The hash that the members share; none if nothing was compared.
    pub hash: Option<u32>,
    /// Members that agreed.
    pub agreed: Vec<String>,
    /// Members that were not compared, each with the reason.
    pub not_compared: Vec<String>,
    /// The compaction that the hash was taken under: another compaction gives another hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compact_revision: Option<i64>,
}

/// `verify.json`: the last successful verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub format: u32,
    /// `read`, `boot` or `drill`: what was done, hence what it proves.
    pub level: String,
    pub at: Timestamp,
    pub hk_dr_version: String,
    pub revision: i64,
    pub keys: u64,
    pub versions: u64,
    /// Existing keys by Kubernetes kind.
    pub kinds: std::collections::BTreeMap<String, u64>,
    /// Paths in the recovery set.
    pub recovery_files: Vec<String>,
    /// Keys that no API server serves as an object, by kind: read as bytes only.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub not_served: std::collections::BTreeMap<String, u64>,
    /// HashKV at a revision, where it was compared with what the members had said: the members that agreed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hash_agreed: Vec<String>,
}

/// `bad.json`: what the last verification that failed for the data's sake found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub format: u32,
    pub at: Timestamp,
    pub hk_dr_version: String,
    /// None: it was read whole since.
    pub problem: Option<String>,
}

impl Manifest {
    /// Largest manifest that is read, in bytes.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// Parses a manifest; one of a later format is refused, not guessed.
    pub fn parse(key: &str, bytes: &[u8]) -> PortResult<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |e: serde_json::Error| {
            PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}"))
                .hint("use another snapshot: `hk-dr snapshot list`")
        };
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format > FORMAT {
            let message = format!("{key} has format {format}; this hk-dr reads up to {FORMAT}");
            return Err(PortError::new(ErrorCode::Invalid, message).hint("use the hk-dr that wrote it, or a newer one"));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }
}
