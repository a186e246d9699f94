use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{ByteStream, PortResult};

/// One member as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The endpoint's name as given by the caller.
    pub name: String,
    pub member_id: u64,
    pub cluster_id: u64,
    pub leader_id: u64,
    pub revision: i64,
    pub db_size_bytes: i64,
    pub raft_index: u64,
    pub is_learner: bool,
    pub version: String,
}

/// A member in the membership list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

/// A hash over all key-value pairs up to a revision (etcd's `HashKV`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashKv {
    pub hash: u32,
    pub hash_revision: i64,
    pub compact_revision: i64,
}

/// One key at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: i64,
}

/// An etcd cluster, reached member by member. Members are addressed by the names the adapter was made with.
#[async_trait]
pub trait Etcd: Send + Sync {
    /// Names of the members this adapter knows, in declared order.
    fn members(&self) -> Vec<String>;
    async fn status(&self, member: &str) -> PortResult<MemberStatus>;
    async fn member_list(&self, member: &str) -> PortResult<Vec<Member>>;
    /// Hash at a revision (0: the newest).
    async fn hash_kv(&self, member: &str, revision: i64) -> PortResult<HashKv>;
    /// The snapshot stream, etcd's own SHA-256 trailer included.
    async fn snapshot(&self, member: &str) -> PortResult<ByteStream>;
    /// Pages through all keys below a prefix at one revision (0: the newest), in key order, `limit` a page; calls `page`
    /// for each. Returns the revision that was read.
    async fn range(
        &self,
        member: &str,
        prefix: &[u8],
        revision: i64,
        page: &mut (dyn FnMut(Vec<KeyValue>) + Send),
    ) -> PortResult<i64>;
    /// Whether a watch that starts at this revision is told that the revision is compacted.
    async fn watch_is_compacted(&self, member: &str, key: &[u8], revision: i64) -> PortResult<bool>;
    /// A linearizable read of one key: proves quorum.
    async fn get(&self, member: &str, key: &[u8]) -> PortResult<Option<KeyValue>>;
    async fn put(&self, member: &str, key: &[u8], value: &[u8]) -> PortResult<i64>;
    /// Deletes one key; false if it was not there.
    async fn delete(&self, member: &str, key: &[u8]) -> PortResult<bool>;
}
