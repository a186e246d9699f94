use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdStartStep;
use crate::ports::{PortResult, Service};

/// Starts etcd on one master.
pub struct EtcdStartKind;

#[async_trait]
impl StepKind for EtcdStartKind {
    type Params = EtcdStartStep;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &EtcdStartStep) -> PortResult<Observed<()>> {
        // Starting an active unit does nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdStartStep) -> PortResult<()> {
        cx.world.machines.start(&cx.server(&params.server).await?.host(), Service::Etcd).await
    }
}
