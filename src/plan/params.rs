//! Parameters of each step kind: the language between planner and steps. Complete and without secrets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::distribution::upstream::EtcdState;
use crate::ports::{BalancerService, BalancerTarget, Binary, EtcdRestore, FirewallRule, Labels, Route};

/// Names the step kind that takes these parameters.
pub trait Params: Serialize + DeserializeOwned + Send + Sync + 'static {
    const KIND: &'static str;
    const VERSION: u32;
}

macro_rules! params {
    ($($(#[$doc:meta])* $kind:literal v $version:literal => $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type),* }
        impl Params for $name {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;
        }
    )*};
}

params! {
    /// Keeps the cluster's long-lived secrets offsite before anything depends on them.
    "secrets.keep" v 1 => SecretsKeep {
        /// Take them from this snapshot's recovery set; none: make new ones.
        from_snapshot: Option<String>,
    }
    /// Puts a pinned binary into the bucket, so that no rebuild depends on a third party.
    "artifact.mirror" v 1 => ArtifactMirror { name: String, version: String, sha256: String }
    /// Creates the private network.
    "network.create" v 1 => NetworkCreate {
        name: String, range: String, subnet: String, zone: String,
        #[serde(default)]
        routes: Vec<Route>,
        labels: Labels,
    }
    /// Creates a firewall, or gives it back its rules and its servers.
    "firewall.provide" v 1 => FirewallProvide { name: String, selector: String, rules: Vec<FirewallRule>, labels: Labels }
    /// Deletes a firewall of this cluster.
    "firewall.delete" v 1 => FirewallDelete { id: u64, name: String }
    /// Routes what leaves the private network through one of its servers.
    "network.route" v 1 => RouteProvide { network: String, destination: String, gateway: Ipv4Addr }
    /// Creates a load balancer, or gives it back its address, services and targets.
    "balancer.provide" v 1 => BalancerProvide {
        name: String, balancer_type: String, location: String,
        /// Whether it has a public interface.
        public: bool,
        network: String,
        /// In the network.
        address: Ipv4Addr,
        services: Vec<BalancerService>, target: BalancerTarget, labels: Labels,
    }
    /// Deletes a load balancer of this cluster.
    "balancer.delete" v 1 => BalancerDelete { id: u64, name: String }
    /// Creates a floating IP that is routed nowhere yet.
    "floating_ip.provide" v 1 => FloatingIpProvide { name: String, location: String, labels: Labels }
    /// Routes a floating IP to a server.
    "floating_ip.assign" v 1 => FloatingIpAssign {
        name: String, server: String,
        /// Servers that may have it as well: who watches over it may have chosen one since.
        fine: Vec<String>,
    }
    /// Deletes a floating IP of this cluster.
    "floating_ip.delete" v 1 => FloatingIpDelete { id: u64, name: String }
    /// Configures floating IPs, and no others, inside a worker.
    "front.configure" v 1 => FrontConfigure { server: String, floating_ips: Vec<String> }
    /// Makes the VPN host what Git declares.
    "vpn.configure" v 1 => VpnConfigure { server: String }
    /// Creates the spread placement group.
    "placement_group.create" v 1 => PlacementGroupCreate { name: String, labels: Labels }
    /// Registers the cluster's single-purpose SSH key.
    "ssh_key.create" v 1 => SshKeyCreate { name: String, public_key: String, labels: Labels }
    /// Creates a server and pins its host key.
    "server.create" v 2 => ServerCreate {
        name: String, server_type: String, image: String, location: String, network: String, address: Ipv4Addr,
        placement_group: Option<String>, ssh_key: String, labels: Labels,
        /// Whether it gets a public address.
        public_ipv4: bool,
    }
    /// Deletes a server of this cluster that must not run any more.
    "server.fence" v 1 => ServerFence { id: u64, name: String }
    /// Renames and labels a volume whose data is superseded, and keeps it.
    "volume.retire" v 1 => VolumeRetire { id: u64, name: String, new_name: String, labels: Labels }
    /// Creates a volume and attaches it to a server of the same location.
    "volume.provide" v 1 => VolumeProvide { name: String, size_gb: u32, location: String, server: String, labels: Labels }
    /// Waits until a server answers with its pinned host key.
    "machine.ready" v 1 => MachineReady { server: String }
    /// Installs pinned binaries from the bucket.
    "binaries.install" v 1 => BinariesInstall { server: String, binaries: Vec<Binary> }
    /// Writes a master's configuration.
    "master.configure" v 1 => MasterConfigure { server: String, master: String, volume: String, etcd: EtcdStart }
    /// Makes a file system if there is none, and mounts etcd's volume.
    "etcd.mount" v 1 => EtcdMount { server: String, volume: String }
    /// Restores a snapshot onto an empty volume.
    "etcd.restore" v 1 => EtcdRestoreStep { server: String, snapshot: String, restore: EtcdRestore }
    /// Restores the snapshot that an earlier step of the run took onto an empty volume.
    "etcd.restore_taken" v 1 => EtcdRestoreTaken {
        server: String,
        /// The step that took it.
        since: String,
        restore: EtcdRestore,
    }
    /// Waits until a person says that something is done.
    "manual.wait" v 1 => ManualWait {
        /// The step's own id.
        id: String,
        text: String,
    }
    /// Compares every key that members have with the snapshot they were restored from.
    "copy.compare" v 1 => CopyCompare { servers: BTreeMap<String, String>, snapshot: String }
    /// Finds every object of a snapshot through an API server of a copy.
    "copy.served" v 1 => CopyServed { server: String, snapshot: String }
    /// Deletes everything of a copy.
    "copy.discard" v 1 => CopyDiscard { copy: String, of: String }
    /// Starts etcd.
    "etcd.start" v 1 => EtcdStartStep { server: String }
    /// Waits until every member serves, agrees on a leader and, at one revision, on the hash of all data.
    "etcd.agree" v 1 => EtcdAgree { servers: BTreeMap<String, String> }
    /// Starts the API server and waits until it is ready.
    "api.start" v 1 => ApiStart { server: String }
    /// Lets webhooks that fail closed pass, and clears away what names servers that are gone, before any controller acts on it.
    "cluster.clean" v 3 => ClusterClean {
        master_server: String,
        /// Nodes that will come back under the same name: their objects go, their pods stay theirs.
        returning_nodes: Vec<String>,
        /// Nodes whose kubelets run: their objects stay, with what is theirs.
        living_nodes: Vec<String>,
        /// The cloud's ids of their servers.
        server_ids: BTreeMap<String, u64>,
        /// Where workers are, or will be.
        locations: Vec<String>,
    }
    /// Puts back what was relaxed for the recovery, as far as it answers, and says what is left to a person.
    "cluster.settle" v 2 => ClusterSettle {
        master_server: String,
        /// How long backends of webhooks may take to answer.
        within_seconds: u32,
        /// Controllers that were suspended start again: not in a copy, which has nothing to act on.
        resumes: bool,
    }
    /// Starts controller manager and scheduler.
    "controllers.start" v 1 => ControllersStart { server: String }
    /// Writes a worker's configuration, starts its container runtime and loads the images it must have.
    "worker.configure" v 1 => WorkerConfigure { server: String, worker: String }
    /// Starts a worker's kubelet and proxy.
    "worker.start" v 1 => WorkerStart { server: String }
    /// Takes a snapshot into the bucket and reads it back if asked.
    "snapshot.take" v 1 => SnapshotTake {
        servers: BTreeMap<String, String>, verify: bool,
        /// Nothing is written any more: members are read as fast as it goes.
        #[serde(default)]
        idle: bool,
    }
    /// Stops controllers and API server of one master, and keeps them stopped over a reboot.
    "control_plane.stop" v 1 => ControlPlaneStop { server: String }
    /// Stops etcd on one master and unmounts its volume.
    "etcd.stop" v 1 => EtcdStop { server: String }
    /// Cuts a server's power.
    "server.power_off" v 1 => ServerPowerOff { id: u64, name: String }
    /// Switches a server on.
    "server.power_on" v 1 => ServerPowerOn { id: u64, name: String }
    /// Detaches a volume from whatever server of this cluster it is attached to.
    "volume.detach" v 1 => VolumeDetach { id: u64, name: String }
    /// Attaches a volume that exists; never makes one.
    "volume.attach" v 1 => VolumeAttach { id: u64, name: String, server: String }
    /// Waits until every member has exactly the data on which all agreed in an earlier step.
    "etcd.unchanged" v 2 => EtcdUnchanged {
        servers: BTreeMap<String, String>,
        since: String,
        /// Not only its data: etcd itself must be the one from before.
        same_cluster: bool,
    }
    /// Writes an object through one API server and reads it back.
    "api.write" v 1 => ApiWrite { server: String }
    /// Waits until a kubelet renews its lease.
    "node.fresh" v 1 => NodeFresh { node: String, master_server: String }
    /// Deletes a volume of this cluster with its data.
    "volume.delete" v 1 => VolumeDelete { id: u64, name: String }
    /// Deletes the private network.
    "network.delete" v 1 => NetworkDelete { id: u64, name: String }
    /// Deletes the placement group.
    "placement_group.delete" v 1 => PlacementGroupDelete { id: u64, name: String }
    /// Deletes the cluster's SSH key.
    "ssh_key.delete" v 1 => SshKeyDelete { id: u64, name: String }
    /// Deletes everything below a prefix of the bucket.
    "backups.delete" v 1 => BackupsDelete { prefix: String }
    /// Takes a member out of etcd's membership, through the others.
    "member.remove" v 1 => MemberRemove { id: u64, name: String, through: BTreeMap<String, String> }
    /// Adds a member to etcd's membership, through the others.
    "member.add" v 1 => MemberAdd { name: String, peer_url: String, through: BTreeMap<String, String> }
    /// Lets a second SSH key log in to a server, and tries it.
    "ssh_key.authorize" v 1 => SshKeyAuthorize { server: String, public_key: String }
    /// Takes an SSH key off a server, and proves that it is refused.
    "ssh_key.revoke" v 1 => SshKeyRevoke { server: String, public_key: String, kept: String }
    /// Stops controller manager and scheduler.
    "controllers.stop" v 1 => ControllersStop { server: String }
    /// Stops a worker's kubelet and proxy; its pods go on.
    "worker.stop" v 1 => WorkerStop { server: String }
    /// Waits until a machine runs what it should: every unit, these versions, certificates that hold long enough.
    "machine.healthy" v 1 => MachineHealthy {
        server: String,
        master: bool,
        /// By program, without `v`.
        versions: BTreeMap<String, String>,
        /// No certificate may end before this, neither in a file nor as a service shows it.
        certificates_until: Option<jiff::Timestamp>,
        within_seconds: u32,
        /// What to do where it does not become healthy.
        hint: String,
    }
    /// Keeps new pods from a Node and evicts its pods, as far as their PodDisruptionBudgets allow.
    "node.drain" v 1 => NodeDrain { node: String, master_server: String, within_seconds: u32 }
    /// Lets pods be scheduled on a Node again.
    "node.uncordon" v 1 => NodeUncordon { node: String, master_server: String }
    /// Deletes a Node object whose server is gone.
    "node.delete" v 1 => NodeDelete { node: String, master_server: String }
    /// Waits until the node is registered and ready, and sets its labels.
    "node.ready" v 1 => NodeReady { node: String, master_server: String, labels: BTreeMap<String, String> }
}

/// How etcd is started the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdStart {
    /// Names this life of the cluster; the cluster token is made from it and a base that the secrets keep.
    pub incarnation: String,
    pub state: EtcdState,
}
