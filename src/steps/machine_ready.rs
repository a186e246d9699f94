use std::time::Duration;

use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::MachineReady;
use crate::ports::PortResult;

/// Waits until a server answers with its pinned host key.
pub struct MachineReadyStep;

/// A first boot with cloud-init takes up to two minutes at the provider.
const READY_WITHIN: Duration = Duration::from_secs(240);

#[async_trait]
impl StepKind for MachineReadyStep {
    type Params = MachineReady;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &MachineReady) -> PortResult<Observed<()>> {
        // Waiting is the whole step: looking first would only wait twice.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &MachineReady) -> PortResult<()> {
        cx.world.machines.wait_ready(&cx.server(&params.server).await?.host(), READY_WITHIN).await
    }
}
