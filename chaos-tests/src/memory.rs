//! A whole world in memory: machines with services, etcd and the Kubernetes API as far as steps can tell them from real
//! ones. Every effect has a moment before and a moment after it at which a run can die.

mod dialed;
mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use hk_dr::config::Cluster;
use hk_dr::distribution::pki::ClusterSecrets;
use hk_dr::distribution::upstream::{NODE_FILE, NodeRecord, Role};
use hk_dr::hetzner::FakeCloud;
use hk_dr::ports::{
    Binary, ByteStream, CertificateFound, Clock, Cloud, ErrorCode, EtcdRestore, Host, Machines, NodeProbe, Perimeter,
    PortError, PortResult, RecoverySet, RemoteFile, ServerStatus, Service, SnapshotInfo,
};
use hk_dr::s3::MemoryStore;
use hk_dr::steps::World;
use secrecy::SecretString;
use serde_json::Value;

/// What one machine is. Machines are told apart by their host key: a recreated server is another machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub installed: BTreeMap<String, String>,
    /// Versions that run, by program: those installed when their service started.
    pub running: BTreeMap<String, String>,
    /// SSH keys beside the one it was made with, and whether that one is gone.
    pub authorized: BTreeSet<String>,
    pub first_key_revoked: bool,
    /// How many days its certificates hold.
    pub certificate_days: u32,
    pub configured: bool,
    /// Digest of what it was configured from.
    pub digest: Option<String>,
    pub mounted: Option<String>,
    /// The restore that filled the data directory; `fresh` if etcd founded a cluster.
    pub data: Option<String>,
    pub services: BTreeSet<Service>,
    /// How often a data directory was made where one was already.
    pub overwritten: u32,
    /// How often a volume was taken away while it was mounted.
    pub torn: u32,
    /// Floating IPs that it has configured.
    pub front: BTreeSet<Ipv4Addr>,
}

/// etcd as its majority knows it: members by id, with name (empty until started) and peer URL.
pub type Members = BTreeMap<u64, (String, String)>;

#[derive(Default)]
struct State {
    machines: BTreeMap<String, Machine>,
    nodes: BTreeSet<String>,
    vault: Option<RecoverySet>,
    /// Pods by name, with their Node and whether a budget keeps them there.
    pods: BTreeMap<String, (String, bool)>,
    cordoned: BTreeSet<String>,
    /// Versions of programs that end as soon as they start.
    broken: BTreeSet<String>,
    /// Masters whose API server is away, and the most that were at once.
    away: BTreeSet<String>,
    away_most: usize,
    /// etcd's data by volume: a machine has it only while the volume is mounted there.
    volumes: BTreeMap<String, String>,
    members: Members,
    last_member: u64,
    taken: Vec<String>,
    /// Restored etcds differ from their snapshots.
    spoilt: bool,
    /// Snapshots that were there before the run, beside those of the beginning.
    added: Vec<SnapshotInfo>,
    objects: BTreeMap<String, Value>,
    /// Counts how often a kubelet's lease was looked at: each look sees a later renewal.
    renewals: u32,
}

/// The world; clones share one state.
#[derive(Clone)]
pub struct MemoryWorld {
    pub cloud: FakeCloud,
    pub store: MemoryStore,
    cluster: Cluster,
    snapshots: Vec<SnapshotInfo>,
    recovery: RecoverySet,
    state: Arc<Mutex<State>>,
}

/// The key that servers are made with.
pub const FIRST_KEY: &str = "ssh-ed25519 AAAA";

/// A clock that stands still: nothing that is decided may depend on it.
struct Noon;

impl Clock for Noon {
    fn now(&self) -> jiff::Timestamp {
        "2026-11-23T12:00:00Z".parse().expect("a literal timestamp")
    }
}

fn snapshot_info() -> SnapshotInfo {
    SnapshotInfo {
        id: "20261123T115500Z-r4711".into(),
        taken_at: Noon.now(),
        revision: 4711,
        sha256: "0".repeat(64),
        size_bytes: 4096,
        git_commit: None,
        proven: false,
    }
}

/// Lets the run die here.
async fn moment() {
    tokio::task::yield_now().await;
}

impl MemoryWorld {
    /// An empty project for this cluster; `snapshot` puts one into the bucket.
    pub fn new(cluster: &Cluster, snapshot: bool) -> Self {
        let secrets = ClusterSecrets::generate(cluster, Noon.now()).expect("keys are made in memory");
        Self {
            cloud: FakeCloud::new(),
            store: MemoryStore::new(),
            cluster: cluster.clone(),
            snapshots: if snapshot { vec![snapshot_info()] } else { Vec::new() },
            recovery: secrets.to_recovery_set(),
            state: Arc::default(),
        }
    }

    /// The same world, declared otherwise in Git.
    #[must_use]
    pub fn declared(&self, cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), ..self.clone() }
    }

    /// A pod on a Node; `held` by a budget that allows no disruption.
    pub fn run_pod(&self, name: &str, node: &str, held: bool) {
        self.lock().pods.insert(name.to_owned(), (node.to_owned(), held));
    }

    pub fn pods(&self) -> BTreeMap<String, String> {
        self.lock().pods.iter().map(|(name, (node, _))| (name.clone(), node.clone())).collect()
    }

    /// From now on this version of a program ends as soon as it starts: `kube-apiserver-1.35.5`.
    pub fn break_version(&self, program_and_version: &str) {
        self.lock().broken.insert(program_and_version.to_owned());
    }

    /// The most masters whose API server was away at once, counted from now on.
    pub fn count_away(&self) {
        self.lock().away_most = 0;
    }

    pub fn away_most(&self) -> usize {
        self.lock().away_most
    }

    /// What steps act on. Every process of hk-dr has one of its own: nothing it remembers survives its death.
    pub fn world(&self) -> World {
        let this = || Arc::new(self.clone());
        World {
            cluster: self.cluster.clone(),
            cloud: Arc::new(self.cloud.clone()),
            store: Arc::new(self.store.clone()),
            machines: this(),
            dialer: this(),
            vault: this(),
            backups: this(),
            artifacts: this(),
            clock: Arc::new(Noon),
            secrets: Arc::default(),
            copy_of: None,
            in_public: None,
        }
    }

    /// The same world after Git has changed.
    pub fn with(&self, cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), ..self.clone() }
    }

    /// The machines of the servers that exist now, by server name.
    pub async fn machines(&self) -> BTreeMap<String, Machine> {
        let mut machines = BTreeMap::new();
        for server in self.cloud.servers("").await.expect("the cloud in memory answers") {
            let host = hk_dr::steps::ServerOutput::of(&self.cluster, &server).expect("made by hk-dr").host();
            machines.insert(server.name, self.lock().machines.get(&host.host_key_sha256).cloned().unwrap_or_default());
        }
        machines
    }

    pub fn members(&self) -> Members {
        self.lock().members.clone()
    }

    /// From now on what is restored differs from its snapshot.
    pub fn spoil_restores(&self) {
        self.lock().spoilt = true;
    }

    pub fn taken(&self) -> Vec<String> {
        self.lock().taken.clone()
    }

    pub fn objects(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Those of the cluster itself: a copy's die with it.
    pub fn nodes(&self) -> BTreeSet<String> {
        self.lock().nodes.iter().filter(|n| !of_copy(n)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change<T>(&self, host: &Host, how: impl FnOnce(&mut Machine) -> PortResult<T>) -> PortResult<T> {
        moment().await;
        let name = &host.name;
        // A copy of a private cluster has public addresses and no VPN.
        let vpn = self.cluster.vpn.as_ref().filter(|_| !of_copy(name));
        if let Some(vpn) = vpn.map(|v| format!("{}-{}", self.cluster.name, v.name))
            && self.cloud.server_by_name(&vpn).await?.is_none()
            // A public address helps only as long as no firewall is in front of it.
            && (self.cloud.firewall_by_name(&self.cluster.name).await?.is_some()
                || self.cloud.server_by_name(name).await?.is_none_or(|s| s.public_ipv4.is_none()))
        {
            return Err(PortError::new(ErrorCode::Unreachable, format!("no way to {name} without {vpn}")));
        }
        let at = |s: &hk_dr::ports::Server| {
            let private = s.private.iter().any(|p| p.address == host.address);
            if vpn.is_some() { private } else { s.public_ipv4 == Some(host.address) }
        };
        let server = self.cloud.server_by_name(name).await?.filter(at);
        let Some(server) = server.filter(|s| s.status == ServerStatus::Running) else {
            return Err(PortError::new(ErrorCode::Unreachable, format!("{name} does not answer")));
        };
        let devices = self.devices(server.id).await?;
        let result = {
            let mut state = self.lock();
            let machine = state.machines.entry(host.host_key_sha256.clone()).or_default();
            if machine.mounted.as_ref().is_some_and(|mounted| !devices.contains(mounted)) {
                machine.torn += 1;
                machine.mounted = None;
            }
            let result = how(machine);
            if let (Some(device), Some(data)) = (machine.mounted.clone(), machine.data.clone()) {
                state.volumes.insert(device, data);
            }
            let serves =
                state.machines.get(&host.host_key_sha256).is_some_and(|m| m.services.contains(&Service::ApiServer));
            let is_master = self.member(name).is_some();
            if serves {
                state.away.remove(name);
            } else if is_master {
                state.away.insert(name.clone());
            }
            state.away_most = state.away_most.max(state.away.len());
            result
        };
        moment().await;
        result
    }

    /// Devices of the volumes that are attached to a server.
    async fn devices(&self, server: u64) -> PortResult<BTreeSet<String>> {
        let volumes = self.cloud.volumes("").await?;
        Ok(volumes.into_iter().filter(|v| v.server == Some(server)).map(|v| v.device).collect())
    }

    /// Whether a member without data may start here: not where the others know one that has started.
    fn may_join(&self, server: &str) -> PortResult<()> {
        let Some((_, url)) = self.member(server) else { return Ok(()) };
        if self.lock().members.values().any(|(name, there)| *there == url && !name.is_empty()) {
            let message = format!("etcd on {server}: member has already been bootstrapped");
            return Err(PortError::new(ErrorCode::Invalid, message));
        }
        Ok(())
    }

    /// A started member has a name. One that was not added founds the cluster.
    fn joined(&self, server: &str) {
        let Some((name, url)) = self.member(server) else { return };
        let mut state = self.lock();
        if let Some(member) = state.members.values_mut().find(|(_, there)| *there == url) {
            member.0 = name;
            return;
        }
        state.last_member += 1;
        let id = state.last_member;
        state.members.insert(id, (name, url));
    }

    fn member(&self, server: &str) -> Option<(String, String)> {
        let master = self.cluster.masters.iter().find(|m| format!("{}-{}", self.cluster.name, m.name) == server)?;
        Some((master.name.clone(), format!("https://{}:2380", master.address)))
    }

    async fn serves(&self, host: &Host, service: Service) -> bool {
        self.change(host, |m| Ok(m.services.contains(&service))).await.unwrap_or(false)
    }
}

#[async_trait]
impl Machines for MemoryWorld {
    async fn wait_ready(&self, host: &Host, _: Duration) -> PortResult<()> {
        self.change(host, |_| Ok(())).await
    }

    async fn probe(&self, host: &Host, _: Role) -> PortResult<NodeProbe> {
        self.change(host, |m| {
            let units = m.services.iter().flat_map(|s| s.units()).map(|u| (*u).to_owned());
            let until = (m.certificate_days > 0).then(|| in_days(m.certificate_days));
            let versions: BTreeMap<_, _> =
                m.installed.iter().filter_map(|(path, digest)| version(path, digest)).collect();
            let stale = m.running.iter().filter(|(program, runs)| versions.get(*program) != Some(*runs));
            Ok(NodeProbe {
                config_digest: m.digest.clone(),
                active_units: units.collect(),
                etcd_data: m.data.is_some(),
                stale: stale.map(|(program, runs)| (program.clone(), runs.clone())).collect(),
                versions,
                certificates_until: until,
                front_addresses: m.front.clone(),
            })
        })
        .await
    }

    async fn certificates(&self, host: &Host, _: bool) -> PortResult<Vec<CertificateFound>> {
        self.change(host, |m| {
            let until = in_days(m.certificate_days);
            Ok(vec![CertificateFound { place: "port 6443".into(), until, subject: String::new() }])
        })
        .await
    }

    async fn install(&self, host: &Host, binaries: &[(Binary, SecretString)]) -> PortResult<()> {
        for (binary, _) in binaries {
            self.change(host, |m| {
                m.installed.insert(binary.path.clone(), binary.sha256.clone());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn configure(&self, host: &Host, files: &[RemoteFile]) -> PortResult<()> {
        let record =
            files.iter().find(|f| f.path == NODE_FILE).map(|f| serde_json::from_slice::<NodeRecord>(&f.content));
        let digest = record.and_then(Result::ok).map(|r| r.config_digest);
        let days = self.cluster.certificates.valid_days;
        self.change(host, |m| {
            m.configured = true;
            m.digest = digest;
            m.certificate_days = days;
            Ok(())
        })
        .await
    }

    async fn prepare_worker(&self, host: &Host) -> PortResult<()> {
        self.change(host, |_| Ok(())).await
    }

    async fn mount_etcd_volume(&self, host: &Host, device: &str) -> PortResult<()> {
        let server = self.cloud.server_by_name(&host.name).await?.map_or(0, |s| s.id);
        if !self.devices(server).await?.contains(device) {
            return Err(PortError::new(ErrorCode::Locked, format!("{device} did not appear on {}", host.name)));
        }
        let data = self.lock().volumes.get(device).cloned();
        self.change(host, |m| {
            m.mounted = Some(device.to_owned());
            m.data = data;
            Ok(())
        })
        .await
    }

    async fn restore_etcd(
        &self,
        host: &Host,
        restore: &EtcdRestore,
        token: &str,
        mut snapshot: ByteStream,
    ) -> PortResult<()> {
        while let Some(chunk) = snapshot.next().await {
            chunk?;
            moment().await;
        }
        let data = format!("{} with token {token}", restore.id);
        self.change(host, |m| {
            if m.mounted.is_none() {
                return Err(PortError::new(ErrorCode::Locked, "not mounted"));
            }
            m.overwritten += u32::from(m.data.as_ref().is_some_and(|there| *there != data));
            m.data = Some(data);
            Ok(())
        })
        .await
    }

    async fn etcd_restored(&self, host: &Host, restore: &EtcdRestore) -> PortResult<bool> {
        self.change(host, |m| Ok(m.data.as_ref().is_some_and(|d| d.starts_with(&restore.id)))).await
    }

    async fn stop(&self, host: &Host, services: &[Service]) -> PortResult<()> {
        self.change(host, |m| {
            m.services.retain(|s| !services.contains(s));
            m.running.retain(|program, _| !services.iter().any(|s| s.units().contains(&program.as_str())));
            Ok(())
        })
        .await
    }

    async fn carry(&self, host: &Host, addresses: &[Ipv4Addr]) -> PortResult<()> {
        self.change(host, |m| {
            m.front = addresses.iter().copied().collect();
            Ok(())
        })
        .await
    }

    async fn unmount_etcd_volume(&self, host: &Host) -> PortResult<()> {
        self.change(host, |m| {
            if m.services.contains(&Service::Etcd) {
                return Err(PortError::new(ErrorCode::Locked, "etcd's volume is in use"));
            }
            (m.mounted, m.data) = (None, None);
            Ok(())
        })
        .await
    }

    async fn authorize(&self, host: &Host, public_key: &str) -> PortResult<()> {
        self.change(host, |m| {
            m.authorized.insert(public_key.to_owned());
            Ok(())
        })
        .await
    }

    async fn revoke(&self, host: &Host, public_key: &str, kept: &str) -> PortResult<()> {
        self.change(host, |m| {
            if !m.authorized.contains(kept) {
                return Err(PortError::new(ErrorCode::Invalid, "nobody could log in any more"));
            }
            m.first_key_revoked |= public_key == FIRST_KEY;
            m.authorized.remove(public_key);
            Ok(())
        })
        .await
    }

    async fn accepts(&self, host: &Host, public_key: &str) -> PortResult<bool> {
        self.change(
            host,
            |m| Ok(m.authorized.contains(public_key) || (public_key == FIRST_KEY && !m.first_key_revoked)),
        )
        .await
    }

    fn forget(&self, _: &Host) {}

    async fn start(&self, host: &Host, service: Service) -> PortResult<()> {
        if service == Service::Etcd {
            let has_data = self.change(host, |m| Ok(m.data.is_some())).await?;
            if !has_data {
                self.may_join(&host.name)?;
            }
        }
        let broken = self.lock().broken.clone();
        self.change(host, |m| {
            if service == Service::Etcd && m.mounted.is_none() {
                return Err(PortError::new(ErrorCode::Locked, "etcd's volume is not mounted"));
            }
            let starts: BTreeMap<_, _> =
                m.installed.iter().filter_map(|(path, digest)| version(path, digest)).collect();
            let ends = |unit: &&str| starts.get(*unit).is_some_and(|v| broken.contains(&format!("{unit}-{v}")));
            if service.units().iter().any(ends) {
                // Like systemd: the job was taken, and the service is not there a moment later.
                return Ok(());
            }
            m.services.insert(service);
            for unit in service.units() {
                // What runs goes on as it was, whatever was installed since.
                if let Some(version) = starts.get(*unit) {
                    m.running.entry((*unit).to_owned()).or_insert_with(|| version.clone());
                }
            }
            if service == Service::Etcd {
                m.data.get_or_insert_with(|| "fresh".to_owned());
            }
            Ok(())
        })
        .await?;
        if service == Service::Etcd {
            self.joined(&host.name);
        }
        if service == Service::Worker {
            self.lock().nodes.insert(host.name.clone());
        }
        Ok(())
    }
}

/// Whether a server's name is one of a copy of the cluster.
fn of_copy(name: &str) -> bool {
    name.contains("-copy-")
}

fn in_days(days: u32) -> jiff::Timestamp {
    let span = jiff::ToSpan::hours(i64::from(days) * 24);
    Noon.now().checked_add(span).expect("a certificate's life is in the calendar")
}

/// Program and version of what is installed: the digests of this world say both.
fn version(path: &str, digest: &str) -> Option<(String, String)> {
    // etcdutl is no service: the probe of a real machine does not name it.
    let program = path.strip_prefix("/usr/local/bin/").filter(|program| *program != "etcdutl")?;
    Some((program.to_owned(), digest.strip_prefix(program)?.strip_prefix('-')?.to_owned()))
}

fn unused(what: &str) -> PortError {
    PortError::new(ErrorCode::Invalid, format!("no step calls {what}"))
}
