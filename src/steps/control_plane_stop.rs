use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::ControlPlaneStop;
use crate::ports::{PortResult, Service};

/// Stops controllers and API server of one master.
pub struct ControlPlaneStopStep;

#[async_trait]
impl StepKind for ControlPlaneStopStep {
    type Params = ControlPlaneStop;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &ControlPlaneStop) -> PortResult<Observed<()>> {
        // Stopping what is stopped does nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ControlPlaneStop) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.stop(&host, &[Service::Controllers, Service::ApiServer]).await
    }
}
