//! The log: how soon a change is in the bucket, and how fast a state comes back from a snapshot of 1.5 GB and 200 MB of
//! log, against putting the same changes through a running etcd.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;

use super::once::failed;
use super::{Bench, Goal};
use crate::backup::local_etcd::{LocalEtcd, value};
use crate::backup::log::{CutRule, NewBase, Point, ShipRequest, canary, ship, status};
use crate::backup::pages::peak_kib;
use crate::backup::{
    Archive, CompactRequest, Compression, Identities, Manifest, Progress, Recipients, TakeRequest, compact, take,
};
use crate::bolt::{Backend, decode};
use crate::cli::{CliError, Context, ExitKind};
use crate::ports::{Clock, Etcd, ObjectStore, PortResult, RecoverySet, SystemClock};
use crate::s3::S3Store;
use crate::s3::versitygw::{VersityGw, pinned_binary};

pub(super) const HISTORY: Bench = Bench {
    name: "history",
    figures: &[
        Goal { name: "recovery_point_p99_at_500_writes", unit: "s", at_most: 5.0 },
        Goal { name: "materialize_against_replay", unit: "ratio", at_most: 0.05 },
        Goal { name: "materialize_peak_memory", unit: "MiB", at_most: 128.0 },
        Goal { name: "compact_per_gigabyte", unit: "s", at_most: 5.0 },
    ],
    run,
};

/// Objects of 6 kB, 1.5 GB of them, and behind them 200 MB of changes: mostly Leases and events in a cluster, of 1 kB and less.
const BASE_VALUES: usize = 250_000;
const VALUE_BYTES: usize = 6_000;
const CHANGES: usize = 200_000;
const CHANGE_BYTES: usize = 1_000;
/// The load under which the recovery point is measured.
const WRITES_PER_SECOND: u64 = 500;
const CANARIES: usize = 12;
/// Writes under way while the log is filled.
const WRITERS: usize = 32;
pub(super) const CLUSTER: &str = "bench";
/// The longest that the log may take to be in the bucket.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(120);

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let folder = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
    context.block_on(measure(folder.path(), &context.cache_dir()))
}

/// Takes snapshots of the bench's etcd.
pub(super) struct Takes {
    pub etcd: Arc<dyn Etcd>,
    pub store: Arc<dyn ObjectStore>,
    pub recipients: Recipients,
}

#[async_trait]
impl NewBase for Takes {
    async fn take(&self) -> PortResult<Manifest> {
        let recovery = RecoverySet::from([("cluster.yaml".to_owned(), (0o644, b"kind: Cluster\n".to_vec()))]);
        take(&TakeRequest {
            cluster: CLUSTER,
            etcd: self.etcd.as_ref(),
            store: self.store.as_ref(),
            recipients: &self.recipients,
            recovery: &recovery,
            required: &["cluster.yaml"],
            git_commit: None,
            clock: &SystemClock,
            compression: Compression::default(),
            rate: None,
            in_place_from_bytes: u64::MAX,
            progress: &Arc::new(Progress::default()),
        })
        .await
        .map(|taken| taken.manifest)
    }
}

async fn measure(folder: &Path, cache: &Path) -> Result<Vec<f64>, CliError> {
    let binary = |name: &str| pinned_binary(Some(cache), name);
    let etcd_binary = binary("etcd-3.6.16")?;
    let options = ["--quota-backend-bytes", "8589934592"];
    let etcd = LocalEtcd::start(&etcd_binary, &folder.join("etcd"), &options).await?;
    etcd.fill(BASE_VALUES, VALUE_BYTES).await?;
    let server = VersityGw::start(&binary("versitygw-1.8.0")?, folder)?;
    let s3 = S3Store::connect(&server.config("bench"))?;
    s3.ensure_bucket().await?;
    let store: Arc<dyn ObjectStore> = Arc::new(s3);
    let client: Arc<dyn Etcd> = Arc::new(etcd.client().await?);
    let (recipients, identities) = keys()?;
    eprintln!("  filled etcd with {BASE_VALUES} values of {VALUE_BYTES} bytes");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shipping = tokio::spawn({
        let (etcd, store, recipients) = (Arc::clone(&client), Arc::clone(&store), recipients.clone());
        let spool = folder.join("spool");
        async move {
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
                cut: CutRule::default(),
                event: &|_| {},
            };
            ship(&request, async {
                let _ = stopped.await;
            })
            .await
        }
    });
    let first = client.put(LocalEtcd::MEMBER, b"/bench/first", b"x").await?;
    arrived(store.as_ref(), first).await?;

    let loading = tokio::spawn(load(Arc::clone(&client)));
    let each = Duration::from_secs(60);
    let (bucket, clock) = (store.as_ref(), &SystemClock);
    let found = canary(client.as_ref(), bucket, CLUSTER, Some(&identities), clock, CANARIES, each).await?;
    loading.abort();
    eprintln!("  {CANARIES} canaries at {WRITES_PER_SECOND} writes a second: {found:?}");

    let newest = write(client.as_ref()).await?;
    arrived(store.as_ref(), newest).await?;
    let _ = stop.send(());
    let report = shipping.await.map_err(|e| CliError::new(ExitKind::Failed, format!("the shipper died: {e}")))??;
    eprintln!("  log: {} segments, {} bytes stored", report.segments, report.bytes);

    let scratch = folder.join("scratch");
    let archive = Archive { store: Arc::clone(&store), cluster: CLUSTER.to_owned(), identities, scratch };
    let file = folder.join("state.db");
    // Sets the kernel's mark of the most memory back to what is in use now.
    std::fs::write("/proc/self/clear_refs", "5").map_err(|e| failed("forget the peak of memory", e))?;
    let begun = Instant::now();
    let made = archive.materialize(Point::Latest, &file).await?;
    let ours = begun.elapsed().as_secs_f64();
    let peak_mib = peak_kib().map_or(f64::NAN, |kib| kib as f64 / 1024.0);
    eprintln!("  materialized {} bytes in {ours:.2} s, peak {peak_mib:.1} MiB", made.made.size_bytes);
    drop(etcd);
    let replayed = replay(&etcd_binary, &folder.join("replay"), &file, made.made.from_log).await?;
    eprintln!("  replay of {} changes, one after the other: {replayed:.2} s", made.made.from_log);

    let begun = Instant::now();
    let request = CompactRequest {
        archive: &archive,
        point: Point::Latest,
        recipients: &recipients,
        clock,
        compression: Compression::default(),
    };
    let compacted = compact(&request).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = compacted.map_or(f64::NAN, |manifest| manifest.etcd.plain_bytes as f64);
    eprintln!("  compacted {bytes} bytes in {seconds:.2} s: {:.0} MB/s", bytes / 1e6 / seconds);
    Ok(vec![found.p99_ms as f64 / 1000.0, ours / replayed, peak_mib, seconds / (bytes / 1e9)])
}

/// Two fresh keys and one of their identities.
pub(super) fn keys() -> Result<(Recipients, Identities), CliError> {
    use age::secrecy::ExposeSecret;
    let pairs = [age::x25519::Identity::generate(), age::x25519::Identity::generate()];
    let public: Vec<String> = pairs.iter().map(|pair| pair.to_public().to_string()).collect();
    let recipients = Recipients::parse(&public.join("\n"))?;
    Ok((recipients, Identities::parse(pairs[0].to_string().expose_secret(), "the bench")?))
}

pub(super) async fn arrived(store: &dyn ObjectStore, revision: i64) -> Result<(), CliError> {
    let begun = Instant::now();
    while status(store, CLUSTER, SystemClock.now()).await.map_or(0, |now| now.covered_revision) < revision {
        if begun.elapsed() > ARRIVAL_DEADLINE {
            return Err(CliError::new(ExitKind::Failed, format!("revision {revision} did not arrive in the bucket")));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Writes at a steady rate until it is ended.
async fn load(client: Arc<dyn Etcd>) {
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / WRITES_PER_SECOND));
    for n in 0u64.. {
        tick.tick().await;
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            // One that fails lightens the load a little, and says nothing else.
            let _ = client.put(LocalEtcd::MEMBER, format!("/load/{}", n % 5000).as_bytes(), &[b'x'; 600]).await;
        });
    }
}

/// Fills the log with changes, each a revision of its own. Returns the last revision.
async fn write(client: &dyn Etcd) -> Result<i64, CliError> {
    let writes = (0..CHANGES).map(|n| async move {
        let value = value(n, CHANGE_BYTES);
        client.put(LocalEtcd::MEMBER, format!("/registry/bench/{:08}", n % BASE_VALUES).as_bytes(), &value).await
    });
    let mut running = futures::stream::iter(writes).buffer_unordered(WRITERS);
    let mut newest = 0;
    while let Some(revision) = running.next().await {
        newest = newest.max(revision?);
    }
    Ok(newest)
}

/// Puts the newest versions of a state through a fresh etcd that runs as clusters run it, in the order of their revisions: the next
/// one begins when the one before it is acknowledged. Returns the seconds.
async fn replay(binary: &Path, data: &Path, file: &Path, changes: u64) -> Result<f64, CliError> {
    let etcd = LocalEtcd::start_durable(binary, data, &[]).await?;
    let client = etcd.client().await?;
    let file = std::fs::File::open(file).map_err(|e| failed("open the state", e))?;
    let backend = Backend::open(file).map_err(crate::ports::PortError::from)?;
    let total = backend.key_values().count() as u64;
    let mut entries = backend.bucket("key").map_err(crate::ports::PortError::from)?;
    let mut seen = 0;
    let mut seconds = 0.0;
    while let Some(entries) = &mut entries {
        let Some((_, value)) = entries.next_entry().map_err(crate::ports::PortError::from)? else { break };
        seen += 1;
        if seen + changes <= total {
            continue;
        }
        let Some(kv) = decode(value) else { continue };
        // Only etcd's part counts.
        let begun = Instant::now();
        client.put(LocalEtcd::MEMBER, &kv.key, &kv.value).await?;
        seconds += begun.elapsed().as_secs_f64();
    }
    Ok(seconds)
}
