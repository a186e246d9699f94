use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::error::Report;
use super::names::is_label;
use super::tree::Tree;

/// A mounted volume whose files are backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeConfig {
    /// Names it in the bucket, whatever server it is mounted on.
    pub name: String,
    /// Short name of the server it is mounted on.
    pub server: String,
    /// Where it is mounted.
    pub path: String,
    /// A shell script that quiesces what writes there. If it fails, nothing is backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// A shell script that is run afterwards, however it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Files that are left out, as restic's `--exclude` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

pub(super) fn check(cluster: &Cluster, tree: &Tree, report: &mut Report) {
    let servers: Vec<&str> = cluster.masters.iter().map(|m| m.name.as_str()).collect();
    let servers: Vec<&str> = servers.into_iter().chain(cluster.workers.iter().map(|w| w.name.as_str())).collect();
    let mut seen = BTreeSet::new();
    for (index, volume) in cluster.volumes.iter().enumerate() {
        let mut wrong = |field: &str, message: String, hint: String| {
            report.add(tree.place(&format!("volumes.{index}.{field}")), message, Some(hint));
        };
        if !is_label(&volume.name) {
            let message = format!("`{}` can't be a volume's name", volume.name);
            wrong("name", message, "lower-case letters, digits and dashes".to_owned());
        }
        if !seen.insert(&volume.name) {
            wrong("name", format!("two volumes are called `{}`", volume.name), "give each a name".to_owned());
        }
        if !servers.contains(&volume.server.as_str()) {
            let message = format!("there is no server `{}`", volume.server);
            wrong("server", message, format!("declared are: {}", servers.join(", ")));
        }
        let plain = volume.path.starts_with('/')
            && volume.path.len() > 1
            && volume.path.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != "..")
            && !volume.path.contains(['\n', '\0']);
        if !plain {
            let message = format!("`{}` is not the path of a mounted volume", volume.path);
            wrong("path", message, "an absolute path without a slash at its end, such as /mnt/shop".to_owned());
        }
        if volume.path == "/var/lib/etcd" || volume.path.starts_with("/var/lib/etcd/") {
            let hint = "snapshots and the log are etcd's backup: files that are copied while etcd writes do not start";
            wrong("path", "etcd's volume is not backed up by its files".to_owned(), hint.to_owned());
        }
    }
}
