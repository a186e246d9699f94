use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{EtcdState, Role, SANDBOX_IMAGE};
use crate::config::Cluster;
use crate::distribution::pki::{ClusterSecrets, hex};

/// Written last of all files of a server: where it is, the others are.
pub const NODE_FILE: &str = "/etc/hk-dr/node.json";

/// Raised whenever rendering changes what a server gets, so that servers rendered by an older hk-dr are seen to differ.
const RENDERING: u32 = 2;

/// What a server knows about what it was rendered from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub format: u32,
    pub cluster: String,
    pub name: String,
    pub role: Role,
    /// See [`config_digest`].
    pub config_digest: String,
    /// Masters: the etcd cluster token it starts with. It names the cluster's incarnation and is no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_state: Option<EtcdState>,
    /// Masters: the device that is mounted at /var/lib/etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_device: Option<String>,
    /// Workers: the location it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

/// SHA-256, in hex, over what a server's files are made from: the parts of cluster.yaml that reach it, the fingerprint of
/// the cluster's secrets and the version of the rendering. The same inputs give the same digest on every run and every
/// machine; certificates, which differ each time, are not part of it. Placement (device, token, location) is beside it in
/// the [`NodeRecord`], because a restore changes it and a declaration doesn't.
pub fn config_digest(cluster: &Cluster, secrets: &ClusterSecrets, role: Role, name: &str) -> String {
    let inputs = Inputs {
        rendering: RENDERING,
        cluster: &cluster.name,
        name,
        role,
        kubernetes: &cluster.kubernetes,
        // Nothing of etcd is on a worker.
        etcd: (role == Role::Master).then_some(&cluster.etcd),
        subnet: &cluster.network.subnet,
        masters: cluster.masters.iter().map(|m| (m.name.as_str(), m.address)).collect(),
        worker: cluster.workers.iter().find(|w| role == Role::Worker && w.name == name).map(|w| (w.address, &w.labels)),
        sandbox: SANDBOX_IMAGE,
        api_balancer: cluster.api_balancer(),
        secrets: secrets.fingerprint(),
    };
    // A struct of plain values can't fail to become JSON; an empty text would still be a stable digest.
    let text = serde_json::to_vec(&inputs).unwrap_or_default();
    hex(&Sha256::digest(text))
}

/// In this order, which is part of the digest. Only what reaches the server: a worker added elsewhere changes nothing.
#[derive(Serialize)]
struct Inputs<'a> {
    rendering: u32,
    cluster: &'a str,
    name: &'a str,
    role: Role,
    kubernetes: &'a crate::config::Kubernetes,
    etcd: Option<&'a crate::config::EtcdConfig>,
    subnet: &'a str,
    masters: Vec<(&'a str, Ipv4Addr)>,
    worker: Option<(Ipv4Addr, &'a BTreeMap<String, String>)>,
    sandbox: &'a str,
    /// In the API server's certificate, and where workers ask first.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_balancer: Option<Ipv4Addr>,
    secrets: String,
}
