use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::WorkerStart;
use crate::ports::{PortResult, Service};

/// Starts a worker's kubelet and proxy.
pub struct WorkerStartStep;

#[async_trait]
impl StepKind for WorkerStartStep {
    type Params = WorkerStart;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &WorkerStart) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &WorkerStart) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.start(&host, Service::Worker).await
    }
}
