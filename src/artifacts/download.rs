use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::progress::{Happening, Progress};
use crate::ports::{ErrorCode, PortError, PortResult};

/// No artifact is near this size: a source that sends more is broken or hostile.
const LIMIT_BYTES: u64 = 1 << 30;
/// How long a source may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a source may send nothing.
const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// How files that are being written are called.
pub(super) const INCOMING: &str = ".incoming-";
/// Progress is reported each time this much has arrived.
const REPORT_BYTES: u64 = 4 << 20;

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 and size of a file, read in pieces.
pub(super) fn digest_file(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hasher.finalize()), size)),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

/// A temporary file that goes away unless it is kept, with the digest of what was written.
pub(super) struct Received {
    pub file: NamedTempFile,
    pub sha256: String,
}

/// Gets files over HTTP. A host that did not answer is not asked again while this value lives, so that a machine
/// without internet waits once and not once per file.
pub(super) struct Downloader {
    client: reqwest::Client,
    dead_hosts: Mutex<HashSet<String>>,
}

impl Downloader {
    pub fn new() -> PortResult<Self> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(STALL_DEADLINE)
            .user_agent(concat!("hk-dr/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| PortError::new(ErrorCode::Local, format!("no HTTP client could be made: {e}")))?;
        Ok(Self { client, dead_hosts: Mutex::default() })
    }

    /// Downloads into a temporary file in `dir`. `NotFound`, `Unreachable` and `Forbidden` mean that another source may
    /// have it.
    pub async fn get(&self, url: &str, dir: &Path, artifact: &str, progress: &dyn Progress) -> PortResult<Received> {
        let parsed = reqwest::Url::parse(url)
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("{} is not a URL: {e}", shown(url))))?;
        let host = format!("{}:{}", parsed.host_str().unwrap_or_default(), parsed.port_or_known_default().unwrap_or(0));
        let known_dead = self.dead_hosts.lock().is_ok_and(|dead| dead.contains(&host));
        if known_dead {
            return Err(PortError::new(ErrorCode::Unreachable, format!("{host} did not answer before")));
        }
        let response = match self.client.get(parsed).send().await {
            Ok(response) => response,
            Err(error) => {
                if let Ok(mut dead) = self.dead_hosts.lock() {
                    dead.insert(host);
                }
                let error = error.without_url();
                return Err(PortError::new(ErrorCode::Unreachable, format!("{}: {}", shown(url), chain(&error))));
            }
        };
        let status = response.status();
        if !status.is_success() {
            let code = match status.as_u16() {
                404 | 410 => ErrorCode::NotFound,
                401 => ErrorCode::Unauthorized,
                403 => ErrorCode::Forbidden,
                429 => ErrorCode::RateLimited,
                _ => ErrorCode::ServerError,
            };
            return Err(PortError::new(code, format!("{} answered {status}", shown(url))));
        }
        let total_bytes = response.content_length();
        let mut file = temporary(dir)?;
        let mut hasher = Sha256::new();
        let (mut received_bytes, mut reported_bytes) = (0, 0);
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| {
                let message =
                    format!("{} broke off after {received_bytes} bytes: {}", shown(url), chain(&e.without_url()));
                PortError::new(ErrorCode::Unreachable, message)
            })?;
            received_bytes += piece.len() as u64;
            if received_bytes > LIMIT_BYTES {
                let message = format!("{} sends more than {LIMIT_BYTES} bytes, which no artifact has", shown(url));
                return Err(PortError::new(ErrorCode::Corrupt, message));
            }
            hasher.update(&piece);
            file.write_all(&piece).map_err(|e| local("writing a download", dir, &e))?;
            if received_bytes - reported_bytes >= REPORT_BYTES {
                reported_bytes = received_bytes;
                let source = host.clone();
                progress.report(artifact, Happening::Downloading { source, received_bytes, total_bytes });
            }
        }
        Ok(Received { file, sha256: hex(&hasher.finalize()) })
    }
}

/// Copies a file of a mirror directory.
pub(super) fn copy(source: &Path, dir: &Path) -> PortResult<Received> {
    let mut input = std::fs::File::open(source).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            PortError::new(ErrorCode::NotFound, format!("{} does not exist", source.display()))
        }
        _ => local("reading from the mirror", source, &e),
    })?;
    let mut file = temporary(dir)?;
    std::io::copy(&mut input, &mut file).map_err(|e| local("copying from the mirror", source, &e))?;
    let (sha256, _) = digest_file(file.path()).map_err(|e| local("reading", file.path(), &e))?;
    Ok(Received { file, sha256 })
}

/// Takes one member out of a `.tar.gz`.
pub(super) fn unpack(archive: &Path, member: &str, dir: &Path) -> PortResult<Received> {
    let damaged = |e: &dyn std::fmt::Display| {
        PortError::new(ErrorCode::Corrupt, format!("the archive that should hold {member} cannot be read: {e}"))
    };
    let input = std::fs::File::open(archive).map_err(|e| local("reading", archive, &e))?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::io::BufReader::new(input)));
    for entry in tar.entries().map_err(|e| damaged(&e))? {
        let entry = entry.map_err(|e| damaged(&e))?;
        let path = entry.path().map_err(|e| damaged(&e))?;
        if path.strip_prefix(".").unwrap_or(&path) != Path::new(member) || !entry.header().entry_type().is_file() {
            continue;
        }
        let mut file = temporary(dir)?;
        let copied = std::io::copy(&mut entry.take(LIMIT_BYTES + 1), &mut file).map_err(|e| damaged(&e))?;
        if copied > LIMIT_BYTES {
            return Err(damaged(&"the member is larger than any artifact"));
        }
        let (sha256, _) = digest_file(file.path()).map_err(|e| local("reading", file.path(), &e))?;
        return Ok(Received { file, sha256 });
    }
    Err(PortError::new(ErrorCode::Corrupt, format!("the archive does not hold {member}")))
}

/// A temporary file beside its final place, so that the last step is a rename.
pub(super) fn temporary(dir: &Path) -> PortResult<NamedTempFile> {
    tempfile::Builder::new().prefix(INCOMING).tempfile_in(dir).map_err(|e| local("writing to", dir, &e))
}

/// An error of this machine's file system.
pub(super) fn local(doing: &str, path: &Path, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("{doing} {}: {error}", path.display()))
}

/// A URL as it may be shown: without user, password and query, which can be credentials.
pub(super) fn shown(url: &str) -> String {
    match reqwest::Url::parse(url) {
        Ok(mut parsed) => {
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
            parsed.set_query(None);
            parsed.to_string()
        }
        Err(_) => "the given address".to_owned(),
    }
}

/// An error with its causes, which reqwest keeps to itself otherwise.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
