//! The way past etcd's API: the member's file is read where it lies.
//!
//! etcd is asked for a snapshot, and only its first pages are taken: they say which transaction it is. As long as the rest is not
//! read, etcd keeps that transaction open and reuses none of its pages; it reads no file, computes no digest and sends nothing.
//! Meanwhile this program reads the same pages on the member's machine, compresses them there, and what travels is compressed.
//! At the end the snapshot's stream must still flow: then the transaction was open all the time (docs/DECISIONS.md).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::agree::Agreement;
use super::pages::{Done, Order, Word};
use super::seal::{self, Inspected, Stored};
use super::ways::{AHEAD_BYTES_MIN, Broken, Progress, SILENCE_DEADLINE, TakeRequest, died, send};
use crate::bolt::Head;
use crate::ports::{ByteStream, ErrorCode, MemberFile, PortError, PortResult, Printed, PrintedStream, Upload};

/// What is handed to encryption at once; less wakes its thread more often.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that wait for it.
const QUEUE: usize = 4;
/// Bytes of the stream that must still come at the end: more than can be under way without etcd's reading on, which is HTTP/2's
/// window and 96 KiB in gRPC's and etcd's own hands.
const STILL_FLOWING_BYTES: usize = 4 * AHEAD_BYTES_MIN as usize;
/// The slowest that is waited for.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// What starting, and everything but reading, may take.
const MARGIN: Duration = Duration::from_secs(600);

/// Stores what the member's file holds. Also returns the most memory that was held there.
pub(super) async fn stream(
    request: &TakeRequest<'_>,
    agreement: &Agreement,
    file: &dyn MemberFile,
    upload: &mut dyn Upload,
) -> Result<((Inspected, Stored), Option<u64>), Broken> {
    let member = &agreement.source.name;
    // First of all: sending the program may take longer than all the rest, and nobody should hold a transaction open meanwhile.
    file.prepare().await?;
    let mut pin = Pin { member: member.clone(), stream: request.etcd.snapshot(member, AHEAD_BYTES_MIN).await? };
    let (head, pages) = pin.head().await?;
    let order = Order {
        file: file.path().into(),
        compact_revision: agreement.compact_revision,
        compression: request.compression,
        bytes_per_second: request.rate.map(|rate| rate.in_place),
    };
    let input = order.encode(&pages[..head.bytes])?;
    let printed = file.start("read-pages", input, request.rate.is_some(), deadline(request, head.size_bytes)).await?;

    let (to_seal, packed) = mpsc::channel(QUEUE);
    let (to_upload, sealed) = mpsc::channel(1);
    let recipients = request.recipients.clone();
    let sealing = tokio::task::spawn_blocking(move || seal::seal_packed(packed, &recipients, to_upload));
    // A task of its own shares a thread with the connection it reads from.
    let listening = listen(member.clone(), printed, to_seal, Arc::clone(request.progress));
    let listening = AbortOnDropHandle::new(tokio::spawn(listening));
    let (heard, sent) = tokio::join!(listening, send(sealed, upload, request.progress));
    let stored = sealing.await.map_err(died)?;
    let done = heard.map_err(died)?;
    // Each that fails lets those before it only stop.
    sent.map_err(Broken::by_bucket)?;
    let (stored, done) = (stored?, done?);
    pin.still_holds().await?;
    Ok(((done.inspected, stored), done.peak_kib))
}

fn deadline(request: &TakeRequest<'_>, bytes: u64) -> Duration {
    let slowest = request.rate.map_or(BYTES_PER_SECOND_MIN, |rate| rate.in_place.get().min(BYTES_PER_SECOND_MIN));
    MARGIN + Duration::from_secs(2 * bytes / slowest.max(1))
}

/// A snapshot of etcd's that is not read on.
struct Pin {
    member: String,
    stream: ByteStream,
}

impl Pin {
    /// The snapshot's first bytes, its meta pages among them.
    async fn head(&mut self) -> PortResult<(Head, BytesMut)> {
        let mut pages = BytesMut::new();
        loop {
            if let Some(head) = Head::parse(&pages)? {
                return Ok((head, pages));
            }
            if pages.len() > Head::BYTES_MAX {
                let message = format!("the snapshot of member {} does not begin with meta pages", self.member);
                return Err(PortError::new(ErrorCode::Corrupt, message));
            }
            pages.extend_from_slice(&self.more().await?);
        }
    }

    /// Whether etcd held the transaction all the time: it still sends.
    async fn still_holds(&mut self) -> PortResult<()> {
        let mut bytes = 0;
        while bytes < STILL_FLOWING_BYTES {
            bytes +=
                self.more().await.map_err(|e| e.context("the pages may have been reused while they were read"))?.len();
        }
        Ok(())
    }

    async fn more(&mut self) -> PortResult<Bytes> {
        let failed = |code, why: &str| {
            PortError::new(code, format!("the snapshot of member {} {why}", self.member))
                .hint("nothing was kept; take the snapshot again")
        };
        match timeout(SILENCE_DEADLINE, self.stream.next()).await {
            Ok(Some(Ok(bytes))) => Ok(bytes),
            Ok(Some(Err(broken))) => Err(broken),
            Ok(None) => Err(failed(ErrorCode::Corrupt, "ended early")),
            Err(_) => Err(failed(ErrorCode::Timeout, "went silent")),
        }
    }
}

/// Gathers what is printed there, until the last word. A command that fails, ends without it, or gave other than it says is an
/// error.
async fn listen(
    member: String,
    mut printed: PrintedStream,
    to_seal: mpsc::Sender<Bytes>,
    progress: Arc<Progress>,
) -> PortResult<Done> {
    let mut block = BytesMut::with_capacity(BLOCK_BYTES);
    let mut received = 0;
    let mut last = None;
    let broken = |why: String| {
        PortError::new(ErrorCode::Corrupt, format!("reading the file of member {member} beside it: {why}"))
    };
    loop {
        let next = timeout(SILENCE_DEADLINE, printed.next()).await.map_err(|_| {
            let message = format!("hk-dr beside member {member} went silent for {} s", SILENCE_DEADLINE.as_secs());
            PortError::new(ErrorCode::Timeout, message)
        })?;
        match next {
            Some(Ok(Printed::Data(data))) => {
                received += data.len() as u64;
                block.extend_from_slice(&data);
                if block.len() >= BLOCK_BYTES {
                    let full = std::mem::replace(&mut block, BytesMut::with_capacity(BLOCK_BYTES + data.len()));
                    if to_seal.send(full.freeze()).await.is_err() {
                        return Err(seal::stopped());
                    }
                }
            }
            Some(Ok(Printed::Line(line))) => match serde_json::from_str(&line) {
                Ok(Word::Read(bytes)) => progress.read(bytes),
                Ok(Word::Done(done)) => last = Some(done),
                // An error for people: the status that follows makes it one.
                Err(_) => {}
            },
            Some(Err(failed)) => return Err(failed.context(format!("read the file of member {member} beside it"))),
            None => break,
        }
    }
    let done = last.ok_or_else(|| broken("it ended without its last word".to_owned()))?;
    if done.packed_bytes != received {
        return Err(broken(format!("{received} bytes came of {}", done.packed_bytes)));
    }
    progress.read(done.inspected.bytes);
    if !block.is_empty() && to_seal.send(block.freeze()).await.is_err() {
        return Err(seal::stopped());
    }
    Ok(*done)
}
