//! SSH keys.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{Cloud, now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::Labels;
use super::listing::{Listing, created, no_content, one};

/// A public key that new servers can be given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SshKey {
    pub id: u64,
    pub name: String,
    pub public_key: String,
    fingerprint: String,
    labels: Labels,
    created: Timestamp,
}

impl SshKey {
    fn json(&self) -> Value {
        json!({
            "id": self.id, "name": self.name, "fingerprint": self.fingerprint, "public_key": self.public_key,
            "labels": self.labels, "created": time_json(self.created),
        })
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/ssh_keys", get(list).post(create))
        .route("/ssh_keys/{id}", get(read).put(update).delete(remove))
}

async fn list(State(cloud): State<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let keys = cloud.look().ssh_keys.values().map(SshKey::json).collect();
    listing.reply("ssh_keys", keys, &["fingerprint"])
}

async fn read(State(cloud): State<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    let key = state.ssh_keys.get(&id).ok_or_else(|| ApiError::not_found("ssh_key", id))?;
    Ok(one("ssh_key", key.json()))
}

async fn create(State(cloud): State<Arc<Cloud>>, input: Input) -> ApiResult {
    let name = input.required_string("name")?;
    if name.is_empty() {
        return Err(ApiError::field("name", "must not be empty"));
    }
    let public_key = input.required_string("public_key")?.trim().to_owned();
    let fingerprint = fingerprint(&public_key)?;
    let labels = input.labels()?.unwrap_or_default();
    let mut state = cloud.state();
    if state.ssh_keys.values().any(|k| k.name == name) {
        return Err(ApiError::uniqueness("name", "SSH key with the same name already exists"));
    }
    if state.ssh_keys.values().any(|k| k.fingerprint == fingerprint) {
        return Err(ApiError::uniqueness("public_key", "SSH key with the same fingerprint already exists"));
    }
    if state.ssh_keys.len() >= cloud.options.limits.ssh_keys {
        return Err(ApiError::limit("ssh_key_limit"));
    }
    let key = SshKey { id: state.next_id(), name, public_key, fingerprint, labels, created: now() };
    let body = json!({"ssh_key": key.json()});
    state.ssh_keys.insert(key.id, key);
    Ok(created(body))
}

async fn update(State(cloud): State<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (name, labels) = (input.string("name")?, input.labels()?);
    let mut state = cloud.state();
    if state.ssh_keys.values().any(|k| k.id != id && Some(&k.name) == name.as_ref()) {
        return Err(ApiError::uniqueness("name", "SSH key with the same name already exists"));
    }
    let key = state.ssh_keys.get_mut(&id).ok_or_else(|| ApiError::not_found("ssh_key", id))?;
    key.name = name.unwrap_or_else(|| key.name.clone());
    key.labels = labels.unwrap_or_else(|| key.labels.clone());
    Ok(one("ssh_key", key.json()))
}

/// Servers keep the keys they were given.
async fn remove(State(cloud): State<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    cloud.state().ssh_keys.remove(&id).map(|_| no_content()).ok_or_else(|| ApiError::not_found("ssh_key", id))
}

/// MD5 of the key's blob in colon form, which is what the API shows; checks that the text is a public key.
fn fingerprint(public_key: &str) -> ApiResult<String> {
    let wrong = |why: &str| ApiError::field("public_key", why);
    let mut words = public_key.split_whitespace();
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return Err(wrong("is not an OpenSSH public key"));
    };
    let known = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    if !known.iter().any(|k| kind.starts_with(k)) || public_key.contains('\n') {
        return Err(wrong("is not an OpenSSH public key"));
    }
    let blob = STANDARD.decode(blob).map_err(|_| wrong("its key is not base64"))?;
    // The blob starts with its kind as a string with a length before it; a mismatch means it was cut or mixed up.
    let inner = blob.first_chunk::<4>().map(|n| u32::from_be_bytes(*n) as usize).and_then(|n| blob.get(4..4 + n));
    if inner != Some(kind.as_bytes()) {
        return Err(wrong("its key does not fit its type"));
    }
    let digest = md5::compute(&blob);
    Ok(digest.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn fingerprints_are_those_of_ssh_keygen() {
        // `ssh-keygen -l -E md5` of this key.
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR someone@somewhere";
        assert_eq!(fingerprint(key).unwrap(), "3d:9b:d5:9a:e4:4e:d0:f1:58:de:14:4c:9c:48:5c:3c");
        for bad in ["", "ssh-ed25519", "ssh-ed25519 %%%", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8L", "hello AAAA"] {
            assert_eq!(fingerprint(bad).expect_err(bad).code, "invalid_input");
        }
    }
}
