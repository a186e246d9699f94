//! Placement groups: servers that must not share a host.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::get;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{Cloud, State, now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::Labels;
use super::listing::{Listing, created, no_content, one};

/// How many servers a `spread` group may have.
const SPREAD_MAX: usize = 10;

/// A group of type `spread`. Its members are the servers that name it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacementGroup {
    id: u64,
    name: String,
    labels: Labels,
    created: Timestamp,
}

impl State {
    /// The group as JSON; null if there is none.
    pub fn placement_group_json(&self, id: u64) -> Value {
        let Some(group) = self.placement_groups.get(&id) else { return Value::Null };
        json!({
            "id": id, "name": group.name, "type": "spread", "labels": group.labels,
            "created": time_json(group.created), "servers": self.members(id),
        })
    }

    fn members(&self, id: u64) -> Vec<u64> {
        self.servers.values().filter(|s| s.placement_group == Some(id)).map(|s| s.id).collect()
    }

    /// Whether the group exists and has room for one more server.
    pub fn check_placement(&self, id: u64) -> ApiResult<()> {
        if !self.placement_groups.contains_key(&id) {
            return Err(ApiError::not_found("placement_group", id));
        }
        if self.members(id).len() >= SPREAD_MAX {
            return Err(ApiError::new(
                "placement_error",
                format!("placement group {id} has {SPREAD_MAX} servers: it takes no more"),
            ));
        }
        Ok(())
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/placement_groups", get(list).post(create))
        .route("/placement_groups/{id}", get(read).put(update).delete(remove))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    let groups = state.placement_groups.keys().map(|id| state.placement_group_json(*id)).collect();
    listing.reply("placement_groups", groups, &["type"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    match state.placement_group_json(id) {
        Value::Null => Err(ApiError::not_found("placement_group", id)),
        group => Ok(one("placement_group", group)),
    }
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let name = input.required_string("name")?;
    if name.is_empty() {
        return Err(ApiError::field("name", "must not be empty"));
    }
    if input.required_string("type")? != "spread" {
        return Err(ApiError::field("type", "must be 'spread'"));
    }
    let labels = input.labels()?.unwrap_or_default();
    let mut state = cloud.state();
    if state.placement_groups.values().any(|g| g.name == name) {
        return Err(ApiError::uniqueness("name", "name is already used"));
    }
    if state.placement_groups.len() >= cloud.options.limits.placement_groups {
        return Err(ApiError::limit("placement_group_limit"));
    }
    let id = state.next_id();
    state.placement_groups.insert(id, PlacementGroup { id, name, labels, created: now() });
    Ok(created(json!({"placement_group": state.placement_group_json(id), "action": null})))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (name, labels) = (input.string("name")?, input.labels()?);
    let mut state = cloud.state();
    if state.placement_groups.values().any(|g| g.id != id && Some(&g.name) == name.as_ref()) {
        return Err(ApiError::uniqueness("name", "name is already used"));
    }
    let group = state.placement_groups.get_mut(&id).ok_or_else(|| ApiError::not_found("placement_group", id))?;
    group.name = name.unwrap_or_else(|| group.name.clone());
    group.labels = labels.unwrap_or_else(|| group.labels.clone());
    Ok(one("placement_group", state.placement_group_json(id)))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    if !state.placement_groups.contains_key(&id) {
        return Err(ApiError::not_found("placement_group", id));
    }
    if !state.members(id).is_empty() {
        return Err(ApiError::new("resource_in_use", format!("placement group {id} still has servers")));
    }
    state.placement_groups.remove(&id);
    Ok(no_content())
}
