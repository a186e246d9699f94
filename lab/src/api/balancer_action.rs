//! What can be done to a load balancer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde_json::json;

use super::balancer::LoadBalancer;
use super::catalog::Location;
use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::created;
use super::network::range;
use super::rdns::Change;
use super::{balancer_service, balancer_target, balancer_type};

type Handled = Shared<Arc<Cloud>>;

/// Changes a load balancer at once; the action ends when it serves as told. What cannot be made so is tried again by
/// the upkeep, and the action tells that it failed.
fn change(
    cloud: &Arc<Cloud>,
    id: &str,
    command: &'static str,
    change: impl FnOnce(&State, &mut LoadBalancer) -> ApiResult<Option<(&'static str, u64)>>,
) -> ApiResult {
    let id = path_id(id)?;
    let mut state = cloud.state();
    let mut balancer = state.idle_balancer(id)?.clone();
    let other = change(&state, &mut balancer)?;
    state.load_balancers.insert(id, balancer);
    let mut resources = vec![("load_balancer", id)];
    resources.extend(other);
    let action = state.begin(command, &resources);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(cloud);
    cloud.run(action, async move { runner.settle_balancers(Some(id)).await }, |_, _| {});
    Ok(created(body))
}

pub async fn add_service(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "add_service", |state, balancer| {
        let service = balancer_service::read(state, balancer, &input)?;
        balancer.services.push(service);
        Ok(None)
    })
}

fn service_at(balancer: &LoadBalancer, input: &Input) -> ApiResult<usize> {
    let port = input.required_number("listen_port")?;
    let found = balancer.services.iter().position(|s| u64::from(s.listen_port) == port);
    found.ok_or_else(|| ApiError::field("listen_port", format!("no service listens at port {port}")))
}

pub async fn update_service(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "update_service", |state, balancer| {
        let at = service_at(balancer, &input)?;
        let service = balancer_service::change(state, balancer, balancer.services.get(at), &input)?;
        balancer.services[at] = service;
        Ok(None)
    })
}

pub async fn delete_service(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "delete_service", |_, balancer| {
        balancer.services.remove(service_at(balancer, &input)?);
        Ok(None)
    })
}

pub async fn add_target(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "add_target", |state, balancer| {
        let target = balancer_target::read(state, balancer, &input)?;
        balancer.targets.push(target);
        Ok(None)
    })
}

pub async fn remove_target(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "remove_target", |_, balancer| {
        let what = balancer_target::read_what(&input)?;
        let before = balancer.targets.len();
        balancer.targets.retain(|t| t.what != what);
        if balancer.targets.len() == before {
            return Err(ApiError::new("load_balancer_target_not_found", "the load balancer has no such target"));
        }
        Ok(None)
    })
}

/// Reads an algorithm: whether it is `least_connections`.
pub fn algorithm(input: &Input) -> ApiResult<bool> {
    match input.required_string("type")?.as_str() {
        "round_robin" => Ok(false),
        "least_connections" => Ok(true),
        _ => Err(ApiError::field("type", "must be 'round_robin' or 'least_connections'")),
    }
}

pub async fn change_algorithm(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "change_algorithm", |_, balancer| {
        balancer.least_connections = algorithm(&input)?;
        Ok(None)
    })
}

pub async fn change_type(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "change_load_balancer_type", |_, balancer| {
        let name = input.reference("load_balancer_type")?;
        let name = name.ok_or_else(|| ApiError::field("load_balancer_type", "is required"))?;
        let kind = balancer_type::find(&name)
            .ok_or_else(|| ApiError::field("load_balancer_type", format!("load balancer type '{name}' not found")))?;
        if balancer.services.len() > kind.services || balancer.targets.len() > kind.targets {
            let message = format!("{} takes {} services and {} targets", kind.name, kind.services, kind.targets);
            return Err(ApiError::new("invalid_load_balancer_type", message));
        }
        balancer.kind = kind;
        Ok(None)
    })
}

pub async fn change_protection(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    state.idle_balancer(id)?;
    if let (Some(protect), Some(balancer)) = (protect, state.load_balancers.get_mut(&id)) {
        balancer.tag.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("load_balancer", id)])})))
}

pub async fn change_dns_ptr(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let change = Change::read(&input)?;
    let mut state = cloud.state();
    let balancer = state.idle_balancer(id)?;
    if ![IpAddr::V4(balancer.ipv4), IpAddr::V6(balancer.ipv6())].contains(&change.ip) {
        return Err(ApiError::field("ip", format!("{} is not one of its addresses", change.ip)));
    }
    let owned = change.ip;
    change.apply(state.load_balancers.get_mut(&id).map(|b| (owned, &mut b.reverse)))?;
    Ok(created(json!({"action": state.instant("change_dns_ptr", &[("load_balancer", id)])})))
}

/// Chooses the address of a load balancer in a network, or checks the one that is asked for.
pub fn choose_address(state: &State, network: u64, location: &Location, input: &Input) -> ApiResult<Ipv4Addr> {
    let (wanted, within) = (input.address("ip")?, range(input, "ip_range")?);
    let network = state.idle_network(network).map_err(|e| {
        if e.code == "not_found" { ApiError::field("network", format!("network {network} not found")) } else { e }
    })?;
    state.choose_address(network, location.network_zone, wanted, within)
}

pub async fn attach_to_network(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "attach_to_network", |state, balancer| {
        let network = input.required_number("network")?;
        if let Some((present, _)) = balancer.private {
            let message = format!("the load balancer is already attached to network {present}");
            return Err(ApiError::new("load_balancer_already_attached", message));
        }
        balancer.private = Some((network, choose_address(state, network, balancer.location, &input)?));
        Ok(Some(("network", network)))
    })
}

pub async fn detach_from_network(Shared(cloud): Handled, Path(id): Path<String>, input: Input) -> ApiResult {
    change(&cloud, &id, "detach_from_network", |_, balancer| {
        let network = input.required_number("network")?;
        if balancer.private.is_none_or(|(present, _)| present != network) {
            let message = format!("the load balancer is not attached to network {network}");
            return Err(ApiError::new("load_balancer_not_attached_to_network", message));
        }
        if balancer.targets.iter().any(|t| t.use_private_ip) {
            let message = "the load balancer has targets that use the private IP";
            return Err(ApiError::new("targets_with_use_private_ip", message));
        }
        balancer.private = None;
        Ok(Some(("network", network)))
    })
}

pub async fn enable_public_interface(Shared(cloud): Handled, Path(id): Path<String>) -> ApiResult {
    change(&cloud, &id, "enable_public_interface", |_, balancer| {
        balancer.public = true;
        Ok(None)
    })
}

pub async fn disable_public_interface(Shared(cloud): Handled, Path(id): Path<String>) -> ApiResult {
    change(&cloud, &id, "disable_public_interface", |_, balancer| {
        if balancer.private.is_none() {
            let message = "the load balancer is not attached to a network";
            return Err(ApiError::new("load_balancer_not_attached_to_network", message));
        }
        if balancer.targets.iter().any(|t| !t.use_private_ip) {
            let message = "the load balancer has targets that use the public IP";
            return Err(ApiError::new("targets_without_use_private_ip", message));
        }
        balancer.public = false;
        Ok(None)
    })
}
