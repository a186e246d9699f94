//! What most resources have in common: a name, labels, protection.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::Input;
use super::label::Labels;

/// Longest name of a resource.
const NAME_MAX: usize = 128;

/// Name, labels and protection of a resource.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tag {
    pub id: u64,
    pub name: String,
    pub labels: Labels,
    pub created: Timestamp,
    /// Against deletion.
    pub protected: bool,
}

/// The part of an update that concerns the tag.
#[derive(Debug, Clone)]
pub struct TagUpdate {
    pub name: Option<String>,
    labels: Option<Labels>,
}

fn valid_name(name: String) -> ApiResult<String> {
    if name.trim().is_empty() || name.chars().count() > NAME_MAX {
        return Err(ApiError::field("name", format!("must be 1 to {NAME_MAX} characters")));
    }
    Ok(name)
}

impl Tag {
    /// Reads what a creation says; the id is given when nothing can be refused any more.
    pub fn read(input: &Input) -> ApiResult<Self> {
        let name = valid_name(input.required_string("name")?)?;
        Self::named(name, input)
    }

    /// With a name from elsewhere.
    pub fn named(name: String, input: &Input) -> ApiResult<Self> {
        Ok(Self { id: 0, name, labels: input.labels()?.unwrap_or_default(), created: now(), protected: false })
    }

    pub fn update(&mut self, update: TagUpdate) {
        if let Some(name) = update.name {
            self.name = name;
        }
        if let Some(labels) = update.labels {
            self.labels = labels;
        }
    }

    /// `value` with the tag's fields laid over it.
    pub fn json(&self, mut value: Value) -> Value {
        value["id"] = json!(self.id);
        value["name"] = json!(self.name);
        value["labels"] = json!(self.labels);
        value["created"] = time_json(self.created);
        value
    }

    pub fn check_unprotected(&self, kind: &str) -> ApiResult<()> {
        if self.protected { Err(ApiError::protected(kind)) } else { Ok(()) }
    }
}

impl TagUpdate {
    pub fn read(input: &Input) -> ApiResult<Self> {
        Ok(Self { name: input.string("name")?.map(valid_name).transpose()?, labels: input.labels()? })
    }
}

/// Refuses a name that another resource of the kind has.
pub fn check_unique<'a>(kind: &str, tags: impl Iterator<Item = &'a Tag>, name: &str, except: u64) -> ApiResult<()> {
    let mut others = tags.filter(|t| t.id != except);
    if others.any(|t| t.name == name) {
        return Err(ApiError::uniqueness("name", format!("{kind} with the same name already exists")));
    }
    Ok(())
}
