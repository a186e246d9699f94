//! What the two ways to read a member share: through etcd's API, and its file in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Recipients;
use super::pace::Rate;
use super::seal::Compression;
use crate::ports::{Clock, ErrorCode, Etcd, ObjectStore, PortError, PortResult, RecoverySet, Upload};

/// Silence of the member in the middle of its snapshot.
pub(super) const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// What etcd may send ahead of what is read, at least: nothing smaller lets it send while the reader reads.
pub(super) const AHEAD_BYTES_MIN: u32 = 128 << 10;

/// What a snapshot is taken of, from and to.
pub struct TakeRequest<'a> {
    pub cluster: &'a str,
    pub etcd: &'a dyn Etcd,
    pub store: &'a dyn ObjectStore,
    pub recipients: &'a Recipients,
    pub recovery: &'a RecoverySet,
    /// Paths without which the recovery set is incomplete.
    pub required: &'a [&'a str],
    pub git_commit: Option<String>,
    pub clock: &'a dyn Clock,
    pub compression: Compression,
    /// `None`: as fast as it goes, which etcd's writes notice.
    pub rate: Option<Rate>,
    /// Databases from this size on are read from the member's file, by this program on its machine, where that can be reached.
    pub in_place_from_bytes: u64,
    pub progress: &'a Arc<Progress>,
}

/// Below, sending this program there costs more than it saves.
pub const IN_PLACE_FROM_BYTES: u64 = 64 << 20;

/// How far it is; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    expected_bytes: AtomicU64,
}

impl Progress {
    /// So many bytes of the database were read by now.
    pub(super) fn read(&self, bytes: u64) {
        self.read_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that will be read, as far as that is known.
    pub(super) fn expect(&self, bytes: u64) {
        self.expected_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that were handed to the bucket since the last call.
    pub(super) fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Nothing of what came counts.
    pub(super) fn begin_anew(&self) {
        self.read_bytes.store(0, Ordering::Relaxed);
        self.stored_bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes that came from etcd.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were handed to the bucket.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that etcd is expected to send, once the source is known.
    pub fn expected_bytes(&self) -> u64 {
        self.expected_bytes.load(Ordering::Relaxed)
    }
}

/// What ended an attempt.
pub(super) struct Broken {
    pub error: PortError,
    /// Another way to read cannot help.
    pub by_bucket: bool,
}

impl Broken {
    pub fn by_bucket(error: PortError) -> Self {
        Self { error, by_bucket: true }
    }

    /// Adds how the other way had ended before.
    pub fn after(mut self, before: &PortError) -> Self {
        self.error.message += &format!("; reading its file in place had failed before: {}", before.message);
        self
    }
}

impl From<PortError> for Broken {
    fn from(error: PortError) -> Self {
        Self { error, by_bucket: false }
    }
}

/// The error of a stage that panicked.
pub(super) fn died(error: tokio::task::JoinError) -> PortError {
    PortError::new(ErrorCode::Local, format!("a stage of the snapshot died: {error}"))
}

/// Hands parts to the bucket as they come.
pub(super) async fn send(
    mut from_seal: mpsc::Receiver<Bytes>,
    upload: &mut dyn Upload,
    progress: &Progress,
) -> PortResult<()> {
    while let Some(part) = from_seal.recv().await {
        let bytes = part.len() as u64;
        upload.part(part).await?;
        progress.stored(bytes);
    }
    Ok(())
}
