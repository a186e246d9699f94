//! Load balancers.

use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::balancer_differences;
use crate::plan::params::{BalancerDelete, BalancerProvide};
use crate::ports::{Balancer, BalancerSpec, BalancerTarget, ErrorCode, PortError, PortResult};

/// Creates a load balancer, or gives it back its address, services and targets. Output: its id.
pub struct BalancerProvideStep;
/// Deletes a load balancer.
pub struct BalancerDeleteStep;

#[async_trait]
impl StepKind for BalancerProvideStep {
    type Params = BalancerProvide;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &BalancerProvide) -> PortResult<Observed<u64>> {
        Ok(match cx.world.cloud.balancer_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(b) if !cx.world.owns(&b.labels) => {
                Observed::Foreign(format!("a load balancer named {} exists that is not this cluster's", params.name))
            }
            Some(b) if balancer_differences(params, &b, cx.made("network")).is_empty() => Observed::Done(b.id),
            Some(_) => Observed::Partial,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &BalancerProvide) -> PortResult<u64> {
        let cloud = &cx.world.cloud;
        let spec = BalancerSpec {
            name: params.name.clone(),
            balancer_type: params.balancer_type.clone(),
            location: params.location.clone(),
            public: params.public,
            services: params.services.clone(),
            labels: params.labels.clone(),
        };
        // Where it exists, creating finds it by its name and labels.
        let balancer = cloud.create_balancer(&spec).await?;
        let id = balancer.id;
        for service in params.services.iter().filter(|s| !balancer.services.contains(s)) {
            cloud.set_balancer_service(id, service).await?;
        }
        for service in &balancer.services {
            if !params.services.iter().any(|s| s.listen_port == service.listen_port) {
                cloud.delete_balancer_service(id, service.listen_port).await?;
            }
        }
        for target in balancer.targets.iter().filter(|t| **t != params.target) {
            cloud.remove_balancer_target(id, target).await?;
        }
        let has_target = attach(cx, params, &balancer).await?;
        if !has_target {
            cloud.add_balancer_target(id, &params.target).await?;
        }
        if balancer.public_ipv4.is_some() != params.public {
            cloud.set_balancer_public(id, params.public).await?;
        }
        Ok(id)
    }
}

/// Puts it at its address in the network. Whether it has its target afterwards.
async fn attach(cx: &StepContext<'_>, params: &BalancerProvide, balancer: &Balancer) -> PortResult<bool> {
    let cloud = &cx.world.cloud;
    let network = match cx.made("network") {
        Some(id) => id,
        None => {
            let missing = || PortError::new(ErrorCode::NotFound, format!("network {} does not exist", params.network));
            cloud.network_by_name(&params.network).await?.ok_or_else(missing)?.id
        }
    };
    let has_target = balancer.targets.contains(&params.target);
    if balancer.private.iter().any(|p| p.network == network && p.address == params.address) {
        return Ok(has_target);
    }
    if has_target
        && matches!(params.target, BalancerTarget::Selector { private: true, .. })
        && !balancer.private.is_empty()
    {
        // It may not leave a network through which it reaches a target.
        cloud.remove_balancer_target(balancer.id, &params.target).await?;
    }
    for elsewhere in &balancer.private {
        cloud.detach_balancer(balancer.id, elsewhere.network).await?;
    }
    cloud.attach_balancer(balancer.id, network, params.address).await?;
    Ok(has_target && balancer.private.is_empty())
}

#[async_trait]
impl StepKind for BalancerDeleteStep {
    type Params = BalancerDelete;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &BalancerDelete) -> PortResult<Observed<()>> {
        Ok(match cx.world.cloud.balancer_by_name(&params.name).await? {
            Some(b) if b.id == params.id && !cx.world.owns(&b.labels) => {
                Observed::Foreign(format!("load balancer {} lost this cluster's label", params.id))
            }
            Some(b) if b.id == params.id => Observed::Absent,
            _ => Observed::Done(()),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &BalancerDelete) -> PortResult<()> {
        match cx.world.cloud.delete_balancer(params.id).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    }
}
