use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{ControllersStop, WorkerStop};
use crate::ports::{PortResult, Service};

/// Stops controller manager and scheduler of one master.
pub struct ControllersStopStep;

/// Stops kubelet and proxy of one worker.
pub struct WorkerStopStep;

#[async_trait]
impl StepKind for ControllersStopStep {
    type Params = ControllersStop;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &ControllersStop) -> PortResult<Observed<()>> {
        // Stopping what is stopped does nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ControllersStop) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.stop(&host, &[Service::Controllers]).await
    }
}

#[async_trait]
impl StepKind for WorkerStopStep {
    type Params = WorkerStop;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &WorkerStop) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &WorkerStop) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.stop(&host, &[Service::Worker]).await
    }
}
