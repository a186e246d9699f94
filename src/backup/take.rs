use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::agree::{Agreement, agree};
use super::manifest::{FORMAT, Manifest, Sealed};
use super::seal::{self, Compression, Inspected, Stored};
use super::{Recipients, layout, pack, require};
use crate::ports::{
    ByteStream, Clock, ErrorClass, ErrorCode, Etcd, ObjectStore, PortError, PortResult, PutCondition, RecoverySet,
    Upload,
};

/// Silence of the member in the middle of its snapshot.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// Pieces of the stream (etcd sends 32 KiB each) that are handed on together: waking a thread costs more than its work on
/// one of them.
const BATCH: usize = 16;
/// Batches between two stages.
const QUEUE: usize = 3;
/// How long an abort may take: the error it follows must get out.
const ABORT_DEADLINE: Duration = Duration::from_secs(30);

/// What every failure begins with.
const NOT_TAKEN: &str = "the snapshot was not taken";

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
    /// Bytes that are read from etcd in a second, at most. `None`: as fast as it goes, which its writes notice.
    pub bytes_per_second: Option<NonZeroU64>,
    pub progress: &'a Arc<Progress>,
}

/// How far it is; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    expected_bytes: AtomicU64,
}

impl Progress {
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

/// A snapshot that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub manifest: Manifest,
    /// The manifest's key in the bucket.
    pub manifest_key: String,
}

/// Takes a snapshot: compares the members, streams one of them through check, compression and encryption into the bucket,
/// stores the recovery set beside it, and writes the manifest last. Whatever fails before that leaves no snapshot.
pub async fn take(request: &TakeRequest<'_>) -> PortResult<Taken> {
    require(request.recovery, request.required)?;
    let taken_at = request.clock.now();
    let packed = pack(request.recovery, taken_at)?;
    let agreement = agree(request.etcd).await?;
    let source = &agreement.source;
    request.progress.expected_bytes.store(u64::try_from(source.db_size_bytes).unwrap_or_default(), Ordering::Relaxed);

    let nonce = seal::hex(&rand::random::<[u8; 4]>());
    let stream_key = layout::stream_key(request.cluster, taken_at, &nonce);
    // The bucket is asked first: if it is gone, etcd need not read its whole file.
    let mut upload = request.store.upload(&stream_key).await?;
    let (inspected, stored) = match stream(request, &agreement, upload.as_mut()).await {
        Ok(done) => done,
        Err(failed) => {
            let aborted = tokio::time::timeout(ABORT_DEADLINE, upload.abort()).await;
            let failed = failed.context(NOT_TAKEN);
            return Err(match aborted {
                Ok(Ok(())) => failed,
                _ => failed.hint(format!("the unfinished upload of {stream_key} could not be aborted: remove it")),
            });
        }
    };
    upload.complete(PutCondition::Absent).await.map_err(|failed| failed.context(NOT_TAKEN))?;
    let finished_at = request.clock.now();

    let summary = &inspected.summary;
    let id = layout::snapshot_id(taken_at, summary.revision);
    let recovery = {
        let (sealed, stored) = seal::seal_small(&packed, request.recipients)?;
        let key = layout::beside(request.cluster, &id, layout::RECOVERY);
        put_once(request.store, &key, sealed).await.map_err(|failed| failed.context(NOT_TAKEN))?;
        use sha2::Digest;
        Sealed {
            key,
            plain_bytes: packed.len() as u64,
            plain_sha256: seal::hex(&sha2::Sha256::digest(&packed)),
            stored_bytes: stored.bytes,
            stored_sha256: stored.sha256,
        }
    };
    let manifest = Manifest {
        format: FORMAT,
        id: id.clone(),
        cluster: request.cluster.to_owned(),
        taken_at,
        finished_at,
        source_member: source.name.clone(),
        etcd_version: source.version.clone(),
        etcd_cluster_id: format!("{:x}", source.cluster_id),
        revision: summary.revision,
        compact_revision: summary.compact_revision,
        keys: summary.keys,
        versions: summary.versions,
        etcd: Sealed {
            key: stream_key,
            plain_bytes: inspected.bytes,
            plain_sha256: inspected.sha256.clone(),
            stored_bytes: stored.bytes,
            stored_sha256: stored.sha256,
        },
        recovery,
        recipients: request.recipients.names(),
        git_commit: request.git_commit.clone(),
        hash_kv: agreement.check.clone(),
        made_from: None,
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let manifest_key = layout::beside(request.cluster, &id, layout::MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write the manifest: {e}")))?;
    put_once(request.store, &manifest_key, Bytes::from(text)).await.map_err(|failed| failed.context(NOT_TAKEN))?;
    Ok(Taken { manifest, manifest_key })
}

/// Writes an object that must not exist yet. When an answer is lost, the store's own repetition meets what the first
/// attempt wrote: then what is there is ours, byte for byte, and that is success.
pub(super) async fn put_once(store: &dyn ObjectStore, key: &str, data: Bytes) -> PortResult<()> {
    let Err(failed) = store.put(key, data.clone(), PutCondition::Absent).await else { return Ok(()) };
    let unsure = matches!(failed.class(), ErrorClass::Transient | ErrorClass::Conflict);
    if unsure && store.get(key, data.len() as u64).await.is_ok_and(|there| there == data) {
        return Ok(());
    }
    Err(failed)
}

/// Runs the stages side by side until the stream's end. The first cause is the error that is returned.
async fn stream(
    request: &TakeRequest<'_>,
    agreement: &Agreement,
    upload: &mut dyn Upload,
) -> PortResult<(Inspected, Stored)> {
    let member = &agreement.source.name;
    let source = request.etcd.snapshot(member).await?;
    let (to_inspect, from_etcd) = mpsc::channel(QUEUE);
    let (to_seal, from_inspect) = std::sync::mpsc::sync_channel(QUEUE);
    let (to_upload, from_seal) = mpsc::channel(1);
    let compact_hint = agreement.compact_revision;
    let inspecting = tokio::task::spawn_blocking(move || seal::inspect(from_etcd, &to_seal, compact_hint));
    let (recipients, compression) = (request.recipients.clone(), request.compression);
    let sealing = tokio::task::spawn_blocking(move || seal::seal(&from_inspect, &recipients, compression, to_upload));

    // A task of its own shares a thread with the connection it reads from: waking it costs nothing, whereas waking this
    // one costs a context switch for each of the stream's messages (docs/DECISIONS.md).
    let pace = request.bytes_per_second.map(Pace::begin);
    let receiving = receive(member.clone(), source, to_inspect, pace, Arc::clone(request.progress));
    let receiving = AbortOnDropHandle::new(tokio::spawn(receiving));
    let (received, sent) = tokio::join!(receiving, send(from_seal, upload, request.progress));
    // A stage that stops drops its ends of the queues, so its neighbours stop too: both tasks end by themselves.
    let died =
        |e: tokio::task::JoinError| PortError::new(ErrorCode::Local, format!("a stage of the snapshot died: {e}"));
    let (inspected, sealed) = (inspecting.await.map_err(died)?, sealing.await.map_err(died)?);
    received.map_err(died)??;
    sent?;
    Ok((inspected?, sealed?))
}

/// Holds a stream back: what is not asked for stays behind HTTP/2's window, and etcd reads no more of its file.
struct Pace {
    begun: Instant,
    bytes_per_second: NonZeroU64,
}

impl Pace {
    fn begin(bytes_per_second: NonZeroU64) -> Self {
        Self { begun: Instant::now(), bytes_per_second }
    }

    /// Waits until so many bytes may have come.
    async fn keep(&self, bytes: u64) {
        tokio::time::sleep_until(self.begun + self.due(bytes)).await;
    }

    /// How long after the beginning so many bytes may have come.
    fn due(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64)
    }
}

async fn receive(
    member: String,
    mut source: ByteStream,
    to_inspect: mpsc::Sender<Vec<Bytes>>,
    pace: Option<Pace>,
    progress: Arc<Progress>,
) -> PortResult<()> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let next = tokio::time::timeout(SILENCE_DEADLINE, source.next()).await.map_err(|_| {
            let message = format!("etcd member {member} went silent for {} s", SILENCE_DEADLINE.as_secs());
            PortError::new(ErrorCode::Timeout, message).hint("nothing was kept; take the snapshot again")
        })?;
        match next {
            None => {
                // Whether or not it is taken: the next stage says what is wrong, if it has stopped.
                let _ = to_inspect.send(batch).await;
                return Ok(());
            }
            Some(Err(broken)) => {
                let hint =
                    broken.hint.clone().unwrap_or_else(|| "nothing was kept; take the snapshot again".to_owned());
                let bytes = progress.read_bytes();
                return Err(broken
                    .context(format!("the snapshot stream of member {member} broke after {bytes} bytes"))
                    .hint(hint));
            }
            Some(Ok(chunk)) => {
                progress.read_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                batch.push(chunk);
                if batch.len() == BATCH {
                    if let Some(pace) = &pace {
                        pace.keep(progress.read_bytes()).await;
                    }
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                    if to_inspect.send(full).await.is_err() {
                        // The next stage stopped and says why.
                        return Ok(());
                    }
                }
            }
        }
    }
}

async fn send(mut from_seal: mpsc::Receiver<Bytes>, upload: &mut dyn Upload, progress: &Progress) -> PortResult<()> {
    while let Some(part) = from_seal.recv().await {
        let bytes = part.len() as u64;
        upload.part(part).await?;
        progress.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_when_the_pace_allows_them() {
        let pace = Pace::begin(NonZeroU64::new(25_000_000).unwrap());
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(5_000_000), Duration::from_millis(200));
        assert_eq!(pace.due(1_500_000_000), Duration::from_secs(60));
    }
}
