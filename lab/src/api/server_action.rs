//! What can be done to a server: power, networks, placement, protection. Its disk: see `server_disk`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde_json::json;

use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::created;
use super::network::range;
use super::rdns::Change;
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
    let bare = state.server(id)?.public_addresses() == (None, None) && state.server(id)?.private.is_empty();
    if bare && command == "poweron" {
        let message = format!("server {id} has no network interface: give it a Primary IP or a network");
        return Err(ApiError::new("server_without_interface", message));
    }
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
    let boots = matches!(command, "poweron" | "reset" | "reboot");
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
        // The rescue system is for one boot.
        if let (true, Some(server)) = (ok && boots, state.servers.get_mut(&id)) {
            server.rescue_system = None;
        }
    });
    Ok(created(body))
}

pub async fn attach_to_network(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let network_id = input.required_number("network")?;
    let (wanted, within) = (input.address("ip")?, range(&input, "ip_range")?);
    let alias_ips = aliases(&input)?;
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
    state.check_aliases(id, network_id, &alias_ips)?;
    if alias_ips.contains(&ip) {
        return Err(ApiError::new("ip_not_available", format!("IP {ip} cannot be an alias of itself")));
    }
    let private = PrivateIp { network: network_id, ip, alias_ips: alias_ips.clone() };
    state.server_mut(id)?.private.push(private);
    let action = state.begin("attach_to_network", &[("server", id), ("network", network_id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    let effect = async move {
        runner.join(id, network_id, ip, &whole).await?;
        if alias_ips.is_empty() { Ok(()) } else { runner.backend.set_alias_ips(id, network_id, &alias_ips).await }
    };
    cloud.run(action, effect, move |state, ok| {
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

/// How many alias IPs a server may have in a network.
const ALIASES_MAX: usize = 5;

fn aliases(input: &Input) -> ApiResult<Vec<Ipv4Addr>> {
    let wrong = || ApiError::field("alias_ips", "must be a list of IPv4 addresses");
    let parse = |v: &serde_json::Value| v.as_str().and_then(|s| s.parse().ok()).ok_or_else(wrong);
    let aliases: Vec<Ipv4Addr> = input.array("alias_ips")?.iter().map(parse).collect::<ApiResult<_>>()?;
    if aliases.len() > ALIASES_MAX {
        return Err(ApiError::field("alias_ips", format!("must not be more than {ALIASES_MAX}")));
    }
    Ok(aliases)
}

impl State {
    /// Whether a server may have these further addresses in a network.
    fn check_aliases(&self, server: u64, network: u64, aliases: &[Ipv4Addr]) -> ApiResult<()> {
        let zone = self.server(server)?.location.network_zone;
        let network = self.networks.get(&network).ok_or_else(|| ApiError::not_found("network", network))?;
        for alias in aliases {
            let own = |p: &&PrivateIp| p.network == network.id && p.alias_ips.contains(alias);
            if !self.server(server)?.private.iter().any(|p| own(&p)) {
                self.choose_address(network, zone, Some(*alias), None).map_err(|e| match e.code.as_str() {
                    "invalid_input" => ApiError::field("alias_ips", e.message),
                    _ => e,
                })?;
            }
        }
        Ok(())
    }
}

pub async fn change_alias_ips(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let network = input.required_number("network")?;
    let aliases = aliases(&input)?;
    let mut state = cloud.state();
    if !state.idle_server(id)?.private.iter().any(|p| p.network == network) {
        return Err(ApiError::field("network", format!("server {id} is not attached to network {network}")));
    }
    state.check_aliases(id, network, &aliases)?;
    // Taken at once, so that nobody else gets them meanwhile.
    let private = state.server_mut(id)?.private.iter_mut().find(|p| p.network == network);
    let before = private.map(|p| std::mem::replace(&mut p.alias_ips, aliases.clone())).unwrap_or_default();
    let action = state.begin("change_alias_ips", &[("server", id), ("network", network)]);
    let body = json!({"action": state.action_json(action)});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.set_alias_ips(id, network, &aliases).await }, move |state, ok| {
        let private = state.servers.get_mut(&id).and_then(|s| s.private.iter_mut().find(|p| p.network == network));
        if let (false, Some(private)) = (ok, private) {
            private.alias_ips = before;
        }
    });
    Ok(created(body))
}

pub async fn change_dns_ptr(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let change = Change::read(&input)?;
    let mut state = cloud.state();
    let server = state.idle_server(id)?.clone();
    change.apply(state.reverse_of(&server))?;
    Ok(created(json!({"action": state.instant("change_dns_ptr", &[("server", id)])})))
}

/// The lab has no ISOs.
pub async fn attach_iso(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    cloud.state().idle_server(path_id(&id)?)?;
    let iso = input.reference("iso")?.ok_or_else(|| ApiError::field("iso", "is required"))?;
    Err(ApiError::field("iso", format!("ISO '{iso}' not found")))
}

/// None can be attached, so there is never anything to do.
pub async fn detach_iso(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    state.idle_server(id)?;
    Ok(created(json!({"action": state.instant("detach_iso", &[("server", id)])})))
}

pub async fn request_console(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let name = cloud.state().server(id)?.name.clone();
    Err(ApiError::unsupported(format!(
        "the lab's servers have no screen: use `hk-dr lab exec {name} -- CMD`, or read the console's log"
    )))
}
