//! A whole world in memory: machines with services, etcd and the Kubernetes API as far as steps can tell them from real
//! ones. Every effect has a moment before and a moment after it at which a run can die.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use hk_dr::config::Cluster;
use hk_dr::distribution::pki::ClusterSecrets;
use hk_dr::hetzner::FakeCloud;
use hk_dr::ports::{
    Artifacts, Backups, Binary, ByteStream, ClientTls, Clock, Cloud, Collection, Dialer, ErrorCode, Etcd, EtcdEndpoint,
    EtcdRestore, HashKv, Host, KeyValue, Kube, Machines, Member, MemberStatus, NodeProbe, PortError, PortResult,
    RecoverySet, RemoteFile, Service, SnapshotInfo, Vault,
};
use hk_dr::s3::MemoryStore;
use hk_dr::steps::World;
use secrecy::SecretString;
use serde_json::{Value, json};

/// What one machine is. Machines are told apart by their host key: a recreated server is another machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub installed: BTreeMap<String, String>,
    pub configured: bool,
    pub mounted: Option<String>,
    /// The restore that filled the data directory; `fresh` if etcd founded a cluster.
    pub data: Option<String>,
    pub services: BTreeSet<Service>,
    /// How often a data directory was made where one was already.
    pub overwritten: u32,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<String, Machine>,
    nodes: BTreeSet<String>,
    vault: Option<RecoverySet>,
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

/// A clock that stands still: nothing that is decided may depend on it.
struct Noon;

impl Clock for Noon {
    fn now(&self) -> jiff::Timestamp {
        "2026-11-23T12:00:00Z".parse().expect("a literal timestamp")
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
        let info = SnapshotInfo {
            id: "20261123T115500Z-r4711".into(),
            taken_at: Noon.now(),
            revision: 4711,
            sha256: "0".repeat(64),
            size_bytes: 4096,
            git_commit: None,
        };
        Self {
            cloud: FakeCloud::new(),
            store: MemoryStore::new(),
            cluster: cluster.clone(),
            snapshots: if snapshot { vec![info] } else { Vec::new() },
            recovery: secrets.to_recovery_set(),
            state: Arc::default(),
        }
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
        }
    }

    /// The machines of the servers that exist now, by server name.
    pub async fn machines(&self) -> BTreeMap<String, Machine> {
        let mut machines = BTreeMap::new();
        for server in self.cloud.servers("").await.expect("the cloud in memory answers") {
            let host = hk_dr::steps::ServerOutput::of(&server).expect("made by hk-dr").host();
            machines.insert(server.name, self.lock().machines.get(&host.host_key_sha256).cloned().unwrap_or_default());
        }
        machines
    }

    /// Names of registered Nodes.
    pub fn nodes(&self) -> BTreeSet<String> {
        self.lock().nodes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change<T>(&self, host: &Host, how: impl FnOnce(&mut Machine) -> PortResult<T>) -> PortResult<T> {
        moment().await;
        let name = &host.name;
        let alive = self.cloud.server_by_name(name).await?.is_some_and(|s| s.public_ipv4 == Some(host.address));
        if !alive {
            return Err(PortError::new(ErrorCode::Unreachable, format!("{name} does not answer")));
        }
        let result = how(self.lock().machines.entry(host.host_key_sha256.clone()).or_default());
        moment().await;
        result
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

    async fn probe(&self, host: &Host, _: bool) -> PortResult<NodeProbe> {
        self.change(host, |m| {
            let units = m.services.iter().flat_map(|s| s.units()).map(|u| (*u).to_owned());
            Ok(NodeProbe {
                config_digest: m.configured.then(|| "configured".to_owned()),
                active_units: units.collect(),
                etcd_data: m.data.is_some(),
            })
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

    async fn configure(&self, host: &Host, _: &[RemoteFile]) -> PortResult<()> {
        self.change(host, |m| {
            m.configured = true;
            Ok(())
        })
        .await
    }

    async fn prepare_worker(&self, host: &Host) -> PortResult<()> {
        self.change(host, |_| Ok(())).await
    }

    async fn mount_etcd_volume(&self, host: &Host, device: &str) -> PortResult<()> {
        self.change(host, |m| {
            m.mounted = Some(device.to_owned());
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

    async fn start(&self, host: &Host, service: Service) -> PortResult<()> {
        self.change(host, |m| {
            if service == Service::Etcd && m.mounted.is_none() {
                return Err(PortError::new(ErrorCode::Locked, "etcd's volume is not mounted"));
            }
            m.services.insert(service);
            if service == Service::Etcd {
                m.data.get_or_insert_with(|| "fresh".to_owned());
            }
            Ok(())
        })
        .await?;
        if service == Service::Worker {
            self.lock().nodes.insert(host.name.clone());
        }
        Ok(())
    }
}

#[async_trait]
impl Vault for MemoryWorld {
    async fn load(&self) -> PortResult<Option<RecoverySet>> {
        moment().await;
        Ok(self.lock().vault.clone())
    }

    async fn create(&self, set: &RecoverySet) -> PortResult<()> {
        moment().await;
        if self.lock().vault.is_some() {
            return Err(PortError::new(ErrorCode::Conflict, "there are secrets already"));
        }
        self.lock().vault = Some(set.clone());
        moment().await;
        Ok(())
    }
}

#[async_trait]
impl Backups for MemoryWorld {
    async fn snapshots(&self) -> PortResult<Vec<SnapshotInfo>> {
        Ok(self.snapshots.clone())
    }

    async fn open_etcd(&self, _: &str) -> PortResult<ByteStream> {
        Ok(Box::pin(futures::stream::iter([Ok("a".into()), Ok("b".into())])))
    }

    async fn open_recovery_set(&self, _: &str) -> PortResult<RecoverySet> {
        Ok(self.recovery.clone())
    }
}

#[async_trait]
impl Artifacts for MemoryWorld {
    fn pinned(&self, _: &str, version: Option<&str>) -> PortResult<(String, Vec<String>)> {
        Ok((version.unwrap_or("1").to_owned(), Vec::new()))
    }

    async fn fetch(&self, name: &str, version: &str) -> PortResult<(PathBuf, String)> {
        // A small file serves as every binary: only its transport is looked at.
        Ok((PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), format!("{name}-{version}")))
    }
}

#[async_trait]
impl Dialer for MemoryWorld {
    async fn etcd(&self, members: &[EtcdEndpoint], _: &ClientTls) -> PortResult<Arc<dyn Etcd>> {
        Ok(Arc::new(MemoryEtcd { world: self.clone(), members: members.to_vec() }))
    }

    async fn kube(&self, host: &Host, _: &ClientTls) -> PortResult<Arc<dyn Kube>> {
        Ok(Arc::new(MemoryKube { world: self.clone(), host: host.clone() }))
    }
}

struct MemoryEtcd {
    world: MemoryWorld,
    members: Vec<EtcdEndpoint>,
}

impl MemoryEtcd {
    async fn up(&self, member: &str) -> PortResult<()> {
        let down = || PortError::new(ErrorCode::Unreachable, format!("member {member} is down"));
        let endpoint = self.members.iter().find(|m| m.name == member).ok_or_else(down)?;
        if self.world.serves(&endpoint.host, Service::Etcd).await { Ok(()) } else { Err(down()) }
    }
}

#[async_trait]
impl Etcd for MemoryEtcd {
    fn members(&self) -> Vec<String> {
        self.members.iter().map(|m| m.name.clone()).collect()
    }
    async fn status(&self, member: &str) -> PortResult<MemberStatus> {
        self.up(member).await?;
        Ok(MemberStatus {
            name: member.into(),
            member_id: 1,
            cluster_id: 1,
            leader_id: 1,
            revision: 1,
            db_size_bytes: 1,
            raft_index: 1,
            is_learner: false,
            version: "3.6.16".into(),
        })
    }
    async fn hash_kv(&self, member: &str, revision: i64) -> PortResult<HashKv> {
        self.up(member).await?;
        Ok(HashKv { hash: 7, hash_revision: revision, compact_revision: 0 })
    }
    async fn get(&self, member: &str, _: &[u8]) -> PortResult<Option<KeyValue>> {
        self.up(member).await.map(|()| None)
    }
    async fn member_list(&self, _: &str) -> PortResult<Vec<Member>> {
        Err(unused("member_list"))
    }
    async fn snapshot(&self, _: &str) -> PortResult<ByteStream> {
        Err(unused("snapshot"))
    }
    async fn range(&self, _: &str, _: &[u8], _: i64, _: &mut (dyn FnMut(Vec<KeyValue>) + Send)) -> PortResult<i64> {
        Err(unused("range"))
    }
    async fn watch_is_compacted(&self, _: &str, _: &[u8], _: i64) -> PortResult<bool> {
        Err(unused("watch"))
    }
    async fn put(&self, _: &str, _: &[u8], _: &[u8]) -> PortResult<i64> {
        Err(unused("put"))
    }
    async fn delete(&self, _: &str, _: &[u8]) -> PortResult<bool> {
        Err(unused("delete"))
    }
}

struct MemoryKube {
    world: MemoryWorld,
    host: Host,
}

#[async_trait]
impl Kube for MemoryKube {
    async fn ready(&self) -> PortResult<bool> {
        Ok(self.world.serves(&self.host, Service::ApiServer).await)
    }
    async fn get(&self, _: &Collection, name: &str) -> PortResult<Option<Value>> {
        moment().await;
        Ok(self.world.lock().nodes.contains(name).then(|| node(name)))
    }
    async fn list(&self, collection: &Collection) -> PortResult<Vec<Value>> {
        moment().await;
        let nodes = self.world.lock().nodes.clone();
        Ok(if collection.plural == "nodes" { nodes.iter().map(|n| node(n)).collect() } else { Vec::new() })
    }
    async fn delete(&self, collection: &Collection, name: &str, _: Option<u32>) -> PortResult<bool> {
        moment().await;
        Ok(collection.plural == "nodes" && self.world.lock().nodes.remove(name))
    }
    async fn patch(&self, _: &Collection, _: &str, patch: &Value) -> PortResult<Value> {
        Ok(patch.clone())
    }
    async fn apply(&self, _: &Collection, object: &Value) -> PortResult<Value> {
        Ok(object.clone())
    }
    async fn create(&self, _: &Collection, _: &Value) -> PortResult<Value> {
        Err(unused("create"))
    }
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn unused(what: &str) -> PortError {
    PortError::new(ErrorCode::Invalid, format!("no step calls {what}"))
}
