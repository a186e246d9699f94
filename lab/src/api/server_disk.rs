//! What can be done to a server's disk and size: images, backups, rebuilding, rescue, passwords, other types.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use jiff::Timestamp;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde_json::json;
use tokio::sync::oneshot;

use super::catalog;
use super::cloud::{Cloud, State, now};
use super::error::{ApiError, ApiResult};
use super::image::{Image, Kind};
use super::input::{Input, path_id};
use super::listing::created;
use super::server::{Rescue, Server, Status};
use super::server_create::choose_image;
use crate::backend::Metadata;

/// How many backups of a server are kept.
const BACKUPS_MAX: usize = 7;
/// Hours in which a backup may be made.
const BACKUP_WINDOWS: [&str; 6] = ["22-02", "02-06", "06-10", "10-14", "14-18", "18-22"];

/// A password for root, without letters that look like others.
pub fn new_password() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut rng = rand::rng();
    (0..20).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

/// A server with a machine that no action runs on.
fn made(state: &State, id: u64) -> ApiResult<&Server> {
    let server = state.idle_server(id)?;
    if server.has_machine && server.status != Status::Unknown {
        return Ok(server);
    }
    Err(ApiError::unsupported(format!("the creation of server {id} failed: delete it")))
}

/// Overwrites the disk, then boots it.
pub async fn rebuild(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let user_data = input.string("user_data")?;
    let mut state = cloud.state();
    let server = made(&state, id)?;
    if server.protected {
        return Err(ApiError::new("protected", "server rebuild is protected"));
    }
    let image = choose_image(&state, &input, server.server_type)?;
    if image.disk_gb > server.disk_gb {
        return Err(ApiError::field("image", format!("needs a disk of {} GB", image.disk_gb)));
    }
    let mut rebuilt = server.clone();
    rebuilt.image = image;
    rebuilt.user_data = user_data.unwrap_or(rebuilt.user_data);
    let (spec, mut metadata) = (rebuilt.spec(), rebuilt.metadata());
    metadata.root_password = rebuilt.public_keys.is_empty().then(new_password);
    let root_password = metadata.root_password.clone();
    let before = server.status;
    state.server_mut(id)?.status = Status::Rebuilding;
    let action = state.begin("rebuild_server", &[("server", id)]);
    let body = json!({"action": state.action_json(action), "root_password": root_password});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.rebuild_machine(&spec, &metadata).await }, move |state, ok| {
        let Some(server) = state.servers.get_mut(&id) else { return };
        if ok {
            (server.image, server.user_data, server.rescue_system) = (rebuilt.image, rebuilt.user_data, None);
        }
        if server.status == Status::Rebuilding {
            server.status = if ok { Status::Running } else { before };
        }
    });
    Ok(created(body))
}

/// Makes a snapshot, or a backup of a server that has backups.
pub async fn create_image(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let kind = match input.string("type")?.as_deref() {
        None | Some("snapshot") => Kind::Snapshot,
        Some("backup") => Kind::Backup,
        Some(_) => return Err(ApiError::field("type", "must be 'snapshot' or 'backup'")),
    };
    let (description, labels) = (input.string("description")?, input.labels()?.unwrap_or_default());
    let mut state = cloud.state();
    let server = made(&state, id)?.clone();
    let backups = state.images.values().filter(|i| i.bound_to == Some(id)).count();
    if kind == Kind::Backup && server.backup_window.is_none() {
        return Err(ApiError::unsupported(format!("backups are not enabled for server {id}")));
    }
    if kind == Kind::Backup && backups >= BACKUPS_MAX {
        return Err(ApiError::limit("server_backup_limit"));
    }
    if kind == Kind::Snapshot && state.images.len() - backups >= cloud.options.limits.images {
        return Err(ApiError::limit("snapshot_limit"));
    }
    let image = Image {
        id: state.next_id(),
        kind,
        name: None,
        description: description.unwrap_or_else(|| {
            format!("{} of {}", if kind == Kind::Backup { "backup" } else { "snapshot" }, server.name)
        }),
        disk_gb: server.disk_gb,
        size_gb: None,
        created: now(),
        created_from: Some((id, server.name.clone())),
        bound_to: (kind == Kind::Backup).then_some(id),
        labels,
        protected: false,
        available: false,
        ..server.image
    };
    let image_id = image.id;
    let image_json = image.json();
    state.images.insert(image_id, image);
    let action = state.begin("create_image", &[("server", id), ("image", image_id)]);
    let body = json!({"action": state.action_json(action), "image": image_json});
    let backend = Arc::clone(&cloud.backend);
    let (tell, mut told) = oneshot::channel();
    let effect = async move {
        let size = backend.create_image(image_id, id).await?;
        // Nobody is left to hear it only if the API is gone as well.
        let _ = tell.send(size);
        Ok(())
    };
    cloud.run(action, effect, move |state, ok| {
        if !ok {
            state.images.remove(&image_id);
        } else if let Some(image) = state.images.get_mut(&image_id) {
            (image.available, image.size_gb) = (true, told.try_recv().ok());
        }
    });
    Ok(created(body))
}

/// Another size, for a server that is off. The disk only ever grows. As at Hetzner it is started afterwards.
pub async fn change_type(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let wanted = input.reference("server_type")?.ok_or_else(|| ApiError::field("server_type", "is required"))?;
    let upgrade = input.flag("upgrade_disk")?.ok_or_else(|| ApiError::field("upgrade_disk", "is required"))?;
    let wanted = catalog::server_type(&wanted)
        .ok_or_else(|| ApiError::field("server_type", format!("server type '{wanted}' not found")))?;
    let mut state = cloud.state();
    let server = made(&state, id)?;
    if server.status != Status::Off {
        return Err(ApiError::new("server_not_stopped", format!("server {id} must be off")));
    }
    let unfit = |why: String| Err(ApiError::new("invalid_server_type", why));
    if wanted.id == server.server_type.id {
        return unfit(format!("server {id} is a {} already", wanted.name));
    }
    if wanted.architecture() != server.server_type.architecture() {
        return unfit(format!("{} has another architecture", wanted.name));
    }
    if wanted.disk_gb < server.disk_gb {
        return unfit(format!("the disk of {} is smaller than that of the server", wanted.name));
    }
    if !wanted.sold_in(server.location) {
        return unfit(format!("{} is not sold in {}", wanted.name, server.location.name));
    }
    let location = server.location.name;
    let disk_gb = if upgrade { wanted.disk_gb } else { server.disk_gb };
    if state.common.faults().unavailable(location) {
        return Err(ApiError::unavailable(location));
    }
    state.server_mut(id)?.status = Status::Migrating;
    let action = state.begin("change_server_type", &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    let effect = async move {
        let (cores, memory_mb) = (wanted.cores, u64::from(wanted.memory_gb) * 1024);
        runner.backend.resize_machine(id, cores, memory_mb, disk_gb).await?;
        if let Some(server) = runner.state().servers.get_mut(&id) {
            (server.server_type, server.disk_gb) = (wanted, disk_gb);
        }
        runner.backend.power_on(id).await
    };
    cloud.run(action, effect, move |state, ok| {
        if let Some(server) = state.servers.get_mut(&id).filter(|s| s.status == Status::Migrating) {
            server.status = if ok { Status::Running } else { Status::Off };
        }
    });
    Ok(created(body))
}

/// `enable_rescue`: at its next boot, once, the server boots the rescue system. An hour later it is disabled again.
pub fn enable_rescue(cloud: &Arc<Cloud>, id: u64, input: &Input) -> ApiResult {
    if input.string("type")?.is_some_and(|t| t != "linux64") {
        return Err(ApiError::field("type", "must be 'linux64'"));
    }
    let keys = input.references("ssh_keys")?;
    let mut state = cloud.state();
    let server = made(&state, id)?;
    if server.rescue_system.is_some() {
        return Err(ApiError::unsupported(format!("the rescue system is already enabled for server {id}")));
    }
    let mut public_keys = Vec::new();
    for key in keys {
        let known = state.ssh_keys.values().find(|k| k.id.to_string() == key || k.name == key);
        let known = known.ok_or_else(|| ApiError::field("ssh_keys", format!("SSH key '{key}' not found")))?;
        public_keys.push(known.public_key.clone());
    }
    let password = new_password();
    let until = now().checked_add(cloud.options.rescue_lifetime).unwrap_or(Timestamp::MAX);
    let rescue = Rescue { public_keys, password: password.clone(), until };
    let metadata = server.rescue_metadata(&rescue);
    let action = state.begin("enable_rescue", &[("server", id)]);
    let body = json!({"action": state.action_json(action), "root_password": password});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.set_rescue(id, Some(&metadata)).await }, move |state, ok| {
        if let (true, Some(server)) = (ok, state.servers.get_mut(&id)) {
            server.rescue_system = Some(rescue);
        }
    });
    Ok(created(body))
}

/// `disable_rescue`
pub fn disable_rescue(cloud: &Arc<Cloud>, id: u64) -> ApiResult {
    let mut state = cloud.state();
    if made(&state, id)?.rescue_system.is_none() {
        return Ok(created(json!({"action": state.instant("disable_rescue", &[("server", id)])})));
    }
    let action = state.begin("disable_rescue", &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.set_rescue(id, None).await }, move |state, ok| {
        if let (true, Some(server)) = (ok, state.servers.get_mut(&id)) {
            server.rescue_system = None;
        }
    });
    Ok(created(body))
}

impl Server {
    /// What its rescue system is told.
    pub fn rescue_metadata(&self, rescue: &Rescue) -> Metadata {
        Metadata {
            public_keys: rescue.public_keys.clone(),
            root_password: Some(rescue.password.clone()),
            ..self.metadata()
        }
    }
}

impl Cloud {
    /// Disables rescue systems whose hour is over. One that is busy is looked at again later.
    pub(super) async fn expire_rescues(&self) {
        let over = |state: &State, server: &Server| {
            let expired = server.rescue_system.as_ref().is_some_and(|rescue| rescue.until <= now());
            expired && !state.is_locked("server", server.id)
        };
        let due: Vec<u64> = {
            let state = self.state();
            state.servers.values().filter(|server| over(&state, server)).map(|server| server.id).collect()
        };
        for id in due {
            // One that could not be told is told again in the next round.
            if self.effect(self.backend.set_rescue(id, None)).await.is_ok() {
                let mut state = self.state();
                if state.servers.get(&id).is_some_and(|server| over(&state, server))
                    && let Some(server) = state.servers.get_mut(&id)
                {
                    server.rescue_system = None;
                }
            }
        }
    }
}

/// `reset_password`
pub fn reset_password(cloud: &Arc<Cloud>, id: u64) -> ApiResult {
    let mut state = cloud.state();
    if made(&state, id)?.status != Status::Running {
        return Err(ApiError::unsupported(format!("server {id} must be running for its password to be set")));
    }
    let password = new_password();
    let action = state.begin("reset_password", &[("server", id)]);
    let body = json!({"action": state.action_json(action), "root_password": password});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.set_root_password(id, &password).await }, |_, _| {});
    Ok(created(body))
}

/// `enable_backup`: records the window. The lab makes backups only when asked to (`create_image`).
pub fn enable_backup(cloud: &Arc<Cloud>, id: u64) -> ApiResult {
    let mut state = cloud.state();
    if made(&state, id)?.backup_window.is_none() {
        let window = BACKUP_WINDOWS.choose(&mut rand::rng()).map(|w| (*w).to_owned());
        state.server_mut(id)?.backup_window = window;
    }
    Ok(created(json!({"action": state.instant("enable_backup", &[("server", id)])})))
}

/// `disable_backup`: deletes all backups of the server.
pub fn disable_backup(cloud: &Arc<Cloud>, id: u64) -> ApiResult {
    let mut state = cloud.state();
    made(&state, id)?;
    let backups: Vec<u64> = state.images.values().filter(|i| i.bound_to == Some(id)).map(|i| i.id).collect();
    let action = state.begin("disable_backup", &[("server", id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(cloud);
    let effect = async move {
        for backup in backups {
            runner.backend.delete_image(backup).await?;
            runner.state().images.remove(&backup);
        }
        Ok(())
    };
    cloud.run(action, effect, move |state, ok| {
        if let (true, Some(server)) = (ok, state.servers.get_mut(&id)) {
            server.backup_window = None;
        }
    });
    Ok(created(body))
}
