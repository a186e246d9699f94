//! One snapshot of a local etcd in a process of its own, so that its memory can be told from the measuring one's.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::backup::local_etcd::LocalEtcd;
use crate::backup::pages::peak_kib;
use crate::backup::{Compression, IN_PLACE_FROM_BYTES, Rate, Recipients, TakeRequest, take};
use crate::cli::{CliError, Context, ExitKind};
use crate::config::BYTES_PER_MB;
use crate::etcd::EtcdClient;
use crate::ports::{Host, RecoverySet, Shell, SystemClock};
use crate::s3::S3Store;
use crate::s3::versitygw::{self, VersityGw};
use crate::ssh::local_sshd::LocalSshd;
use crate::ssh::{SshMemberFile, SshShell};

pub(super) const BUCKET: &str = "bench";
/// How long an sshd of our own may take to answer.
const SSHD_DEADLINE: Duration = Duration::from_secs(20);

/// What one snapshot took.
pub(super) struct Once {
    pub seconds: f64,
    /// The most memory that hk-dr held, here or beside etcd: these are two machines.
    pub peak_mib: f64,
    /// What it held here, and beside etcd.
    pub each_mib: (f64, f64),
    pub plain_bytes: u64,
    pub stored_bytes: u64,
}

/// What the process says of it.
#[derive(Serialize, Deserialize)]
struct Said {
    peak_kib: u64,
    beside_peak_kib: Option<u64>,
    not_in_place: Option<String>,
    plain_bytes: u64,
    stored_bytes: u64,
}

/// The way to etcd's machine, which is this one: an sshd, as masters have it.
pub(super) struct Beside {
    sshd: LocalSshd,
    key: PathBuf,
    file: PathBuf,
}

impl Beside {
    /// Starts one, and waits until it answers.
    pub async fn start(folder: &Path, database: &Path) -> Result<Self, CliError> {
        let sshd = LocalSshd::start()?;
        sshd.shell()?.wait_ready(&sshd.host(), SSHD_DEADLINE).await?;
        let key = folder.join("ssh-key");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key);
        let written = file.as_mut().map_err(|e| std::io::Error::from(e.kind()));
        written
            .and_then(|file| file.write_all(sshd.login.private.expose_secret().as_bytes()))
            .map_err(|e| failed("write the SSH key", e))?;
        Ok(Self { sshd, key, file: database.join("member/snap/db") })
    }

    /// The command that takes one snapshot in a process of its own.
    pub fn command(&self, etcd: &LocalEtcd, server: &VersityGw, recipients: &Path) -> Result<Command, CliError> {
        let mut command = Command::new(std::env::current_exe().map_err(|e| failed("find this program", e))?);
        command
            .args(["bench-snapshot-once", "--etcd", etcd.url(), "--s3", server.endpoint(), "--recipients"])
            .arg(recipients)
            .arg("--file")
            .arg(&self.file)
            .arg("--ssh-key")
            .arg(&self.key)
            .args(["--ssh-port", &self.sshd.port.to_string(), "--ssh-host-key", &self.sshd.host_key.fingerprint])
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Takes one, from the program's start to its end, with further arguments.
    pub fn snapshot(
        &self,
        etcd: &LocalEtcd,
        server: &VersityGw,
        recipients: &Path,
        arguments: &[&str],
    ) -> Result<Once, CliError> {
        let begun = Instant::now();
        let child = self.command(etcd, server, recipients)?.args(arguments).stderr(Stdio::inherit()).output();
        let child = child.map_err(|e| failed("start hk-dr", e))?;
        let seconds = begun.elapsed().as_secs_f64();
        if !child.status.success() {
            return Err(CliError::new(ExitKind::Failed, "the snapshot failed"));
        }
        let said: Said = serde_json::from_slice(&child.stdout).map_err(|e| failed("read what hk-dr said", e.into()))?;
        if let Some(why) = said.not_in_place {
            return Err(CliError::new(ExitKind::Failed, format!("etcd's file was not read in place: {why}")));
        }
        let each_mib = (said.peak_kib as f64 / 1024.0, said.beside_peak_kib.unwrap_or(0) as f64 / 1024.0);
        let peak_mib = each_mib.0.max(each_mib.1);
        Ok(Once { seconds, peak_mib, each_mib, plain_bytes: said.plain_bytes, stored_bytes: said.stored_bytes })
    }
}

/// Of what, and where to.
#[derive(clap::Args)]
pub struct OnceArgs {
    #[arg(long)]
    etcd: String,
    #[arg(long)]
    s3: String,
    #[arg(long)]
    recipients: PathBuf,
    #[arg(long)]
    megabytes_per_second: Option<NonZeroU32>,
    /// Read through etcd's API, whatever the size.
    #[arg(long)]
    through_api: bool,
    #[command(flatten)]
    beside: Option<BesideArgs>,
}

/// etcd's file, and the sshd beside it.
#[derive(clap::Args)]
struct BesideArgs {
    #[arg(long, required = false)]
    file: String,
    #[arg(long, required = false)]
    ssh_key: PathBuf,
    #[arg(long, required = false)]
    ssh_port: u16,
    #[arg(long, required = false)]
    ssh_host_key: String,
}

impl BesideArgs {
    fn file(&self) -> Result<SshMemberFile, CliError> {
        let key = std::fs::read_to_string(&self.ssh_key).map_err(|e| failed("read the SSH key", e))?;
        let shell = SshShell::with_port(&key.into(), self.ssh_port)?;
        let host_key_sha256 = self.ssh_host_key.clone();
        let host = Host { name: "this machine".to_owned(), address: Ipv4Addr::LOCALHOST, host_key_sha256 };
        let beside_key = self.ssh_key.with_file_name("member");
        Ok(SshMemberFile::new(shell, host, self.file.clone()).placed(beside_key.to_string_lossy().into_owned()))
    }
}

/// Takes one snapshot and prints what it took.
pub fn once(args: &OnceArgs, context: &Context) -> Result<(), CliError> {
    let recipients = Recipients::load(&args.recipients)?;
    let store = S3Store::connect(&versitygw::config_for(&args.s3, BUCKET))?;
    let recovery = RecoverySet::from([("cluster.yaml".to_owned(), (0o644, b"kind: Cluster\n".to_vec()))]);
    let file = args.beside.as_ref().map(BesideArgs::file).transpose()?;
    let taken = context.block_on(async {
        let members = [(LocalEtcd::MEMBER.to_owned(), args.etcd.clone())];
        let mut etcd = EtcdClient::direct(&members, None).await?;
        if let Some(file) = file {
            etcd.with_file(LocalEtcd::MEMBER, Arc::new(file));
        }
        take(&TakeRequest {
            cluster: "bench",
            etcd: &etcd,
            store: &store,
            recipients: &recipients,
            recovery: &recovery,
            required: &["cluster.yaml"],
            git_commit: None,
            clock: &SystemClock,
            compression: Compression::default(),
            rate: args.megabytes_per_second.map(|mb| Rate::either(NonZeroU64::from(mb).saturating_mul(BYTES_PER_MB))),
            in_place_from_bytes: if args.through_api { u64::MAX } else { IN_PLACE_FROM_BYTES },
            progress: &Arc::default(),
        })
        .await
    })?;
    let sealed = &taken.manifest.etcd;
    let peak_kib = peak_kib().ok_or_else(|| CliError::new(ExitKind::Failed, "the kernel does not say VmHWM"))?;
    let said = Said {
        peak_kib,
        beside_peak_kib: taken.beside_peak_kib,
        not_in_place: taken.manifest.not_in_place,
        plain_bytes: sealed.plain_bytes,
        stored_bytes: sealed.stored_bytes,
    };
    println!("{}", serde_json::json!(said));
    Ok(())
}

pub(super) fn failed(doing: &str, error: std::io::Error) -> CliError {
    CliError::new(ExitKind::Failed, format!("{doing}: {error}"))
}
