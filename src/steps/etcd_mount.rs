use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdMount;
use crate::ports::PortResult;

/// Mounts etcd's volume.
pub struct EtcdMountStep;

#[async_trait]
impl StepKind for EtcdMountStep {
    type Params = EtcdMount;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &EtcdMount) -> PortResult<Observed<()>> {
        // Mounting looks for itself, in the same round trip.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdMount) -> PortResult<()> {
        let volume = cx.volume(&params.volume).await?;
        cx.world.machines.mount_etcd_volume(&cx.server(&params.server).await?.host(), &volume.device).await
    }
}
