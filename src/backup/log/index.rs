use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::segment::prefix;
use super::{LeaseDocument, SegmentName};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// Largest of the small documents beside the segments.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
/// Documents read at the same time.
const READS: usize = 8;

/// `log/<epoch>/epoch.json`: which writer this is. Written once, before the epoch's first segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochDocument {
    pub format: u32,
    pub epoch: u64,
    pub cluster: String,
    pub etcd_cluster_id: String,
    /// The machine and process that wrote it, for people.
    pub holder: String,
    pub started_at: Timestamp,
    /// Public age recipients of its segments.
    pub recipients: Vec<String>,
}

impl EpochDocument {
    pub(super) fn key(cluster: &str, epoch: u64) -> String {
        format!("{}{epoch:016}/epoch.json", prefix(cluster))
    }
}

/// What the bucket holds of a cluster's log.
#[derive(Debug, Clone, Default)]
pub struct Index {
    pub epochs: BTreeMap<u64, EpochDocument>,
    /// Segments with their stored size in bytes.
    pub segments: Vec<(SegmentName, u64)>,
    pub lease: Option<LeaseDocument>,
}

impl Index {
    /// Lists the log and reads who wrote it.
    pub async fn load(store: &dyn ObjectStore, cluster: &str) -> PortResult<Self> {
        let below = prefix(cluster);
        let mut index = Self::default();
        let mut documents = Vec::new();
        for object in store.list(&below).await? {
            let Some(name) = object.key.strip_prefix(&below) else { continue };
            if let Some(segment) = SegmentName::parse(name) {
                index.segments.push((segment, object.size_bytes));
            } else if name.ends_with("/epoch.json") {
                documents.push(object.key);
            }
        }
        let reads = documents.into_iter().map(|key| async move {
            let bytes = store.get(&key, DOCUMENT_BYTES_MAX).await?;
            let document: EpochDocument = serde_json::from_slice(&bytes).map_err(|e| {
                PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}")).hint(
                    "segments beside it cannot be told from those of another etcd; older snapshots still can be used",
                )
            })?;
            Ok::<_, PortError>(document)
        });
        let reads: Vec<_> = reads.map(futures::FutureExt::boxed).collect();
        let read: Vec<EpochDocument> = futures::stream::iter(reads).buffered(READS).try_collect().await?;
        index.epochs = read.into_iter().map(|document| (document.epoch, document)).collect();
        index.lease = LeaseDocument::read(store, cluster).await?.map(|(document, _)| document);
        Ok(index)
    }

    /// The segments of one etcd cluster, whichever writer made them.
    pub fn segments_of(&self, etcd_cluster_id: &str) -> Vec<SegmentName> {
        let same = |epoch: &u64| self.epochs.get(epoch).is_some_and(|e| e.etcd_cluster_id == etcd_cluster_id);
        self.segments.iter().filter(|(name, _)| same(&name.epoch)).map(|(name, _)| name.clone()).collect()
    }

    /// Recipients of an epoch's segments.
    pub(super) fn recipients_of(&self, epoch: u64) -> Vec<String> {
        self.epochs.get(&epoch).map(|document| document.recipients.clone()).unwrap_or_default()
    }
}
