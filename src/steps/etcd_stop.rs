use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdStop;
use crate::ports::{PortResult, Service};

/// Stops etcd on one master and unmounts its volume, so that everything is on it when it goes.
pub struct EtcdStopStep;

#[async_trait]
impl StepKind for EtcdStopStep {
    type Params = EtcdStop;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &EtcdStop) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdStop) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.stop(&host, &[Service::Etcd]).await?;
        cx.world.machines.unmount_etcd_volume(&host).await
    }
}
