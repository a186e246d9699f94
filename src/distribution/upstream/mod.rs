//! Distribution `upstream`: Kubernetes' own binaries as systemd units. A master needs no container and no registry to
//! come back. Rendering is pure: configuration, secrets and placement in; files and scripts out.

mod authorized;
mod digest;
mod front;
mod master;
mod scripts;
mod text;
mod vpn;
mod worker;

pub use authorized::{authorize_script, revoke_script};
pub use digest::{NODE_FILE, NodeRecord, config_digest};
pub use front::carry_script;
pub use master::{MasterPlacement, master_files};
pub use scripts::*;
pub use vpn::{VPN_FIRST_BOOT, VPN_UNITS, first_boot_files, vpn_digest, vpn_files};
pub use worker::{WorkerPlacement, worker_files};

use crate::config::Cluster;

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// etcd and the control plane.
    Master,
    /// Pods.
    Worker,
    /// WireGuard and the way out; no part of Kubernetes.
    Vpn,
}

/// Whether etcd founds a cluster or continues from data that is there (after a restore, or on a kept volume).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EtcdState {
    New,
    Existing,
}

impl EtcdState {
    fn flag(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Existing => "existing",
        }
    }
}

/// The image that containerd makes pod sandboxes from. Must be in a preloaded bundle where no registry can be reached.
pub const SANDBOX_IMAGE: &str = crate::artifacts::PAUSE_IMAGE;

/// Something from `artifacts.lock` that a server needs, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Name in `artifacts.lock`.
    pub name: String,
    /// Version in `artifacts.lock`; `None` means the only one there is (image bundles).
    pub version: Option<String>,
    /// Path on the server.
    pub path: String,
    /// Unix mode.
    pub mode: u32,
}

/// What a server of this role needs installed, from what Git declares.
pub fn needed(cluster: &Cluster, role: Role) -> Vec<Needed> {
    let binary = |name: &str, version: &str| Needed {
        name: name.into(),
        version: Some(version.into()),
        path: format!("/usr/local/bin/{name}"),
        mode: 0o755,
    };
    let (etcd, kubernetes) = (&cluster.etcd.version, &cluster.kubernetes.version);
    match role {
        // Debian packages are all it needs.
        Role::Vpn => Vec::new(),
        // etcdutl restores a snapshot on the server itself, next to the volume it goes to.
        Role::Master => vec![
            binary("etcd", etcd),
            binary("etcdutl", etcd),
            binary("kube-apiserver", kubernetes),
            binary("kube-controller-manager", kubernetes),
            binary("kube-scheduler", kubernetes),
        ],
        Role::Worker => {
            let mut needed = vec![binary("kubelet", kubernetes), binary("kube-proxy", kubernetes)];
            needed.extend(cluster.kubernetes.preload_images.iter().map(|name| Needed {
                name: name.clone(),
                version: None,
                path: format!("{}/{name}.tar", worker::IMAGES_DIR),
                mode: 0o644,
            }));
            needed
        }
    }
}

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
