//! Labels: which are allowed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::{ApiError, ApiResult};

/// Labels of a resource, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Reads and checks a `labels` object.
pub fn from_json(value: &Value) -> ApiResult<Labels> {
    let Value::Object(fields) = value else {
        return Err(ApiError::field("labels", "must be an object"));
    };
    let mut labels = Labels::new();
    for (key, value) in fields {
        let Value::String(value) = value else {
            return Err(ApiError::field("labels", format!("the value of '{key}' must be a string")));
        };
        if !is_key(key) {
            return Err(ApiError::field("labels", format!("'{key}' is not a label key")));
        }
        if key.starts_with("hetzner.cloud/") {
            return Err(ApiError::field("labels", "the prefix 'hetzner.cloud/' is reserved"));
        }
        if !is_value(value) {
            return Err(ApiError::field("labels", format!("the value of '{key}' is not a label value")));
        }
        labels.insert(key.clone(), value.clone());
    }
    Ok(labels)
}

/// A name of at most 63 characters, optionally after a DNS name of at most 253 and a slash.
pub fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_fits = prefix.is_none_or(|p| p.len() <= 253 && !p.is_empty() && p.split('.').all(is_dns_label));
    prefix_fits && !name.is_empty() && is_value(name)
}

/// Empty, or at most 63 letters, digits, `-`, `_`, `.` that start and end with a letter or digit.
pub fn is_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    value.is_empty()
        || (value.len() <= 63
            && value.chars().all(inner)
            && edge(value.chars().next())
            && edge(value.chars().next_back()))
}

/// One part of a host name.
pub fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
