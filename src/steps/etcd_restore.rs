use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdRestoreStep;
use crate::ports::PortResult;

/// Restores a snapshot onto a member's empty volume.
pub struct EtcdRestoreKind;

#[async_trait]
impl StepKind for EtcdRestoreKind {
    type Params = EtcdRestoreStep;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &EtcdRestoreStep) -> PortResult<Observed<()>> {
        let host = cx.server(&params.server).await?.host();
        let restored = cx.world.machines.etcd_restored(&host, &params.restore).await?;
        Ok(if restored { Observed::Done(()) } else { Observed::Absent })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdRestoreStep) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        let snapshot = cx.world.backups.open_etcd(&params.snapshot).await?;
        let token = cx.secrets().await?.etcd_token(&params.restore.incarnation);
        cx.world.machines.restore_etcd(&host, &params.restore, &token, snapshot).await
    }
}
