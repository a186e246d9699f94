use jiff::Timestamp;
use serde::Serialize;

use super::read::newest;
use super::{Gap, Index, LeaseDocument, coverage};
use crate::backup::Catalog;
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// How far a cluster's log is, as the bucket tells it.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub cluster: String,
    /// The snapshot that the newest state is read from, and its revision.
    pub snapshot: String,
    pub snapshot_revision: i64,
    /// The newest revision that can be had.
    pub covered_revision: i64,
    /// Everything committed before is safe. From the writer's lease, or the snapshot's beginning.
    pub covered_at: Timestamp,
    /// Between that and now, in seconds.
    pub lag_seconds: f64,
    /// Who writes, or wrote last.
    pub writer: Option<LeaseDocument>,
    /// Since the writer renewed its lease, in seconds.
    pub writer_silent_seconds: Option<f64>,
    pub segments: u64,
    pub bytes: u64,
    /// Segments behind the newest snapshot that must be read for the newest state.
    pub segments_behind_snapshot: u64,
    pub epochs: u64,
    pub gaps: Vec<Gap>,
}

/// Looks at the bucket; needs no identity.
pub async fn status(store: &dyn ObjectStore, cluster: &str, now: Timestamp) -> PortResult<Status> {
    let (entries, _) = Catalog::new(store, cluster).list().await?;
    let index = Index::load(store, cluster).await?;
    let newest = newest(&entries).ok_or_else(|| {
        PortError::new(ErrorCode::NotFound, format!("the bucket holds no snapshot of cluster {cluster}"))
            .hint("`hk-dr log ship` takes one and continues behind it; `hk-dr snapshot` takes one alone")
    })?;
    let cluster_id = &newest.manifest.etcd_cluster_id;
    let segments = index.segments_of(cluster_id);
    let path = coverage::path(newest.manifest.revision, None, &segments);
    let snapshots: Vec<(String, i64)> = entries
        .iter()
        .filter(|entry| entry.manifest.etcd_cluster_id == *cluster_id)
        .map(|entry| (entry.manifest.id.clone(), entry.manifest.revision))
        .collect();
    let seconds = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
    let lease = index.lease.as_ref().filter(|lease| lease.etcd_cluster_id == *cluster_id);
    let from_lease = lease.and_then(|lease| lease.covered_at.filter(|_| lease.covered_revision <= path.reaches));
    let covered_at = from_lease.map_or(newest.manifest.taken_at, |at| at.max(newest.manifest.taken_at));
    Ok(Status {
        cluster: cluster.to_owned(),
        snapshot: newest.manifest.id.clone(),
        snapshot_revision: newest.manifest.revision,
        covered_revision: path.reaches,
        covered_at,
        lag_seconds: seconds(covered_at),
        writer: index.lease.clone(),
        writer_silent_seconds: index.lease.as_ref().map(|lease| seconds(lease.renewed_at)),
        segments: index.segments.len() as u64,
        bytes: index.segments.iter().map(|(_, bytes)| bytes).sum(),
        segments_behind_snapshot: path.segments.len() as u64,
        epochs: index.epochs.len() as u64,
        gaps: coverage::gaps(&snapshots, &segments),
    })
}
