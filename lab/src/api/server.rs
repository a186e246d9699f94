//! Servers: what they are, reading, changing and deleting them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::balancer_target::{Target, What};
use super::catalog::{self, Location, ServerType};
use super::cloud::{Cloud, State, time_json};
use super::error::{ApiError, ApiResult};
use super::firewall::{Applied, selects};
use super::image::Image;
use super::input::{Input, path_id};
use super::label::{self, Labels};
use super::listing::{Listing, one};
use super::metrics;
use super::rdns::Reverse;
use super::{server_action, server_create, server_disk};
use crate::backend::MachineSpec;

/// A server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    pub id: u64,
    pub name: String,
    pub status: Status,
    pub location: &'static Location,
    pub server_type: &'static ServerType,
    /// GB of its disk: may be less than its type has, as disks never shrink.
    pub disk_gb: u32,
    /// What its disk was made from.
    pub image: Image,
    pub public_ipv4: Option<Public<Ipv4Addr>>,
    /// The first address of its /64.
    pub public_ipv6: Option<Public<Ipv6Addr>>,
    pub private: Vec<PrivateIp>,
    pub placement_group: Option<u64>,
    pub labels: Labels,
    pub protected: bool,
    /// It boots the rescue system next time.
    #[serde(default)]
    pub rescue_system: Option<Rescue>,
    /// Hours in which backups are made, if they are.
    pub backup_window: Option<String>,
    /// What its metadata service tells, fixed at its creation but for the addresses.
    pub public_keys: Vec<String>,
    pub user_data: String,
    pub created: Timestamp,
    /// Whether the backend has a machine for it: one that could not be made need not be destroyed.
    pub has_machine: bool,
}

/// A public address: a Primary IP and what it is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Public<A> {
    pub id: u64,
    pub ip: A,
}

/// A rescue system that waits for the next boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rescue {
    pub public_keys: Vec<String>,
    pub password: String,
    /// When it is disabled by itself.
    pub until: Timestamp,
}

/// An address in a private network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrivateIp {
    pub network: u64,
    pub ip: Ipv4Addr,
    /// Further addresses that are routed to it.
    pub alias_ips: Vec<Ipv4Addr>,
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Initializing,
    Starting,
    Running,
    Stopping,
    Off,
    Deleting,
    Rebuilding,
    /// Changing its type.
    Migrating,
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
            Status::Rebuilding => "rebuilding",
            Status::Migrating => "migrating",
            Status::Unknown => "unknown",
        }
    }
}

impl State {
    pub fn server_json(&self, server: &Server) -> Value {
        self.server_json_locked(server, self.is_locked("server", server.id))
    }

    fn server_json_locked(&self, server: &Server, locked: bool) -> Value {
        let available = |l: &Location| !self.common.faults().is_unavailable(l.name);
        let reverse = |id: u64| self.primary_ips.get(&id).map(|p| p.reverse.clone()).unwrap_or_default();
        let ipv4 = server
            .public_ipv4
            .map(|p| json!({"id": p.id, "ip": p.ip, "blocked": false, "dns_ptr": reverse(p.id).name4(p.ip)}));
        let ipv6 = server.public_ipv6.map(|p| {
            let dns_ptr = reverse(p.id).json(IpAddr::V6(p.ip));
            json!({"id": p.id, "ip": format!("{}/64", p.ip), "blocked": false, "dns_ptr": dns_ptr})
        });
        let floating: Vec<u64> = self.floating_ips_of(server.id).map(|f| f.tag.id).collect();
        let private: Vec<Value> = server
            .private
            .iter()
            .map(|p| {
                let [_, b, c, d] = p.ip.octets();
                json!({
                    "network": p.network, "ip": p.ip, "alias_ips": p.alias_ips,
                    "mac_address": format!("86:00:00:{b:02x}:{c:02x}:{d:02x}"),
                })
            })
            .collect();
        let mut body = json!({
            "id": server.id, "name": server.name, "status": server.status.name(),
            "public_net": {"floating_ips": floating}, "iso": null, "rescue_enabled": server.rescue_system.is_some(), "locked": locked,
            "backup_window": server.backup_window, "outgoing_traffic": 0,
            "ingoing_traffic": 0, "included_traffic": catalog::included_traffic(server.location),
            "protection": {"delete": server.protected, "rebuild": server.protected}, "labels": server.labels,
            "volumes": self.attached_volumes(server.id), "load_balancers": self.balancers_of(server),
            "primary_disk_size": server.disk_gb,
            "placement_group": server.placement_group.map(|g| self.placement_group_json(g)),
        });
        // What is put in afterwards is moved; inside of the macro it would be copied, node by node.
        body["created"] = time_json(server.created);
        body["public_net"]["ipv4"] = ipv4.unwrap_or_default();
        body["public_net"]["ipv6"] = ipv6.unwrap_or_default();
        body["public_net"]["firewalls"] = Value::Array(self.firewalls_json(server));
        body["private_net"] = Value::Array(private);
        body["server_type"] = server.server_type.json(available);
        body["location"] = server.location.json();
        body["image"] = server.image.json();
        body
    }

    /// The load balancers that have a server as target.
    fn balancers_of(&self, server: &Server) -> Vec<u64> {
        let targets = |t: &Target| match &t.what {
            What::Server(id) => *id == server.id,
            What::Selector(text) => selects(text, server),
            What::Ip(_) => false,
        };
        self.load_balancers.values().filter(|b| b.targets.iter().any(targets)).map(|b| b.tag.id).collect()
    }

    /// The addresses of a server and their names.
    pub fn reverse_of(&mut self, server: &Server) -> Vec<(IpAddr, &mut Reverse)> {
        let id = server.id;
        self.primary_ips.values_mut().filter(|p| p.server == Some(id)).map(|p| (p.ip, &mut p.reverse)).collect()
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

impl Server {
    /// What its machine is made of.
    pub fn spec(&self) -> MachineSpec {
        let (public_ipv4, public_ipv6) = self.public_addresses();
        MachineSpec {
            id: self.id,
            name: self.name.clone(),
            image: self.image.system_name(),
            snapshot: self.image.content(),
            public_ipv4,
            public_ipv6,
            cores: self.server_type.cores,
            memory_mb: u64::from(self.server_type.memory_gb) * 1024,
            disk_gb: self.disk_gb,
            location: self.location.name.to_owned(),
        }
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
    for command in ["enable_backup", "disable_backup", "enable_rescue", "disable_rescue", "reset_password"] {
        router = router.route(
            &format!("/servers/{{id}}/actions/{command}"),
            post(async move |Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input| {
                let id = path_id(&id)?;
                match command {
                    "enable_backup" => server_disk::enable_backup(&cloud, id),
                    "disable_backup" => server_disk::disable_backup(&cloud, id),
                    "enable_rescue" => server_disk::enable_rescue(&cloud, id, &input),
                    "disable_rescue" => server_disk::disable_rescue(&cloud, id),
                    _ => server_disk::reset_password(&cloud, id),
                }
            }),
        );
    }
    router
        .route("/servers/{id}/actions/change_alias_ips", post(server_action::change_alias_ips))
        .route("/servers/{id}/actions/change_dns_ptr", post(server_action::change_dns_ptr))
        .route("/servers/{id}/actions/attach_iso", post(server_action::attach_iso))
        .route("/servers/{id}/actions/detach_iso", post(server_action::detach_iso))
        .route("/servers/{id}/actions/request_console", post(server_action::request_console))
        .route("/servers/{id}/metrics", get(metrics::of_server))
        .route("/servers/{id}/actions/rebuild", post(server_disk::rebuild))
        .route("/servers/{id}/actions/create_image", post(server_disk::create_image))
        .route("/servers/{id}/actions/change_type", post(server_disk::change_type))
        .route("/servers/{id}/actions/attach_to_network", post(server_action::attach_to_network))
        .route("/servers/{id}/actions/detach_from_network", post(server_action::detach_from_network))
        .route("/servers/{id}/actions/add_to_placement_group", post(server_action::add_to_placement_group))
        .route("/servers/{id}/actions/remove_from_placement_group", post(server_action::remove_from_placement_group))
        .route("/servers/{id}/actions/change_protection", post(server_action::change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    // Rendering is the most of the work: only what is shown is rendered, and locks are looked up once for all.
    let locked: BTreeSet<u64> =
        state.actions.values().filter(|a| a.is_running()).flat_map(|a| a.locked_servers()).collect();
    let field = |server: &&Server, name: &str| match name {
        "id" => server.id.into(),
        "name" => server.name.as_str().into(),
        "status" => server.status.name().into(),
        "created" => time_json(server.created),
        _ => Value::Null,
    };
    let render = |server: &Server| state.server_json_locked(server, locked.contains(&server.id));
    listing.reply_with("servers", state.servers.values().collect(), &["status"], field, |s| s.labels.clone(), render)
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
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

/// Cuts the power, detaches the volumes, destroys the machine. The server is listed as `deleting` until it is gone. Its
/// backups go with it.
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
    let floating: Vec<IpAddr> = state.floating_ips_of(id).map(|f| f.ip).collect();
    let backups: Vec<u64> = state.images.values().filter(|i| i.bound_to == Some(id)).map(|i| i.id).collect();
    let action = state.begin("delete_server", &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    let effect = async move {
        for backup in backups {
            runner.backend.delete_image(backup).await?;
            runner.state().images.remove(&backup);
        }
        if !has_machine {
            return Ok(());
        }
        if powered {
            runner.backend.power_off(id).await?;
        }
        runner.state().progress(action, 30);
        for ip in floating {
            runner.backend.route_floating_ip(ip, None).await?;
            if let Some(floating) = runner.state().floating_ips.values_mut().find(|f| f.ip == ip) {
                floating.server = None;
            }
        }
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
        if ok {
            state.forget_server(id);
        } else if let Some(server) = state.servers.get_mut(&id) {
            server.status = Status::Unknown;
        }
    });
    Ok(axum::response::IntoResponse::into_response(axum::Json(body)))
}

impl State {
    /// Removes a server whose machine is gone, from everything that names it.
    pub(super) fn forget_server(&mut self, id: u64) {
        self.release_primary_ips(id);
        self.servers.remove(&id);
        self.made().forget_server(id);
        for firewall in self.firewalls.values_mut() {
            firewall.applied_to.retain(|a| *a != Applied::Server(id));
        }
        for balancer in self.load_balancers.values_mut() {
            balancer.targets.retain(|t| t.what != What::Server(id));
        }
        for volume in self.volumes.values_mut().filter(|v| v.server == Some(id)) {
            volume.server = None;
        }
    }
}
