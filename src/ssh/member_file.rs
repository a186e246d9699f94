use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::unfold;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;

use super::SshShell;
use crate::ports::{ByteStream, ErrorCode, Host, MemberFile, PortError, PortResult, PrintedStream, Shell};

/// This program, whatever became of the file it was started from.
const OURSELVES: &str = "/proc/self/exe";
/// The directory where it lies on members' machines.
const PLACE: &str = "/var/lib/hk-dr";
/// How long looking for it there may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(15);
/// How long sending it may take: 30 MB over a slow line.
const PUT_DEADLINE: Duration = Duration::from_secs(600);
/// Bytes of it that are sent at a time.
const PIECE_BYTES: usize = 256 << 10;

/// [`MemberFile`] over SSH. The program is sent to a machine once for each version, named by its digest; others that were sent
/// before are removed.
pub struct SshMemberFile {
    shell: SshShell,
    host: Host,
    path: String,
    /// What is sent, where to, and its digest once it is known.
    program: PathBuf,
    place: String,
    digest: OnceCell<String>,
}

impl SshMemberFile {
    /// The file at `path` on that machine. Connects to nothing yet.
    pub fn new(shell: SshShell, host: Host, path: String) -> Self {
        Self { shell, host, path, program: OURSELVES.into(), place: PLACE.to_owned(), digest: OnceCell::new() }
    }

    /// Lays the program into another directory there.
    pub fn placed(self, place: String) -> Self {
        Self { place, ..self }
    }

    /// Sends another program than this one.
    #[cfg(test)]
    pub(super) fn sending(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// The program's path on the machine, and its digest.
    async fn there(&self) -> PortResult<(String, &str)> {
        let digest = self.digest.get_or_try_init(|| digest(self.program.clone())).await?;
        Ok((format!("{}/hk-dr-{}", self.place, &digest[..16]), digest))
    }

    /// Makes sure that the program is there.
    async fn put(&self) -> PortResult<()> {
        let (there, digest) = self.there().await?;
        let place = &self.place;
        let found = self.shell.run(&self.host, &format!("test -x {there}"), LOOK_DEADLINE).await?;
        if found.status == 0 {
            return Ok(());
        }
        let command = format!(
            "set -e; umask 077; mkdir -p {place}; find {place} -name '.new.*' -mmin +60 -delete; \
             new=$(mktemp {place}/.new.XXXXXX); trap 'rm -f \"$new\"' EXIT; \
             cat >\"$new\"; echo \"{digest}  $new\" | sha256sum -c --status; chmod 700 \"$new\"; \
             rm -f {place}/hk-dr-*; mv \"$new\" {there}; trap - EXIT"
        );
        let sent = self.shell.feed(&self.host, &command, pieces(&self.program).await?, PUT_DEADLINE).await?;
        if sent.status == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&sent.stderr);
        let message = format!("{} did not take hk-dr ({there}): {}", self.host.name, said.trim());
        Err(PortError::new(ErrorCode::Local, message))
    }
}

#[async_trait]
impl MemberFile for SshMemberFile {
    fn path(&self) -> &str {
        &self.path
    }

    async fn prepare(&self) -> PortResult<()> {
        self.put().await
    }

    async fn start(
        &self,
        arguments: &str,
        input: Bytes,
        gently: bool,
        deadline: Duration,
    ) -> PortResult<PrintedStream> {
        let (program, _) = self.there().await?;
        let first = if gently { "nice -n 19 " } else { "" };
        self.shell.start(&self.host, &format!("exec {first}{program} {arguments}"), input, deadline).await
    }
}

fn unreadable(program: &Path, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("read {}: {error}", program.display()))
}

/// SHA-256 of a file, in hexadecimal.
async fn digest(program: PathBuf) -> PortResult<String> {
    let hash = move || {
        let mut digest = Sha256::new();
        // `copy` takes what a buffered reader has in its buffer, and fills that again.
        let open = std::fs::File::open(&program);
        let read = open.and_then(|file| std::io::copy(&mut BufReader::with_capacity(PIECE_BYTES, file), &mut digest));
        read.map_err(|e| unreadable(&program, &e))?;
        Ok(crate::backup::hex(&digest.finalize()))
    };
    let died = |e| PortError::new(ErrorCode::Local, format!("hashing this program died: {e}"));
    tokio::task::spawn_blocking(hash).await.map_err(died)?
}

async fn pieces(program: &Path) -> PortResult<ByteStream> {
    let file = tokio::fs::File::open(program).await.map_err(|e| unreadable(program, &e))?;
    let program = Arc::<Path>::from(program);
    Ok(Box::pin(unfold(Some(file), move |file| {
        let program = Arc::clone(&program);
        async move {
            let mut file = file?;
            let mut piece = vec![0; PIECE_BYTES];
            match file.read(&mut piece).await {
                Ok(0) => None,
                Ok(bytes) => {
                    piece.truncate(bytes);
                    Some((Ok(Bytes::from(piece)), Some(file)))
                }
                Err(e) => Some((Err(unreadable(&program, &e)), None)),
            }
        }
    })))
}
