use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::agree::{Agreement, agree};
use super::manifest::{FORMAT, Manifest, Sealed};
use super::seal::{self, BLOCK_BYTES, Compression, Inspected, Stored};
use super::{Recipients, layout, pack, require};
use crate::ports::{
    ByteStream, Clock, ErrorClass, ErrorCode, Etcd, ObjectStore, PortError, PortResult, PutCondition, RecoverySet,
    Upload,
};

/// Silence of the member in the middle of its snapshot.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// Blocks between two stages.
const QUEUE: usize = 2;
/// What etcd may send ahead of what is read. Less wakes it up more often.
const AHEAD_BYTES_MAX: u32 = 2 << 20;
/// Nothing smaller lets it send while the reader reads.
const AHEAD_BYTES_MIN: u32 = 128 << 10;
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
    let ahead_bytes = ahead(request, member).await;
    let source = request.etcd.snapshot(member, ahead_bytes).await?;
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

/// How far the member may send ahead: at a pace only as far as the way to it is long, because it sends what it may in one go, and
/// its writes wait meanwhile.
async fn ahead(request: &TakeRequest<'_>, member: &str) -> u32 {
    let Some(pace) = request.bytes_per_second else { return AHEAD_BYTES_MAX };
    let begun = Instant::now();
    // One that does not answer shows when the snapshot begins.
    let _ = request.etcd.status(member).await;
    ahead_bytes(pace, begun.elapsed())
}

/// Twice what is under way at that pace: HTTP/2 grants anew what was read when half of it was.
fn ahead_bytes(bytes_per_second: NonZeroU64, round_trip: Duration) -> u32 {
    let under_way = bytes_per_second.get() as f64 * round_trip.as_secs_f64();
    (2.0 * under_way).clamp(f64::from(AHEAD_BYTES_MIN), f64::from(AHEAD_BYTES_MAX)) as u32
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
    to_inspect: mpsc::Sender<Bytes>,
    pace: Option<Pace>,
    progress: Arc<Progress>,
) -> PortResult<()> {
    let mut block = BytesMut::with_capacity(BLOCK_BYTES);
    loop {
        let next = tokio::time::timeout(SILENCE_DEADLINE, source.next()).await.map_err(|_| {
            let message = format!("etcd member {member} went silent for {} s", SILENCE_DEADLINE.as_secs());
            PortError::new(ErrorCode::Timeout, message).hint("nothing was kept; take the snapshot again")
        })?;
        match next {
            None => {
                if !block.is_empty() {
                    // Whether or not it is taken: the next stage says what is wrong, if it has stopped.
                    let _ = to_inspect.send(block.freeze()).await;
                }
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
                if let Some(pace) = &pace {
                    pace.keep(progress.read_bytes()).await;
                }
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - block.len()));
                    block.extend_from_slice(now);
                    rest = later;
                    if block.len() == BLOCK_BYTES {
                        let full = std::mem::replace(&mut block, BytesMut::with_capacity(BLOCK_BYTES));
                        if to_inspect.send(full.freeze()).await.is_err() {
                            // The next stage stopped and says why.
                            return Ok(());
                        }
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

    #[test]
    fn a_member_sends_ahead_what_the_way_to_it_needs() {
        let pace = NonZeroU64::new(25_000_000).unwrap();
        assert_eq!(ahead_bytes(pace, Duration::from_micros(300)), AHEAD_BYTES_MIN, "beside it");
        assert_eq!(ahead_bytes(pace, Duration::from_millis(30)), 1_500_000, "in another country");
        assert_eq!(ahead_bytes(pace, Duration::from_secs(2)), AHEAD_BYTES_MAX, "a member that hardly answers");
    }
}
