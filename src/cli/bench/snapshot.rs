//! A snapshot of a database of 1.5 GB: hk-dr's one pass against the stock tools one after the other, same run, same
//! servers, and the memory it takes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::once::{BUCKET, Beside, failed};
use super::{Bench, Goal};
use crate::backup::local_etcd::LocalEtcd;
use crate::cli::{CliError, Context, ExitKind};
use crate::ports::{ObjectStore, PutCondition};
use crate::s3::versitygw::{VersityGw, pinned_binary};
use crate::s3::{PART_BYTES, S3Store};

pub(super) const SNAPSHOT: Bench = Bench {
    name: "snapshot",
    figures: &[
        Goal { name: "snapshot_against_stock_tools", unit: "ratio", at_most: 0.4 },
        Goal { name: "snapshot_peak_memory", unit: "MiB", at_most: 96.0 },
    ],
    run,
};

/// Values of 6 kB that make up 1.5 GB.
const VALUES: usize = 250_000;
const VALUE_BYTES: usize = 6_000;
/// Each side is measured this often, in turns; its best counts, as the one least disturbed by others.
const ROUNDS: usize = 2;

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let folder = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
    context.block_on(measure(folder.path(), &context.cache_dir()))
}

async fn measure(folder: &Path, cache: &Path) -> Result<Vec<f64>, CliError> {
    let binary = |name: &str| pinned_binary(Some(cache), name);
    let (etcdctl, database) = (binary("etcdctl-3.6.16")?, folder.join("etcd"));
    let options = ["--quota-backend-bytes", "8589934592"];
    let etcd = LocalEtcd::start(&binary("etcd-3.6.16")?, &database, &options).await?;
    let begun = Instant::now();
    etcd.fill(VALUES, VALUE_BYTES).await?;
    eprintln!("  filled etcd with {VALUES} values of {VALUE_BYTES} bytes in {:.1} s", begun.elapsed().as_secs_f64());
    let server = VersityGw::start(&binary("versitygw-1.8.0")?, folder)?;
    let store = S3Store::connect(&server.config(BUCKET))?;
    store.ensure_bucket().await?;
    let recipients = folder.join("recipients.txt");
    write_recipients(&recipients)?;
    let beside = Beside::start(folder, &database).await?;

    let (mut stock, mut ours, mut api, mut peak_mib) = (f64::INFINITY, f64::INFINITY, f64::INFINITY, 0.0_f64);
    for round in 1..=ROUNDS {
        stock = stock.min(one_after_the_other(folder, &etcdctl, &etcd, &recipients, &store, round).await?);
        for (way, arguments, best) in
            [("in place", &[][..], &mut ours), ("through the API", &["--through-api"], &mut api)]
        {
            let once = beside.snapshot(&etcd, &server, &recipients, arguments)?;
            let (here, there) = once.each_mib;
            eprintln!(
                "  hk-dr {way}: {:.2} s, peak {here:.1} MiB, beside etcd {there:.1} MiB, {} → {} bytes",
                once.seconds, once.plain_bytes, once.stored_bytes
            );
            *best = best.min(once.seconds);
            peak_mib = peak_mib.max(once.peak_mib);
        }
    }
    let ratio = api / stock;
    eprintln!(
        "  best of {ROUNDS}: stock tools {stock:.2} s, hk-dr {ours:.2} s, through the API {api:.2} s ({ratio:.2})"
    );
    Ok(vec![ours / stock, peak_mib])
}

/// What a careful person's script does: save, compress, encrypt, upload.
async fn one_after_the_other(
    folder: &Path,
    etcdctl: &Path,
    etcd: &LocalEtcd,
    recipients: &Path,
    store: &S3Store,
    round: usize,
) -> Result<f64, CliError> {
    let (plain, packed, sealed) = (folder.join("stock.db"), folder.join("stock.db.zst"), folder.join("stock.age"));
    let begun = Instant::now();
    let mut parts = Vec::new();
    let mut lap = Instant::now();
    let mut step = |name: &str, lap: &mut Instant| {
        parts.push(format!("{name} {:.2} s", lap.elapsed().as_secs_f64()));
        *lap = Instant::now();
    };
    execute(Command::new(etcdctl).args(["--endpoints", etcd.url(), "snapshot", "save"]).arg(&plain))?;
    step("save", &mut lap);
    execute(Command::new("zstd").args(["-3", "-T0", "-q", "-f", "-o"]).arg(&packed).arg(&plain))?;
    step("zstd", &mut lap);
    execute(Command::new("age").arg("-R").arg(recipients).arg("-o").arg(&sealed).arg(&packed))?;
    step("age", &mut lap);
    upload(store, &sealed, &format!("stock/{round}")).await?;
    step("upload", &mut lap);
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = std::fs::metadata(&sealed).map_or(0, |meta| meta.len());
    eprintln!("  stock tools: {seconds:.2} s ({}), {bytes} bytes stored", parts.join(", "));
    for path in [plain, packed, sealed] {
        std::fs::remove_file(&path).map_err(|e| failed("remove a file", e))?;
    }
    Ok(seconds)
}

pub(super) async fn upload(store: &S3Store, path: &Path, key: &str) -> Result<(), CliError> {
    let mut file = tokio::fs::File::open(path).await.map_err(|e| failed("open the sealed file", e))?;
    let mut upload = store.upload(key).await?;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        (&mut file)
            .take(PART_BYTES as u64)
            .read_to_end(&mut part)
            .await
            .map_err(|e| failed("read the sealed file", e))?;
        if part.is_empty() {
            upload.complete(PutCondition::Any).await?;
            return Ok(());
        }
        upload.part(Bytes::from(part)).await?;
    }
}

pub(super) fn execute(command: &mut Command) -> Result<(), CliError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| failed(&format!("start {name}"), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(CliError::new(ExitKind::Failed, format!("{name} ended with {}: {}", output.status, said.trim())))
}

pub(super) fn write_recipients(path: &Path) -> Result<(), CliError> {
    // The identities are thrown away: nobody will open these snapshots.
    let lines: Vec<String> = (0..2).map(|_| age::x25519::Identity::generate().to_public().to_string()).collect();
    std::fs::write(path, lines.join("\n")).map_err(|e| failed("write the recipients", e))
}
