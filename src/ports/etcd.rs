use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ByteStream, ErrorCode, PortError, PortResult, PrintedStream};

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

/// A change as a watch delivers it. A deletion has nothing but its key and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedChange {
    pub tombstone: bool,
    pub kv: KeyValue,
}

/// What a watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchNews {
    /// Changes in order. Those of one revision may come in several pieces: a revision is whole when a change of a later
    /// one or a progress at or behind it has come.
    Changes(Vec<WatchedChange>),
    /// All changes up to this revision were delivered.
    Progress(i64),
    /// What was asked for is gone: etcd was compacted at this revision. The watch has ended.
    Compacted(i64),
}

/// A watch on all keys of one member.
#[async_trait]
pub trait ChangeWatch: Send {
    /// Waits for what comes next, without a deadline of its own. Nothing is lost when this future is dropped.
    async fn next(&mut self) -> PortResult<WatchNews>;
    /// Asks how far it is; the answer comes as news, or never, if the member lags behind itself.
    async fn ask_progress(&mut self) -> PortResult<()>;
}

/// How long a lease has, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTtl {
    pub granted_seconds: i64,
    pub remaining_seconds: i64,
}

/// A member's backend file where it lies, and a way to run hk-dr itself beside it.
#[async_trait]
pub trait MemberFile: Send + Sync {
    /// The file's path on the member's machine.
    fn path(&self) -> &str;
    /// Puts this very program there, where it is missing.
    async fn prepare(&self) -> PortResult<()>;
    /// Starts it there, as root, once it was prepared. `arguments` are words without anything that a shell would see; `gently`
    /// lets whatever else runs there go first.
    async fn start(&self, arguments: &str, input: Bytes, gently: bool, deadline: Duration)
    -> PortResult<PrintedStream>;
}

fn unsupported<T>() -> PortResult<T> {
    Err(PortError::new(ErrorCode::Invalid, "this connection to etcd cannot watch changes"))
}

/// An etcd cluster, reached member by member. Members are addressed by the names the adapter was made with.
#[async_trait]
pub trait Etcd: Send + Sync {
    /// Names of the members this adapter knows, in declared order.
    fn members(&self) -> Vec<String>;
    async fn status(&self, member: &str) -> PortResult<MemberStatus>;
    async fn member_list(&self, member: &str) -> PortResult<Vec<Member>>;
    /// Takes a member out of the membership, asking another one.
    async fn member_remove(&self, member: &str, id: u64) -> PortResult<()>;
    /// Adds a member that has not started yet, asking another one; returns its id.
    async fn member_add(&self, member: &str, peer_url: &str) -> PortResult<u64>;
    /// Hash at a revision (0: the newest).
    async fn hash_kv(&self, member: &str, revision: i64) -> PortResult<HashKv>;
    /// The snapshot stream, etcd's own SHA-256 trailer included. The member sends `ahead_bytes` more than what was read, at
    /// most; what is not read stays with it.
    async fn snapshot(&self, member: &str, ahead_bytes: u32) -> PortResult<ByteStream>;
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
    /// Watches all keys from a revision on (inclusive), which must have been reached.
    async fn watch(&self, _member: &str, _from_revision: i64) -> PortResult<Box<dyn ChangeWatch>> {
        unsupported()
    }
    /// The member's file, if its machine can be reached for that.
    fn file(&self, _member: &str) -> Option<Arc<dyn MemberFile>> {
        None
    }
    /// A lease's times to live; none if it does not exist any more.
    async fn lease_ttl(&self, _member: &str, _id: i64) -> PortResult<Option<LeaseTtl>> {
        unsupported()
    }
}
