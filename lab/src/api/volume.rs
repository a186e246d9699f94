//! Volumes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::catalog::{self, Location};
use super::cloud::{Cloud, State, now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::Labels;
use super::listing::{Listing, created, no_content, one};
use crate::backend::Effect;

/// Sizes a volume may have, in GB.
const SIZES: std::ops::RangeInclusive<u64> = 10..=10240;
/// How many volumes a server may have.
pub const PER_SERVER_MAX: usize = 16;

/// A block volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    pub id: u64,
    pub name: String,
    pub location: &'static Location,
    /// The server it is attached to.
    pub server: Option<u64>,
    /// Its server was told to mount it; that may be due when it boots.
    #[serde(default)]
    pub automount: bool,
    pub size_gb: u32,
    pub format: Option<String>,
    labels: Labels,
    protected: bool,
    /// Its disk is made.
    pub available: bool,
    created: Timestamp,
}

impl Volume {
    fn json(&self) -> Value {
        json!({
            "id": self.id, "name": self.name, "server": self.server, "location": self.location.json(),
            "size": self.size_gb, "linux_device": format!("/dev/disk/by-id/scsi-0HC_Volume_{}", self.id),
            "protection": {"delete": self.protected}, "labels": self.labels, "format": self.format,
            "status": if self.available { "available" } else { "creating" }, "created": time_json(self.created),
        })
    }
}

impl State {
    /// Checks that the volume can be attached to a server in this location.
    pub fn check_attachable(&self, volume: u64, location: &Location) -> ApiResult<()> {
        let volume = self.idle_volume(volume)?;
        if let Some(server) = volume.server {
            let message = format!("volume {} is already attached to server {server}", volume.id);
            return Err(ApiError::new("volume_already_attached", message));
        }
        if volume.location.id != location.id {
            return Err(ApiError::field(
                "server",
                format!(
                    "volume {} is in location '{}', the server in '{}'",
                    volume.id, volume.location.name, location.name
                ),
            ));
        }
        Ok(())
    }

    fn check_room_for_volume(&self, server: u64) -> ApiResult<()> {
        let attached = self.volumes.values().filter(|v| v.server == Some(server)).count();
        if attached >= PER_SERVER_MAX { Err(ApiError::limit("server_volume_limit")) } else { Ok(()) }
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/volumes", get(list).post(create))
        .route("/volumes/{id}", get(read).put(update).delete(remove))
        .route("/volumes/{id}/actions/attach", post(attach))
        .route("/volumes/{id}/actions/detach", post(detach))
        .route("/volumes/{id}/actions/resize", post(resize))
        .route("/volumes/{id}/actions/change_protection", post(change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let volumes = cloud.look().volumes.values().map(Volume::json).collect();
    listing.reply("volumes", volumes, &["status"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    let volume = state.volumes.get(&id).ok_or_else(|| ApiError::not_found("volume", id))?;
    Ok(one("volume", volume.json()))
}

impl Cloud {
    /// Attaches a volume and, if asked, lets the server mount it. As at Hetzner, the attachment has succeeded even if the
    /// server then mounts nothing.
    pub(super) async fn attach_volume(&self, id: u64, server: u64, automount: bool) -> Effect {
        self.backend.attach_volume(id, server).await?;
        if automount && let Err(error) = self.backend.automount_volume(id, server).await {
            eprintln!("volume {id} is attached to server {server}, but not mounted: {error}");
        }
        Ok(())
    }
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let automount = input.flag("automount")?.unwrap_or(false);
    let name = valid_name(input.required_string("name")?)?;
    let size = input.required_number("size")?;
    if !SIZES.contains(&size) {
        return Err(ApiError::field("size", format!("must be from {} to {} GB", SIZES.start(), SIZES.end())));
    }
    let format = input.string("format")?;
    if format.as_deref().is_some_and(|f| f != "ext4" && f != "xfs") {
        return Err(ApiError::field("format", "must be 'ext4' or 'xfs'"));
    }
    let labels = input.labels()?.unwrap_or_default();
    let (server, location) = (input.number("server")?, input.reference("location")?);

    if automount && server.is_none() {
        return Err(ApiError::field("automount", "needs 'server': there is nobody to mount it"));
    }

    let mut guard = cloud.state();
    let state = &mut *guard;
    let location = match (server, location) {
        (Some(_), Some(_)) => return Err(ApiError::field("location", "must not be given together with 'server'")),
        (None, None) => return Err(ApiError::field("location", "is required when 'server' is not given")),
        (Some(server), None) => {
            state.check_room_for_volume(server)?;
            state
                .idle_server(server)
                .map_err(|e| if e.code == "not_found" { unknown_server(server) } else { e })?
                .location
        }
        (None, Some(name)) => catalog::location(&name)
            .ok_or_else(|| ApiError::field("location", format!("location '{name}' not found")))?,
    };
    if state.volumes.values().any(|v| v.name == name) {
        return Err(ApiError::uniqueness("name", "volume with the same name already exists"));
    }
    if state.volumes.len() >= cloud.options.limits.volumes {
        return Err(ApiError::limit("volume_limit"));
    }
    if state.common.faults().unavailable(location.name) {
        return Err(ApiError::unavailable(location.name));
    }
    let id = state.next_id();
    let size_gb = size as u32;
    let volume = Volume {
        id,
        name,
        location,
        server: None,
        automount,
        size_gb,
        format: format.clone(),
        labels,
        protected: false,
        available: false,
        created: now(),
    };
    let json = volume.json();
    state.volumes.insert(id, volume);
    let action = state.begin("create_volume", &[("volume", id)]);
    let next = server.map(|server| (server, state.begin("attach_volume", &[("volume", id), ("server", server)])));
    let next_json: Vec<Value> = next.iter().map(|(_, a)| state.action_json(*a)).collect();
    let body = json!({"volume": json, "action": state.action_json(action), "next_actions": next_json});
    drop(guard);

    let runner = Arc::clone(&cloud);
    tokio::spawn(async move {
        let made = runner.effect(runner.backend.create_volume(id, size_gb, format.as_deref())).await;
        {
            let mut state = runner.state();
            if let Some(volume) = state.volumes.get_mut(&id) {
                volume.available = made.is_ok();
            }
            state.finish(action, made.clone());
        }
        let Some((server, attach)) = next else { return };
        let attached = match made {
            Ok(()) => runner.effect(runner.attach_volume(id, server, automount)).await,
            Err(e) => Err(e),
        };
        let mut state = runner.state();
        if let (Some(volume), Ok(())) = (state.volumes.get_mut(&id), &attached) {
            volume.server = Some(server);
        }
        state.finish(attach, attached);
    });
    Ok(created(body))
}

fn unknown_server(id: u64) -> ApiError {
    ApiError::field("server", format!("server {id} not found"))
}

fn valid_name(name: String) -> ApiResult<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return Err(ApiError::field("name", "must be 1 to 64 letters, digits, '-', '_', '.' or spaces"));
    }
    Ok(name)
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (name, labels) = (input.string("name")?.map(valid_name).transpose()?, input.labels()?);
    let mut state = cloud.state();
    if state.volumes.values().any(|v| v.id != id && Some(&v.name) == name.as_ref()) {
        return Err(ApiError::uniqueness("name", "volume with the same name already exists"));
    }
    let volume = state.volumes.get_mut(&id).ok_or_else(|| ApiError::not_found("volume", id))?;
    volume.name = name.unwrap_or_else(|| volume.name.clone());
    volume.labels = labels.unwrap_or_else(|| volume.labels.clone());
    Ok(one("volume", volume.json()))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let waiting = {
        let mut state = cloud.state();
        let volume = state.idle_volume(id)?;
        if volume.protected {
            return Err(ApiError::protected("volume"));
        }
        if let Some(server) = volume.server {
            let message = format!("volume {id} is attached to server {server}: detach it first");
            return Err(ApiError::new("resource_in_use", message));
        }
        let action = state.begin("delete_volume", &[("volume", id)]);
        let backend = Arc::clone(&cloud.backend);
        cloud.run_hidden(action, async move { backend.delete_volume(id).await }, move |state, ok| {
            if ok {
                state.volumes.remove(&id);
            }
        })
    };
    waiting.done().await.map(|()| no_content())
}

async fn attach(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let automount = input.flag("automount")?.unwrap_or(false);
    let server = input.required_number("server")?;
    let mut guard = cloud.state();
    let state = &mut *guard;
    state.idle_volume(id)?;
    let location =
        state.idle_server(server).map_err(|e| if e.code == "not_found" { unknown_server(server) } else { e })?.location;
    state.check_attachable(id, location)?;
    state.check_room_for_volume(server)?;
    if let Some(volume) = state.volumes.get_mut(&id) {
        volume.automount = automount;
    }
    let action = state.begin("attach_volume", &[("volume", id), ("server", server)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    cloud.run(action, async move { runner.attach_volume(id, server, automount).await }, move |state, ok| {
        if let (true, Some(volume)) = (ok, state.volumes.get_mut(&id)) {
            volume.server = Some(server);
        }
    });
    Ok(created(body))
}

async fn detach(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    let volume = state.idle_volume(id)?;
    let Some(server) = volume.server else {
        return Err(ApiError::new("volume_not_attached", format!("volume {id} is not attached to a server")));
    };
    state.idle_server(server)?;
    let action = state.begin("detach_volume", &[("volume", id), ("server", server)]);
    let body = json!({"action": state.action_json(action)});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.detach_volume(id, server).await }, move |state, ok| {
        if let (true, Some(volume)) = (ok, state.volumes.get_mut(&id)) {
            (volume.server, volume.automount) = (None, false);
        }
    });
    Ok(created(body))
}

async fn resize(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let size = input.required_number("size")?;
    let mut state = cloud.state();
    let now = u64::from(state.idle_volume(id)?.size_gb);
    if size <= now || !SIZES.contains(&size) {
        let message = format!("must be more than {now} and at most {} GB: volumes only grow", SIZES.end());
        return Err(ApiError::field("size", message));
    }
    let size_gb = size as u32;
    let action = state.begin("resize_volume", &[("volume", id)]);
    let body = json!({"action": state.action_json(action)});
    let backend = Arc::clone(&cloud.backend);
    cloud.run(action, async move { backend.resize_volume(id, size_gb).await }, move |state, ok| {
        if let (true, Some(volume)) = (ok, state.volumes.get_mut(&id)) {
            volume.size_gb = size_gb;
        }
    });
    Ok(created(body))
}

async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    state.idle_volume(id)?;
    if let (Some(protect), Some(volume)) = (protect, state.volumes.get_mut(&id)) {
        volume.protected = protect;
    }
    Ok(created(json!({"action": state.instant("change_protection", &[("volume", id)])})))
}
