//! restic, driven: on servers, where the files are, and here, where the repository is made and checked.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::records::{Backup, Records};
use super::relay::{Deed, Relay};
use super::turn::Turn;
use crate::backup::{Identities, Recipients, hex};
use crate::config::VolumeConfig;
use crate::ports::{
    ByteStream, Clock, ErrorCode, Host, ObjectStore, Output, PortError, PortResult, PutCondition, Shell,
};

/// How long a backup or a restore of one volume may take.
pub(super) const TRANSFER_DEADLINE: Duration = Duration::from_secs(12 * 3600);
const QUICK: Duration = Duration::from_secs(120);
/// Where a server without restic gets ours. `/run` may not be executed from everywhere.
const PROGRAM_DIR: &str = "/var/lib/hk-dr";
const PASSWORD_BYTES_MAX: u64 = 64 << 10;
/// Larger than any build of restic.
const PROGRAM_BYTES_MAX: u64 = 200 << 20;

/// A cluster's repository, reached through a relay in this process.
pub struct Repository {
    pub(super) relay: Relay,
    pub(super) password: SecretString,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) cluster: String,
}

fn password_key(cluster: &str) -> String {
    format!("{}/password.age", super::prefix(cluster))
}

impl Repository {
    /// Opens the repository of a cluster; makes it, and its password for the recipients, if it is the first time and
    /// `recipients` are given.
    pub async fn open(
        store: &Arc<dyn ObjectStore>,
        cluster: &str,
        identities: &Identities,
        recipients: Option<&Recipients>,
    ) -> PortResult<Self> {
        let relay = Relay::open(Arc::clone(store), cluster).await?;
        let key = password_key(cluster);
        let sealed = match store.get(&key, PASSWORD_BYTES_MAX).await {
            Ok(sealed) => sealed,
            Err(e) if e.code == ErrorCode::NotFound => {
                let Some(recipients) = recipients else {
                    let message = format!("there are no backups of volumes of cluster {cluster} in {}", store.name());
                    return Err(PortError::new(ErrorCode::NotFound, message)
                        .hint("nothing was touched; `hk-dr volume backup` makes the first"));
                };
                let sealed = Bytes::from(seal(&new_password(), recipients)?);
                store.put(&key, sealed.clone(), PutCondition::Absent).await?;
                sealed
            }
            Err(e) => return Err(e),
        };
        let password = unseal(&key, &sealed, identities)?;
        let repository = Self { relay, password, store: Arc::clone(store), cluster: cluster.to_owned() };
        if recipients.is_some() && !repository.relay.exists().await? {
            repository.local(&["init", "--repository-version", "2"]).await?;
        }
        Ok(repository)
    }

    /// All snapshots that restic can read.
    pub(super) async fn snapshots(&self) -> PortResult<Vec<Snapshot>> {
        let text = self.local(&["snapshots", "--json"]).await?;
        serde_json::from_str(&text).map_err(|e| {
            let message = format!("restic's list of snapshots is of a form that is not known: {e}");
            PortError::new(ErrorCode::Invalid, message)
        })
    }

    /// What is known of its backups.
    pub fn records(&self) -> Records<'_> {
        Records { store: self.store.as_ref(), cluster: &self.cluster }
    }

    /// Encrypts the password anew, to other recipients. Returns whether there is one.
    pub async fn rewrap(
        store: &dyn ObjectStore,
        cluster: &str,
        identities: &Identities,
        recipients: &Recipients,
    ) -> PortResult<bool> {
        let key = password_key(cluster);
        let sealed = match store.get(&key, PASSWORD_BYTES_MAX).await {
            Ok(sealed) => sealed,
            Err(e) if e.code == ErrorCode::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let password = unseal(&key, &sealed, identities)?;
        store.put(&key, seal(&password, recipients)?.into(), PutCondition::Any).await.map(|_| true)
    }

    /// restic here, with the repository and its password in its environment.
    pub(super) fn command(&self, args: &[&str]) -> tokio::process::Command {
        let url = self.relay.url(self.relay.address().port());
        let mut command = tokio::process::Command::new("restic");
        command
            .args(["--no-cache", "--quiet"])
            .args(args)
            .env("RESTIC_REPOSITORY", url)
            .env("RESTIC_PASSWORD", self.password.expose_secret())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs restic here; answers with what it said. `ServerError` is restic's own: what it read is not as it should be.
    pub(super) async fn local(&self, args: &[&str]) -> PortResult<String> {
        let output = self.run(args, self.command(args)).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs restic here, and lets what it writes to its standard output go by.
    pub(super) async fn local_unheard(&self, args: &[&str]) -> PortResult<()> {
        let mut command = self.command(args);
        command.stdout(Stdio::null());
        self.run(args, command).await.map(|_| ())
    }

    async fn run(&self, args: &[&str], mut command: tokio::process::Command) -> PortResult<std::process::Output> {
        self.relay.forget_trouble();
        let doing = format!("restic {}", args.first().unwrap_or(&""));
        let child = command.spawn().map_err(|e| not_started(&e))?;
        let ended = tokio::select! {
            ended = tokio::time::timeout(TRANSFER_DEADLINE, child.wait_with_output()) => ended,
            // It would ask again and again for what is refused for good; dropped, it is killed.
            () = self.relay.refused() => return Err(self.failed(&doing, b"")),
        };
        let ended = ended.map_err(|_| PortError::new(ErrorCode::Timeout, "restic did not end in 12 hours"))?;
        let output =
            ended.map_err(|e| PortError::new(ErrorCode::Local, format!("{doing}: its answer was lost: {e}")))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(self.failed(&doing, &output.stderr))
    }

    /// What the bucket said, if that is why, else restic's last words.
    pub(super) fn failed(&self, doing: &str, stderr: &[u8]) -> PortError {
        if let Some(trouble) = self.relay.trouble() {
            return trouble.context(doing);
        }
        let said = String::from_utf8_lossy(stderr);
        let tail: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).rev().take(4).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        PortError::new(ErrorCode::ServerError, format!("{doing} failed: {}", tail.join(" | ")))
    }
}

pub(super) fn not_started(e: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("start restic: {e}"))
        .hint("nothing was changed; install Debian's package restic, or put the program into PATH")
}

fn new_password() -> SecretString {
    SecretString::from((0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect::<String>())
}

fn seal(password: &SecretString, recipients: &Recipients) -> PortResult<Vec<u8>> {
    use std::io::Write;
    let failed = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("encrypt the password: {e}"));
    let mut writer = recipients.encryptor()?.wrap_output(Vec::new()).map_err(failed)?;
    writer.write_all(password.expose_secret().as_bytes()).map_err(failed)?;
    writer.finish().map_err(failed)
}

fn unseal(key: &str, sealed: &[u8], identities: &Identities) -> PortResult<SecretString> {
    use std::io::Read;
    let damaged = |e: &dyn std::fmt::Display| {
        PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}"))
            .hint("nothing was changed; without it no backup of a volume opens: look for it in a copy, or with --as-of")
    };
    let decryptor = age::Decryptor::new(sealed).map_err(|e| damaged(&e))?;
    let reader = decryptor.decrypt(identities.keys()).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => identities.refused(key, &["a recipient in recipients.txt".to_owned()]),
        other => damaged(&other),
    })?;
    let mut password = zeroize::Zeroizing::new(String::new());
    reader.take(PASSWORD_BYTES_MAX).read_to_string(&mut password).map_err(|e| damaged(&e))?;
    Ok(SecretString::from(password.as_str()))
}

/// What is backed up, and from where.
pub struct BackupRequest<'a> {
    pub repository: &'a Repository,
    pub volume: &'a VolumeConfig,
    pub host: &'a Host,
    pub shell: &'a dyn Shell,
    pub clock: &'a Arc<dyn Clock>,
    pub git_commit: Option<&'a str>,
}

/// One of `restic snapshots --json`.
#[derive(Deserialize)]
pub(super) struct Snapshot {
    pub id: String,
    pub time: jiff::Timestamp,
}

/// What restic says at its end.
#[derive(Deserialize)]
struct Summary {
    message_type: String,
    total_files_processed: u64,
    total_bytes_processed: u64,
    data_added: u64,
}

/// Backs a volume up, between its two scripts, and records it. Nobody removes anything meanwhile.
pub async fn backup(request: &BackupRequest<'_>) -> PortResult<Backup> {
    let turn = Turn::to_add(request.repository, &request.volume.name, request.clock).await?;
    let permit = request.repository.relay.allow(Deed::Add, &turn);
    let made = back_up(request).await;
    drop(permit);
    turn.release().await;
    made
}

async fn back_up(request: &BackupRequest<'_>) -> PortResult<Backup> {
    let BackupRequest { repository, volume, host, shell, clock, .. } = request;
    repository.relay.forget_trouble();
    repository.relay.take_snapshots();
    let doing = format!("backing up {} of {}", volume.path, host.name);
    let taken_at = clock.now();
    let program = program_on(*shell, host).await?;
    let offer = shell.offer(host, repository.relay.address()).await?;
    let mut args = vec!["backup", "--json", "--one-file-system", "--host", &volume.name, "--tag", &repository.cluster];
    volume.exclude.iter().for_each(|pattern| args.extend(["--exclude", pattern.as_str()]));
    args.extend(["--", &volume.path]);
    let script = format!(
        "{environment}\
         mountpoint -q {path} || {{ echo 'nothing is mounted at' {path} >&2; exit 64; }}\n\
         after() {{\n:\n{after}\n}}\n\
         status=0\n\
         (\n:\n{before}\n) >&2 || status=65\n\
         [ $status != 0 ] || {program} {args} || status=$?\n\
         (after) >&2 || {{ [ $status != 0 ] || status=66; }}\n\
         exit $status\n",
        environment = environment(repository, offer.port),
        path = quoted(&volume.path),
        before = volume.before.as_deref().unwrap_or_default(),
        after = volume.after.as_deref().unwrap_or_default(),
        args = args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" "),
    );
    let output = shell.run(host, &script, TRANSFER_DEADLINE).await.map_err(|e| e.context(&doing))?;
    let failed = |what: &str, hint: &str| {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        PortError::new(ErrorCode::Invalid, format!("{doing}: {what}: {last}")).hint(hint)
    };
    match output.status {
        0 | 66 => {}
        64 => return Err(failed("it is not mounted", "nothing was backed up; mount it, or correct cluster.yaml")),
        65 => return Err(failed("`before` failed", "nothing was backed up; `after` was run")),
        _ => return Err(repository.failed(&doing, &output.stderr)),
    }
    let summary = summary(&output)?;
    let snapshot = repository.relay.take_snapshots().pop().ok_or_else(|| {
        PortError::new(ErrorCode::Corrupt, format!("{doing}: restic ended well and left no snapshot"))
    })?;
    let backup = Backup {
        format: Backup::FORMAT,
        id: Backup::id(taken_at, &volume.name),
        cluster: repository.cluster.clone(),
        volume: volume.name.clone(),
        server: volume.server.clone(),
        path: volume.path.clone(),
        taken_at,
        finished_at: clock.now(),
        snapshot,
        files: summary.total_files_processed,
        bytes: summary.total_bytes_processed,
        added_bytes: summary.data_added,
        quiesced: volume.before.is_some(),
        git_commit: request.git_commit.map(str::to_owned),
    };
    repository.records().keep(&backup).await?;
    super::locks::renew(repository, clock.as_ref()).await.map_err(|e| {
        e.context("lock again what backups share")
            .hint("the backup is whole and kept; `hk-dr doctor` tries whether locks hold, and the next backup takes them again")
    })?;
    if output.status == 66 {
        return Err(failed("`after` failed", "the backup is whole and kept; look at what was quiesced on the server"));
    }
    Ok(backup)
}

fn summary(output: &Output) -> PortResult<Summary> {
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().rev().find_map(|line| serde_json::from_str::<Summary>(line).ok());
    found
        .filter(|summary| summary.message_type == "summary")
        .ok_or_else(|| PortError::new(ErrorCode::Invalid, "restic's summary is of a form that is not known"))
}

/// The secrets that restic needs, in the environment of one script. Nothing of them is in an argument list or on a disk.
pub(super) fn environment(repository: &Repository, port: u16) -> String {
    format!(
        "set -u\nexport RESTIC_REPOSITORY={url} RESTIC_PASSWORD={password} RESTIC_PROGRESS_FPS=0.02\n\
         export HOME=/root XDG_CACHE_HOME=/var/cache/hk-dr\n",
        url = quoted(&repository.relay.url(port)),
        password = quoted(repository.password.expose_secret()),
    )
}

/// restic on a server: the server's own, else a copy of the one here.
pub(super) async fn program_on(shell: &dyn Shell, host: &Host) -> PortResult<String> {
    let own = shell.run(host, "command -v restic && restic version", QUICK).await?;
    if own.status == 0 {
        return Ok("restic".to_owned());
    }
    let found =
        tokio::process::Command::new("sh").args(["-c", "command -v restic"]).stdin(Stdio::null()).output().await;
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if found.is_empty() {
        return Err(PortError::new(ErrorCode::Local, format!("restic is neither on {} nor here", host.name))
            .hint("nothing was changed; install Debian's package restic here, or there"));
    }
    let path = std::path::PathBuf::from(found);
    let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("read {}: {e}", path.display()));
    let file = tokio::fs::File::open(&path).await.map_err(local)?;
    let mut program = Vec::new();
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut program).await.map_err(local)?;
    let digest = hex(&<sha2::Sha256 as sha2::Digest>::digest(&program));
    let there = format!("{PROGRAM_DIR}/restic-{}", &digest[..16]);
    let known = shell.run(host, &format!("sha256sum {there} 2>/dev/null"), QUICK).await?;
    if known.status == 0 && known.stdout.starts_with(digest.as_bytes()) {
        return Ok(there);
    }
    let data: ByteStream = futures::stream::iter(vec![Ok(Bytes::from(program))]).boxed();
    let command = format!(
        "set -eu; mkdir -p -m 0700 {PROGRAM_DIR}; umask 077; cat > {there}.part; chmod 0700 {there}.part; \
         echo '{digest}  {there}.part' | sha256sum -c --status; mv {there}.part {there}; {there} version"
    );
    let put = shell.feed(host, &command, data, QUICK).await?;
    if put.status != 0 {
        let said = String::from_utf8_lossy(&put.stderr).trim().to_owned();
        let message = format!("the restic of this machine does not run on {}: {said}", host.name);
        return Err(PortError::new(ErrorCode::Invalid, message).hint("install Debian's package restic there"));
    }
    Ok(there)
}

/// A word for a POSIX shell.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
