//! Steps of rehearsals on a copy of the cluster: is it what was saved, and away with it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::{CopyCompare, CopyDiscard, CopyServed};
use crate::plan::{COPY_LABEL, OWNER_LABEL};
use crate::ports::{
    Backups, Compared, ErrorClass, ErrorCode, Labels, PortError, PortResult, RecoverySet, Served, Vault,
};

/// Compares every key that members have with the snapshot they were restored from.
pub struct CopyCompareStep;
/// Finds every object of a snapshot through an API server.
pub struct CopyServedStep;
/// Deletes everything of a copy.
pub struct CopyDiscardStep;

/// How long the cloud may take to let go of what hung on deleted servers.
const FREE_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(500);

/// The secrets of a copy: those of the snapshot it is made from. Keeps nothing.
pub(super) struct SnapshotVault {
    pub backups: Arc<dyn Backups>,
    pub snapshot: String,
}

#[async_trait]
impl Vault for SnapshotVault {
    async fn load(&self) -> PortResult<Option<RecoverySet>> {
        self.backups.open_recovery_set(&self.snapshot).await.map(Some)
    }

    async fn create(&self, _: &RecoverySet) -> PortResult<()> {
        Err(PortError::new(ErrorCode::Invalid, "a copy keeps no secrets of its own"))
    }
}

#[async_trait]
impl StepKind for CopyCompareStep {
    type Params = CopyCompare;
    type Output = Compared;

    async fn observe(&self, _: &StepContext<'_>, _: &CopyCompare) -> PortResult<Observed<Compared>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &CopyCompare) -> PortResult<Compared> {
        let compared = cx.world.backups.compare(&params.snapshot, cx.etcd(&params.servers).await?).await?;
        if compared.differing.is_empty() {
            return Ok(compared);
        }
        let message = format!(
            "{} of {} keys are not what snapshot {} has: {}",
            compared.keys - compared.equal - compared.ended_with_lease,
            compared.keys,
            params.snapshot,
            compared.differing.join(", ")
        );
        Err(PortError::new(ErrorCode::Corrupt, message)
            .hint("production was not touched; rehearse with another snapshot, and keep this one for a look"))
    }
}

#[async_trait]
impl StepKind for CopyServedStep {
    type Params = CopyServed;
    type Output = Served;

    async fn observe(&self, _: &StepContext<'_>, _: &CopyServed) -> PortResult<Observed<Served>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &CopyServed) -> PortResult<Served> {
        let kube = cx.world.kube(&cx.server(&params.server).await?.host()).await?;
        let served = cx.world.backups.served(&params.snapshot, Arc::clone(&kube)).await?;
        Ok(Served { canary: Mark::read(kube.as_ref()).await?.map(|mark| mark.at), ..served })
    }
}

/// How much was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    pub servers: usize,
    pub volumes: usize,
    pub others: usize,
}

impl CopyDiscard {
    /// Only what carries both labels is the copy's: a cluster that happens to have its name does not.
    fn owns(&self, labels: &Labels) -> bool {
        let is = |label: &str, value: &str| labels.get(label).is_some_and(|v| v == value);
        self.copy != self.of && is(OWNER_LABEL, &self.copy) && is(COPY_LABEL, &self.of)
    }

    fn selector(&self) -> String {
        format!("{OWNER_LABEL}=={},{COPY_LABEL}=={}", self.copy, self.of)
    }
}

/// What is there of a copy.
struct Remains {
    servers: Vec<u64>,
    volumes: Vec<u64>,
    firewalls: Vec<u64>,
    network: Option<u64>,
    group: Option<u64>,
    key: Option<u64>,
}

impl Remains {
    async fn of(cx: &StepContext<'_>, params: &CopyDiscard) -> PortResult<Self> {
        let (cloud, selector) = (&cx.world.cloud, params.selector());
        let servers = cloud.servers(&selector).await?;
        let volumes = cloud.volumes(&selector).await?;
        let firewalls = cloud.firewalls(&selector).await?;
        let network = cloud.network_by_name(&params.copy).await?;
        let group = cloud.placement_group_by_name(&format!("{}-masters", params.copy)).await?;
        let key = cloud.ssh_key_by_name(&params.copy).await?;
        Ok(Self {
            servers: servers.into_iter().filter(|s| params.owns(&s.labels)).map(|s| s.id).collect(),
            volumes: volumes.into_iter().filter(|v| params.owns(&v.labels)).map(|v| v.id).collect(),
            firewalls: firewalls.into_iter().filter(|f| params.owns(&f.labels)).map(|f| f.id).collect(),
            network: network.filter(|n| params.owns(&n.labels)).map(|n| n.id),
            group: group.filter(|g| params.owns(&g.labels)).map(|g| g.id),
            key: key.filter(|k| params.owns(&k.labels)).map(|k| k.id),
        })
    }

    fn others(&self) -> usize {
        self.firewalls.len() + [self.network, self.group, self.key].into_iter().flatten().count()
    }

    fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.volumes.is_empty() && self.others() == 0
    }
}

#[async_trait]
impl StepKind for CopyDiscardStep {
    type Params = CopyDiscard;
    type Output = Discarded;

    async fn observe(&self, cx: &StepContext<'_>, params: &CopyDiscard) -> PortResult<Observed<Discarded>> {
        let remains = Remains::of(cx, params).await?;
        Ok(if remains.is_empty() { Observed::Done(Discarded::default()) } else { Observed::Partial })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &CopyDiscard) -> PortResult<Discarded> {
        let cloud = &cx.world.cloud;
        let remains = Remains::of(cx, params).await?;
        let all = futures::future::join_all(remains.servers.iter().map(|id| cloud.delete_server(*id))).await;
        all.into_iter().try_for_each(gone)?;
        // Volumes, firewalls and the network are free a moment after the servers are gone.
        let doing = "deleting what hung on the copy's servers";
        until(doing, FREE_WITHIN, ASK_EVERY, || async {
            let left = Remains::of(cx, params).await?;
            let mut busy = None;
            for id in &left.volumes {
                busy = still_used(cloud.delete_volume(*id).await)?.or(busy);
            }
            for id in &left.firewalls {
                busy = still_used(cloud.delete_firewall(*id).await)?.or(busy);
            }
            if let Some(id) = left.network {
                busy = still_used(cloud.delete_network(id).await)?.or(busy);
            }
            if let Some(id) = left.group {
                busy = still_used(cloud.delete_placement_group(id).await)?.or(busy);
            }
            if let Some(id) = left.key {
                busy = still_used(cloud.delete_ssh_key(id).await)?.or(busy);
            }
            Ok(busy.map_or(Ok(()), Err))
        })
        .await?;
        Ok(Discarded { servers: remains.servers.len(), volumes: remains.volumes.len(), others: remains.others() })
    }
}

fn gone(result: PortResult<()>) -> PortResult<()> {
    match result {
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => other,
    }
}

/// Why something can't be deleted yet.
fn still_used(result: PortResult<()>) -> PortResult<Option<String>> {
    match gone(result) {
        Ok(()) => Ok(None),
        Err(e) if matches!(e.class(), ErrorClass::Transient | ErrorClass::Conflict) => Ok(Some(e.message)),
        Err(e) => Err(e),
    }
}
