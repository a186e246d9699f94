use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::VolumeRetire;
use crate::ports::PortResult;

/// Gives a superseded volume another name and keeps it: old data is kept until what replaces it is proven.
pub struct VolumeRetireStep;

#[async_trait]
impl StepKind for VolumeRetireStep {
    type Params = VolumeRetire;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &VolumeRetire) -> PortResult<Observed<()>> {
        let still_named = cx.world.cloud.volume_by_name(&params.name).await?.is_some_and(|v| v.id == params.id);
        Ok(if still_named { Observed::Absent } else { Observed::Done(()) })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &VolumeRetire) -> PortResult<()> {
        if cx.world.cloud.volume_by_name(&params.name).await?.is_some_and(|v| v.id == params.id && v.server.is_some()) {
            cx.world.cloud.detach_volume(params.id).await?;
        }
        cx.world.cloud.update_volume(params.id, &params.new_name, &params.labels).await
    }
}
