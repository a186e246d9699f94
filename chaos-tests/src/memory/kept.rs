//! What the world keeps elsewhere: the recovery set, snapshots and pinned binaries.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hk_dr::ports::{
    Artifacts, Backups, ByteStream, Clock, Compared, ErrorCode, Etcd, Kube, PortError, PortResult, Reading,
    RecoverySet, Served, SnapshotInfo, Vault,
};

use super::{MemoryWorld, moment, unused};

impl MemoryWorld {
    /// Puts a snapshot of this cluster into the bucket.
    pub fn add_snapshot(&self) {
        self.lock().added.push(super::snapshot_info());
    }

    /// Puts one there from which something has risen, taken so many hours ago.
    pub fn add_proven_snapshot(&self, hours: i64) {
        let taken_at = super::Noon.now() - jiff::SignedDuration::from_hours(hours);
        let snapshot = SnapshotInfo { taken_at, proven: true, ..super::snapshot_info() };
        self.lock().added.push(snapshot);
    }
}

#[async_trait]
impl Vault for MemoryWorld {
    async fn load(&self) -> PortResult<Option<RecoverySet>> {
        moment().await;
        Ok(self.lock().vault.clone())
    }

    async fn create(&self, set: &RecoverySet) -> PortResult<()> {
        moment().await;
        if self.lock().vault.is_some() {
            return Err(PortError::new(ErrorCode::Conflict, "there are secrets already"));
        }
        self.lock().vault = Some(set.clone());
        moment().await;
        Ok(())
    }
}

#[async_trait]
impl Backups for MemoryWorld {
    async fn snapshots(&self) -> PortResult<Vec<SnapshotInfo>> {
        Ok([self.lock().added.clone(), self.snapshots.clone()].concat())
    }

    async fn open_etcd(&self, _: &str) -> PortResult<ByteStream> {
        Ok(Box::pin(futures::stream::iter([Ok("a".into()), Ok("b".into())])))
    }

    async fn open_recovery_set(&self, _: &str) -> PortResult<RecoverySet> {
        Ok(self.recovery.clone())
    }

    async fn take(&self, etcd: Arc<dyn Etcd>, _: Reading) -> PortResult<String> {
        for member in etcd.members() {
            etcd.status(&member).await?;
        }
        let mut state = self.lock();
        let id = format!("taken-{}", state.taken.len());
        state.taken.push(id.clone());
        Ok(id)
    }

    async fn verify(&self, id: &str) -> PortResult<()> {
        moment().await;
        if self.lock().taken.iter().any(|t| t == id) { Ok(()) } else { Err(unused("verify")) }
    }

    async fn compare(&self, _: &str, etcd: Arc<dyn Etcd>) -> PortResult<Compared> {
        for member in etcd.members() {
            etcd.status(&member).await?;
        }
        let differing = if self.lock().spoilt { vec!["secrets a/b differs".to_owned()] } else { Vec::new() };
        let equal = 7 - differing.len() as u64;
        Ok(Compared { taken_at: super::Noon.now(), revision: 4711, keys: 7, equal, ended_with_lease: 0, differing })
    }

    async fn served(&self, _: &str, kube: Arc<dyn Kube>) -> PortResult<Served> {
        if !kube.ready().await? {
            return Err(PortError::new(ErrorCode::Unreachable, "the API server is not ready"));
        }
        Ok(Served { objects: 5, not_served: BTreeMap::new(), canary: None })
    }
}

#[async_trait]
impl Artifacts for MemoryWorld {
    fn pinned(&self, _: &str, version: Option<&str>) -> PortResult<(String, Vec<String>)> {
        Ok((version.unwrap_or("1").to_owned(), Vec::new()))
    }

    async fn fetch(&self, name: &str, version: &str) -> PortResult<(PathBuf, String)> {
        // A small file serves as every binary: only its transport is looked at.
        Ok((PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), format!("{name}-{version}")))
    }
}
