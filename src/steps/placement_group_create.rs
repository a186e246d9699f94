use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::PlacementGroupCreate;
use crate::ports::PortResult;

/// Creates the placement group that keeps masters on different hosts. Output: its id.
pub struct PlacementGroupCreateStep;

#[async_trait]
impl StepKind for PlacementGroupCreateStep {
    type Params = PlacementGroupCreate;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &PlacementGroupCreate) -> PortResult<Observed<u64>> {
        Ok(match cx.world.cloud.placement_group_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(g) if !cx.world.owns(&g.labels) => {
                Observed::Foreign(format!("a placement group named {} exists that is not this cluster's", params.name))
            }
            Some(g) => Observed::Done(g.id),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &PlacementGroupCreate) -> PortResult<u64> {
        Ok(cx.world.cloud.create_placement_group(&params.name, &params.labels).await?.id)
    }
}
