use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{EtcdRestoreStep, EtcdRestoreTaken};
use crate::ports::{ErrorCode, EtcdRestore, PortError, PortResult};

/// Restores a snapshot onto a member's empty volume.
pub struct EtcdRestoreKind;

#[async_trait]
impl StepKind for EtcdRestoreKind {
    type Params = EtcdRestoreStep;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &EtcdRestoreStep) -> PortResult<Observed<()>> {
        observe(cx, &params.server, &params.restore).await
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdRestoreStep) -> PortResult<()> {
        apply(cx, &params.server, &params.snapshot, &params.restore).await
    }
}

/// Restores the snapshot that this run took.
pub struct EtcdRestoreTakenStep;

#[async_trait]
impl StepKind for EtcdRestoreTakenStep {
    type Params = EtcdRestoreTaken;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &EtcdRestoreTaken) -> PortResult<Observed<()>> {
        observe(cx, &params.server, &params.restore).await
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdRestoreTaken) -> PortResult<()> {
        let taken = cx
            .outputs
            .get(&params.since)
            .and_then(|output| output.as_str())
            .ok_or_else(|| PortError::new(ErrorCode::Invalid, format!("step {} left no snapshot", params.since)))?;
        apply(cx, &params.server, taken, &params.restore).await
    }
}

async fn observe(cx: &StepContext<'_>, server: &str, restore: &EtcdRestore) -> PortResult<Observed<()>> {
    let host = cx.server(server).await?.host();
    let restored = cx.world.machines.etcd_restored(&host, restore).await?;
    Ok(if restored { Observed::Done(()) } else { Observed::Absent })
}

async fn apply(cx: &StepContext<'_>, server: &str, snapshot: &str, restore: &EtcdRestore) -> PortResult<()> {
    let host = cx.server(server).await?.host();
    let snapshot = cx.world.backups.open_etcd(snapshot).await?;
    let token = cx.secrets().await?.etcd_token(&restore.incarnation);
    cx.world.machines.restore_etcd(&host, restore, &token, snapshot).await
}
