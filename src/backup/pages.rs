//! The half of a snapshot that runs beside etcd's file, on the member's machine: reads what one transaction holds of it, learns
//! what that is, and compresses it. It keeps no secret and writes no file.
//!
//! Its order comes on standard input: a line of JSON, and behind it the meta pages of the transaction, which the caller keeps open
//! meanwhile. On standard output it gives zstd frames, on standard error words, a line of JSON each.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::pace::Pace;
use super::recycled::Recycled;
use super::seal::{self, BLOCK_BYTES, Compression, Inspected};
use crate::bolt::Head;
use crate::ports::{ErrorCode, PortError, PortResult};

/// Blocks between two threads.
const QUEUE: usize = 2;
/// Blocks that lie ready to be filled again.
const BLOCKS_MAX: usize = 8;
/// Between two words of how far it is.
const WORD_EVERY: Duration = Duration::from_millis(250);
/// Longest order, its pages not counted.
const ORDER_BYTES_MAX: usize = 64 << 10;

/// What is to be read, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// etcd's backend file.
    pub file: PathBuf,
    /// Where the members were compacted, as far as that is known.
    pub compact_revision: i64,
    /// As many threads as this machine has cores for, whatever it says.
    pub compression: Compression,
    /// Bytes that are read in a second, at most.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// What is said meanwhile.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// So many bytes of the database were read.
    Read(u64),
    /// The last word: all was read and given.
    Done(Box<Done>),
}

/// What there was.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub(super) inspected: Inspected,
    /// Bytes that were given.
    pub packed_bytes: u64,
    /// The most memory that this process held, if the kernel says it.
    pub peak_kib: Option<u64>,
}

impl Order {
    /// The order as it is sent.
    pub fn encode(&self, head: &[u8]) -> PortResult<Bytes> {
        let mut sent = serde_json::to_vec(self).map_err(|e| local("write the order", &e))?;
        sent.push(b'\n');
        sent.extend_from_slice(head);
        Ok(Bytes::from(sent))
    }

    /// The order as it came, and the meta pages behind it.
    ///
    /// # Errors
    /// `Invalid` if it is no order.
    pub fn decode(input: impl Read) -> PortResult<(Self, Vec<u8>)> {
        let mut sent = Vec::new();
        let limit = (ORDER_BYTES_MAX + Head::BYTES_MAX) as u64;
        input.take(limit).read_to_end(&mut sent).map_err(|e| local("read the order", &e))?;
        let unknown =
            |why: String| PortError::new(ErrorCode::Invalid, format!("this is no order to read pages: {why}"));
        let end = sent.iter().position(|byte| *byte == b'\n').ok_or_else(|| unknown("it has no end".to_owned()))?;
        let order = serde_json::from_slice(&sent[..end]).map_err(|e| unknown(e.to_string()))?;
        sent.drain(..=end);
        Ok((order, sent))
    }
}

/// Reads, checks and compresses what the transaction of these meta pages holds; `out` gets zstd frames, `say` what is to be said.
///
/// # Errors
/// `Corrupt` if the file is not the one of that transaction or its pages hold nothing whole, `Local` if it cannot be read or
/// nobody takes the frames any more.
pub fn pack(order: &Order, head: &[u8], mut out: impl Write, say: &(dyn Fn(&Word) + Sync)) -> PortResult<()> {
    let file = File::open(&order.file).map_err(|e| unreadable(&order.file, &e))?;
    let start = matching(&order.file, &file, head)?;
    let (to_inspect, read) = mpsc::channel(QUEUE);
    let (to_pack, inspected) = std::sync::mpsc::sync_channel(QUEUE);
    let compression = Compression { workers: Compression::default().workers, ..order.compression };
    let mut packed_bytes = 0;
    let inspected = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let pace = order.bytes_per_second.map(Pace::begin);
            read_all(&file, &head[..start.bytes], start.size_bytes, pace.as_ref(), to_inspect, say)
        });
        // Takes the ends of its queues along: when it stops, its neighbours do.
        let inspecting = scope.spawn(move || {
            let to_pack = to_pack;
            seal::append_trailer(read, &to_pack, order.compact_revision)
        });
        let packed = seal::pack(&inspected, compression, |frame| {
            packed_bytes += frame.len() as u64;
            out.write_all(frame)
        });
        drop(inspected);
        let died = |_| PortError::new(ErrorCode::Local, "a thread that read etcd's file died");
        let (read, inspected) = (reading.join().map_err(died)?, inspecting.join().map_err(died)?);
        // The first cause counts: without a reader, what came looks cut short.
        read.map_err(|e| unreadable(&order.file, &e))?;
        packed.map_err(|e| local("hand on etcd's pages", &e))?;
        inspected
    })?;
    out.flush().map_err(|e| local("hand on etcd's pages", &e))?;
    say(&Word::Done(Box::new(Done { inspected, packed_bytes, peak_kib: peak_kib() })));
    Ok(())
}

/// The head of the snapshot, once it is sure that the file is the one it was taken of.
fn matching(path: &Path, file: &File, head: &[u8]) -> PortResult<Head> {
    let another = |why: String| {
        PortError::new(ErrorCode::Corrupt, format!("{} is not the file of the snapshot: {why}", path.display()))
    };
    let head = Head::parse(head)?.ok_or_else(|| another("the snapshot's meta pages did not come along".to_owned()))?;
    let mut there = vec![0; head.bytes];
    file.read_exact_at(&mut there, 0).map_err(|e| unreadable(path, &e))?;
    let there = Head::parse(&there)?.ok_or_else(|| another("it has larger pages".to_owned()))?;
    if there.bytes != head.bytes {
        return Err(another("it has smaller pages".to_owned()));
    }
    // The file may be ahead by now, never behind.
    if there.transaction < head.transaction {
        return Err(another(format!(
            "it is at transaction {}, the snapshot was at {} before",
            there.transaction, head.transaction
        )));
    }
    let bytes = file.metadata().map_err(|e| unreadable(path, &e))?.len();
    if bytes < head.size_bytes {
        return Err(another(format!("it has {bytes} bytes, the snapshot {}", head.size_bytes)));
    }
    Ok(head)
}

/// Hands on the head, and behind it the file's pages, in blocks of one size.
fn read_all(
    file: &File,
    head: &[u8],
    size_bytes: u64,
    pace: Option<&Pace>,
    out: mpsc::Sender<Bytes>,
    say: &(dyn Fn(&Word) + Sync),
) -> io::Result<()> {
    // A copy of each block, not the file mapped into memory: what is free for the transaction may be written meanwhile, and what is
    // hashed must be what is compressed.
    let blocks = Recycled::new(BLOCKS_MAX);
    let mut said = Instant::now();
    let mut at = 0;
    while at < size_bytes {
        let bytes = usize::try_from(size_bytes - at).map_or(BLOCK_BYTES, |rest| rest.min(BLOCK_BYTES));
        let from_head = if at == 0 { head.len().min(bytes) } else { 0 };
        let block = blocks.filled(bytes, |block| {
            block[..from_head].copy_from_slice(&head[..from_head]);
            file.read_exact_at(&mut block[from_head..], at + from_head as u64).map(|()| bytes)
        })?;
        at += bytes as u64;
        if let Some(pace) = pace {
            pace.keep_blocking(at);
        }
        if out.blocking_send(block).is_err() {
            // The next one stopped and says why.
            return Ok(());
        }
        if said.elapsed() >= WORD_EVERY {
            said = Instant::now();
            say(&Word::Read(at));
        }
    }
    Ok(())
}

/// The most memory this process ever had resident.
pub fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok())
}

fn unreadable(path: &Path, error: &io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("read {}: {error}", path.display()))
}

fn local(doing: &str, error: &dyn std::fmt::Display) -> PortError {
    PortError::new(ErrorCode::Local, format!("{doing}: {error}"))
}
