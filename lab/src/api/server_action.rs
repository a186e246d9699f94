//! What can be done to a server: power, networks, placement, protection.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde_json::json;

use super::cloud::Cloud;
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::created;
use super::network::range;
use super::server::{PrivateIp, Status};

/// How many networks a server may be in.
pub const NETWORKS_MAX: usize = 3;

/// `poweron`, `poweroff`, `reset`, `reboot`, `shutdown`
pub fn power(cloud: &Arc<Cloud>, id: u64, command: &str) -> ApiResult {
    let mut state = cloud.state();
    let before = state.idle_server(id)?.status;
    let name = match command {
        "poweron" => "start_server",
        "poweroff" => "stop_server",
        "reset" => "reset_server",
        "reboot" => "reboot_server",
        _ => "shutdown_server",
    };
    if before == Status::Unknown {
        return Err(ApiError::unsupported(format!("the creation of server {id} failed: delete it")));
    }
    let off = before == Status::Off;
    match (command, off) {
        // Nothing to do is no error.
        ("poweron", false) | ("poweroff" | "shutdown", true) => {
            return Ok(created(json!({"action": state.instant(name, &[("server", id)])})));
        }
        ("reset" | "reboot", true) => return Err(ApiError::unsupported(format!("server {id} is off: power it on"))),
        _ => {}
    }
    // (while it runs, after success, after failure). A button press changes nothing: the machine's answer is an event.
    let (during, done, failed) = match command {
        "poweron" => (Status::Starting, Status::Running, before),
        "poweroff" => (Status::Stopping, Status::Off, before),
        _ => (before, before, before),
    };
    state.server_mut(id)?.status = during;
    let action = state.begin(name, &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let (backend, command) = (Arc::clone(&cloud.backend), command.to_owned());
    let effect = async move {
        match command.as_str() {
            "poweron" => backend.power_on(id).await,
            "poweroff" => backend.power_off(id).await,
            "reset" => backend.reset(id).await,
            "reboot" => backend.reboot(id).await,
            _ => backend.shutdown(id).await,
        }
    };
    cloud.run(action, effect, move |state, ok| {
        // A machine that went off by itself meanwhile stays off.
        if let Some(server) = state.servers.get_mut(&id).filter(|s| s.status == during) {
            server.status = if ok { done } else { failed };
        }
    });
    Ok(created(body))
}

pub async fn attach_to_network(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let network_id = input.required_number("network")?;
    let (wanted, within) = (input.address("ip")?, range(&input, "ip_range")?);
    if !input.array("alias_ips")?.is_empty() {
        return Err(ApiError::unsupported("the lab has no alias IPs"));
    }
    let mut state = cloud.state();
    let server = state.idle_server(id)?;
    let network = state.idle_network(network_id).map_err(|e| {
        if e.code == "not_found" { ApiError::field("network", format!("network {network_id} not found")) } else { e }
    })?;
    if server.private.iter().any(|p| p.network == network_id) {
        let message = format!("server {id} is already attached to network {network_id}");
        return Err(ApiError::new("server_already_attached", message));
    }
    if server.private.len() >= NETWORKS_MAX {
        return Err(ApiError::limit("server_network_limit"));
    }
    let others = server.private.iter().filter_map(|p| state.networks.get(&p.network));
    if let Some(other) = others.into_iter().find(|n| n.range.overlaps(&network.range)) {
        let message = format!("network {network_id} overlaps network {} of the server", other.id);
        return Err(ApiError::new("networks_overlap", message));
    }
    let ip = state.choose_address(network, server.location.network_zone, wanted, within)?;
    let whole = network.range.to_string();
    // Taken at once, so that no other server gets the address meanwhile.
    state.server_mut(id)?.private.push(PrivateIp { network: network_id, ip });
    let action = state.begin("attach_to_network", &[("server", id), ("network", network_id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    cloud.run(action, async move { runner.join(id, network_id, ip, &whole).await }, move |state, ok| {
        if let (false, Some(server)) = (ok, state.servers.get_mut(&id)) {
            server.private.retain(|p| p.network != network_id);
        }
    });
    Ok(created(body))
}

pub async fn detach_from_network(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let network = input.required_number("network")?;
    let mut state = cloud.state();
    if !state.idle_server(id)?.private.iter().any(|p| p.network == network) {
        return Err(ApiError::field("network", format!("server {id} is not attached to network {network}")));
    }
    let action = state.begin("detach_from_network", &[("server", id), ("network", network)]);
    let body = json!({"action": state.action_json(action)});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.detach_network(id, network).await }, move |state, ok| {
        if let (true, Some(server)) = (ok, state.servers.get_mut(&id)) {
            server.private.retain(|p| p.network != network);
        }
    });
    Ok(created(body))
}

pub async fn add_to_placement_group(
    Shared(cloud): Shared<Arc<Cloud>>,
    Path(id): Path<String>,
    input: Input,
) -> ApiResult {
    let id = path_id(&id)?;
    let group = input.required_number("placement_group")?;
    let mut state = cloud.state();
    let server = state.idle_server(id)?;
    if server.status != Status::Off {
        return Err(ApiError::new("server_not_stopped", format!("server {id} must be off to be placed")));
    }
    if let Some(group) = server.placement_group {
        let message = format!("server {id} is already in placement group {group}");
        return Err(ApiError::new("already_in_placement_group", message));
    }
    state.check_placement(group)?;
    state.server_mut(id)?.placement_group = Some(group);
    let resources = [("server", id), ("placement_group", group)];
    Ok(created(json!({"action": state.instant("add_to_placement_group", &resources)})))
}

pub async fn remove_from_placement_group(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    state.idle_server(id)?;
    let Some(group) = state.server_mut(id)?.placement_group.take() else {
        return Err(ApiError::new("not_in_placement_group", format!("server {id} is in no placement group")));
    };
    let resources = [("server", id), ("placement_group", group)];
    Ok(created(json!({"action": state.instant("remove_from_placement_group", &resources)})))
}

/// `delete` and `rebuild` can only be changed together, as in the real cloud.
pub async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (delete, rebuild) = (input.flag("delete")?, input.flag("rebuild")?);
    if delete != rebuild {
        return Err(ApiError::field("rebuild", "must be the same as 'delete'"));
    }
    let mut state = cloud.state();
    state.idle_server(id)?;
    if let Some(protect) = delete {
        state.server_mut(id)?.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("server", id)])})))
}
