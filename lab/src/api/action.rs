//! Actions: what the cloud is doing or did.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{Cloud, now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::path_id;
use super::listing::{Listing, one};
use crate::backend::Effect;

/// One action.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Action {
    pub id: u64,
    pub command: Cow<'static, str>,
    pub started: Timestamp,
    /// Percent.
    pub progress: u8,
    /// What it works on: kind and id.
    pub resources: Vec<(Cow<'static, str>, u64)>,
    /// None while it runs; then when it ended, and what went wrong.
    end: Option<(Timestamp, Option<String>)>,
}

impl Action {
    pub fn new(id: u64, command: &'static str, resources: &[(&'static str, u64)]) -> Self {
        let started = now();
        let resources = resources.iter().map(|(kind, id)| (Cow::Borrowed(*kind), *id)).collect();
        Self { id, command: Cow::Borrowed(command), started, progress: 0, resources, end: None }
    }

    pub fn finish(&mut self, result: Effect) {
        if result.is_ok() {
            self.progress = 100;
        }
        self.end = Some((now(), result.err().map(|e| e.0)));
    }

    pub fn is_running(&self) -> bool {
        self.end.is_none()
    }

    /// Whether it works on the resource.
    pub fn concerns(&self, kind: &str, id: u64) -> bool {
        self.resources.iter().any(|(k, n)| k == kind && *n == id)
    }

    /// Servers, volumes and addresses are locked by each action on them; the rest only by actions on themselves, so that
    /// several servers can be attached to a network at the same time. Firewalls and floating IPs change around a server, not in it.
    pub fn locks(&self, kind: &str, id: u64) -> bool {
        if !self.is_running() {
            return false;
        }
        let held = |(i, (k, n)): (usize, &(Cow<'_, str>, u64))| {
            let always = matches!(kind, "server" | "volume" | "floating_ip" | "primary_ip");
            k == kind && *n == id && (i == 0 || always)
        };
        let outside = ["apply_firewall", "remove_firewall", "assign_floating_ip", "unassign_floating_ip"]
            .contains(&&*self.command);
        let around = kind == "server" && outside;
        !around && self.resources.iter().enumerate().any(held)
    }

    /// The servers it locks.
    pub fn locked_servers(&self) -> impl Iterator<Item = u64> {
        let servers = self.resources.iter().filter(|(kind, _)| kind == "server").map(|(_, id)| *id);
        servers.filter(|id| self.locks("server", *id))
    }

    pub fn json(&self) -> Value {
        let (status, finished, error) = match &self.end {
            None => ("running", Value::Null, Value::Null),
            Some((at, None)) => ("success", time_json(*at), Value::Null),
            Some((at, Some(e))) => ("error", time_json(*at), json!({"code": "action_failed", "message": e})),
        };
        let resources: Vec<Value> = self.resources.iter().map(|(kind, id)| json!({"id": id, "type": kind})).collect();
        json!({
            "id": self.id, "command": self.command, "status": status, "progress": self.progress,
            "started": time_json(self.started), "finished": finished, "resources": resources, "error": error,
        })
    }
}

/// The resources that have actions: path and kind.
const KINDS: [(&str, &str); 9] = [
    ("servers", "server"),
    ("volumes", "volume"),
    ("networks", "network"),
    ("images", "image"),
    ("firewalls", "firewall"),
    ("floating_ips", "floating_ip"),
    ("primary_ips", "primary_ip"),
    ("load_balancers", "load_balancer"),
    ("certificates", "certificate"),
];

/// `/actions` and the lists below the resources that have actions.
pub fn routes() -> Router<Arc<Cloud>> {
    let mut router = Router::new().route("/actions", get(by_ids)).route("/actions/{id}", get(by_id));
    for (path, kind) in KINDS {
        router = router
            .route(
                &format!("/{path}/actions"),
                get(async move |State(cloud): State<Arc<Cloud>>, listing: Listing| of_kind(&cloud, kind, &listing)),
            )
            .route(
                &format!("/{path}/actions/{{id}}"),
                get(async move |State(cloud): State<Arc<Cloud>>, Path(id): Path<String>| {
                    find(&cloud, &id, |action| action.resources.iter().any(|(k, _)| *k == kind))
                }),
            )
            .route(
                &format!("/{path}/{{id}}/actions"),
                get(async move |State(cloud): State<Arc<Cloud>>, Path(id): Path<String>, listing: Listing| {
                    of_resource(&cloud, kind, &id, &listing)
                }),
            )
            .route(
                &format!("/{path}/{{id}}/actions/{{action}}"),
                get(async move |State(cloud): State<Arc<Cloud>>, Path((id, action)): Path<(String, String)>| {
                    let id = path_id(&id)?;
                    find(&cloud, &action, |action| action.concerns(kind, id))
                }),
            );
    }
    router
}

/// The list of all actions is gone: ids must be given.
async fn by_ids(State(cloud): State<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let ids: Vec<u64> = listing.all("id").map(path_id).collect::<ApiResult<_>>()?;
    if ids.is_empty() {
        return Err(ApiError::field("id", "is required: actions can only be listed by id"));
    }
    let state = cloud.look();
    let actions = state.actions.values().filter(|a| ids.contains(&a.id)).map(Action::json).collect();
    Ok(one("actions", Value::Array(actions)))
}

async fn by_id(State(cloud): State<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    find(&cloud, &id, |_| true)
}

fn find(cloud: &Cloud, id: &str, fits: impl Fn(&Action) -> bool) -> ApiResult<Response> {
    let id = path_id(id)?;
    let state = cloud.look();
    let action = state.actions.get(&id).filter(|a| fits(a)).ok_or_else(|| ApiError::not_found("action", id))?;
    Ok(one("action", action.json()))
}

fn of_kind(cloud: &Cloud, kind: &str, listing: &Listing) -> ApiResult {
    let state = cloud.look();
    let ids: Vec<u64> = listing.all("id").map(path_id).collect::<ApiResult<_>>()?;
    let wanted = |a: &&Action| (ids.is_empty() || ids.contains(&a.id)) && a.resources.iter().any(|(k, _)| *k == kind);
    listing.reply("actions", state.actions.values().filter(wanted).map(Action::json).collect(), &["status"])
}

fn of_resource(cloud: &Cloud, kind: &'static str, id: &str, listing: &Listing) -> ApiResult {
    let id = path_id(id)?;
    let state = cloud.look();
    // A resource that is gone has no list, though its actions can still be asked for by id.
    if !state.exists(kind, id) {
        return Err(ApiError::not_found(kind, id));
    }
    let of_it = |a: &&Action| a.concerns(kind, id);
    listing.reply("actions", state.actions.values().filter(of_it).map(Action::json).collect(), &["status"])
}
