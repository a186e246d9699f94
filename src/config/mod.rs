//! What Git declares: the cluster, runbooks and policies. Pure: text in, checked values or errors with line and hint out.

mod cluster;
mod cron;
mod error;
mod firewall;
mod front;
mod guards;
mod names;
mod peers;
mod policy;
mod policy_rules;
mod pools;
mod range;
mod rules;
mod runbook;
mod structure;
mod tree;
mod volume;
mod vpn;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

pub use cluster::*;
pub use cron::{Cron, time_zone};
pub use error::{ConfigError, Problem};
pub use firewall::FirewallConfig;
pub use front::{BalancerConfig, FloatingIpConfig, FrontConfig, INGRESS_PORT, IngressConfig};
pub use guards::{AbortWhen, Consent, Guards, Window};
pub use peers::{free_address, with_peer, without_peer};
pub use policy::*;
pub use pools::POOL_LABEL;
pub use range::Range;
pub use runbook::{Acts, CopyScope, OnFailure, Runbook, RunbookStep, SHIPPED, Targets, Verb};
pub use volume::VolumeConfig;
pub use vpn::{OWN_ADDRESSES, VpnConfig, VpnPeer, is_wireguard_key};

/// Versions that can be installed, by artifact name: what `artifacts.lock` pins.
pub type Pinned = BTreeMap<String, Vec<String>>;

/// Reads `cluster.yaml` and checks its form: known fields, required fields, types. `file` is its name in messages.
///
/// # Errors
/// Every unknown, missing or mistyped field at once, each with line, column and a hint.
pub fn parse(text: &str, file: &str) -> Result<Cluster, ConfigError> {
    parse_with_tree(text, file).map(|(cluster, _)| cluster)
}

/// Reads `cluster.yaml` and checks its form and all rules: addresses, names, locations, versions.
///
/// # Errors
/// As [`parse`]; if the form is right, every broken rule at once.
pub fn load(text: &str, file: &str, pinned: &Pinned) -> Result<Cluster, ConfigError> {
    let (cluster, tree) = parse_with_tree(text, file)?;
    let mut report = error::Report::new(text, file);
    rules::check(&cluster, &tree, pinned, &mut report);
    report.finish().map(|()| cluster)
}

/// Reads a runbook and checks its form and that its verbs can follow one another.
///
/// # Errors
/// As [`load`].
pub fn load_runbook(text: &str, file: &str) -> Result<Runbook, ConfigError> {
    let (runbook, tree) = parse_with_tree::<Runbook>(text, file)?;
    let mut report = error::Report::new(text, file);
    runbook::check(&runbook, &tree, &mut report);
    guards::check(&runbook, &tree, &mut report);
    report.finish().map(|()| runbook)
}

/// Reads a policy and checks its form and its rules.
///
/// # Errors
/// As [`load`].
pub fn load_policy(text: &str, file: &str) -> Result<Policy, ConfigError> {
    let (policy, tree) = parse_with_tree::<Policy>(text, file)?;
    let mut report = error::Report::new(text, file);
    policy_rules::check(&policy, &tree, &mut report);
    report.finish().map(|()| policy)
}

/// Policies that come with hk-dr, to copy and edit: name and text. None holds unless it is in the Git directory.
pub const SHIPPED_POLICIES: [(&str, &str); 4] = [
    ("backups", include_str!("../../policies/backups.yaml")),
    ("drills", include_str!("../../policies/drills.yaml")),
    ("retention", include_str!("../../policies/retention.yaml")),
    ("volumes", include_str!("../../policies/volumes.yaml")),
];

/// The JSON Schema of a policy, for editors.
pub fn policy_schema() -> serde_json::Value {
    schema_of::<Policy>()
}

fn parse_with_tree<T: DeserializeOwned + JsonSchema>(text: &str, file: &str) -> Result<(T, tree::Tree), ConfigError> {
    let mut report = error::Report::new(text, file);
    let parsed = tree::Tree::parse(text).and_then(|tree| {
        structure::check(&tree, &schema_of::<T>(), &mut report);
        Ok((serde_saphyr::from_str::<T>(text)?, tree))
    });
    match parsed {
        Ok(parsed) => report.finish().map(|()| parsed),
        Err(failure) => {
            // The deserializer stops at its first error; the walk over the structure has found that one and the others.
            if report.is_empty() {
                report.yaml(&failure);
            }
            Err(report.into_error())
        }
    }
}

/// The JSON Schema of `cluster.yaml`, for editors.
pub fn schema() -> serde_json::Value {
    schema_of::<Cluster>()
}

/// The JSON Schema of a runbook, for editors.
pub fn runbook_schema() -> serde_json::Value {
    schema_of::<Runbook>()
}

/// The JSON Schema of a document.
pub fn schema_of<T: JsonSchema>() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
mod tests;
