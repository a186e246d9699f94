//! What can be done to a network.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde_json::json;

use super::cloud::Cloud;
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::created;
use super::network::{Route, network_range, range};
use crate::backend::Effect;

/// How many routes a network may have.
pub const ROUTES_MAX: usize = 100;

impl Cloud {
    /// Attaches a machine to a network. Routes may already name its address as their gateway: they hold from now on.
    pub(super) async fn join(&self, machine: u64, network: u64, address: Ipv4Addr, range: &str) -> Effect {
        self.backend.attach_network(machine, network, address, range).await?;
        let routes = self.state().networks.get(&network).map(|n| hops(&n.routes)).unwrap_or_default();
        if routes.iter().any(|(_, gateway)| *gateway == address) {
            self.backend.set_routes(network, &routes).await?;
        }
        Ok(())
    }
}

/// Routes as the backend takes them.
pub fn hops(routes: &[Route]) -> Vec<(String, Ipv4Addr)> {
    routes.iter().map(|r| (r.destination.to_string(), r.gateway)).collect()
}

pub async fn add_subnet(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let subnet = state.idle_network(id)?.fit_subnet(&input)?;
    if let Some(network) = state.networks.get_mut(&id) {
        network.subnets.push(subnet);
    }
    Ok(created(json!({"action": state.instant("add_subnet", &[("network", id)])})))
}

pub async fn delete_subnet(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let subnet = range(&input, "ip_range")?.ok_or_else(|| ApiError::field("ip_range", "is required"))?;
    let mut state = cloud.state();
    if !state.idle_network(id)?.subnets.iter().any(|s| s.range == subnet) {
        return Err(ApiError::field("ip_range", format!("network {id} has no subnet {subnet}")));
    }
    let used = state.servers.values().flat_map(|s| &s.private).any(|p| p.network == id && subnet.has(p.ip));
    if used {
        return Err(ApiError::new("resource_in_use", format!("subnet {subnet} still has servers")));
    }
    if let Some(network) = state.networks.get_mut(&id) {
        network.subnets.retain(|s| s.range != subnet);
    }
    Ok(created(json!({"action": state.instant("delete_subnet", &[("network", id)])})))
}

pub async fn add_route(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.state();
    let network = state.idle_network(id)?;
    let mut routes = network.routes.clone();
    routes.push(network.fit_route(&input)?);
    drop(state);
    set_routes(&cloud, id, "add_route", routes)
}

pub async fn delete_route(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let destination = range(&input, "destination")?.ok_or_else(|| ApiError::field("destination", "is required"))?;
    let gateway = input.address("gateway")?.ok_or_else(|| ApiError::field("gateway", "is required"))?;
    let gone = Route { destination, gateway };
    let state = cloud.state();
    let mut routes = state.idle_network(id)?.routes.clone();
    if !routes.contains(&gone) {
        return Err(ApiError::field("destination", format!("there is no route to {destination} through {gateway}")));
    }
    routes.retain(|r| *r != gone);
    drop(state);
    set_routes(&cloud, id, "delete_route", routes)
}

fn set_routes(cloud: &Arc<Cloud>, id: u64, command: &'static str, routes: Vec<Route>) -> ApiResult {
    let mut state = cloud.state();
    state.idle_network(id)?;
    let action = state.begin(command, &[("network", id)]);
    let body = json!({"action": state.action_json(action)});
    let (backend, hops) = (Arc::clone(&cloud.backend), hops(&routes));
    cloud.run(action, async move { backend.set_routes(id, &hops).await }, move |state, ok| {
        if let (true, Some(network)) = (ok, state.networks.get_mut(&id)) {
            network.routes = routes;
        }
    });
    Ok(created(body))
}

/// The range can only grow, around what it was.
pub async fn change_ip_range(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let wider = network_range(&input)?;
    let mut state = cloud.state();
    let network = state.idle_network(id)?;
    if !wider.contains(&network.range) {
        return Err(ApiError::field("ip_range", format!("must contain the present range {}", network.range)));
    }
    if network.routes.iter().any(|r| r.destination.overlaps(&wider)) {
        return Err(ApiError::field("ip_range", "overlaps the destination of a route"));
    }
    if let Some(network) = state.networks.get_mut(&id) {
        network.range = wider;
    }
    Ok(created(json!({"action": state.instant("change_ip_range", &[("network", id)])})))
}

pub async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    state.idle_network(id)?;
    if let (Some(protect), Some(network)) = (protect, state.networks.get_mut(&id)) {
        network.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("network", id)])})))
}
