//! Creating servers.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::State as Shared;
use serde_json::{Value, json};

use super::catalog::{self, Location, ServerType};
use super::cloud::{Cloud, State, now};
use super::error::{ApiError, ApiResult};
use super::firewall::{Applied, PER_SERVER_MAX};
use super::image::Image;
use super::input::Input;
use super::listing::created;
use super::primary_ip::Family;
use super::server::{PrivateIp, Server, Status};
use super::server_action::NETWORKS_MAX;
use super::server_disk::new_password;
use super::volume;
use crate::backend::{BackendError, Effect, MachineSpec, Metadata};

/// Bytes of user data a server may be given.
const USER_DATA_MAX: usize = 32 * 1024;

/// What has to happen for a new server, each part with its action.
struct Work {
    action: u64,
    spec: MachineSpec,
    metadata: Metadata,
    volumes: Vec<(u64, u64)>,
    /// Whether the server mounts its volumes.
    automount: bool,
    networks: Vec<Attachment>,
    start: Option<u64>,
}

struct Attachment {
    network: u64,
    ip: Ipv4Addr,
    range: String,
    action: u64,
}

/// `POST /servers`
pub async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let mut guard = cloud.state();
    let (work, body) = admit(&cloud, &mut guard, &input)?;
    drop(guard);
    tokio::spawn(perform(Arc::clone(&cloud), work));
    Ok(created(body))
}

/// Checks everything first and changes the state only when nothing can be refused any more.
fn admit(cloud: &Cloud, state: &mut State, input: &Input) -> ApiResult<(Work, Value)> {
    refuse_what_the_lab_lacks(input)?;
    let name = input.required_string("name")?;
    let server_type = input.reference("server_type")?.ok_or_else(|| ApiError::field("server_type", "is required"))?;
    let server_type = catalog::server_type(&server_type)
        .ok_or_else(|| ApiError::field("server_type", format!("server type '{server_type}' not found")))?;
    let image = choose_image(state, input, server_type)?;
    let labels = input.labels()?.unwrap_or_default();
    let user_data = input.string("user_data")?.unwrap_or_default();
    if user_data.len() > USER_DATA_MAX {
        return Err(ApiError::field("user_data", format!("must not be longer than {USER_DATA_MAX} bytes")));
    }
    let start = input.flag("start_after_create")?.unwrap_or(true);
    let public = input.object("public_net")?.unwrap_or_default();
    let public_keys = choose_keys(state, input)?;
    let (volumes, automount) = (input.numbers("volumes")?, input.flag("automount")?.unwrap_or(false));
    let location = choose_location(state, input, server_type, &volumes)?;

    state.check_server_name(&name, None)?;
    for id in &volumes {
        let unknown = |e: ApiError| {
            if e.code == "not_found" { ApiError::field("volumes", format!("volume {id} not found")) } else { e }
        };
        state.check_attachable(*id, location).map_err(unknown)?;
    }
    if volumes.len() > volume::PER_SERVER_MAX {
        return Err(ApiError::limit("server_volume_limit"));
    }
    let private = choose_networks(state, input, location)?;
    let placement_group = input.number("placement_group")?;
    if let Some(group) = placement_group {
        state.check_placement(group).map_err(|e| {
            if e.code == "not_found" {
                ApiError::field("placement_group", format!("placement group {group} not found"))
            } else {
                e
            }
        })?;
    }
    let wishes = [
        (Family::V4, choose_public(state, &public, Family::V4, location)?),
        (Family::V6, choose_public(state, &public, Family::V6, location)?),
    ];
    let firewalls = choose_firewalls(state, input, wishes.iter().any(|(_, wish)| !matches!(wish, Wish::None)))?;
    if state.servers.len() >= cloud.options.limits.servers {
        return Err(ApiError::limit("server_limit"));
    }
    if state.common.faults().unavailable(location.name) {
        return Err(ApiError::unavailable(location.name));
    }
    let mut public_ips = Vec::new();
    for (family, wish) in wishes {
        match wish {
            Wish::None => {}
            Wish::This(id) => public_ips.push(id),
            Wish::New => public_ips.push(state.primary_ip_for(family, location)?),
        }
    }

    let id = state.next_id();
    let server = Server {
        id,
        name,
        status: Status::Initializing,
        location,
        server_type,
        disk_gb: server_type.disk_gb,
        image,
        public_ipv4: None,
        public_ipv6: None,
        private,
        placement_group,
        labels,
        protected: false,
        rescue_system: None,
        backup_window: None,
        public_keys,
        user_data,
        created: now(),
        has_machine: false,
    };
    state.servers.insert(id, server);
    for address in public_ips {
        state.set_assignee(address, Some(id));
    }
    for firewall in firewalls {
        if let Some(firewall) = state.firewalls.get_mut(&firewall) {
            firewall.applied_to.push(Applied::Server(id));
        }
    }
    let server = state.server(id)?.clone();
    let spec = server.spec();
    let mut metadata = server.metadata();
    // Who brings no key gets a password.
    metadata.root_password = server.public_keys.is_empty().then(new_password);
    let root_password = metadata.root_password.clone();
    let action = state.begin("create_server", &[("server", id)]);
    let volumes: Vec<(u64, u64)> = volumes
        .into_iter()
        .map(|volume| {
            if let Some(volume) = state.volumes.get_mut(&volume) {
                volume.automount = automount;
            }
            (volume, state.begin("attach_volume", &[("server", id), ("volume", volume)]))
        })
        .collect();
    let networks: Vec<Attachment> = server
        .private
        .iter()
        .map(|p| Attachment {
            network: p.network,
            ip: p.ip,
            range: state.networks.get(&p.network).map(|n| n.range.to_string()).unwrap_or_default(),
            action: state.begin("attach_to_network", &[("server", id), ("network", p.network)]),
        })
        .collect();
    let start = start.then(|| state.begin("start_server", &[("server", id)]));

    let next: Vec<Value> = volumes
        .iter()
        .map(|(_, a)| *a)
        .chain(networks.iter().map(|n| n.action))
        .chain(start)
        .map(|a| state.action_json(a))
        .collect();
    let server_json = state.server_json(state.server(id)?);
    let body = json!({
        "server": server_json, "action": state.action_json(action), "next_actions": next,
        "root_password": root_password,
    });
    Ok((Work { action, spec, metadata, volumes, automount, networks, start }, body))
}

fn refuse_what_the_lab_lacks(input: &Input) -> ApiResult<()> {
    if input.get("datacenter").is_some() {
        return Err(ApiError::field("datacenter", "is gone: use 'location'"));
    }
    Ok(())
}

/// The image for a server of this type; it must be one that the lab can boot.
pub fn choose_image(state: &State, input: &Input, server_type: &ServerType) -> ApiResult<Image> {
    let name = input.reference("image")?.ok_or_else(|| ApiError::field("image", "is required"))?;
    let architecture = server_type.architecture();
    let image = state
        .find_image(&name, architecture)
        .ok_or_else(|| ApiError::field("image", format!("image '{name}' not found")))?;
    if image.architecture != architecture {
        let message = format!("image '{name}' is for {}, the server type for {architecture}", image.architecture);
        return Err(ApiError::field("image", message));
    }
    if !image.available {
        return Err(ApiError::field("image", format!("image '{name}' is still being made")));
    }
    if image.disk_gb > server_type.disk_gb {
        return Err(ApiError::field("image", format!("image '{name}' needs a disk of {} GB", image.disk_gb)));
    }
    if !image.boots() {
        return Err(ApiError::unsupported(format!(
            "the lab can boot only debian-12 for x86, not {} for {}",
            image.system_name(),
            image.architecture
        )));
    }
    Ok(image)
}

/// What a new server wants of a family of public addresses.
enum Wish {
    None,
    New,
    /// This Primary IP.
    This(u64),
}

fn choose_public(state: &State, public: &Input, family: Family, location: &Location) -> ApiResult<Wish> {
    let (enable, name) = match family {
        Family::V4 => ("enable_ipv4", "ipv4"),
        Family::V6 => ("enable_ipv6", "ipv6"),
    };
    let enabled = public.flag(enable)?.unwrap_or(true);
    match public.number(name)? {
        Some(_) if !enabled => Err(ApiError::field(name, format!("must not be given when {enable} is false"))),
        Some(id) => state.check_primary_ip(name, id, family, location).map(|()| Wish::This(id)),
        None if enabled => Ok(Wish::New),
        None => Ok(Wish::None),
    }
}

fn choose_firewalls(state: &State, input: &Input, public: bool) -> ApiResult<Vec<u64>> {
    let mut ids = Vec::new();
    for item in input.objects("firewalls")? {
        let id = item.required_number("firewall")?;
        if !state.firewalls.contains_key(&id) {
            return Err(ApiError::field("firewalls", format!("firewall {id} not found")));
        }
        if ids.contains(&id) {
            return Err(ApiError::field("firewalls", format!("firewall {id} is named twice")));
        }
        ids.push(id);
    }
    if ids.len() > PER_SERVER_MAX {
        return Err(ApiError::limit("server_firewall_limit"));
    }
    if !ids.is_empty() && !public {
        return Err(ApiError::new("private_net_only_server", "firewalls need a public interface"));
    }
    Ok(ids)
}

fn choose_keys(state: &State, input: &Input) -> ApiResult<Vec<String>> {
    let find = |wanted: &String| {
        state
            .ssh_keys
            .values()
            .find(|k| k.name == *wanted || k.id.to_string() == *wanted)
            .map(|k| k.public_key.clone())
            .ok_or_else(|| ApiError::field("ssh_keys", format!("SSH key '{wanted}' not found")))
    };
    input.references("ssh_keys")?.iter().map(find).collect()
}

/// The location asked for; else that of the volumes; else the first that sells the type and has capacity.
fn choose_location(
    state: &State,
    input: &Input,
    server_type: &ServerType,
    volumes: &[u64],
) -> ApiResult<&'static Location> {
    let volumes_location = volumes.first().and_then(|v| state.volumes.get(v)).map(|v| v.location);
    let location = match (input.reference("location")?, volumes_location) {
        (Some(name), _) => catalog::location(&name)
            .ok_or_else(|| ApiError::field("location", format!("location '{name}' not found")))?,
        (None, Some(location)) => location,
        (None, None) => {
            let sells = |l: &&Location| server_type.sold_in(l) && !state.common.faults().is_unavailable(l.name);
            let found = catalog::locations().iter().find(sells);
            found.ok_or_else(|| ApiError::new("resource_unavailable", "no location has capacity for this type"))?
        }
    };
    if !server_type.sold_in(location) {
        return Err(ApiError::field("location", format!("unsupported location for server type {}", server_type.name)));
    }
    Ok(location)
}

fn choose_networks(state: &State, input: &Input, location: &Location) -> ApiResult<Vec<PrivateIp>> {
    let ids = input.numbers("networks")?;
    if ids.len() > NETWORKS_MAX {
        return Err(ApiError::limit("server_network_limit"));
    }
    let mut private: Vec<PrivateIp> = Vec::new();
    for id in ids {
        if private.iter().any(|p| p.network == id) {
            return Err(ApiError::field("networks", format!("network {id} is named twice")));
        }
        let network = state.idle_network(id).map_err(|e| {
            if e.code == "not_found" { ApiError::field("networks", format!("network {id} not found")) } else { e }
        })?;
        private.push(PrivateIp {
            network: id,
            ip: state.choose_address(network, location.network_zone, None, None)?,
            alias_ips: Vec::new(),
        });
    }
    Ok(private)
}

/// Makes the machine, attaches what it was promised, boots it. `create_server` ends last.
async fn perform(cloud: Arc<Cloud>, work: Work) {
    let id = work.spec.id;
    let result = build(&cloud, &work).await;
    let mut state = cloud.state();
    if let Err(e) = &result {
        let actions = work.volumes.iter().map(|v| v.1).chain(work.networks.iter().map(|n| n.action)).chain(work.start);
        for action in actions {
            // Those that ended keep their end.
            if state.actions.get(&action).is_some_and(|a| a.is_running()) {
                state.finish(action, Err(e.clone()));
            }
        }
    }
    if let Some(server) = state.servers.get_mut(&id) {
        server.status = match (&result, work.start, server.status) {
            (Err(_), _, _) => Status::Unknown,
            // A machine that stopped by itself right away stays off.
            (Ok(()), Some(_), Status::Initializing) => Status::Running,
            (Ok(()), Some(_), status) => status,
            (Ok(()), None, _) => Status::Off,
        };
    }
    state.finish(work.action, result);
    cloud.changed();
}

async fn build(cloud: &Arc<Cloud>, work: &Work) -> Effect {
    let id = work.spec.id;
    cloud.fate(work.action).await?;
    cloud.effect(cloud.backend.create_machine(&work.spec, &work.metadata)).await?;
    {
        let mut state = cloud.state();
        if let Some(server) = state.servers.get_mut(&id) {
            server.has_machine = true;
        }
        state.progress(work.action, 40);
    }
    // Before it boots, so that nothing reaches it that should not.
    cloud.settle_firewalls(Some(id)).await?;
    for (volume, action) in &work.volumes {
        let attached = cloud.effect(cloud.attach_volume(*volume, id, work.automount)).await;
        let mut state = cloud.state();
        if let (Ok(()), Some(volume)) = (&attached, state.volumes.get_mut(volume)) {
            volume.server = Some(id);
        }
        state.finish(*action, attached.clone());
        drop(state);
        attached?;
    }
    for network in &work.networks {
        let attached = cloud.effect(cloud.join(id, network.network, network.ip, &network.range)).await;
        let mut state = cloud.state();
        if let (Err(_), Some(server)) = (&attached, state.servers.get_mut(&id)) {
            server.private.retain(|p| p.network != network.network);
        }
        state.finish(network.action, attached.clone());
        drop(state);
        attached?;
    }
    cloud.state().progress(work.action, 70);
    if let Some(start) = work.start {
        let started: Result<(), BackendError> = cloud.effect(cloud.backend.power_on(id)).await;
        cloud.state().finish(start, started.clone());
        started?;
    }
    Ok(())
}
