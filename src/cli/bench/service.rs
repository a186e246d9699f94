//! The service when nothing is due: its memory, and what of a core it takes to see that.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::once::failed;
use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};
use crate::s3::S3Store;
use crate::s3::versitygw::{VersityGw, pinned_binary};

pub(super) const SERVICE: Bench = Bench {
    name: "service",
    figures: &[
        Goal { name: "service_idle_memory", unit: "MiB", at_most: 50.0 },
        Goal { name: "service_idle_core", unit: "%", at_most: 1.0 },
    ],
    run,
};

const WARM_UP: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(60);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Ticks of processor time a second, as `/proc` counts them: 100 on every architecture that hk-dr runs on.
const TICKS: f64 = 100.0;
/// The shipped schedules, without a log: shipping one is measured by the bench of the history.
const POLICIES: [&str; 2] = ["backups", "drills"];

/// A process that ends with the bench.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let folder = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
    let program = std::env::current_exe().map_err(|e| failed("find this program", e))?;
    let server = VersityGw::start(&pinned_binary(Some(&context.cache_dir()), "versitygw-1.8.0")?, folder.path())?;
    let bucket = server.config("demo-backups");
    context.block_on(async { S3Store::connect(&bucket)?.ensure_bucket().await })?;
    let git = folder.path().join("git");
    let hk_dr = |args: &[&str]| {
        use secrecy::ExposeSecret;
        let mut command = Command::new(&program);
        command.args(args).current_dir(folder.path()).env("HK_DR_STATE", folder.path().join("state"));
        // Nobody listens there: an idle service asks the cloud nothing.
        command.env("HCLOUD_TOKEN", "x".repeat(64)).env("HCLOUD_ENDPOINT", "http://127.0.0.1:9/v1");
        command.env("AWS_ACCESS_KEY_ID", &bucket.access_key).env("AWS_ENDPOINT_URL", server.endpoint());
        command.env("AWS_SECRET_ACCESS_KEY", bucket.secret_key.expose_secret());
        command
    };
    let git_text = git.display().to_string();
    for args in [
        vec!["init", git_text.as_str()],
        vec!["-C", git_text.as_str(), "keys", "init", "--new-identity", "one.txt", "--new-identity", "two.txt"],
    ] {
        let output = hk_dr(&args).output().map_err(|e| failed("run hk-dr", e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(CliError::new(ExitKind::Failed, format!("hk-dr {args:?} failed: {said}")));
        }
    }
    let declaration = git.join("cluster.yaml");
    // The S3 server of this bench knows one region, and signatures name it.
    std::fs::read_to_string(&declaration)
        .and_then(|text| std::fs::write(&declaration, in_region(&text, &bucket.region)))
        .map_err(|e| failed("declare the bucket's region", e))?;
    policies(&git)?;
    let mut serve = hk_dr(&["-C", git_text.as_str(), "--identity", "one.txt", "serve", "--listen", "127.0.0.1:0"]);
    let child =
        serve.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(|e| failed("start the service", e))?;
    let mut serving = Serving(child);
    let url = address(&mut serving)?;
    context.block_on(ready(&format!("{url}readyz")))?;
    pause(WARM_UP, context);
    let before = ticks(serving.0.id())?;
    let begun = Instant::now();
    pause(MEASURED, context);
    let core = (ticks(serving.0.id())? - before) / TICKS / begun.elapsed().as_secs_f64() * 100.0;
    let (resident, own) = (memory_mib(serving.0.id(), "VmRSS:")?, memory_mib(serving.0.id(), "RssAnon:")?);
    eprintln!("  {own:.1} MiB of it are its own; the rest is the program's file, which an optimised build halves");
    Ok(vec![resident, core])
}

fn in_region(declaration: &str, region: &str) -> String {
    let lines = declaration.lines().map(|line| match line.split_once("region: ") {
        Some((indent, _)) => format!("{indent}region: {region}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

fn pause(time: Duration, context: &Context) {
    context.block_on(async { tokio::time::sleep(time).await });
}

fn policies(git: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(git.join("policies")).map_err(|e| failed("make policies/", e))?;
    for (name, text) in crate::config::SHIPPED_POLICIES.iter().filter(|(name, _)| POLICIES.contains(name)) {
        let text = text.replace("log: {}\n", "");
        std::fs::write(git.join("policies").join(format!("{name}.yaml")), text)
            .map_err(|e| failed("write a policy", e))?;
    }
    Ok(())
}

/// What its first line says.
fn address(serving: &mut Serving) -> Result<String, CliError> {
    let said = serving.0.stderr.take().map(BufReader::new);
    let mut all = String::new();
    for line in said.into_iter().flat_map(|reader| reader.lines().take(20)).map_while(Result::ok) {
        if let Some((_, url)) = line.split_once("; http://") {
            return Ok(format!("http://{url}"));
        }
        all.push_str(&line);
    }
    Err(CliError::new(ExitKind::Failed, format!("the service did not begin: {all}")))
}

async fn ready(url: &str) -> Result<(), CliError> {
    let begun = Instant::now();
    while begun.elapsed() < READY_WITHIN {
        if reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(CliError::new(ExitKind::Failed, "the service was not ready within a minute"))
}

/// Processor time so far, in ticks.
fn ticks(process: u32) -> Result<f64, CliError> {
    let text =
        std::fs::read_to_string(format!("/proc/{process}/stat")).map_err(|e| failed("look at the service", e))?;
    // Behind the name, which may hold anything: state is the first field, user and system time the 12th and 13th.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(f64::NAN);
    Ok(field(11) + field(12))
}

/// What the kernel counts as this process's memory, of one kind.
fn memory_mib(process: u32, kind: &str) -> Result<f64, CliError> {
    let text =
        std::fs::read_to_string(format!("/proc/{process}/status")).map_err(|e| failed("look at the service", e))?;
    let kib = text.lines().find_map(|line| line.strip_prefix(kind)?.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(kib.map_or(f64::NAN, |kib: f64| kib / 1024.0))
}
