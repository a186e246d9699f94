//! The way through etcd's API: its own stream, checked against its own digest.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::agree::Agreement;
use super::pace::{Pace, Rate};
use super::seal::{self, BLOCK_BYTES, Inspected, Stored};
use super::ways::{AHEAD_BYTES_MIN, Broken, Progress, SILENCE_DEADLINE, TakeRequest, died, send};
use crate::ports::{ByteStream, ErrorCode, PortError, PortResult, Upload};

/// Blocks between two stages.
const QUEUE: usize = 2;
/// What etcd may send ahead of what is read. Less wakes it up more often.
const AHEAD_BYTES_MAX: u32 = 2 << 20;

/// Runs the stages side by side until the stream's end. The first cause is the error that is returned.
pub(super) async fn stream(
    request: &TakeRequest<'_>,
    agreement: &Agreement,
    upload: &mut dyn Upload,
) -> Result<(Inspected, Stored), Broken> {
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
    let pace = request.rate.map(|rate| Pace::begin(rate.through_api));
    let receiving = receive(member.clone(), source, to_inspect, pace, Arc::clone(request.progress));
    let receiving = AbortOnDropHandle::new(tokio::spawn(receiving));
    let (received, sent) = tokio::join!(receiving, send(from_seal, upload, request.progress));
    // A stage that stops drops its ends of the queues, so its neighbours stop too: both tasks end by themselves.
    let (inspected, sealed) = (inspecting.await.map_err(died)?, sealing.await.map_err(died)?);
    received.map_err(died)??;
    sent.map_err(Broken::by_bucket)?;
    // Where the last stage fails, the one before it only stops.
    let stored = sealed?;
    Ok((inspected?, stored))
}

/// How far the member may send ahead: at a pace only as far as the way to it is long, because it sends what it may in one go, and
/// its writes wait meanwhile.
async fn ahead(request: &TakeRequest<'_>, member: &str) -> u32 {
    let Some(Rate { through_api: pace, .. }) = request.rate else { return AHEAD_BYTES_MAX };
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
                progress.read(progress.read_bytes() + chunk.len() as u64);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_sends_ahead_what_the_way_to_it_needs() {
        let pace = NonZeroU64::new(25_000_000).unwrap();
        assert_eq!(ahead_bytes(pace, Duration::from_micros(300)), AHEAD_BYTES_MIN, "beside it");
        assert_eq!(ahead_bytes(pace, Duration::from_millis(30)), 1_500_000, "in another country");
        assert_eq!(ahead_bytes(pace, Duration::from_secs(2)), AHEAD_BYTES_MAX, "a member that hardly answers");
    }
}
