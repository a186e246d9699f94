//! A snapshot of 0.1, 1.5 and 6 GB: the memory it takes, and its time against the stock tools joined by pipes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::once::{BUCKET, Beside, failed};
use super::snapshot::{execute, write_recipients};
use super::{Bench, Goal};
use crate::backup::local_etcd::LocalEtcd;
use crate::cli::{CliError, Context, ExitKind};
use crate::ports::{ObjectStore, PutCondition};
use crate::s3::versitygw::{VersityGw, pinned_binary};
use crate::s3::{PART_BYTES, S3Store};

pub(super) const SIZES: Bench = Bench {
    name: "sizes",
    figures: &[
        Goal { name: "snapshot_against_pipes", unit: "ratio", at_most: 0.8 },
        Goal { name: "snapshot_peak_memory_100_mb", unit: "MiB", at_most: 96.0 },
        Goal { name: "snapshot_peak_memory_1500_mb", unit: "MiB", at_most: 96.0 },
        Goal { name: "snapshot_peak_memory_6_gb", unit: "MiB", at_most: 96.0 },
    ],
    run,
};

const VALUE_BYTES: usize = 6_000;
/// Values that make up 0.1, 1.5 and 6 GB.
const SMALL: usize = 16_000;
const MIDDLE: usize = 250_000;
const LARGE: usize = 1_000_000;
/// Each side is measured this often, in turns; its best counts, as the one least disturbed by others.
const ROUNDS: usize = 2;

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let mut figures = vec![f64::NAN];
    for values in [SMALL, MIDDLE, LARGE] {
        // What one size leaves on the disk is gone before the next.
        let folder = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
        let (peak_mib, ratio) = context.block_on(one(folder.path(), &context.cache_dir(), values))?;
        figures.push(peak_mib);
        figures[0] = ratio.unwrap_or(figures[0]);
    }
    Ok(figures)
}

async fn one(folder: &Path, cache: &Path, values: usize) -> Result<(f64, Option<f64>), CliError> {
    let binary = |name: &str| pinned_binary(Some(cache), name);
    let options = ["--quota-backend-bytes", "8589934592"];
    let database = folder.join("etcd");
    let etcd = LocalEtcd::start(&binary("etcd-3.6.16")?, &database, &options).await?;
    etcd.fill(values, VALUE_BYTES).await?;
    let server = VersityGw::start(&binary("versitygw-1.8.0")?, folder)?;
    let store = S3Store::connect(&server.config(BUCKET))?;
    store.ensure_bucket().await?;
    let recipients = folder.join("recipients.txt");
    write_recipients(&recipients)?;
    let beside = Beside::start(folder, &database).await?;
    let rounds = if values == MIDDLE { ROUNDS } else { 1 };
    let (mut peak_mib, mut ours, mut pipes) = (0.0_f64, f64::INFINITY, f64::INFINITY);
    for round in 0..rounds {
        if values == MIDDLE {
            let etcdctl = binary("etcdctl-3.6.16")?;
            pipes = pipes.min(joined_by_pipes(folder, &etcdctl, &etcd, &recipients, &store, round).await?);
        }
        let once = beside.snapshot(&etcd, &server, &recipients, &[])?;
        eprintln!("  hk-dr: {} bytes in {:.2} s, peak {:.1} MiB", once.plain_bytes, once.seconds, once.peak_mib);
        ours = ours.min(once.seconds);
        peak_mib = peak_mib.max(once.peak_mib);
    }
    if values == MIDDLE {
        eprintln!("  best of {ROUNDS}: tools joined by pipes {pipes:.2} s, hk-dr {ours:.2} s");
    }
    Ok((peak_mib, (values == MIDDLE).then_some(ours / pipes)))
}

/// `etcdctl | zstd | age | upload`. etcdctl writes to a file only: the file is a named pipe. It then fails to sync the pipe
/// and says so, when everything has passed.
async fn joined_by_pipes(
    folder: &Path,
    etcdctl: &Path,
    etcd: &LocalEtcd,
    recipients: &Path,
    store: &S3Store,
    round: usize,
) -> Result<f64, CliError> {
    let (target, pipe) = (folder.join("pipe"), folder.join("pipe.part"));
    execute(Command::new("mkfifo").arg(&pipe))?;
    let begun = Instant::now();
    let mut save = Command::new(etcdctl)
        .args(["--endpoints", etcd.url(), "snapshot", "save"])
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("start etcdctl", e))?;
    let mut seal = tokio::process::Command::new("sh")
        .args(["-c", r#"zstd -3 -T0 -q -c < "$0" | age -R "$1""#])
        .arg(&pipe)
        .arg(recipients)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed("start zstd and age", e))?;
    let mut sealed = seal.stdout.take().ok_or_else(|| CliError::new(ExitKind::Failed, "age has no output"))?;
    let mut upload = store.upload(&format!("pipes/{round}")).await?;
    let mut bytes = 0;
    loop {
        let part = read_part(&mut sealed).await?;
        if part.is_empty() {
            break;
        }
        bytes += part.len();
        upload.part(part.into()).await?;
    }
    upload.complete(PutCondition::Any).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let ended = seal.wait().await.map_err(|e| failed("wait for age", e))?;
    save.wait().map_err(|e| failed("wait for etcdctl", e))?;
    // Whoever of the two removed or renamed it.
    for path in [&target, &pipe] {
        let _ = std::fs::remove_file(path);
    }
    if !ended.success() || bytes < PART_BYTES {
        return Err(CliError::new(ExitKind::Failed, format!("the pipes carried {bytes} bytes and ended with {ended}")));
    }
    eprintln!("  tools joined by pipes: {seconds:.2} s, {bytes} bytes stored");
    Ok(seconds)
}

async fn read_part(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<Vec<u8>, CliError> {
    use tokio::io::AsyncReadExt;
    let mut part = Vec::with_capacity(PART_BYTES);
    let read = from.take(PART_BYTES as u64).read_to_end(&mut part).await;
    read.map_err(|e| failed("read what age wrote", e))?;
    Ok(part)
}
