use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::ControllersStart;
use crate::ports::{PortResult, Service};

/// Starts controller manager and scheduler of one master.
pub struct ControllersStartStep;

#[async_trait]
impl StepKind for ControllersStartStep {
    type Params = ControllersStart;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &ControllersStart) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ControllersStart) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.start(&host, Service::Controllers).await
    }
}
