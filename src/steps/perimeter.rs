//! Firewalls and routes of the private network.

use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{FirewallDelete, FirewallProvide, RouteProvide};
use crate::plan::same_rules;
use crate::ports::{ErrorCode, Firewall, FirewallSpec, PortError, PortResult, Route};

/// Creates a firewall, or gives it back its rules and its servers. Output: its id.
pub struct FirewallProvideStep;
/// Routes what leaves the private network through one of its servers.
pub struct RouteProvideStep;
/// Deletes a firewall.
pub struct FirewallDeleteStep;

#[async_trait]
impl StepKind for FirewallProvideStep {
    type Params = FirewallProvide;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &FirewallProvide) -> PortResult<Observed<u64>> {
        Ok(match cx.world.cloud.firewall_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(f) if !cx.world.owns(&f.labels) => {
                Observed::Foreign(format!("a firewall named {} exists that is not this cluster's", params.name))
            }
            Some(f) if same_rules(&f.rules, &params.rules) && f.selectors.contains(&params.selector) => {
                Observed::Done(f.id)
            }
            Some(_) => Observed::Partial,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FirewallProvide) -> PortResult<u64> {
        let spec = FirewallSpec {
            name: params.name.clone(),
            selector: params.selector.clone(),
            rules: params.rules.clone(),
            labels: params.labels.clone(),
        };
        // Where it exists with other rules, creating finds it by its name and labels.
        let firewall: Firewall = cx.world.cloud.create_firewall(&spec).await?;
        if !same_rules(&firewall.rules, &params.rules) {
            cx.world.cloud.set_firewall_rules(firewall.id, &params.rules).await?;
        }
        if !firewall.selectors.contains(&params.selector) {
            cx.world.cloud.apply_firewall(firewall.id, &params.selector).await?;
        }
        Ok(firewall.id)
    }
}

#[async_trait]
impl StepKind for FirewallDeleteStep {
    type Params = FirewallDelete;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &FirewallDelete) -> PortResult<Observed<()>> {
        Ok(match cx.world.cloud.firewall_by_name(&params.name).await? {
            Some(f) if f.id == params.id && !cx.world.owns(&f.labels) => {
                Observed::Foreign(format!("firewall {} lost this cluster's label", params.id))
            }
            Some(f) if f.id == params.id => Observed::Absent,
            _ => Observed::Done(()),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FirewallDelete) -> PortResult<()> {
        match cx.world.cloud.delete_firewall(params.id).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl StepKind for RouteProvideStep {
    type Params = RouteProvide;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &RouteProvide) -> PortResult<Observed<()>> {
        Ok(match cx.world.cloud.network_by_name(&params.network).await? {
            Some(network) if !cx.world.owns(&network.labels) => {
                Observed::Foreign(format!("a network named {} exists that is not this cluster's", params.network))
            }
            Some(network) if network.routes.contains(&route(params)) => Observed::Done(()),
            _ => Observed::Absent,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &RouteProvide) -> PortResult<()> {
        let cloud = &cx.world.cloud;
        let network = cloud
            .network_by_name(&params.network)
            .await?
            .ok_or_else(|| PortError::new(ErrorCode::NotFound, format!("network {} does not exist", params.network)))?;
        let route = route(params);
        // One that leads elsewhere is in the way; it is this cluster's network.
        for other in network.routes.iter().filter(|r| r.destination == route.destination && **r != route) {
            cloud.delete_route(network.id, other).await?;
        }
        cloud.add_route(network.id, &route).await
    }
}

fn route(params: &RouteProvide) -> Route {
    Route { destination: params.destination.clone(), gateway: params.gateway }
}
