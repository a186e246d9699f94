//! The blocking half of a snapshot: threads that check, compress and encrypt what streams through them.
//!
//! Every queue between them is short, so the slowest stage sets the pace and memory stays where it is.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::Recipients;
use crate::bolt::{Scanner, Summary};
use crate::ports::{ErrorCode, PortError, PortResult};
use crate::s3::PART_BYTES;

/// Bytes of etcd's digest at the end of a snapshot.
const TRAILER: usize = 32;

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// zstd's level. `None`: what a sample of the data says, [`LEVEL`] or [`FAST_LEVEL`].
    pub level: Option<i32>,
    /// Threads that compress.
    pub workers: u32,
}

/// Half to three quarters of level 3's time for a few percent more bytes (docs/DECISIONS.md), and small windows, which
/// keep memory low.
const LEVEL: i32 = 1;
/// As level 1 without entropy coding of what matches nothing. Where that is digests, keys and ciphertext (Secrets encrypted
/// at rest, certificates, packed Helm releases), coding it costs a quarter of the time and gains nothing.
const FAST_LEVEL: i32 = -1;
/// Bytes from the data's beginning that decide between them.
const SAMPLE_BYTES: usize = 2 << 20;
/// How much larger the faster level's result may be, in percent.
const FAST_MAY_COST_PERCENT: usize = 2;

impl Default for Compression {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { level: None, workers: u32::try_from(cores.min(4)).unwrap_or(1) }
    }
}

/// What was learned from the plain bytes.
#[derive(Debug)]
pub(super) struct Inspected {
    pub bytes: u64,
    pub sha256: String,
    pub summary: Summary,
}

/// What was stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub bytes: u64,
    pub sha256: String,
}

/// The error of a stage whose neighbour has gone; the neighbour's own error is the one that counts.
pub(super) fn stopped() -> PortError {
    PortError::new(ErrorCode::Local, "stopped because another stage failed")
}

/// Checks etcd's trailer, learns what the data holds, and hands every byte on.
pub(super) fn inspect(
    mut input: mpsc::Receiver<Vec<Bytes>>,
    output: &SyncSender<Vec<Bytes>>,
    compact_hint: i64,
) -> PortResult<Inspected> {
    let mut digest = Sha256::new();
    let mut scanner = Scanner::new(compact_hint);
    let mut bytes = 0;
    // The last bytes that came: they are the trailer if nothing follows.
    let mut tail: Vec<u8> = Vec::with_capacity(2 * TRAILER);
    let mut content = |data: &[u8]| {
        digest.update(data);
        scanner.push(data)
    };
    while let Some(batch) = input.blocking_recv() {
        for chunk in &batch {
            bytes += chunk.len() as u64;
            let hold_from_chunk = chunk.len().min(TRAILER);
            let release = (tail.len() + hold_from_chunk).saturating_sub(TRAILER);
            content(&tail[..release])?;
            tail.drain(..release);
            let (now, hold) = chunk.split_at(chunk.len() - hold_from_chunk);
            content(now)?;
            tail.extend_from_slice(hold);
        }
        output.send(batch).map_err(|_| stopped())?;
    }
    let trailer_holds = tail.len() == TRAILER && digest.clone().finalize()[..] == tail[..];
    if !trailer_holds {
        let message = format!("the snapshot stream of {bytes} bytes does not end with the digest of what it carried");
        return Err(PortError::new(ErrorCode::Corrupt, message).hint(
            "nothing was kept of it: it was cut short or changed on its way, or the member's disk is failing; take it \
             again, and look at the member's log if that fails too",
        ));
    }
    digest.update(&tail);
    let summary = scanner.finish()?;
    Ok(Inspected { bytes, sha256: hex(&digest.finalize()), summary })
}

/// As [`inspect`] for pages that were written here: appends the trailer that they lack. A reader that fails early must stop the
/// upload, for the trailer would fit what came.
pub(super) fn append_trailer(
    mut input: mpsc::Receiver<Vec<Bytes>>,
    output: &SyncSender<Vec<Bytes>>,
    compact_hint: i64,
) -> PortResult<Inspected> {
    let (mut digest, mut scanner, mut bytes) = (Sha256::new(), Scanner::new(compact_hint), 0);
    while let Some(batch) = input.blocking_recv() {
        for chunk in &batch {
            bytes += chunk.len() as u64;
            digest.update(chunk);
            scanner.push(chunk)?;
        }
        output.send(batch).map_err(|_| stopped())?;
    }
    let trailer = Bytes::copy_from_slice(&digest.clone().finalize());
    bytes += trailer.len() as u64;
    digest.update(&trailer);
    output.send(vec![trailer]).map_err(|_| stopped())?;
    Ok(Inspected { bytes, sha256: hex(&digest.finalize()), summary: scanner.finish()? })
}

/// Compresses and encrypts until the input ends; cuts the result into parts.
pub(super) fn seal(
    input: &Receiver<Vec<Bytes>>,
    recipients: &Recipients,
    compression: Compression,
    parts: mpsc::Sender<Bytes>,
) -> PortResult<Stored> {
    let sink = Parts { part: BytesMut::new(), digest: Sha256::new(), bytes: 0, out: parts };
    let encrypted = recipients.encryptor()?.wrap_output(sink).map_err(|e| local(&e))?;
    let mut sample = Vec::new();
    let level = match compression.level {
        Some(level) => level,
        None => {
            let mut bytes = 0;
            while bytes < SAMPLE_BYTES
                && let Ok(batch) = input.recv()
            {
                bytes += batch.iter().map(Bytes::len).sum::<usize>();
                sample.extend(batch);
            }
            choose_level(&sample).map_err(|e| local(&e))?
        }
    };
    let sink = compress(encrypted, level, compression.workers, |encoder| {
        for chunk in sample.into_iter().chain(input.iter().flatten()) {
            encoder.write_all(&chunk)?;
        }
        Ok(())
    })
    .and_then(age::stream::StreamWriter::finish)
    .and_then(Parts::finish);
    sink.map_err(|e| local(&e))
}

/// Compresses and encrypts what is in memory.
pub(super) fn seal_small(plain: &[u8], recipients: &Recipients) -> PortResult<(Bytes, Stored)> {
    let encrypted = recipients.encryptor()?.wrap_output(Vec::new()).map_err(|e| local(&e))?;
    let sealed = compress(encrypted, 3, 0, |encoder| encoder.write_all(plain))
        .and_then(age::stream::StreamWriter::finish)
        .map_err(|e| local(&e))?;
    let stored = Stored { bytes: sealed.len() as u64, sha256: hex(&Sha256::digest(&sealed)) };
    Ok((Bytes::from(sealed), stored))
}

/// The faster level where it costs next to nothing.
fn choose_level(sample: &[Bytes]) -> io::Result<i32> {
    let sample = sample.concat();
    let [slow, fast] = [LEVEL, FAST_LEVEL].map(|level| zstd::bulk::compress(&sample, level).map(|packed| packed.len()));
    let slow = slow?;
    Ok(if fast? <= slow + slow * FAST_MAY_COST_PERCENT / 100 { FAST_LEVEL } else { LEVEL })
}

fn compress<W: Write>(
    output: W,
    level: i32,
    workers: u32,
    feed: impl FnOnce(&mut zstd::Encoder<'static, W>) -> io::Result<()>,
) -> io::Result<W> {
    let mut encoder = zstd::Encoder::new(output, level)?;
    // No checksum of zstd's own: age authenticates every 64 KiB, and the manifest has the plain data's SHA-256.
    encoder.include_checksum(false)?;
    if workers > 1 {
        encoder.multithread(workers)?;
    }
    feed(&mut encoder)?;
    encoder.finish()
}

/// Collects bytes into parts of the upload.
struct Parts {
    part: BytesMut,
    digest: Sha256,
    bytes: u64,
    out: mpsc::Sender<Bytes>,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part).freeze();
        self.digest.update(&part);
        self.bytes += part.len() as u64;
        self.out.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn finish(mut self) -> io::Result<Stored> {
        if !self.part.is_empty() {
            self.send()?;
        }
        Ok(Stored { bytes: self.bytes, sha256: hex(&self.digest.finalize()) })
    }
}

impl Write for Parts {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.part.capacity() == 0 {
            self.part = BytesMut::with_capacity(PART_BYTES);
        }
        let taken = data.len().min(PART_BYTES - self.part.len());
        self.part.extend_from_slice(&data[..taken]);
        if self.part.len() == PART_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn local(error: &io::Error) -> PortError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return stopped();
    }
    PortError::new(ErrorCode::Local, format!("compress and encrypt: {error}"))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_level_is_taken_where_it_costs_no_room() {
        let noise: Vec<u8> = (0..1 << 18).map(|_| rand::random()).collect();
        assert_eq!(choose_level(&[Bytes::from(noise)]).unwrap(), FAST_LEVEL, "ciphertext");
        let prose: String =
            (0..30_000_u32).map(|n| format!("{{\"name\":\"pod-{n}\",\"uid\":\"{:x}\"}}", n * 7919)).collect();
        assert_eq!(choose_level(&[Bytes::from(prose)]).unwrap(), LEVEL, "JSON");
        assert_eq!(choose_level(&[]).unwrap(), FAST_LEVEL, "nothing at all");
    }
}
