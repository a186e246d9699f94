use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::NetworkCreate;
use crate::ports::{PortResult, Subnet};

/// Creates the private network. Output: its id.
pub struct NetworkCreateStep;

#[async_trait]
impl StepKind for NetworkCreateStep {
    type Params = NetworkCreate;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &NetworkCreate) -> PortResult<Observed<u64>> {
        Ok(match cx.world.cloud.network_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(n) if !cx.world.owns(&n.labels) => {
                Observed::Foreign(format!("a network named {} exists that is not this cluster's", params.name))
            }
            Some(n) if n.range != params.range => Observed::Foreign(format!(
                "network {} has range {}, cluster.yaml says {}",
                params.name, n.range, params.range
            )),
            Some(n) => Observed::Done(n.id),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NetworkCreate) -> PortResult<u64> {
        let subnet = Subnet { range: params.subnet.clone(), zone: params.zone.clone() };
        Ok(cx.world.cloud.create_network(&params.name, &params.range, &subnet, &params.labels).await?.id)
    }
}
