//! Creating servers.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::State as Shared;
use serde_json::{Value, json};

use super::catalog::{self, Image, Location, ServerType};
use super::cloud::{Cloud, State, now};
use super::error::{ApiError, ApiResult};
use super::input::Input;
use super::listing::created;
use super::server::{PrivateIp, PublicIp, Server, Status};
use super::server_action::NETWORKS_MAX;
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
    let image = choose_image(input, server_type)?;
    let labels = input.labels()?.unwrap_or_default();
    let user_data = input.string("user_data")?.unwrap_or_default();
    if user_data.len() > USER_DATA_MAX {
        return Err(ApiError::field("user_data", format!("must not be longer than {USER_DATA_MAX} bytes")));
    }
    let start = input.flag("start_after_create")?.unwrap_or(true);
    let public = input.object("public_net")?.unwrap_or_default();
    let wants_ipv4 = public.flag("enable_ipv4")?.unwrap_or(true);
    let public_keys = choose_keys(state, input)?;
    let volumes = input.numbers("volumes")?;
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
    if state.servers.len() >= cloud.options.limits.servers {
        return Err(ApiError::limit("server_limit"));
    }
    if state.common.faults().unavailable(location.name) {
        return Err(ApiError::unavailable(location.name));
    }
    let public_ipv4 = if wants_ipv4 {
        let ip = state
            .common
            .addresses()
            .take()
            .ok_or_else(|| ApiError::new("resource_unavailable", "no public IPv4 address is free"))?;
        Some(PublicIp { id: state.next_id(), ip })
    } else {
        None
    };

    let id = state.next_id();
    let server = Server {
        id,
        name,
        status: Status::Initializing,
        location,
        server_type,
        image,
        public_ipv4,
        private,
        placement_group,
        labels,
        protected: false,
        public_keys,
        user_data,
        created: now(),
        has_machine: false,
    };
    let spec = MachineSpec {
        id,
        name: server.name.clone(),
        image: image.name.to_owned(),
        snapshot: None,
        public_ipv4: public_ipv4.map(|p| p.ip),
        public_ipv6: None,
        cores: server_type.cores,
        memory_mb: u64::from(server_type.memory_gb) * 1024,
        disk_gb: server_type.disk_gb,
        location: location.name.to_owned(),
    };
    let metadata = server.metadata();
    let action = state.begin("create_server", &[("server", id)]);
    let volumes: Vec<(u64, u64)> = volumes
        .into_iter()
        .map(|volume| (volume, state.begin("attach_volume", &[("server", id), ("volume", volume)])))
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
    state.servers.insert(id, server);

    let next: Vec<Value> = volumes
        .iter()
        .map(|(_, a)| *a)
        .chain(networks.iter().map(|n| n.action))
        .chain(start)
        .map(|a| state.action_json(a))
        .collect();
    let server_json = state.server_json(state.server(id)?);
    // The lab's images have no password login, so that there is none to tell even if no key was given.
    let body = json!({
        "server": server_json, "action": state.action_json(action), "next_actions": next, "root_password": null,
    });
    Ok((Work { action, spec, metadata, volumes, networks, start }, body))
}

fn refuse_what_the_lab_lacks(input: &Input) -> ApiResult<()> {
    if input.get("datacenter").is_some() {
        return Err(ApiError::field("datacenter", "is gone: use 'location'"));
    }
    if input.flag("automount")? == Some(true) {
        return Err(ApiError::unsupported("the lab mounts no volumes: leave automount out and mount them yourself"));
    }
    if !input.array("firewalls")?.is_empty() {
        return Err(ApiError::unsupported("the lab has no firewalls yet"));
    }
    let public = input.object("public_net")?.unwrap_or_default();
    if public.get("ipv4").is_some() || public.get("ipv6").is_some() {
        return Err(ApiError::unsupported("the lab has no Primary IPs of their own yet"));
    }
    Ok(())
}

fn choose_image(input: &Input, server_type: &ServerType) -> ApiResult<&'static Image> {
    let name = input.reference("image")?.ok_or_else(|| ApiError::field("image", "is required"))?;
    let architecture = server_type.architecture();
    let image = catalog::find_image(&name, architecture)
        .ok_or_else(|| ApiError::field("image", format!("image '{name}' not found")))?;
    if image.architecture != architecture {
        let message = format!("image '{name}' is for {}, the server type for {architecture}", image.architecture);
        return Err(ApiError::field("image", message));
    }
    if !image.boots() {
        return Err(ApiError::unsupported(format!(
            "the lab can boot only debian-12 for x86, not {} for {}",
            image.name, image.architecture
        )));
    }
    Ok(image)
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
        private.push(PrivateIp { network: id, ip: state.choose_address(network, location.network_zone, None, None)? });
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
}

async fn build(cloud: &Arc<Cloud>, work: &Work) -> Effect {
    let id = work.spec.id;
    cloud.effect(cloud.backend.create_machine(&work.spec, &work.metadata)).await?;
    {
        let mut state = cloud.state();
        if let Some(server) = state.servers.get_mut(&id) {
            server.has_machine = true;
        }
        state.progress(work.action, 40);
    }
    for (volume, action) in &work.volumes {
        let attached = cloud.effect(cloud.backend.attach_volume(*volume, id)).await;
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
