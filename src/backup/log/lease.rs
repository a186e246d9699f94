//! One writer at a time. Whoever begins to write takes the lease by a conditional put; whoever held it notices at its next
//! renewal and stops. Segments of different writers never share a key, so nothing is lost in between.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::{DOCUMENT_BYTES_MAX, EpochDocument, Index};
use super::segment::{FORMAT, prefix};
use crate::lease::{put_document, read_document};
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Attempts to take the lease while others try the same.
const ATTEMPTS: u32 = 5;

/// `log/lease.json`: who writes, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDocument {
    pub format: u32,
    pub epoch: u64,
    pub holder: String,
    pub etcd_cluster_id: String,
    pub started_at: Timestamp,
    pub renewed_at: Timestamp,
    /// Everything up to this revision is in the bucket.
    pub covered_revision: i64,
    /// Everything committed before this time is in the bucket.
    pub covered_at: Option<Timestamp>,
    /// Sealed segments that wait on the writer's disk, in bytes.
    pub spooled_bytes: u64,
    /// Set when the writer ended on purpose.
    pub stopped: bool,
    /// What the writer has trouble with, in words.
    pub problem: Option<String>,
}

impl LeaseDocument {
    fn key(cluster: &str) -> String {
        format!("{}lease.json", prefix(cluster))
    }

    /// Reads it with its etag.
    pub(super) async fn read(store: &dyn ObjectStore, cluster: &str) -> PortResult<Option<(Self, String)>> {
        let key = Self::key(cluster);
        read_document(store, &key, DOCUMENT_BYTES_MAX).await.map_err(|e| match e.code {
            ErrorCode::Corrupt => e.hint("no segment was touched; remove that object and start `hk-dr log ship` again"),
            _ => e,
        })
    }
}

/// The lease as its holder has it.
pub(super) struct Lease {
    cluster: String,
    etag: String,
    pub document: LeaseDocument,
}

impl Lease {
    /// Takes the lease, from whoever holds it, with the next epoch's number; makes sure that the bucket keeps conditions.
    pub async fn claim(
        store: &dyn ObjectStore,
        cluster: &str,
        etcd_cluster_id: &str,
        holder: &str,
        recipients: Vec<String>,
        clock: &dyn Clock,
    ) -> PortResult<Self> {
        for _ in 0..ATTEMPTS {
            let held = LeaseDocument::read(store, cluster).await?;
            let newest = Index::load(store, cluster).await?.epochs.keys().next_back().copied().unwrap_or_default();
            let (epoch, condition) = match held {
                Some((document, etag)) => (document.epoch.max(newest) + 1, PutCondition::Match(etag)),
                None => (newest + 1, PutCondition::Absent),
            };
            let now = clock.now();
            let document = LeaseDocument {
                format: FORMAT,
                epoch,
                holder: holder.to_owned(),
                etcd_cluster_id: etcd_cluster_id.to_owned(),
                started_at: now,
                renewed_at: now,
                covered_revision: 0,
                covered_at: None,
                spooled_bytes: 0,
                stopped: false,
                problem: None,
            };
            let etag = match put_document(store, &LeaseDocument::key(cluster), &document, condition).await {
                Ok(etag) => etag,
                Err(e) if e.code == ErrorCode::Conflict => continue,
                Err(e) => return Err(e),
            };
            let own = EpochDocument {
                format: FORMAT,
                epoch,
                cluster: cluster.to_owned(),
                etcd_cluster_id: etcd_cluster_id.to_owned(),
                holder: holder.to_owned(),
                started_at: now,
                recipients: recipients.clone(),
            };
            let key = EpochDocument::key(cluster, epoch);
            put_document(store, &key, &own, PutCondition::Absent).await?;
            // The same put again must be refused: a bucket that accepts it would let two writers overwrite each other.
            match put_document(store, &key, &own, PutCondition::Absent).await {
                Err(e) if e.code == ErrorCode::Conflict => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    let message = format!("{} ignores conditions on writes (If-None-Match)", store.name());
                    return Err(PortError::new(ErrorCode::Invalid, message).hint(
                        "no segment was written: two writers could overwrite each other there; use a bucket that \
                         keeps conditions",
                    ));
                }
            }
            return Ok(Self { cluster: cluster.to_owned(), etag, document });
        }
        Err(PortError::new(ErrorCode::Locked, "others take the log's lease again and again")
            .hint("nothing was written; let only one `hk-dr log ship` of this cluster run"))
    }

    /// Renews it with what the document says now. `Conflict`: another writer has taken over.
    pub async fn renew(&mut self, store: &dyn ObjectStore, clock: &dyn Clock) -> PortResult<()> {
        self.document.renewed_at = clock.now();
        let key = LeaseDocument::key(&self.cluster);
        match put_document(store, &key, &self.document, PutCondition::Match(self.etag.clone())).await {
            Ok(etag) => {
                self.etag = etag;
                Ok(())
            }
            Err(e) if matches!(e.code, ErrorCode::Conflict | ErrorCode::NotFound) => {
                match LeaseDocument::read(store, &self.cluster).await? {
                    // Ours: an answer was lost, and the repetition met what the first attempt wrote.
                    Some((there, etag))
                        if there.epoch == self.document.epoch && there.holder == self.document.holder =>
                    {
                        self.etag = etag;
                        Ok(())
                    }
                    Some((other, _)) => Err(superseded(&self.document, &other.holder, other.epoch)),
                    None => Err(superseded(&self.document, "someone who removed the lease", 0)),
                }
            }
            Err(e) => Err(e),
        }
    }
}

fn superseded(own: &LeaseDocument, by: &str, epoch: u64) -> PortError {
    let message = format!("the log has another writer now: {by} (epoch {epoch}); this one (epoch {}) stops", own.epoch);
    PortError::new(ErrorCode::Conflict, message)
        .hint("nothing is lost: the other one continues where this one's segments end; keep only one of them running")
}
