//! The connection to the etcd of the declared cluster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::connect::Connected;
use crate::distribution::server_name;
use crate::ports::{
    ByteStream, ChangeWatch, ErrorCode, Etcd, EtcdEndpoint, HashKv, KeyValue, LeaseTtl, Member, MemberFile,
    MemberStatus, PortError, PortResult,
};
use crate::steps::ServerOutput;

/// Between two looks at the cloud for members that can't be reached: its requests are counted.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Finds the masters in the cloud and connects to their etcd. A lost master is left out: the others will do.
pub(super) async fn etcd_of(connected: &Connected) -> PortResult<Arc<dyn Etcd>> {
    let world = &connected.world;
    let mut endpoints = Vec::new();
    for master in &world.cluster.masters {
        let name = server_name(&world.cluster, &master.name);
        if let Some(server) = world.cloud.server_by_name(&name).await? {
            let host = ServerOutput::of(&world.cluster, &server)?.host();
            endpoints.push(EtcdEndpoint { name: master.name.clone(), host, address: master.address });
        }
    }
    if endpoints.is_empty() {
        let message = format!("no master of cluster {} exists in the cloud", world.cluster.name);
        return Err(PortError::new(ErrorCode::NotFound, message)
            .hint("nothing was written; `hk-dr rebuild` brings the cluster back from the newest snapshot"));
    }
    world.etcd(&endpoints).await
}

/// The same for what lasts longer than servers do: a master that was replaced has another address, so members that can't
/// be reached are looked for in the cloud again.
pub(super) struct FollowedEtcd<'a> {
    connected: &'a Connected,
    found: Mutex<(Arc<dyn Etcd>, Instant)>,
}

impl<'a> FollowedEtcd<'a> {
    /// Finds them the first time.
    pub async fn find(connected: &'a Connected) -> PortResult<Self> {
        let etcd = etcd_of(connected).await?;
        Ok(Self { connected, found: Mutex::new((etcd, Instant::now())) })
    }

    fn current(&self, member: &str) -> PortResult<Arc<dyn Etcd>> {
        let etcd = Arc::clone(&self.found.lock().unwrap_or_else(PoisonError::into_inner).0);
        if etcd.members().iter().any(|known| known == member) {
            return Ok(etcd);
        }
        Err(PortError::new(ErrorCode::Unreachable, format!("master {member} does not exist in the cloud now")))
    }

    /// Passes a result on; looks for the members anew where it says that one can't be reached.
    async fn seen<T>(&self, result: PortResult<T>) -> PortResult<T> {
        if result.as_ref().is_err_and(|e| matches!(e.code, ErrorCode::Unreachable | ErrorCode::Timeout)) {
            let due = {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                let due = found.1.elapsed() >= LOOK_EVERY;
                if due {
                    found.1 = Instant::now();
                }
                due
            };
            // The cloud may be away too: what is known serves until it answers.
            if due && let Ok(etcd) = etcd_of(self.connected).await {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).0 = etcd;
            }
        }
        result
    }
}

/// One call of the member's connection.
macro_rules! followed {
    ($self:ident, $member:ident, $method:ident $(, $argument:expr)*) => {{
        let result = match $self.current($member) {
            Ok(etcd) => etcd.$method($member $(, $argument)*).await,
            Err(error) => Err(error),
        };
        $self.seen(result).await
    }};
}

#[async_trait]
impl Etcd for FollowedEtcd<'_> {
    /// All that are declared: one that is lost now may be back later.
    fn members(&self) -> Vec<String> {
        self.connected.world.cluster.masters.iter().map(|master| master.name.clone()).collect()
    }
    async fn status(&self, member: &str) -> PortResult<MemberStatus> {
        followed!(self, member, status)
    }
    async fn member_list(&self, member: &str) -> PortResult<Vec<Member>> {
        followed!(self, member, member_list)
    }
    async fn member_remove(&self, member: &str, id: u64) -> PortResult<()> {
        followed!(self, member, member_remove, id)
    }
    async fn member_add(&self, member: &str, peer_url: &str) -> PortResult<u64> {
        followed!(self, member, member_add, peer_url)
    }
    async fn hash_kv(&self, member: &str, revision: i64) -> PortResult<HashKv> {
        followed!(self, member, hash_kv, revision)
    }
    async fn snapshot(&self, member: &str, ahead_bytes: u32) -> PortResult<ByteStream> {
        followed!(self, member, snapshot, ahead_bytes)
    }
    fn file(&self, member: &str) -> Option<Arc<dyn MemberFile>> {
        self.current(member).ok()?.file(member)
    }
    async fn range(
        &self,
        member: &str,
        prefix: &[u8],
        revision: i64,
        page: &mut (dyn FnMut(Vec<KeyValue>) + Send),
    ) -> PortResult<i64> {
        followed!(self, member, range, prefix, revision, page)
    }
    async fn watch_is_compacted(&self, member: &str, key: &[u8], revision: i64) -> PortResult<bool> {
        followed!(self, member, watch_is_compacted, key, revision)
    }
    async fn get(&self, member: &str, key: &[u8]) -> PortResult<Option<KeyValue>> {
        followed!(self, member, get, key)
    }
    async fn put(&self, member: &str, key: &[u8], value: &[u8]) -> PortResult<i64> {
        followed!(self, member, put, key, value)
    }
    async fn delete(&self, member: &str, key: &[u8]) -> PortResult<bool> {
        followed!(self, member, delete, key)
    }
    async fn watch(&self, member: &str, from_revision: i64) -> PortResult<Box<dyn ChangeWatch>> {
        followed!(self, member, watch, from_revision)
    }
    async fn lease_ttl(&self, member: &str, id: i64) -> PortResult<Option<LeaseTtl>> {
        followed!(self, member, lease_ttl, id)
    }
}
