//! Servers: what they are, reading, changing and deleting them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::catalog::{Image, Location, ServerType};
use super::cloud::{Cloud, State, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::{self, Labels};
use super::listing::{Listing, one};
use super::{server_action, server_create};

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    pub id: u64,
    pub name: String,
    pub status: Status,
    pub location: &'static Location,
    pub server_type: &'static ServerType,
    pub image: &'static Image,
    pub public_ipv4: Option<PublicIp>,
    pub private: Vec<PrivateIp>,
    pub placement_group: Option<u64>,
    pub labels: Labels,
    pub protected: bool,
    /// What its metadata service tells, fixed at its creation but for the addresses.
    pub public_keys: Vec<String>,
    pub user_data: String,
    pub created: Timestamp,
    /// Whether the backend has a machine for it: one that could not be made need not be destroyed.
    pub has_machine: bool,
}

/// A public address. It has an id as it is a Primary IP of its own in the real cloud.
#[derive(Debug, Clone, Copy)]
pub struct PublicIp {
    pub id: u64,
    pub ip: Ipv4Addr,
}

/// An address in a private network.
#[derive(Debug, Clone, Copy)]
pub struct PrivateIp {
    pub network: u64,
    pub ip: Ipv4Addr,
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Initializing,
    Starting,
    Running,
    Stopping,
    Off,
    Deleting,
    /// Its creation failed half way.
    Unknown,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Initializing => "initializing",
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Stopping => "stopping",
            Status::Off => "off",
            Status::Deleting => "deleting",
            Status::Unknown => "unknown",
        }
    }
}

impl State {
    pub fn server_json(&self, server: &Server) -> Value {
        let available = |l: &Location| !self.common.faults().is_unavailable(l.name);
        let ipv4 = server.public_ipv4.map(|p| {
            let [a, b, c, d] = p.ip.octets();
            let dns_ptr = format!("static.{d}.{c}.{b}.{a}.clients.your-server.de");
            json!({"id": p.id, "ip": p.ip, "blocked": false, "dns_ptr": dns_ptr})
        });
        let private: Vec<Value> = server
            .private
            .iter()
            .map(|p| {
                let [_, b, c, d] = p.ip.octets();
                json!({
                    "network": p.network, "ip": p.ip, "alias_ips": [],
                    "mac_address": format!("86:00:00:{b:02x}:{c:02x}:{d:02x}"),
                })
            })
            .collect();
        json!({
            "id": server.id, "name": server.name, "status": server.status.name(),
            "created": time_json(server.created),
            "public_net": {"ipv4": ipv4, "ipv6": null, "floating_ips": [], "firewalls": []},
            "private_net": private, "server_type": server.server_type.json(available),
            "location": server.location.json(), "image": server.image.json(), "iso": null, "rescue_enabled": false,
            "locked": self.is_locked("server", server.id), "backup_window": null, "outgoing_traffic": 0,
            "ingoing_traffic": 0, "included_traffic": 20u64 << 40,
            "protection": {"delete": server.protected, "rebuild": server.protected}, "labels": server.labels,
            "volumes": self.attached_volumes(server.id), "load_balancers": [],
            "primary_disk_size": server.server_type.disk_gb,
            "placement_group": server.placement_group.map(|g| self.placement_group_json(g)),
        })
    }

    pub fn attached_volumes(&self, server: u64) -> Vec<u64> {
        self.volumes.values().filter(|v| v.server == Some(server)).map(|v| v.id).collect()
    }

    pub fn check_server_name(&self, name: &str, except: Option<u64>) -> ApiResult<()> {
        if name.len() > 253 || !name.split('.').all(label::is_dns_label) {
            return Err(ApiError::field("name", "must be a valid hostname as per RFC 1123"));
        }
        if self.servers.values().any(|s| s.name == name && Some(s.id) != except) {
            return Err(ApiError::uniqueness("name", "server name is already used"));
        }
        Ok(())
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    let mut router = Router::new()
        .route("/servers", get(list).post(server_create::create))
        .route("/servers/{id}", get(read).put(update).delete(remove));
    for command in ["poweron", "poweroff", "reset", "reboot", "shutdown"] {
        router = router.route(
            &format!("/servers/{{id}}/actions/{command}"),
            post(async move |Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>| {
                server_action::power(&cloud, path_id(&id)?, command)
            }),
        );
    }
    router
        .route("/servers/{id}/actions/attach_to_network", post(server_action::attach_to_network))
        .route("/servers/{id}/actions/detach_from_network", post(server_action::detach_from_network))
        .route("/servers/{id}/actions/add_to_placement_group", post(server_action::add_to_placement_group))
        .route("/servers/{id}/actions/remove_from_placement_group", post(server_action::remove_from_placement_group))
        .route("/servers/{id}/actions/change_protection", post(server_action::change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.state();
    listing.reply("servers", state.servers.values().map(|s| state.server_json(s)).collect(), &["status"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.state();
    Ok(one("server", state.server_json(state.server(id)?)))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (name, labels) = (input.string("name")?, input.labels()?);
    let mut state = cloud.state();
    state.server(id)?;
    if let Some(name) = &name {
        state.check_server_name(name, Some(id))?;
    }
    let server = state.server_mut(id)?;
    server.name = name.unwrap_or_else(|| server.name.clone());
    server.labels = labels.unwrap_or_else(|| server.labels.clone());
    Ok(one("server", state.server_json(state.server(id)?)))
}

/// Cuts the power, detaches the volumes, destroys the machine. The server is listed as `deleting` until it is gone.
async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let server = state.idle_server(id)?;
    if server.protected {
        return Err(ApiError::protected("server"));
    }
    let (powered, has_machine) = (server.status != Status::Off, server.has_machine);
    state.server_mut(id)?.status = Status::Deleting;
    let volumes = state.attached_volumes(id);
    let action = state.begin("delete_server", &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    let effect = async move {
        if !has_machine {
            return Ok(());
        }
        if powered {
            runner.backend.power_off(id).await?;
        }
        runner.state().progress(action, 30);
        for volume in volumes {
            runner.backend.detach_volume(volume, id).await?;
            if let Some(volume) = runner.state().volumes.get_mut(&volume) {
                volume.server = None;
            }
        }
        runner.state().progress(action, 60);
        runner.backend.delete_machine(id).await
    };
    cloud.run(action, effect, move |state, ok| {
        if !ok {
            if let Some(server) = state.servers.get_mut(&id) {
                server.status = Status::Unknown;
            }
        } else if let Some(PublicIp { ip, .. }) = state.servers.remove(&id).and_then(|s| s.public_ipv4) {
            state.common.addresses().give_back(ip);
        }
    });
    Ok(axum::response::IntoResponse::into_response(axum::Json(body)))
}
