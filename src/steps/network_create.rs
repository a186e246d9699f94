use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::NetworkCreate;
use crate::ports::{NetworkSpec, PortResult, Subnet};

/// Creates the private network with its routes. Output: its id.
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
            Some(n) if params.routes.iter().all(|r| n.routes.contains(r)) => Observed::Done(n.id),
            Some(_) => Observed::Partial,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NetworkCreate) -> PortResult<u64> {
        let cloud = &cx.world.cloud;
        let spec = NetworkSpec {
            name: params.name.clone(),
            range: params.range.clone(),
            subnet: Subnet { range: params.subnet.clone(), zone: params.zone.clone() },
            routes: params.routes.clone(),
            labels: params.labels.clone(),
        };
        // Where it exists, creating finds it by its name and labels.
        let network = cloud.create_network(&spec).await?;
        for route in params.routes.iter().filter(|r| !network.routes.contains(r)) {
            cloud.add_route(network.id, route).await?;
        }
        Ok(network.id)
    }
}
