//! Opening what was sealed: one pass, digests checked on the way, bounded memory.

use std::io::{self, Read};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Identities;
use super::manifest::Sealed;
use super::seal::hex;
use crate::ports::{ByteStream, ErrorCode, ObjectStore, PortError, PortResult};

/// Plain bytes handed on at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Pieces of the object between the bucket and the decryption.
const QUEUE: usize = 16;

/// Opens an object as a stream of plain bytes. The last item is an error if a digest or a length is not the manifest's:
/// whoever consumes the stream must not trust it before its end.
pub(super) async fn open(
    store: &dyn ObjectStore,
    sealed: &Sealed,
    recipients: &[String],
    identities: &Identities,
) -> PortResult<ByteStream> {
    // What was given out cannot be taken back, so of several buckets one is chosen whose copy was read whole.
    let mut damage = None;
    for copy in store.copies() {
        match check_stored(copy.as_ref(), sealed, store.patience()).await {
            Ok(()) => return open_one(copy.as_ref(), sealed, recipients, identities).await,
            Err(e) => damage = damage.or(Some(e)),
        }
    }
    match damage {
        Some(damage) => Err(damage.context("no bucket has it whole")),
        None => open_one(store, sealed, recipients, identities).await,
    }
}

async fn open_one(
    store: &dyn ObjectStore,
    sealed: &Sealed,
    recipients: &[String],
    identities: &Identities,
) -> PortResult<ByteStream> {
    let name = store.name();
    let info = store.head(&sealed.key).await.map_err(|e| match e.code {
        ErrorCode::NotFound => damaged(&name, &sealed.key, "it is missing, though the manifest names it"),
        _ => e,
    })?;
    if info.size_bytes != sealed.stored_bytes {
        let how = if info.size_bytes < sealed.stored_bytes { "truncated" } else { "longer than it was" };
        let what = format!("it is {how}: {} bytes, the manifest says {}", info.size_bytes, sealed.stored_bytes);
        return Err(damaged(&name, &sealed.key, &what));
    }
    let mut body = store.stream(&sealed.key, 0).await?;
    let (to_open, from_store) = mpsc::channel::<PortResult<Bytes>>(QUEUE);
    let (to_reader, from_open) = mpsc::channel::<PortResult<Bytes>>(QUEUE);
    tokio::spawn(async move {
        while let Some(chunk) = body.next().await {
            let failed = chunk.is_err();
            if to_open.send(chunk).await.is_err() || failed {
                return;
            }
        }
    });
    let opener = Opener {
        store: name,
        sealed: sealed.clone(),
        recipients: recipients.to_vec(),
        identities: identities.clone(),
        out: to_reader,
    };
    tokio::task::spawn_blocking(move || opener.run(from_store));
    Ok(Box::pin(futures::stream::unfold(from_open, |mut queue| async { queue.recv().await.map(|item| (item, queue)) })))
}

/// Whether an object is stored as the manifest says: its length, and the digest of every byte. `patience`: the longest silence.
pub(super) async fn check_stored(store: &dyn ObjectStore, sealed: &Sealed, patience: Duration) -> PortResult<()> {
    let (name, key) = (store.name(), &sealed.key);
    let silent = |_| {
        let message = format!("{name} sent nothing of {key} for {:.1} s", patience.as_secs_f64());
        PortError::new(ErrorCode::Timeout, message)
    };
    let begun = timeout(patience, store.stream(key, 0)).await.map_err(silent)?;
    let mut body = begun.map_err(|e| match e.code {
        ErrorCode::NotFound => damaged(&name, key, "it is missing, though the manifest names it"),
        _ => e,
    })?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = timeout(patience, body.next()).await.map_err(silent)? {
        let chunk = chunk?;
        bytes += chunk.len() as u64;
        digest.update(&chunk);
    }
    if bytes != sealed.stored_bytes {
        return Err(damaged(&name, key, &format!("it has {bytes} bytes, the manifest says {}", sealed.stored_bytes)));
    }
    if hex(&digest.finalize()) != sealed.stored_sha256 {
        return Err(damaged(&name, key, "its SHA-256 is not the manifest's"));
    }
    Ok(())
}

fn damaged(store: &str, key: &str, what: &str) -> PortError {
    PortError::new(ErrorCode::Corrupt, format!("{key} in {store} cannot be used: {what}"))
        .hint("nothing was changed; use another snapshot (`hk-dr snapshot list`) or a copy of this object")
}

struct Opener {
    store: String,
    sealed: Sealed,
    recipients: Vec<String>,
    identities: Identities,
    out: mpsc::Sender<PortResult<Bytes>>,
}

impl Opener {
    fn run(self, input: mpsc::Receiver<PortResult<Bytes>>) {
        if let Err(failed) = self.open(input) {
            // A reader that has gone needs no error.
            let _ = self.out.blocking_send(Err(failed));
        }
    }

    fn open(&self, input: mpsc::Receiver<PortResult<Bytes>>) -> PortResult<()> {
        let mut stored = Incoming { input, chunk: Bytes::new(), digest: Sha256::new(), bytes: 0, failed: None };
        let opened = self.pass(&mut stored);
        if let Some(failed) = stored.failed.take() {
            return Err(failed);
        }
        let plain_digest = opened?;
        // age and zstd stop where their formats end; what the object has beyond that still belongs to its digest.
        io::copy(&mut stored, &mut io::sink()).map_err(|e| stored.failed.take().unwrap_or_else(|| self.bad(&e)))?;
        if hex(&stored.digest.finalize()) != self.sealed.stored_sha256 {
            return Err(damaged(&self.store, &self.sealed.key, "its SHA-256 is not the manifest's"));
        }
        match plain_digest {
            Some(digest) if digest != self.sealed.plain_sha256 => {
                Err(damaged(&self.store, &self.sealed.key, "the SHA-256 of its content is not the manifest's"))
            }
            _ => Ok(()),
        }
    }

    /// Decrypts, decompresses and hands on. Returns the digest of the plain bytes, or nothing if the reader has gone.
    fn pass(&self, stored: &mut Incoming) -> PortResult<Option<String>> {
        let decryptor = age::Decryptor::new_buffered(io::BufReader::with_capacity(64 << 10, &mut *stored))
            .map_err(|e| self.header(&e))?;
        let plain = decryptor.decrypt(self.identities.keys()).map_err(|e| self.header(&e))?;
        let mut plain = zstd::Decoder::new(plain).map_err(|e| self.bad(&e))?;
        // A thread of its own: hashing takes half as long as decrypting and decompressing together.
        std::thread::scope(|scope| {
            let (to_hash, blocks) = std::sync::mpsc::sync_channel::<Bytes>(QUEUE);
            let hashing = scope.spawn(move || {
                let digest = blocks.iter().fold(Sha256::new(), |digest, block| digest.chain_update(&block));
                hex(&digest.finalize())
            });
            let whole = self.hand_on(&mut plain, &to_hash)?;
            drop(to_hash);
            let digest = hashing.join().map_err(|_| PortError::new(ErrorCode::Local, "hashing a snapshot died"))?;
            Ok(whole.then_some(digest))
        })
    }

    /// Hands every block on, to the reader and to be hashed. False if the reader has gone.
    fn hand_on(&self, plain: &mut dyn Read, to_hash: &SyncSender<Bytes>) -> PortResult<bool> {
        let mut bytes = 0;
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let mut filled = 0;
            while filled < block.len() {
                match plain.read(&mut block[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(self.bad(&e)),
                }
            }
            block.truncate(filled);
            if block.is_empty() {
                break;
            }
            bytes += filled as u64;
            if bytes > self.sealed.plain_bytes {
                return Err(damaged(&self.store, &self.sealed.key, "its content is longer than the manifest says"));
            }
            let block = Bytes::from(block);
            let hashed = to_hash.send(block.clone()).is_ok();
            if !hashed || self.out.blocking_send(Ok(block)).is_err() {
                return Ok(false);
            }
        }
        if bytes != self.sealed.plain_bytes {
            let what = format!("its content has {bytes} bytes, the manifest says {}", self.sealed.plain_bytes);
            return Err(damaged(&self.store, &self.sealed.key, &what));
        }
        Ok(true)
    }

    /// age can't tell a wrong key from a damaged header; the manifest's list of recipients can.
    fn header(&self, error: &age::DecryptError) -> PortError {
        if matches!(error, age::DecryptError::NoMatchingKeys) && !self.identities.open_one_of(&self.recipients) {
            return self.identities.refused(&self.sealed.key, &self.recipients);
        }
        damaged(&self.store, &self.sealed.key, &format!("its age header is damaged ({error})"))
    }

    fn bad(&self, error: &io::Error) -> PortError {
        damaged(&self.store, &self.sealed.key, &format!("it does not decrypt and decompress ({error})"))
    }
}

/// The object's bytes as a blocking reader that hashes what passes.
struct Incoming {
    input: mpsc::Receiver<PortResult<Bytes>>,
    chunk: Bytes,
    digest: Sha256,
    bytes: u64,
    /// The bucket's error, which the formats in between can only carry as text.
    failed: Option<PortError>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.input.blocking_recv() {
                None => return Ok(0),
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(failed)) => {
                    self.failed = Some(failed);
                    return Err(io::Error::other("the bucket failed"));
                }
            }
        }
        let taken = buffer.len().min(self.chunk.len());
        let now = self.chunk.split_to(taken);
        buffer[..taken].copy_from_slice(&now);
        self.digest.update(&now);
        self.bytes += taken as u64;
        Ok(taken)
    }
}
