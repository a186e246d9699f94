//! What backups cost: etcd, while a snapshot or the log is read from it, and the bucket, over a day.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::history::{CLUSTER, Takes, arrived, keys};
use super::once::{BUCKET, Beside, failed};
use super::snapshot::{execute, write_recipients};
use super::{Bench, Goal};
use crate::backup::local_etcd::{LocalEtcd, value};
use crate::backup::log::{CutRule, ShipReport, ShipRequest, ship, status};
use crate::backup::{Catalog, Recipients};
use crate::cli::{CliError, Context, ExitKind};
use crate::etcd::EtcdClient;
use crate::ports::{Clock, Etcd, ObjectStore, PortResult, SystemClock};
use crate::s3::S3Store;
use crate::s3::versitygw::{VersityGw, pinned_binary};

pub(super) const BURDEN: Bench = Bench {
    name: "burden",
    figures: &[
        Goal { name: "write_p99_added_by_shipping", unit: "%", at_most: 5.0 },
        Goal { name: "write_p99_added_by_snapshot", unit: "%", at_most: 25.0 },
        Goal { name: "day_stored_against_hourly_fulls", unit: "%", at_most: 10.0 },
    ],
    run,
};

/// Values of 6 kB that make up 1.5 GB.
const VALUES: usize = 250_000;
const VALUE_BYTES: usize = 6_000;
/// The load whose latency is looked at, and how long at a time, in turns with and without.
const WRITES_PER_SECOND: u32 = 200;
const LOOK: Duration = Duration::from_secs(8);
const ROUNDS: usize = 11;
/// As the service reads by default.
const MEGABYTES_PER_SECOND: u32 = 25;
/// Memory that takes the part of the bucket's and the service's disks, which are elsewhere.
const MEMORY: &str = "/dev/shm";
/// 1% of the values change in an hour, which passes this much faster than others: the log is cut as much more often.
const CHANGES_PER_HOUR: usize = VALUES / 100;
const HOUR_PASSES_FASTER: u32 = 100;
const HOURS: u64 = 24;

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let folder = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
    context.block_on(measure(folder.path(), &context.cache_dir()))
}

struct Stage {
    client: Arc<dyn Etcd>,
    etcd: LocalEtcd,
    server: VersityGw,
    store: Arc<dyn ObjectStore>,
    recipients: Recipients,
    recipients_file: PathBuf,
    beside: Beside,
    spool: PathBuf,
}

async fn measure(folder: &Path, cache: &Path) -> Result<Vec<f64>, CliError> {
    let binary = |name: &str| pinned_binary(Some(cache), name);
    // A write is acknowledged when it is on the disk, as everywhere.
    let options = ["--quota-backend-bytes", "8589934592"];
    let database = folder.join("etcd");
    let etcd = LocalEtcd::start_durable(&binary("etcd-3.6.16")?, &database, &options).await?;
    etcd.fill(VALUES, VALUE_BYTES).await?;
    let elsewhere = tempfile::tempdir_in(MEMORY).map_err(|e| failed("make a directory in memory", e))?;
    let server = VersityGw::start(&binary("versitygw-1.8.0")?, elsewhere.path())?;
    let s3 = S3Store::connect(&server.config(BUCKET))?;
    s3.ensure_bucket().await?;
    let recipients_file = folder.join("recipients.txt");
    write_recipients(&recipients_file)?;
    let stage = Stage {
        beside: Beside::start(folder, &database).await?,
        client: Arc::new(etcd.client().await?),
        etcd,
        server,
        store: Arc::new(s3),
        recipients: keys()?.0,
        recipients_file,
        spool: elsewhere.path().join("spool"),
    };
    // hk-dr and the bucket are elsewhere: what they compute and write must not count as etcd's. Here they compute when nobody else
    // does, and write to memory.
    schedule("--idle", stage.server.pid())?;
    schedule("--idle", std::process::id())?;
    let figures = figures(&stage).await;
    schedule("--other", std::process::id())?;
    figures
}

fn schedule(policy: &str, pid: u32) -> Result<(), CliError> {
    execute(Command::new("chrt").args(["--all-tasks", policy, "--pid", "0", &pid.to_string()]))
}

async fn figures(stage: &Stage) -> Result<Vec<f64>, CliError> {
    let mut rounds = Rounds::begin(stage).await?;
    for _ in 0..ROUNDS {
        let with = while_snapshotting(stage).await?;
        rounds.add(with, latencies(stage, LOOK).await?);
    }
    let by_snapshot = rounds.added("a snapshot");

    let mut rounds = Rounds::begin(stage).await?;
    for _ in 0..ROUNDS {
        let shipping = Shipping::begin(stage, CutRule::default()).await?;
        let with = latencies(stage, LOOK).await?;
        shipping.end().await?;
        rounds.add(with, latencies(stage, LOOK).await?);
    }
    let by_shipping = rounds.added("shipping");
    Ok(vec![by_shipping, by_snapshot, day(stage).await?])
}

/// The load, in a process of its own that is scheduled as usual; the latency of each write.
async fn latencies(stage: &Stage, long: Duration) -> Result<Vec<Duration>, CliError> {
    let load = tokio::process::Command::new("chrt")
        .args(["--other", "0"])
        .arg(std::env::current_exe().map_err(|e| failed("find this program", e))?)
        .args(["bench-load", "--etcd", stage.etcd.url(), "--milliseconds", &long.as_millis().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let load = load.await.map_err(|e| failed("start the load", e))?;
    let micros: Vec<u64> =
        serde_json::from_slice(&load.stdout).map_err(|e| failed("read what the load measured", e.into()))?;
    Ok(micros.into_iter().map(Duration::from_micros).collect())
}

/// A steady load on etcd, and for how long.
#[derive(clap::Args)]
pub struct LoadArgs {
    #[arg(long)]
    etcd: String,
    #[arg(long)]
    milliseconds: u64,
}

/// Puts at a steady rate, whatever each takes, and prints the microseconds from when each was due until it was acknowledged.
pub fn load(args: &LoadArgs, context: &Context) -> Result<(), CliError> {
    let micros = context.block_on(async {
        let client = Arc::new(EtcdClient::direct(&[(LocalEtcd::MEMBER.to_owned(), args.etcd.clone())], None).await?);
        // Connecting is no write.
        client.get(LocalEtcd::MEMBER, b"ready?").await?;
        let (done, mut all) = mpsc::channel(4096);
        let end = Instant::now() + Duration::from_millis(args.milliseconds);
        let load = async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / WRITES_PER_SECOND);
            for n in 0u64.. {
                let due = tick.tick().await;
                if Instant::now() > end {
                    return;
                }
                let (client, done) = (Arc::clone(&client), done.clone());
                tokio::spawn(async move {
                    let key = format!("/load/{}", n % 5000);
                    if client.put(LocalEtcd::MEMBER, key.as_bytes(), &[b'x'; 600]).await.is_ok() {
                        // Nobody waits for one that comes after the end.
                        let _ = done.send(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX)).await;
                    }
                });
            }
        };
        let collect = async {
            let mut found = Vec::new();
            while let Some(one) = all.recv().await {
                found.push(one);
            }
            found
        };
        Ok::<_, CliError>(tokio::join!(load, collect).1)
    })?;
    println!("{}", serde_json::json!(micros));
    Ok(())
}

/// The load while a snapshot is taken in a process of its own.
async fn while_snapshotting(stage: &Stage) -> Result<Vec<Duration>, CliError> {
    let mut child = snapshot(stage)?;
    let found = latencies(stage, LOOK).await?;
    let waited = |e| failed("wait for hk-dr", e);
    if child.try_wait().map_err(waited)?.is_some() {
        return Err(CliError::new(ExitKind::Failed, "the snapshot ended before it was looked at long enough"));
    }
    // What it uploaded so far goes with the bench's folder.
    child.kill().and_then(|()| child.wait()).map_err(waited)?;
    Ok(found)
}

fn snapshot(stage: &Stage) -> Result<Child, CliError> {
    stage
        .beside
        .command(&stage.etcd, &stage.server, &stage.recipients_file)?
        .args(["--megabytes-per-second", &MEGABYTES_PER_SECOND.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| failed("start hk-dr", e))
}

/// p99 of writes in milliseconds: looks in turns, the first and the last of them quiet.
struct Rounds {
    quiet: Vec<f64>,
    with: Vec<f64>,
}

impl Rounds {
    async fn begin(stage: &Stage) -> Result<Self, CliError> {
        Ok(Self { quiet: vec![p99_ms(latencies(stage, LOOK).await?)], with: Vec::new() })
    }

    fn add(&mut self, with: Vec<Duration>, quiet: Vec<Duration>) {
        self.with.push(p99_ms(with));
        self.quiet.push(p99_ms(quiet));
    }

    /// How much higher the p99 is, in percent. Each look is compared with the quiet ones before and after it, because disks have moods;
    /// of these ratios the middle one counts, because a hiccup spoils a whole look.
    fn added(&self, by: &str) -> f64 {
        let ratio = |(quiet, with): (&[f64], &f64)| 2.0 * with / quiet.iter().sum::<f64>();
        let ratios: Vec<f64> = self.quiet.windows(2).zip(&self.with).map(ratio).collect();
        eprintln!(
            "  p99 of writes: {:.2} ms, with {by} {:.2} ms",
            middle(self.quiet.clone()),
            middle(self.with.clone())
        );
        eprintln!("  of {} looks, against the quiet ones around each: {ratios:.2?}", ratios.len());
        (middle(ratios) - 1.0) * 100.0
    }
}

fn p99_ms(mut look: Vec<Duration>) -> f64 {
    look.sort_unstable();
    look.get(look.len() * 99 / 100).map_or(f64::NAN, |one| one.as_secs_f64() * 1000.0)
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A log that is being shipped.
struct Shipping {
    stop: oneshot::Sender<()>,
    task: JoinHandle<PortResult<ShipReport>>,
}

impl Shipping {
    /// Begins, and waits until changes arrive.
    async fn begin(stage: &Stage, cut: CutRule) -> Result<Self, CliError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (etcd, store) = (Arc::clone(&stage.client), Arc::clone(&stage.store));
        let (recipients, spool) = (stage.recipients.clone(), stage.spool.clone());
        let task = tokio::spawn(async move {
            let takes = Takes { etcd: Arc::clone(&etcd), store: Arc::clone(&store), recipients: recipients.clone() };
            let request = ShipRequest {
                cluster: CLUSTER,
                etcd: etcd.as_ref(),
                store,
                recipients: &recipients,
                clock: Arc::new(SystemClock),
                new_base: &takes,
                holder: "bench".to_owned(),
                spool,
                spool_limit_bytes: 1 << 30,
                cut,
                event: &|_| {},
            };
            let stopped = async {
                let _ = stopped.await;
            };
            ship(&request, stopped).await
        });
        let first = stage.client.put(LocalEtcd::MEMBER, b"/bench/first", b"x").await?;
        arrived(stage.store.as_ref(), first).await?;
        Ok(Self { stop, task })
    }

    async fn end(self) -> Result<(), CliError> {
        let _ = self.stop.send(());
        let ended = self.task.await.map_err(|e| CliError::new(ExitKind::Failed, format!("the shipper died: {e}")))?;
        ended?;
        Ok(())
    }
}

/// One full snapshot and a day of log against a full snapshot each hour, in percent.
async fn day(stage: &Stage) -> Result<f64, CliError> {
    let store = stage.store.as_ref();
    let full = Catalog::new(store, CLUSTER).find("latest").await?.manifest;
    let full = full.etcd.stored_bytes + full.recovery.stored_bytes;
    let rule = CutRule::default();
    let shipping = Shipping::begin(stage, CutRule { after: rule.after / HOUR_PASSES_FASTER, ..rule }).await?;
    let before = status(store, CLUSTER, SystemClock.now()).await?;
    let mut tick = tokio::time::interval(Duration::from_secs(3600) / HOUR_PASSES_FASTER / CHANGES_PER_HOUR as u32);
    let mut newest = 0;
    for n in 0..CHANGES_PER_HOUR {
        tick.tick().await;
        let key = format!("/registry/bench/{:08}", n * 97 % VALUES);
        newest = stage.client.put(LocalEtcd::MEMBER, key.as_bytes(), &value(VALUES + n, VALUE_BYTES)).await?;
    }
    arrived(store, newest).await?;
    let after = status(store, CLUSTER, SystemClock.now()).await?;
    shipping.end().await?;
    let (hour, segments) = (after.bytes - before.bytes, after.segments - before.segments);
    eprintln!("  a full snapshot: {full} bytes; an hour of log: {hour} bytes in {segments} segments");
    Ok((full + HOURS * hour) as f64 / (HOURS * full) as f64 * 100.0)
}
