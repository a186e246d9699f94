//! etcd and the Kubernetes API of machines in memory.

use std::sync::Arc;

use async_trait::async_trait;
use hk_dr::ports::{
    ByteStream, ClientTls, Collection, Dialer, ErrorCode, Etcd, EtcdEndpoint, HashKv, Host, KeyValue, Kube, Member,
    MemberStatus, PortError, PortResult, Service,
};
use serde_json::{Value, json};

use super::{MemoryWorld, moment, of_copy, unused};

#[async_trait]
impl Dialer for MemoryWorld {
    async fn etcd(&self, members: &[EtcdEndpoint], _: &ClientTls) -> PortResult<Arc<dyn Etcd>> {
        Ok(Arc::new(MemoryEtcd { world: self.clone(), members: members.to_vec() }))
    }

    async fn kube(&self, host: &Host, _: &ClientTls) -> PortResult<Arc<dyn Kube>> {
        Ok(Arc::new(MemoryKube { world: self.clone(), host: host.clone() }))
    }
}

pub(super) struct MemoryEtcd {
    pub world: MemoryWorld,
    pub members: Vec<EtcdEndpoint>,
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
    async fn member_list(&self, member: &str) -> PortResult<Vec<Member>> {
        self.up(member).await?;
        let member = |(id, (name, url)): (&u64, &(String, String))| Member {
            id: *id,
            name: name.clone(),
            peer_urls: vec![url.clone()],
            client_urls: Vec::new(),
        };
        Ok(self.world.lock().members.iter().map(member).collect())
    }
    async fn member_remove(&self, member: &str, id: u64) -> PortResult<()> {
        self.up(member).await?;
        let removed = self.world.lock().members.remove(&id);
        moment().await;
        removed.map(|_| ()).ok_or_else(|| PortError::new(ErrorCode::NotFound, "there is no such member"))
    }
    async fn member_add(&self, member: &str, peer_url: &str) -> PortResult<u64> {
        self.up(member).await?;
        let id = {
            let mut state = self.world.lock();
            state.last_member += 1;
            let id = state.last_member;
            state.members.insert(id, (String::new(), peer_url.to_owned()));
            id
        };
        moment().await;
        Ok(id)
    }
    async fn snapshot(&self, _: &str, _: u32) -> PortResult<ByteStream> {
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

pub(super) struct MemoryKube {
    pub world: MemoryWorld,
    pub host: Host,
}

impl MemoryKube {
    async fn up(&self) -> PortResult<()> {
        moment().await;
        if self.world.serves(&self.host, Service::ApiServer).await {
            return Ok(());
        }
        Err(PortError::new(ErrorCode::Unreachable, format!("the API server on {} is down", self.host.name)))
    }
}

#[async_trait]
impl Kube for MemoryKube {
    async fn ready(&self) -> PortResult<bool> {
        Ok(self.world.serves(&self.host, Service::ApiServer).await)
    }
    async fn get(&self, collection: &Collection, name: &str) -> PortResult<Option<Value>> {
        self.up().await?;
        if collection.plural == "leases" {
            let mut state = self.world.lock();
            state.renewals += 1;
            let renewed = state.renewals;
            return Ok(state.nodes.contains(name).then(|| json!({"spec": {"renewTime": renewed}})));
        }
        if collection.plural != "nodes" {
            return Ok(self.world.lock().objects.get(name).cloned());
        }
        let state = self.world.lock();
        Ok(state.nodes.contains(name).then(|| node(name, state.cordoned.contains(name))))
    }
    async fn list(&self, collection: &Collection) -> PortResult<Vec<Value>> {
        moment().await;
        let state = self.world.lock();
        Ok(match collection.plural.as_str() {
            "nodes" => state
                .nodes
                .iter()
                .filter(|n| of_copy(n) == of_copy(&self.host.name))
                .map(|n| node(n, state.cordoned.contains(n)))
                .collect(),
            "pods" => state.pods.iter().map(|(name, (node, _))| pod(name, node)).collect(),
            _ => Vec::new(),
        })
    }
    async fn delete(&self, collection: &Collection, name: &str, _: Option<u32>) -> PortResult<bool> {
        self.up().await?;
        let mut state = self.world.lock();
        Ok(if collection.plural == "nodes" {
            state.cordoned.remove(name);
            state.nodes.remove(name)
        } else {
            state.objects.remove(name).is_some()
        })
    }
    async fn patch(&self, collection: &Collection, name: &str, patch: &Value) -> PortResult<Value> {
        self.up().await?;
        if collection.plural == "nodes"
            && let Some(unschedulable) = patch["spec"].get("unschedulable")
        {
            let mut state = self.world.lock();
            if *unschedulable == true {
                state.cordoned.insert(name.to_owned());
            } else {
                state.cordoned.remove(name);
            }
        }
        Ok(patch.clone())
    }
    async fn apply(&self, _: &Collection, object: &Value) -> PortResult<Value> {
        self.up().await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.world.lock().objects.insert(name, object.clone());
        moment().await;
        Ok(object.clone())
    }
    async fn create(&self, collection: &Collection, object: &Value) -> PortResult<Value> {
        self.up().await?;
        if !collection.plural.ends_with("/eviction") {
            return Err(unused("create"));
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let evicted = {
            let mut state = self.world.lock();
            if state.pods.get(name).is_some_and(|(_, held)| *held) {
                let message = "429 Cannot evict pod as it would violate the pod's disruption budget.";
                return Err(PortError::new(ErrorCode::RateLimited, message));
            }
            state.pods.remove(name)
        };
        moment().await;
        evicted.map(|_| object.clone()).ok_or_else(|| PortError::new(ErrorCode::NotFound, "404 pod not found"))
    }
}

fn node(name: &str, cordoned: bool) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"unschedulable": cordoned},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node},
        "status": {"phase": "Running"},
    })
}
