//! What can be done to a firewall: its rules, and whom it is for.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde_json::{Value, json};

use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::firewall::{Applied, PER_SERVER_MAX, rules};
use super::input::{Input, path_id};
use super::listing::created;
use super::selector::Selector;

/// Reads the resources named in `field` and checks that the firewall (if there is one yet) can be applied to them.
pub fn resources(state: &State, input: &Input, field: &str, firewall: Option<u64>) -> ApiResult<Vec<Applied>> {
    let mut found = Vec::new();
    for resource in input.objects(field)? {
        let applied = read(state, &resource, field)?;
        if found.contains(&applied) {
            return Err(ApiError::new("server_already_added", "a resource is named more than once"));
        }
        let present = firewall.and_then(|id| state.firewalls.get(&id)).is_some_and(|f| f.applied_to.contains(&applied));
        if present {
            return Err(ApiError::new("firewall_already_applied", "the firewall is already applied to the resource"));
        }
        if let Applied::Server(id) = applied {
            check_server(state, id)?;
        }
        found.push(applied);
    }
    Ok(found)
}

/// Whether a server can have one more firewall.
fn check_server(state: &State, id: u64) -> ApiResult<()> {
    let server = state.server(id).map_err(|_| not_found(id))?;
    if server.public_addresses() == (None, None) {
        let message = format!("server {id} has no public interface");
        return Err(ApiError::new("private_net_only_server", message));
    }
    let present = state.firewalls.values().filter(|f| f.is_directly_for(id)).count();
    if present >= PER_SERVER_MAX { Err(ApiError::limit("server_firewall_limit")) } else { Ok(()) }
}

fn not_found(server: u64) -> ApiError {
    ApiError::new("firewall_resource_not_found", format!("server {server} not found"))
}

fn read(state: &State, resource: &Input, field: &str) -> ApiResult<Applied> {
    match resource.required_string("type")?.as_str() {
        "server" => {
            let server = resource.object("server")?.ok_or_else(|| ApiError::field(field, "'server' is required"))?;
            let id = server.required_number("id")?;
            if state.servers.contains_key(&id) { Ok(Applied::Server(id)) } else { Err(not_found(id)) }
        }
        "label_selector" => {
            let selector = resource.object("label_selector")?;
            let selector = selector.ok_or_else(|| ApiError::field(field, "'label_selector' is required"))?;
            let text = selector.required_string("selector")?;
            Selector::parse(&text)?;
            Ok(Applied::Selector(text))
        }
        _ => Err(ApiError::field(field, "'type' must be 'server' or 'label_selector'")),
    }
}

/// Starts an action for each server; it ends when the server's traffic is filtered as it should be. One for each
/// selector is done at once: its servers follow.
pub fn spread(
    cloud: &Arc<Cloud>,
    state: &mut State,
    command: &'static str,
    firewall: u64,
    resources: &[Applied],
) -> Vec<Value> {
    let mut actions = Vec::new();
    for resource in resources {
        match resource {
            Applied::Selector(_) => actions.push(state.instant(command, &[("firewall", firewall)])),
            Applied::Server(server) => {
                let server = *server;
                let action = state.begin(command, &[("server", server), ("firewall", firewall)]);
                actions.push(state.action_json(action));
                let runner = Arc::clone(cloud);
                cloud.run(action, async move { runner.settle_firewalls(Some(server)).await }, |_, _| {});
            }
        }
    }
    cloud.changed();
    actions
}

pub async fn set_rules(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    if input.get("rules").is_none() {
        return Err(ApiError::field("rules", "is required"));
    }
    let rules = rules(&input)?;
    let mut guard = cloud.state();
    let state = &mut *guard;
    let firewall = state.firewalls.get_mut(&id).ok_or_else(|| ApiError::not_found("firewall", id))?;
    firewall.rules = rules;
    let firewall = firewall.clone();
    let servers: Vec<Applied> = state.servers_behind(&firewall).into_iter().map(Applied::Server).collect();
    let mut actions = vec![state.instant("set_firewall_rules", &[("firewall", id)])];
    actions.extend(spread(&cloud, state, "apply_firewall", id, &servers));
    Ok(created(json!({"actions": actions})))
}

pub async fn apply_to_resources(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let mut guard = cloud.state();
    let state = &mut *guard;
    state.firewall(id)?;
    let resources = resources(state, &input, "apply_to", Some(id))?;
    if resources.is_empty() {
        return Err(ApiError::field("apply_to", "must name a resource"));
    }
    if let Some(firewall) = state.firewalls.get_mut(&id) {
        firewall.applied_to.extend(resources.iter().cloned());
    }
    Ok(created(json!({"actions": spread(&cloud, state, "apply_firewall", id, &resources)})))
}

pub async fn remove_from_resources(
    Shared(cloud): Shared<Arc<Cloud>>,
    Path(id): Path<String>,
    input: Input,
) -> ApiResult {
    let id = path_id(&id)?;
    let mut guard = cloud.state();
    let state = &mut *guard;
    let firewall = state.firewall(id)?;
    let mut gone = Vec::new();
    for resource in input.objects("remove_from")? {
        let applied = read(state, &resource, "remove_from")?;
        if !firewall.applied_to.contains(&applied) {
            return Err(match &applied {
                Applied::Server(server) if state.server(*server).is_ok_and(|s| firewall.is_for(s)) => ApiError::new(
                    "firewall_managed_by_label_selector",
                    format!("firewall {id} is applied to server {server} by a label selector"),
                ),
                _ => ApiError::new(
                    "firewall_resource_not_found",
                    format!("firewall {id} is not applied to the resource"),
                ),
            });
        }
        gone.push(applied);
    }
    if gone.is_empty() {
        return Err(ApiError::field("remove_from", "must name a resource"));
    }
    if let Some(firewall) = state.firewalls.get_mut(&id) {
        firewall.applied_to.retain(|a| !gone.contains(a));
    }
    Ok(created(json!({"actions": spread(&cloud, state, "remove_firewall", id, &gone)})))
}
