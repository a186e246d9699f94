use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ports::{
    Balancer, Firewall, FloatingIp, Member, Network, NodeProbe, PlacementGroup, Server, SnapshotInfo, SshKey, Volume,
};

/// What was observed of a cluster. Servers and volumes are those that carry its label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    pub observed_at: Timestamp,
    pub servers: Vec<Server>,
    pub volumes: Vec<Volume>,
    pub network: Option<Network>,
    pub placement_group: Option<PlacementGroup>,
    pub ssh_key: Option<SshKey>,
    pub firewalls: Vec<Firewall>,
    #[serde(default)]
    pub balancers: Vec<Balancer>,
    #[serde(default)]
    pub floating_ips: Vec<FloatingIp>,
    /// Names the cluster needs that belong to someone else, as sentences.
    pub foreign: Vec<String>,
    /// What each server that answered says of itself, by server name.
    pub probes: BTreeMap<String, NodeProbe>,
    /// Servers that did not answer, with the reason.
    pub silent: BTreeMap<String, String>,
    /// Masters' servers whose API server answered that it is ready.
    pub api_ready: BTreeSet<String>,
    /// Names of Nodes that are ready.
    pub ready_nodes: BTreeSet<String>,
    /// etcd serves reads that need a majority.
    pub quorum: bool,
    /// etcd's membership, as its majority knows it; empty if there is none.
    pub members: Vec<Member>,
    /// Masters' servers whose etcd member serves reads that need a majority.
    pub etcd_serving: BTreeSet<String>,
    /// Digests of the binaries the bucket has.
    pub mirrored: BTreeSet<String>,
    /// The bucket keeps the cluster's secrets.
    pub secrets_kept: bool,
    /// Newest first.
    pub snapshots: Vec<SnapshotInfo>,
}

impl Inventory {
    /// A server by its full name.
    pub fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|s| s.name == name)
    }

    /// A volume by its name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }
}
