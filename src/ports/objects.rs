use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::PortResult;

/// An object's name and size, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: String,
    pub size_bytes: u64,
    /// Opaque; changes when the content changes.
    pub etag: String,
}

/// When a put may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutCondition {
    /// Always.
    Any,
    /// Only if no object has this key: otherwise `Conflict`.
    Absent,
    /// Only if the object has this etag: otherwise `Conflict`.
    Match(String),
}

/// An upload in parts. Nothing is visible under the key before `complete`.
#[async_trait]
pub trait Upload: Send {
    /// Sends the next part. Every part but the last must be at least 5 MiB. Parts may be sent concurrently inside; a
    /// bounded number is in flight, so this waits when the store is slower than the source.
    async fn part(&mut self, data: Bytes) -> PortResult<()>;
    /// Makes the object visible.
    async fn complete(self: Box<Self>, condition: PutCondition) -> PortResult<ObjectInfo>;
    /// Gives up and frees what was sent.
    async fn abort(self: Box<Self>) -> PortResult<()>;
}

/// A body that is read in order.
pub type ByteStream = std::pin::Pin<Box<dyn futures::Stream<Item = PortResult<Bytes>> + Send>>;

/// Who vouches for an object that was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Vouched {
    /// Nobody, and nobody was asked to: no key is declared.
    #[default]
    Unsigned,
    /// The key of that number, which is declared.
    Signed { key: String },
    /// Nobody, though a key is declared; a person said that it is to be used all the same.
    Accepted { problem: String },
}

impl std::fmt::Display for Vouched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsigned => f.write_str("unsigned"),
            Self::Signed { key } => write!(f, "signed by {key}"),
            Self::Accepted { problem } => write!(f, "NOT TRUSTED: {problem}"),
        }
    }
}

/// A bucket. Keys are relative to the bucket.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// What it is, for messages: scheme, bucket and host, never a credential.
    fn name(&self) -> String;
    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo>;
    /// Reads a whole object of at most `limit_bytes`; larger is `LimitExceeded`.
    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes>;
    /// As [`Self::get`], and who vouches for it.
    async fn get_vouched(&self, key: &str, limit_bytes: u64) -> PortResult<(Bytes, Vouched)> {
        Ok((self.get(key, limit_bytes).await?, Vouched::Unsigned))
    }
    /// Reads an object as a stream, from the given offset.
    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream>;
    async fn head(&self, key: &str) -> PortResult<ObjectInfo>;
    /// The buckets behind this one, where it is several that hold the same.
    fn copies(&self) -> Vec<std::sync::Arc<dyn ObjectStore>> {
        Vec::new()
    }
    /// How long one bucket may be silent before it is taken for one that does not answer.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
    /// All objects below a prefix, over all pages, in key order.
    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>>;
    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>>;
    async fn delete(&self, key: &str) -> PortResult<()>;
    /// Locks an object as if it were written now, where what is written is locked; returns until when. None: nothing is
    /// locked here, or not this object.
    async fn lock_again(&self, _key: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(None)
    }
    /// A URL that lets whoever holds it read this one object until it expires: how servers fetch what they need without
    /// holding a credential. It is a secret while it is valid.
    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<secrecy::SecretString>;
}
