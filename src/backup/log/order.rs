//! What the shipper is asked for, what it tells meanwhile, and what it has done in the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::backup::Recipients;
use crate::backup::manifest::Manifest;
use crate::ports::{Clock, Etcd, ObjectStore, PortResult};

/// When a segment is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutRule {
    pub bytes: usize,
    pub after: Duration,
}

impl Default for CutRule {
    fn default() -> Self {
        Self { bytes: 1 << 20, after: Duration::from_secs(2) }
    }
}

/// Takes the snapshot that the log begins behind, and goes on behind after a gap.
#[async_trait]
pub trait NewBase: Send + Sync {
    async fn take(&self) -> PortResult<Manifest>;
}

/// What is shipped, from and to.
pub struct ShipRequest<'a> {
    pub cluster: &'a str,
    pub etcd: &'a dyn Etcd,
    pub store: Arc<dyn ObjectStore>,
    pub recipients: &'a Recipients,
    pub clock: Arc<dyn Clock>,
    pub new_base: &'a dyn NewBase,
    /// This machine and process, for people.
    pub holder: String,
    pub spool: PathBuf,
    pub spool_limit_bytes: u64,
    pub cut: CutRule,
    /// Hears what happens.
    pub event: &'a (dyn Fn(ShipEvent) + Send + Sync),
}

/// What happens while it ships.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ShipEvent {
    /// This is the log's writer now.
    Started {
        epoch: u64,
        covered_revision: i64,
    },
    /// A snapshot was taken because the log has nothing to continue.
    NewBase {
        snapshot: String,
        why: String,
    },
    /// It watches this member.
    Watching {
        member: String,
    },
    /// A connection was lost; others are tried.
    Lost {
        what: String,
    },
    /// The bucket cannot be written; segments wait on the disk.
    BucketAway {
        why: String,
        spooled_bytes: u64,
    },
    BucketBack,
}

/// What was done when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShipReport {
    pub epoch: u64,
    pub covered_revision: i64,
    pub segments: u64,
    pub bytes: u64,
    /// Waits on this machine's disk for the next start.
    pub spooled_bytes: u64,
}
