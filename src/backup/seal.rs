//! The blocking half of a snapshot: threads that check, compress and encrypt what streams through them.
//!
//! Every queue between them is short, so the slowest stage sets the pace and memory stays where it is.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Recipients, frames};
use crate::bolt::{Scanner, Summary};
use crate::ports::{ErrorCode, PortError, PortResult};
use crate::s3::PART_BYTES;

/// What stages hand on: waking a thread costs more than its work on one of etcd's messages (32 KiB), and each block becomes a zstd
/// frame. Larger ones gain no room and take more memory.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of etcd's digest at the end of a snapshot.
const TRAILER: usize = 32;

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Compression {
    /// zstd's level. `None`: what a sample of the data says, [`LEVEL`] or [`FAST_LEVEL`].
    pub level: Option<i32>,
    /// Threads that compress.
    pub workers: u32,
}

/// Half to three quarters of level 3's time for a few percent more bytes (docs/DECISIONS.md), and small windows, which
/// keep memory low.
const LEVEL: i32 = 1;
/// As level 1 without entropy coding of what matches nothing: two thirds of its time, and half of it when it is restored.
const FAST_LEVEL: i32 = -1;
/// Blocks from the data's beginning that decide between them.
const SAMPLE_BLOCKS: usize = 2;
/// How much larger the faster level's result may be, in percent. Whole snapshots are few beside the log, and restoring one is what
/// people wait for.
const FAST_MAY_COST_PERCENT: usize = 10;

impl Default for Compression {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { level: None, workers: u32::try_from(cores.min(4)).unwrap_or(1) }
    }
}

/// What was learned from the plain bytes.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
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
    mut input: mpsc::Receiver<Bytes>,
    output: &SyncSender<Bytes>,
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
    while let Some(block) = input.blocking_recv() {
        bytes += block.len() as u64;
        let hold_from_block = block.len().min(TRAILER);
        let release = (tail.len() + hold_from_block).saturating_sub(TRAILER);
        content(&tail[..release])?;
        tail.drain(..release);
        let (now, hold) = block.split_at(block.len() - hold_from_block);
        content(now)?;
        tail.extend_from_slice(hold);
        output.send(block).map_err(|_| stopped())?;
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
    mut input: mpsc::Receiver<Bytes>,
    output: &SyncSender<Bytes>,
    compact_hint: i64,
) -> PortResult<Inspected> {
    let (mut digest, mut scanner, mut bytes) = (Sha256::new(), Scanner::new(compact_hint), 0);
    while let Some(block) = input.blocking_recv() {
        bytes += block.len() as u64;
        digest.update(&block);
        scanner.push(&block)?;
        output.send(block).map_err(|_| stopped())?;
    }
    let trailer = Bytes::copy_from_slice(&digest.clone().finalize());
    bytes += trailer.len() as u64;
    digest.update(&trailer);
    output.send(trailer).map_err(|_| stopped())?;
    Ok(Inspected { bytes, sha256: hex(&digest.finalize()), summary: scanner.finish()? })
}

/// Compresses and encrypts until the input ends; cuts the result into parts.
pub(super) fn seal(
    input: &Receiver<Bytes>,
    recipients: &Recipients,
    compression: Compression,
    parts: mpsc::Sender<Bytes>,
) -> PortResult<Stored> {
    let mut encrypted = encrypt(recipients, parts)?;
    let stored = pack(input, compression, |frame| encrypted.write_all(frame))
        .and_then(|()| encrypted.finish())
        .and_then(Parts::finish);
    stored.map_err(|e| local(&e))
}

/// As [`seal`] for what is compressed already.
pub(super) fn seal_packed(
    mut input: mpsc::Receiver<Bytes>,
    recipients: &Recipients,
    parts: mpsc::Sender<Bytes>,
) -> PortResult<Stored> {
    let mut encrypted = encrypt(recipients, parts)?;
    while let Some(block) = input.blocking_recv() {
        encrypted.write_all(&block).map_err(|e| local(&e))?;
    }
    encrypted.finish().and_then(Parts::finish).map_err(|e| local(&e))
}

fn encrypt(recipients: &Recipients, parts: mpsc::Sender<Bytes>) -> PortResult<age::stream::StreamWriter<Parts>> {
    let sink = Parts { part: BytesMut::new(), digest: Sha256::new(), bytes: 0, out: parts };
    recipients.encryptor()?.wrap_output(sink).map_err(|e| local(&e))
}

/// Compresses until the input ends.
pub(super) fn pack(
    input: &Receiver<Bytes>,
    compression: Compression,
    out: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut sample = Vec::new();
    let level = match compression.level {
        Some(level) => level,
        None => {
            sample.extend(input.iter().take(SAMPLE_BLOCKS));
            choose_level(&sample)?
        }
    };
    frames::compress(sample.into_iter().chain(input.iter()), level, compression.workers, out)
}

/// Compresses and encrypts what is in memory.
pub(super) fn seal_small(plain: &[u8], recipients: &Recipients) -> PortResult<(Bytes, Stored)> {
    let encrypted = recipients.encryptor()?.wrap_output(Vec::new()).map_err(|e| local(&e))?;
    let sealed = compress_small(encrypted, plain).and_then(age::stream::StreamWriter::finish).map_err(|e| local(&e))?;
    let stored = Stored { bytes: sealed.len() as u64, sha256: hex(&Sha256::digest(&sealed)) };
    Ok((Bytes::from(sealed), stored))
}

/// The faster level where it costs little room.
fn choose_level(sample: &[Bytes]) -> io::Result<i32> {
    let packed = |level| -> io::Result<usize> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        sample.iter().try_fold(0, |bytes, block| Ok(bytes + compressor.compress(block)?.len()))
    };
    let slow = packed(LEVEL)?;
    Ok(if packed(FAST_LEVEL)? <= slow + slow * FAST_MAY_COST_PERCENT / 100 { FAST_LEVEL } else { LEVEL })
}

fn compress_small<W: Write>(output: W, plain: &[u8]) -> io::Result<W> {
    let mut encoder = zstd::Encoder::new(output, 3)?;
    // No checksum of zstd's own: age authenticates every 64 KiB, and whoever names it has the plain data's SHA-256.
    encoder.include_checksum(false)?;
    encoder.write_all(plain)?;
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
    fn the_fast_level_is_taken_where_it_costs_little_room() {
        let noise: Vec<u8> = (0..1 << 18).map(|_| rand::random()).collect();
        assert_eq!(choose_level(&[Bytes::from(noise)]).unwrap(), FAST_LEVEL, "ciphertext");
        let prose: String =
            (0..30_000_u32).map(|n| format!("{{\"name\":\"pod-{n}\",\"uid\":\"{:x}\"}}", n * 7919)).collect();
        assert_eq!(choose_level(&[Bytes::from(prose)]).unwrap(), LEVEL, "JSON");
        assert_eq!(choose_level(&[]).unwrap(), FAST_LEVEL, "nothing at all");
    }
}
