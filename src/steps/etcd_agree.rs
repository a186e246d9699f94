use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdAgree;
use crate::ports::{ErrorCode, Etcd, PortError, PortResult};

/// Waits until all members agree.
pub struct EtcdAgreeStep;

/// What they agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    pub cluster_id: u64,
    pub revision: i64,
    pub hash: u32,
}

const AGREE_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(100);

#[async_trait]
impl StepKind for EtcdAgreeStep {
    type Params = EtcdAgree;
    type Output = Agreement;

    async fn observe(&self, _: &StepContext<'_>, _: &EtcdAgree) -> PortResult<Observed<Agreement>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdAgree) -> PortResult<Agreement> {
        let etcd = cx.etcd(&params.servers).await?;
        until("waiting for etcd", AGREE_WITHIN, ASK_EVERY, || agreement(etcd.as_ref())).await
    }
}

/// One look at all members: same cluster, a leader, and the same hash at one revision.
pub(super) async fn agreement(etcd: &dyn Etcd) -> PortResult<Result<Agreement, String>> {
    let mut statuses = Vec::new();
    for member in etcd.members() {
        let status = etcd.status(&member).await.map_err(|e| e.context(format!("member {member}")))?;
        if status.leader_id == 0 {
            return Ok(Err(format!("member {member} knows no leader")));
        }
        statuses.push(status);
    }
    let Some(first) = statuses.first() else { return Ok(Err("no members".into())) };
    if let Some(other) = statuses.iter().find(|s| s.cluster_id != first.cluster_id) {
        return Err(PortError::new(
            ErrorCode::Corrupt,
            format!("members {} and {} belong to different clusters", first.name, other.name),
        )
        .hint("nothing was overwritten; the members' volumes hold data of two clusters"));
    }
    // A revision that every member has: hashes at different revisions can't be compared.
    let revision = statuses.iter().map(|s| s.revision).min().unwrap_or(0);
    let mut hash = None;
    for member in etcd.members() {
        let answer = etcd.hash_kv(&member, revision).await.map_err(|e| e.context(format!("member {member}")))?;
        // Members may differ for a moment in what they have compacted: then the hashes are over different data.
        let seen = (answer.hash, answer.compact_revision);
        if *hash.get_or_insert(seen) != seen {
            return Ok(Err(format!("member {member} has another hash at revision {revision}")));
        }
    }
    let hash = hash.map_or(0, |(hash, _)| hash);
    Ok(Ok(Agreement { cluster_id: first.cluster_id, revision, hash }))
}
