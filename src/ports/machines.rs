use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::distribution::upstream::Role;

use super::{ByteStream, Etcd, Host, PortResult, RemoteFile};

/// A pinned binary and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    pub name: String,
    pub sha256: String,
    /// Absolute path on the machine.
    pub path: String,
    /// Unix mode.
    pub mode: u32,
}

/// What a machine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProbe {
    /// Digest of the configuration that was installed last.
    pub config_digest: Option<String>,
    /// systemd units that are active.
    pub active_units: BTreeSet<String>,
    /// Whether etcd's data directory has data.
    pub etcd_data: bool,
    /// Installed versions by program.
    pub versions: BTreeMap<String, String>,
    /// Versions that run, by program, where another file has taken the place of the one that runs.
    #[serde(default)]
    pub stale: BTreeMap<String, String>,
    /// When the first of its certificates ends.
    pub certificates_until: Option<jiff::Timestamp>,
    /// Floating IPs that it has configured.
    #[serde(default)]
    pub front_addresses: BTreeSet<Ipv4Addr>,
}

/// A certificate on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFound {
    /// A file, or `port N` for what a service shows to whoever connects.
    pub place: String,
    pub until: jiff::Timestamp,
    /// Whom it names, as RFC 2253 writes it.
    pub subject: String,
}

/// How etcd's data directory is made from a snapshot. The same for all members but for name and address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdRestore {
    /// Names this restore, so that a repeated one recognises its own work.
    pub id: String,
    pub member: String,
    /// Private addresses of all members by name, in declared order.
    pub members: Vec<(String, Ipv4Addr)>,
    /// Names this life of the cluster: the cluster token made from it is accepted by no member from before.
    pub incarnation: String,
    /// Added to the snapshot's revision; everything up to the sum is marked compacted.
    pub bump_revision: u64,
    /// SHA-256 of the plain snapshot that is fed; empty: it is not known when the plan is drawn, and only its stream's own
    /// end is checked.
    pub snapshot_sha256: String,
}

/// Machines of the cluster. Every call may be repeated: it leaves alone what is already as wanted.
#[async_trait]
pub trait Machines: Send + Sync {
    /// Waits until the machine answers with its pinned host key and runs commands.
    async fn wait_ready(&self, host: &Host, deadline: Duration) -> PortResult<()>;
    /// Every certificate the machine has, in files and as its services show them.
    async fn certificates(&self, host: &Host, master: bool) -> PortResult<Vec<CertificateFound>>;
    /// What the machine runs; its role tells which units to look at.
    async fn probe(&self, host: &Host, role: Role) -> PortResult<NodeProbe>;
    /// Installs binaries from the URLs given beside them; each is checked against its SHA-256 before it gets its name.
    async fn install(&self, host: &Host, binaries: &[(Binary, SecretString)]) -> PortResult<()>;
    /// Writes the configuration and reloads systemd.
    async fn configure(&self, host: &Host, files: &[RemoteFile]) -> PortResult<()>;
    /// Installs the packages a worker needs, starts its container runtime and loads the image bundles installed before.
    async fn prepare_worker(&self, host: &Host) -> PortResult<()>;
    /// Waits for the device, makes a file system if it has none at all, and mounts it for etcd.
    async fn mount_etcd_volume(&self, host: &Host, device: &str) -> PortResult<()>;
    /// Feeds a snapshot and turns it into a data directory. Refuses to touch an existing one, except one that the same
    /// restore made.
    async fn restore_etcd(
        &self,
        host: &Host,
        restore: &EtcdRestore,
        cluster_token: &str,
        snapshot: ByteStream,
    ) -> PortResult<()>;
    /// Whether the data directory was made by this very restore.
    async fn etcd_restored(&self, host: &Host, restore: &EtcdRestore) -> PortResult<bool>;
    /// Enables and starts a service; returns when the service manager has taken the job.
    async fn start(&self, host: &Host, service: Service) -> PortResult<()>;
    /// Stops services in this order and keeps them stopped over a reboot; returns when they have ended.
    async fn stop(&self, host: &Host, services: &[Service]) -> PortResult<()>;
    /// Configures these floating IPs and no others, over reboots too: the machine then answers at those routed to it.
    async fn carry(&self, host: &Host, addresses: &[Ipv4Addr]) -> PortResult<()>;
    /// Unmounts etcd's volume and keeps it unmounted over a reboot.
    async fn unmount_etcd_volume(&self, host: &Host) -> PortResult<()>;
    /// Lets whoever holds this SSH key log in.
    async fn authorize(&self, host: &Host, public_key: &str) -> PortResult<()>;
    /// Lets whoever holds this SSH key log in no more. Refuses (`Invalid`) where `kept` is not accepted: nobody would be.
    async fn revoke(&self, host: &Host, public_key: &str, kept: &str) -> PortResult<()>;
    /// Whether a new login with exactly this SSH key is accepted.
    async fn accepts(&self, host: &Host, public_key: &str) -> PortResult<bool>;
    /// Lets go of connections to a machine whose power was cut.
    fn forget(&self, host: &Host);
}

/// What can be started on a machine by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Etcd,
    ApiServer,
    /// Controller manager and scheduler.
    Controllers,
    /// Kubelet and proxy.
    Worker,
    /// WireGuard and the way out for other servers. Starting it again makes it follow its files.
    Vpn,
}

impl Service {
    /// The systemd units behind it.
    pub fn units(self) -> &'static [&'static str] {
        match self {
            Self::Etcd => &["etcd"],
            Self::ApiServer => &["kube-apiserver"],
            Self::Controllers => &["kube-controller-manager", "kube-scheduler"],
            Self::Worker => &["kubelet", "kube-proxy"],
            Self::Vpn => &["wg-quick@wg0", "hk-dr-nat"],
        }
    }
}

/// Paths with mode and content: what must be kept to bring the cluster's identity back.
pub type RecoverySet = BTreeMap<String, (u32, Vec<u8>)>;

/// Where the cluster's long-lived secrets are kept, encrypted, offsite, from the first build on.
#[async_trait]
pub trait Vault: Send + Sync {
    async fn load(&self) -> PortResult<Option<RecoverySet>>;
    /// Stores the set if there is none: `Conflict` otherwise.
    async fn create(&self, set: &RecoverySet) -> PortResult<()>;
}

/// What a plan needs to know of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The name below `snapshots/`.
    pub id: String,
    pub taken_at: jiff::Timestamp,
    pub revision: i64,
    /// Of the plain etcd snapshot.
    pub sha256: String,
    pub size_bytes: u64,
    pub git_commit: Option<String>,
    /// Something has risen from it: an API server that was booted from it, or a rehearsal's servers.
    #[serde(default)]
    pub proven: bool,
}

/// How a snapshot is read from its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At the pace that the cluster declares, so that its writes hardly notice: nobody waits for it.
    Unhurried,
    /// At several times that pace: something waits for it while the cluster serves.
    Awaited,
    /// As fast as it goes.
    AtOnce,
}

/// Snapshots in the bucket.
#[async_trait]
pub trait Backups: Send + Sync {
    /// Whole snapshots, newest first.
    async fn snapshots(&self) -> PortResult<Vec<SnapshotInfo>>;
    /// The plain etcd snapshot; the stream ends with an error if its digest is not the manifest's.
    async fn open_etcd(&self, id: &str) -> PortResult<ByteStream>;
    async fn open_recovery_set(&self, id: &str) -> PortResult<RecoverySet>;
    /// Takes a snapshot of these members, with all a recovery needs, and returns its id.
    async fn take(&self, etcd: Arc<dyn Etcd>, reading: Reading) -> PortResult<String>;
    /// Reads a snapshot back: every digest, every page. `Corrupt` if it is not what it says.
    async fn verify(&self, id: &str) -> PortResult<()>;
    /// Compares every key of a snapshot with what a living etcd has.
    async fn compare(&self, id: &str, etcd: Arc<dyn Etcd>) -> PortResult<Compared>;
    /// Finds every object of a snapshot through an API server that runs on servers restored from it; then it counts as proven
    /// by a drill. `Corrupt` if one is missing or can't be decrypted.
    async fn served(&self, id: &str, kube: Arc<dyn super::Kube>) -> PortResult<Served>;
}

/// An etcd beside the snapshot it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// When the snapshot was taken.
    pub taken_at: jiff::Timestamp,
    pub revision: i64,
    /// Of the snapshot.
    pub keys: u64,
    pub equal: u64,
    /// Keys that had a lease, and ended with it since.
    pub ended_with_lease: u64,
    /// The first of all others, with what is wrong.
    pub differing: Vec<String>,
}

/// Objects of a snapshot that an API server serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub objects: u64,
    /// Keys that no API server serves as an object, by kind.
    pub not_served: std::collections::BTreeMap<String, u64>,
    /// When the service's canary was written that the copy has.
    #[serde(default)]
    pub canary: Option<jiff::Timestamp>,
}

/// Pinned binaries on this machine.
#[async_trait]
pub trait Artifacts: Send + Sync {
    /// The version (the only one there is, if none is given) and the digests it may have, one per source that is pinned.
    /// `NotFound` if it is not in the lock.
    fn pinned(&self, name: &str, version: Option<&str>) -> PortResult<(String, Vec<String>)>;
    /// Obtains an artifact, checks it, and returns where it lies and its SHA-256.
    async fn fetch(&self, name: &str, version: &str) -> PortResult<(PathBuf, String)>;
}
