//! Floating IPs: addresses that move between servers while these run.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::catalog::{self, Location};
use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::{Listing, created, no_content, one};
use super::primary_ip::Family;
use super::rdns::{Change, Reverse};
use super::server::Status;
use super::tag::{Tag, TagUpdate, check_unique};

/// A public address, or an IPv6 network of 64 bits, routed to a server or nowhere. The server configures it by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FloatingIp {
    pub tag: Tag,
    pub ip: IpAddr,
    pub home: &'static Location,
    pub server: Option<u64>,
    description: Option<String>,
    reverse: Reverse,
}

impl FloatingIp {
    fn json(&self) -> Value {
        self.tag.json(json!({
            "ip": self.ip, "type": Family::of(self.ip).name(), "home_location": self.home.json(),
            "server": self.server, "description": self.description, "blocked": false,
            "dns_ptr": self.reverse.json(self.ip), "protection": {"delete": self.tag.protected},
        }))
    }
}

impl State {
    pub fn floating_ips_of(&self, server: u64) -> impl Iterator<Item = &FloatingIp> {
        self.floating_ips.values().filter(move |f| f.server == Some(server))
    }

    fn idle_floating_ip(&self, id: u64) -> ApiResult<&FloatingIp> {
        let address = self.floating_ips.get(&id).ok_or_else(|| ApiError::not_found("floating_ip", id))?;
        if self.is_locked("floating_ip", id) { Err(ApiError::locked("floating_ip", id)) } else { Ok(address) }
    }

    fn floating_target(&self, server: u64) -> ApiResult<&'static Location> {
        let found = self.server(server).map_err(|e| {
            if e.code == "not_found" { ApiError::field("server", format!("server {server} not found")) } else { e }
        })?;
        // Other actions on the server are no hindrance: an address is routed outside of it.
        if matches!(found.status, Status::Initializing | Status::Deleting) {
            return Err(ApiError::locked("server", server));
        }
        Ok(found.location)
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/floating_ips", get(list).post(create))
        .route("/floating_ips/{id}", get(read).put(update).delete(remove))
        .route("/floating_ips/{id}/actions/assign", post(assign))
        .route("/floating_ips/{id}/actions/unassign", post(unassign))
        .route("/floating_ips/{id}/actions/change_dns_ptr", post(change_dns_ptr))
        .route("/floating_ips/{id}/actions/change_protection", post(change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let addresses = cloud.look().floating_ips.values().map(FloatingIp::json).collect();
    listing.reply("floating_ips", addresses, &[])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    let address = state.floating_ips.get(&id).ok_or_else(|| ApiError::not_found("floating_ip", id))?;
    Ok(one("floating_ip", address.json()))
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let family = Family::read(&input)?;
    let description = input.string("description")?;
    let named = input.string("name")?;
    let (server, home) = (input.number("server")?, input.reference("home_location")?);
    let mut guard = cloud.state();
    let state = &mut *guard;
    let mut tag = if named.is_some() { Tag::read(&input)? } else { Tag::named(String::new(), &input)? };
    check_unique("floating IP", state.floating_ips.values().map(|f| &f.tag), &tag.name, 0)?;
    let home = match (server, home) {
        (None, None) => return Err(ApiError::field("home_location", "is required when 'server' is not given")),
        (server, Some(name)) => {
            server.map(|s| state.floating_target(s)).transpose()?;
            catalog::location(&name)
                .ok_or_else(|| ApiError::field("home_location", format!("location '{name}' not found")))?
        }
        (Some(server), None) => state.floating_target(server)?,
    };
    if state.floating_ips.len() >= cloud.options.limits.floating_ips {
        return Err(ApiError::limit("floating_ip_limit"));
    }
    if state.common.faults().unavailable(home.name) {
        return Err(ApiError::unavailable(home.name));
    }
    let ip = state.take_address(family)?;
    tag.id = state.next_id();
    let id = tag.id;
    if named.is_none() {
        tag.name = format!("floating-ip-{id}");
    }
    let address = FloatingIp { tag, ip, home, server: None, description, reverse: Reverse::default() };
    state.floating_ips.insert(id, address);
    let mut body = json!({});
    if let Some(server) = server {
        body["action"] = route(&cloud, state, id, Some(server))?;
    }
    body["floating_ip"] = state.floating_ips.get(&id).map(FloatingIp::json).unwrap_or_default();
    Ok(created(body))
}

/// Routes the address to a server or nowhere.
fn route(cloud: &Arc<Cloud>, state: &mut State, id: u64, server: Option<u64>) -> ApiResult<Value> {
    let address = state.idle_floating_ip(id)?;
    let (ip, before) = (address.ip, address.server);
    let command = if server.is_some() { "assign_floating_ip" } else { "unassign_floating_ip" };
    let mut resources: Vec<(&'static str, u64)> = server.or(before).map(|s| ("server", s)).into_iter().collect();
    resources.push(("floating_ip", id));
    let action = state.begin(command, &resources);
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.route_floating_ip(ip, server).await }, move |state, ok| {
        // The server may have been deleted meanwhile.
        let server = server.filter(|server| state.servers.contains_key(server));
        if let (true, Some(address)) = (ok, state.floating_ips.get_mut(&id)) {
            address.server = server;
        }
    });
    Ok(state.action_json(action))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (update, description) = (TagUpdate::read(&input)?, input.string("description")?);
    let mut state = cloud.state();
    if let Some(name) = &update.name {
        check_unique("floating IP", state.floating_ips.values().map(|f| &f.tag), name, id)?;
    }
    let address = state.floating_ips.get_mut(&id).ok_or_else(|| ApiError::not_found("floating_ip", id))?;
    address.tag.update(update);
    if description.is_some() {
        address.description = description;
    }
    Ok(one("floating_ip", address.json()))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let address = state.idle_floating_ip(id)?;
    address.tag.check_unprotected("floating_ip")?;
    if let Some(server) = address.server {
        let message = format!("floating IP {id} is assigned to server {server}: unassign it first");
        return Err(ApiError::new("must_be_unassigned", message));
    }
    let ip = address.ip;
    state.floating_ips.remove(&id);
    state.give_back_address(ip);
    Ok(no_content())
}

/// An address that another server has moves; `server: null` takes it away.
async fn assign(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let server = input.number("server")?;
    let mut state = cloud.state();
    let present = state.idle_floating_ip(id)?.server;
    if let Some(server) = server {
        state.floating_target(server)?;
        if present == Some(server) {
            let message = format!("floating IP {id} is already assigned to server {server}");
            return Err(ApiError::new("floating_ip_assigned", message));
        }
    }
    Ok(created(json!({"action": route(&cloud, &mut state, id, server)?})))
}

async fn unassign(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    Ok(created(json!({"action": route(&cloud, &mut state, id, None)?})))
}

async fn change_dns_ptr(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let change = Change::read(&input)?;
    let mut state = cloud.state();
    state.idle_floating_ip(id)?;
    change.apply(state.floating_ips.get_mut(&id).map(|f| (f.ip, &mut f.reverse)))?;
    Ok(created(json!({"action": state.instant("change_dns_ptr", &[("floating_ip", id)])})))
}

async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    state.idle_floating_ip(id)?;
    if let (Some(protect), Some(address)) = (protect, state.floating_ips.get_mut(&id)) {
        address.tag.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("floating_ip", id)])})))
}
