//! Primary IPs: the public addresses of servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
use super::rdns::{Change, Reverse};
use super::server::{Public, Server, Status};
use super::tag::{Tag, TagUpdate, check_unique};

/// A public address, or an IPv6 network of 64 bits, that one server can have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrimaryIp {
    pub tag: Tag,
    pub ip: IpAddr,
    pub location: &'static Location,
    pub server: Option<u64>,
    /// Whether it goes with its server.
    pub auto_delete: bool,
    pub reverse: Reverse,
}

/// The families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn name(self) -> &'static str {
        if self == Family::V4 { "ipv4" } else { "ipv6" }
    }

    pub fn read(input: &Input) -> ApiResult<Self> {
        match input.required_string("type")?.as_str() {
            "ipv4" => Ok(Family::V4),
            "ipv6" => Ok(Family::V6),
            _ => Err(ApiError::field("type", "must be 'ipv4' or 'ipv6'")),
        }
    }
}

impl PrimaryIp {
    fn json(&self) -> Value {
        self.tag.json(json!({
            "ip": self.ip, "type": Family::of(self.ip).name(), "location": self.location.json(),
            "assignee_id": self.server, "assignee_type": if self.server.is_some() { "server" } else { "unassigned" },
            "auto_delete": self.auto_delete, "blocked": false, "dns_ptr": self.reverse.json(self.ip),
            "protection": {"delete": self.tag.protected},
        }))
    }
}

impl Server {
    pub fn public_of(&self, family: Family) -> Option<u64> {
        match family {
            Family::V4 => self.public_ipv4.map(|p| p.id),
            Family::V6 => self.public_ipv6.map(|p| p.id),
        }
    }

    fn set_public(&mut self, ip: IpAddr, id: Option<u64>) {
        match ip {
            IpAddr::V4(ip) => self.public_ipv4 = id.map(|id| Public { id, ip }),
            IpAddr::V6(ip) => self.public_ipv6 = id.map(|id| Public { id, ip }),
        }
    }

    pub fn public_addresses(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        (self.public_ipv4.map(|p| p.ip), self.public_ipv6.map(|p| p.ip))
    }
}

impl State {
    /// A free address of the family.
    pub fn take_address(&self, family: Family) -> ApiResult<IpAddr> {
        let taken = match family {
            Family::V4 => self.common.addresses().take().map(IpAddr::V4),
            Family::V6 => self.common.networks6().take().map(IpAddr::V6),
        };
        taken.ok_or_else(|| {
            ApiError::new("resource_unavailable", format!("no public {} address is free", family.name()))
        })
    }

    pub fn give_back_address(&self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.common.addresses().give_back(ip),
            IpAddr::V6(ip) => self.common.networks6().give_back(ip),
        }
    }

    /// The Primary IP that a new server gets by itself.
    pub fn primary_ip_for(&mut self, family: Family, location: &'static Location) -> ApiResult<u64> {
        let ip = self.take_address(family)?;
        let id = self.next_id();
        let mut tag = Tag::named(format!("primary_ip-{id}"), &Input::default())?;
        tag.id = id;
        let address = PrimaryIp { tag, ip, location, server: None, auto_delete: true, reverse: Reverse::default() };
        self.primary_ips.insert(id, address);
        Ok(id)
    }

    /// A Primary IP no action runs on.
    fn idle_primary_ip(&self, id: u64) -> ApiResult<&PrimaryIp> {
        let address = self.primary_ips.get(&id).ok_or_else(|| ApiError::not_found("primary_ip", id))?;
        if self.is_locked("primary_ip", id) { Err(ApiError::locked("primary_ip", id)) } else { Ok(address) }
    }

    /// Checks that a new server of this location can have it.
    pub fn check_primary_ip(&self, field: &str, id: u64, family: Family, location: &Location) -> ApiResult<()> {
        let address = self.idle_primary_ip(id).map_err(|e| {
            if e.code == "not_found" { ApiError::field(field, format!("Primary IP {id} not found")) } else { e }
        })?;
        if Family::of(address.ip) != family {
            let message = format!("Primary IP {id} is not an {} address", family.name());
            return Err(ApiError::new("primary_ip_version_mismatch", message));
        }
        if let Some(server) = address.server {
            return Err(ApiError::new(
                "primary_ip_assigned",
                format!("Primary IP {id} is assigned to server {server}"),
            ));
        }
        if address.location.id != location.id {
            let message = format!("Primary IP {id} is in location '{}'", address.location.name);
            return Err(ApiError::new("primary_ip_datacenter_mismatch", message));
        }
        Ok(())
    }

    /// Writes down that the address is the server's, or (without one) nobody's any more.
    pub fn set_assignee(&mut self, id: u64, server: Option<u64>) {
        let Some(address) = self.primary_ips.get_mut(&id) else { return };
        let (ip, before) = (address.ip, std::mem::replace(&mut address.server, server));
        if let Some(server) = before.and_then(|s| self.servers.get_mut(&s)) {
            server.set_public(ip, None);
        }
        if let Some(server) = server.and_then(|s| self.servers.get_mut(&s)) {
            server.set_public(ip, Some(id));
        }
    }

    /// Frees the addresses of a server that is gone: those that go with it are deleted.
    pub fn release_primary_ips(&mut self, server: u64) {
        let of_it: Vec<u64> =
            self.primary_ips.values().filter(|p| p.server == Some(server)).map(|p| p.tag.id).collect();
        for id in of_it {
            self.set_assignee(id, None);
            if let Some(gone) = self.primary_ips.get(&id).filter(|p| p.auto_delete).cloned() {
                self.primary_ips.remove(&id);
                self.give_back_address(gone.ip);
            }
        }
    }

    /// The server, which must be off and have no address of the family.
    fn check_assignee(&self, server: u64, family: Family) -> ApiResult<&Server> {
        let server = self.idle_server(server).map_err(|e| {
            if e.code == "not_found" { ApiError::field("assignee_id", format!("server {server} not found")) } else { e }
        })?;
        if server.status != Status::Off {
            return Err(ApiError::new("server_not_stopped", format!("server {} must be off", server.id)));
        }
        if server.public_of(family).is_some() {
            let (code, message) = match family {
                Family::V4 => ("server_has_ipv4", "the server already has an IPv4 address"),
                Family::V6 => ("server_has_ipv6", "the server already has an IPv6 address"),
            };
            return Err(ApiError::new(code, message));
        }
        Ok(server)
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/primary_ips", get(list).post(create))
        .route("/primary_ips/{id}", get(read).put(update).delete(remove))
        .route("/primary_ips/{id}/actions/assign", post(assign))
        .route("/primary_ips/{id}/actions/unassign", post(unassign))
        .route("/primary_ips/{id}/actions/change_dns_ptr", post(change_dns_ptr))
        .route("/primary_ips/{id}/actions/change_protection", post(change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let addresses = cloud.look().primary_ips.values().map(PrimaryIp::json).collect();
    listing.reply("primary_ips", addresses, &["ip"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    let address = state.primary_ips.get(&id).ok_or_else(|| ApiError::not_found("primary_ip", id))?;
    Ok(one("primary_ip", address.json()))
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let mut tag = Tag::read(&input)?;
    let family = Family::read(&input)?;
    check_assignee_type(&input)?;
    if input.get("datacenter").is_some() {
        return Err(ApiError::field("datacenter", "is gone: use 'location'"));
    }
    let auto_delete = input.flag("auto_delete")?.unwrap_or(false);
    let (server, location) = (input.number("assignee_id")?, input.reference("location")?);
    let mut guard = cloud.state();
    let state = &mut *guard;
    check_unique("Primary IP", state.primary_ips.values().map(|p| &p.tag), &tag.name, 0)?;
    let location = match (server, location) {
        (Some(_), Some(_)) => return Err(ApiError::field("location", "must not be given together with 'assignee_id'")),
        (None, None) => return Err(ApiError::field("location", "is required when 'assignee_id' is not given")),
        (Some(server), None) => state.check_assignee(server, family)?.location,
        (None, Some(name)) => catalog::location(&name)
            .ok_or_else(|| ApiError::field("location", format!("location '{name}' not found")))?,
    };
    if state.primary_ips.len() >= cloud.options.limits.primary_ips {
        return Err(ApiError::limit("primary_ip_limit"));
    }
    if state.common.faults().unavailable(location.name) {
        return Err(ApiError::unavailable(location.name));
    }
    let ip = state.take_address(family)?;
    let id = state.next_id();
    tag.id = id;
    let address = PrimaryIp { tag, ip, location, server: None, auto_delete, reverse: Reverse::default() };
    state.primary_ips.insert(id, address);
    let mut body = json!({});
    if let Some(server) = server {
        body["action"] = move_to(&cloud, state, "assign_primary_ip", id, server, true);
    }
    body["primary_ip"] = state.primary_ips.get(&id).map(PrimaryIp::json).unwrap_or_default();
    Ok(created(body))
}

fn check_assignee_type(input: &Input) -> ApiResult<()> {
    match input.string("assignee_type")?.as_deref() {
        None | Some("server" | "unassigned") => Ok(()),
        Some(_) => Err(ApiError::field("assignee_type", "must be 'server'")),
    }
}

/// Gives the address to a server that is off, or takes it away. Written down at once, so that nobody else gets it.
fn move_to(cloud: &Arc<Cloud>, state: &mut State, command: &'static str, id: u64, server: u64, to: bool) -> Value {
    state.set_assignee(id, to.then_some(server));
    let (ipv4, ipv6) = state.servers.get(&server).map(Server::public_addresses).unwrap_or_default();
    let action = state.begin(command, &[("server", server), ("primary_ip", id)]);
    let backend = Arc::clone(&cloud.backend);
    let effect = async move { backend.set_public_addresses(server, ipv4, ipv6).await };
    cloud.run(action, effect, move |state, ok| {
        if !ok {
            state.set_assignee(id, (!to).then_some(server));
        }
    });
    state.action_json(action)
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (update, auto_delete) = (TagUpdate::read(&input)?, input.flag("auto_delete")?);
    let mut state = cloud.state();
    if let Some(name) = &update.name {
        check_unique("Primary IP", state.primary_ips.values().map(|p| &p.tag), name, id)?;
    }
    let address = state.primary_ips.get_mut(&id).ok_or_else(|| ApiError::not_found("primary_ip", id))?;
    if auto_delete == Some(true) && address.tag.protected {
        return Err(ApiError::field("auto_delete", "must not be set while deletion is protected"));
    }
    address.tag.update(update);
    address.auto_delete = auto_delete.unwrap_or(address.auto_delete);
    Ok(one("primary_ip", address.json()))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let address = state.idle_primary_ip(id)?;
    address.tag.check_unprotected("primary_ip")?;
    if let Some(server) = address.server {
        let message = format!("Primary IP {id} is assigned to server {server}: unassign it first");
        return Err(ApiError::new("must_be_unassigned", message));
    }
    let ip = address.ip;
    state.primary_ips.remove(&id);
    state.give_back_address(ip);
    Ok(no_content())
}

async fn assign(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    check_assignee_type(&input)?;
    let server = input.required_number("assignee_id")?;
    let mut state = cloud.state();
    let address = state.idle_primary_ip(id)?;
    if let Some(other) = address.server {
        let message = format!("Primary IP {id} is already assigned to server {other}");
        return Err(ApiError::new("primary_ip_already_assigned", message));
    }
    let target = state.check_assignee(server, Family::of(address.ip))?;
    if target.location.id != address.location.id {
        let message =
            format!("Primary IP {id} is in '{}', the server in '{}'", address.location.name, target.location.name);
        return Err(ApiError::field("assignee_id", message));
    }
    let action = move_to(&cloud, &mut state, "assign_primary_ip", id, server, true);
    Ok(created(json!({"action": action})))
}

async fn unassign(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let Some(server) = state.idle_primary_ip(id)?.server else {
        return Err(ApiError::new("primary_ip_not_assigned", format!("Primary IP {id} is not assigned")));
    };
    if state.idle_server(server)?.status != Status::Off {
        return Err(ApiError::new("server_not_stopped", format!("server {server} must be off")));
    }
    let action = move_to(&cloud, &mut state, "unassign_primary_ip", id, server, false);
    Ok(created(json!({"action": action})))
}

async fn change_dns_ptr(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let change = Change::read(&input)?;
    let mut state = cloud.state();
    state.idle_primary_ip(id)?;
    change.apply(state.primary_ips.get_mut(&id).map(|p| (p.ip, &mut p.reverse)))?;
    Ok(created(json!({"action": state.instant("change_dns_ptr", &[("primary_ip", id)])})))
}

async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    if state.idle_primary_ip(id)?.auto_delete && protect == Some(true) {
        return Err(ApiError::field("delete", "can only be set while 'auto_delete' is false"));
    }
    if let (Some(protect), Some(address)) = (protect, state.primary_ips.get_mut(&id)) {
        address.tag.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("primary_ip", id)])})))
}
