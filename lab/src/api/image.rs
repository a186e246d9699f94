//! Images: what the provider offers, and snapshots and backups made from servers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{Cloud, State, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::Labels;
use super::listing::{Listing, created, no_content, one};

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub id: u64,
    pub kind: Kind,
    /// Snapshots and backups have none.
    pub name: Option<String>,
    pub description: String,
    pub architecture: String,
    pub flavor: String,
    pub version: String,
    /// Size of the disk it was made from, in GB.
    pub disk_gb: u32,
    /// Size of its content in GB; system images tell none.
    pub size_gb: Option<f64>,
    pub created: Timestamp,
    /// Id and name of the server.
    pub created_from: Option<(u64, String)>,
    /// The server a backup dies with.
    pub bound_to: Option<u64>,
    pub labels: Labels,
    pub protected: bool,
    pub available: bool,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    System,
    Snapshot,
    Backup,
}

/// (id for x86, id for arm, name, flavor, version, description). Ids of Debian 12 and Ubuntu are the real ones.
type Offer = (u64, u64, &'static str, &'static str, &'static str, &'static str);

static OFFERS: [Offer; 15] = [
    (45557056, 103907373, "debian-11", "debian", "11", "Debian 11"),
    (67794396, 103908130, "ubuntu-22.04", "ubuntu", "22.04", "Ubuntu 22.04"),
    (45557057, 103908070, "rocky-8", "rocky", "8", "Rocky Linux 8"),
    (45557058, 103908071, "rocky-9", "rocky", "9", "Rocky Linux 9"),
    (45557059, 103908072, "centos-stream-9", "centos", "stream-9", "CentOS Stream 9"),
    (45557060, 103908073, "alma-8", "alma", "8", "AlmaLinux 8"),
    (45557061, 103908074, "alma-9", "alma", "9", "AlmaLinux 9"),
    (114690387, 114690389, "debian-12", "debian", "12", "Debian 12"),
    (161547269, 161547270, "ubuntu-24.04", "ubuntu", "24.04", "Ubuntu 24.04"),
    (310557650, 310557651, "centos-stream-10", "centos", "stream-10", "CentOS Stream 10"),
    (310557652, 310557653, "alma-10", "alma", "10", "AlmaLinux 10"),
    (310557660, 310557661, "debian-13", "debian", "13", "Debian 13"),
    (327187281, 327187282, "rocky-10", "rocky", "10", "Rocky Linux 10"),
    (327187283, 327187284, "opensuse-16", "opensuse", "16", "openSUSE Leap 16"),
    (331205213, 331205214, "fedora-43", "fedora", "43", "Fedora 43"),
];

/// When the system images were made: nobody decides by it.
const SYSTEM_CREATED: Timestamp = Timestamp::constant(1_686_636_000, 0);

fn system(offer: &Offer, architecture: &str) -> Image {
    let (x86, arm, name, flavor, version, description) = *offer;
    Image {
        id: if architecture == "arm" { arm } else { x86 },
        kind: Kind::System,
        name: Some(name.to_owned()),
        description: description.to_owned(),
        architecture: architecture.to_owned(),
        flavor: flavor.to_owned(),
        version: version.to_owned(),
        disk_gb: 5,
        size_gb: None,
        created: SYSTEM_CREATED,
        created_from: None,
        bound_to: None,
        labels: Labels::new(),
        protected: false,
        available: true,
    }
}

/// All system images.
pub fn system_images() -> Vec<Image> {
    let of = |architecture| OFFERS.iter().map(move |offer| system(offer, architecture));
    of("x86").chain(of("arm")).collect()
}

impl Image {
    /// What the backend boots: the lab has one system, for one architecture.
    pub fn system_name(&self) -> String {
        format!("{}-{}", self.flavor, self.version)
    }

    /// Whether the lab can boot it.
    pub fn boots(&self) -> bool {
        self.system_name() == "debian-12" && self.architecture == "x86"
    }

    /// The backend's number of its content; system images have none.
    pub fn content(&self) -> Option<u64> {
        (self.kind != Kind::System).then_some(self.id)
    }

    pub fn json(&self) -> Value {
        let kind = json!(self.kind);
        let created_from = self.created_from.as_ref().map(|(id, name)| json!({"id": id, "name": name}));
        json!({
            "id": self.id, "type": kind, "status": if self.available { "available" } else { "creating" },
            "name": self.name, "description": self.description, "image_size": self.size_gb, "disk_size": self.disk_gb,
            "created": time_json(self.created), "created_from": created_from, "bound_to": self.bound_to,
            "os_flavor": self.flavor, "os_version": self.version,
            "rapid_deploy": self.kind == Kind::System && self.boots(), "protection": {"delete": self.protected},
            "deleted": null, "labels": self.labels, "architecture": self.architecture, "deprecation": null,
        })
    }
}

impl State {
    /// An image by id, or a system image by name and architecture.
    pub fn find_image(&self, reference: &str, architecture: &str) -> Option<Image> {
        let own = reference.parse().ok().and_then(|id: u64| self.images.get(&id)).cloned();
        own.or_else(|| {
            system_images().into_iter().find(|i| {
                i.id.to_string() == reference || i.name.as_deref() == Some(reference) && i.architecture == architecture
            })
        })
    }

    pub fn image_exists(&self, id: u64) -> bool {
        self.images.contains_key(&id) || system_images().iter().any(|i| i.id == id)
    }

    /// A snapshot or backup no action runs on.
    fn own_image(&mut self, id: u64) -> ApiResult<&mut Image> {
        if self.is_locked("image", id) {
            return Err(ApiError::locked("image", id));
        }
        if self.images.contains_key(&id) || !self.image_exists(id) {
            return self.images.get_mut(&id).ok_or_else(|| ApiError::not_found("image", id));
        }
        Err(ApiError::new("forbidden", format!("image {id} is a system image: only snapshots and backups are yours")))
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/images", get(list))
        .route("/images/{id}", get(read).put(update).delete(remove))
        .route("/images/{id}/actions/change_protection", post(change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let bound: Vec<u64> = listing.all("bound_to").map(path_id).collect::<ApiResult<_>>()?;
    let mut images = system_images();
    images.extend(cloud.look().images.values().cloned());
    images.retain(|i| bound.is_empty() || i.bound_to.is_some_and(|id| bound.contains(&id)));
    listing.reply("images", images.iter().map(Image::json).collect(), &["type", "status", "architecture"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let found = cloud.look().find_image(&id.to_string(), "");
    found.map(|i| one("image", i.json())).ok_or_else(|| ApiError::not_found("image", id))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (description, labels, kind) = (input.string("description")?, input.labels()?, input.string("type")?);
    if kind.as_deref().is_some_and(|k| k != "snapshot") {
        return Err(ApiError::field("type", "must be 'snapshot'"));
    }
    let mut state = cloud.state();
    let image = state.own_image(id)?;
    if kind.is_some() {
        (image.kind, image.bound_to) = (Kind::Snapshot, None);
    }
    image.description = description.unwrap_or_else(|| image.description.clone());
    image.labels = labels.unwrap_or_else(|| image.labels.clone());
    Ok(one("image", image.json()))
}

/// Servers made from it keep their disks.
async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let waiting = {
        let mut state = cloud.state();
        if state.own_image(id)?.protected {
            return Err(ApiError::protected("image"));
        }
        let action = state.begin("delete_image", &[("image", id)]);
        let backend = Arc::clone(&cloud.backend);
        cloud.run_hidden(action, async move { backend.delete_image(id).await }, move |state, ok| {
            if ok {
                state.images.remove(&id);
            }
        })
    };
    waiting.done().await.map(|()| no_content())
}

async fn change_protection(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let protect = input.flag("delete")?;
    let mut state = cloud.state();
    let image = state.own_image(id)?;
    if image.kind != Kind::Snapshot {
        return Err(ApiError::unsupported(format!("image {id} is a backup: only snapshots can be protected")));
    }
    image.protected = protect.unwrap_or(image.protected);
    Ok(created(json!({"action": state.instant("change_protection", &[("image", id)])})))
}
