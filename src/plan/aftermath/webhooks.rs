//! Webhooks that fail closed while their backends are down: relaxed, and put back when the backends answer. What they were
//! stands in an annotation on the configuration itself, so that it is known whoever continues, and from wherever.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{name, text};

pub(super) const PLURALS: [&str; 2] = ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"];
/// Names of webhooks that were relaxed, as a JSON list. All of them failed closed before: `failurePolicy: Fail`.
pub const RELAXED: &str = "hk-dr/relaxed-webhooks";

/// The service behind a webhook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub namespace: String,
    pub service: String,
    pub port: u64,
}

/// The patch that lets a configuration's webhooks fail open, and their names. None: there is nothing to relax. Webhooks at
/// a URL stay as they are: what answers there is no part of this cluster.
pub fn relaxed(configuration: &Value) -> Option<(Value, String)> {
    let webhooks = configuration["webhooks"].as_array()?;
    let mut changed = webhooks.clone();
    let mut names = noted(configuration);
    let mut now = Vec::new();
    for webhook in &mut changed {
        // Fail is the default.
        let closed = webhook.get("failurePolicy").is_none_or(|policy| policy == "Fail");
        let Some(name) = webhook["name"].as_str().map(str::to_owned) else { continue };
        if closed && backend(webhook).is_some() {
            webhook["failurePolicy"] = "Ignore".into();
            names.insert(name.clone());
            now.push(name);
        }
    }
    if now.is_empty() {
        return None;
    }
    Some((patch(configuration, &changed, &names), now.join(", ")))
}

/// The patch that lets relaxed webhooks fail closed again, of those whose backend `answers`; and the names of those that
/// stay relaxed. None: nothing is relaxed.
pub fn put_back(configuration: &Value, answers: &dyn Fn(&Backend) -> bool) -> Option<(Option<Value>, Vec<String>)> {
    let names = noted(configuration);
    if names.is_empty() {
        return None;
    }
    let mut changed = configuration["webhooks"].as_array().cloned().unwrap_or_default();
    let mut left = BTreeSet::new();
    let mut any = false;
    for webhook in &mut changed {
        let Some(name) = webhook["name"].as_str().filter(|name| names.contains(*name)).map(str::to_owned) else {
            continue;
        };
        match backend(webhook) {
            Some(backend) if !answers(&backend) => _ = left.insert(name),
            _ => {
                webhook["failurePolicy"] = "Fail".into();
                any = true;
            }
        }
    }
    // A webhook that somebody took out meanwhile needs nothing put back.
    any |= left.len() < names.len();
    Some((any.then(|| patch(configuration, &changed, &left)), left.into_iter().collect()))
}

/// The services behind the relaxed webhooks of a configuration.
pub fn backends(configuration: &Value) -> BTreeMap<String, Backend> {
    let names = noted(configuration);
    let webhooks = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    webhooks
        .iter()
        .filter_map(|webhook| Some((webhook["name"].as_str()?.to_owned(), backend(webhook)?)))
        .filter(|(name, _)| names.contains(name))
        .collect()
}

fn backend(webhook: &Value) -> Option<Backend> {
    let service = webhook.pointer("/clientConfig/service")?;
    Some(Backend {
        namespace: text(service, "/namespace")?.to_owned(),
        service: text(service, "/name")?.to_owned(),
        port: service["port"].as_u64().unwrap_or(443),
    })
}

fn noted(configuration: &Value) -> BTreeSet<String> {
    let noted = configuration["metadata"]["annotations"][RELAXED].as_str();
    noted.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// With the version that was read: somebody else's change in between makes it fail instead of getting lost.
fn patch(configuration: &Value, webhooks: &[Value], names: &BTreeSet<String>) -> Value {
    let note = if names.is_empty() { Value::Null } else { json!(json!(names).to_string()) };
    let mut metadata = json!({"name": name(configuration), "annotations": {RELAXED: note}});
    if let Some(version) = configuration["metadata"].get("resourceVersion") {
        metadata["resourceVersion"] = version.clone();
    }
    json!({"metadata": metadata, "webhooks": webhooks})
}
