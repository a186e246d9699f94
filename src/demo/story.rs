//! The story from the host's point of view: phases, their times, and the loss.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::loss::Vandal;
use super::proofs::Proofs;
use super::recovery::Recovered;
use super::report::{Phase, Report};
use super::stage::{CLUSTER_YAML, Stage};
use super::uses::Answered;
use super::{Check, DemoError};
use crate::config::Cluster;
use crate::ports::{Clock, SystemClock};

/// How long canaries go on after the snapshot, so that the loss has something to take.
const AFTER_SNAPSHOT: Duration = Duration::from_millis(2500);

/// Who watches.
pub trait Watcher: Send + Sync {
    /// A phase begins; `what` says what happens in it.
    fn begin(&self, phase: &str, what: &str);
    /// It ended.
    fn end(&self, phase: &str, seconds: f64);
}

struct Teller<'a> {
    stage: &'a Stage,
    watcher: &'a dyn Watcher,
    began: Instant,
    phases: Vec<Phase>,
}

/// Plays the story. `began` and `phases` are of what happened before: setting the stage.
///
/// # Errors
/// The story can't go on. A check that does not hold is in the report.
pub async fn tell(
    stage: &Stage,
    watcher: &dyn Watcher,
    began: Instant,
    phases: Vec<Phase>,
) -> Result<Report, DemoError> {
    let mut teller = Teller { stage, watcher, began, phases };
    teller.tell().await
}

impl Teller<'_> {
    async fn tell(&mut self) -> Result<Report, DemoError> {
        let cluster: Cluster = serde_saphyr::from_str(CLUSTER_YAML)
            .map_err(|e| DemoError::new(format!("the demo's cluster.yaml: {e}")))?;
        let stage = self.stage;
        let lost_location = cluster.masters.first().map(|m| m.location.clone()).unwrap_or_default();
        let notes = path(&stage.note("notes.json"));
        let canaries = path(&stage.note("canaries.jsonl"));
        let disk = path(&stage.note("forgotten-disk.tar.gz"));
        let mut checks = Vec::new();

        let build_began = SystemClock.now();
        let build = async {
            // A user waits for the cluster to take a pod; the build goes on beside.
            tokio::try_join!(stage.run(["build", "--yes"]), stage.run(["demo-probe", "web"]))
        };
        let (_, answered) =
            self.phase("build", "three masters in three locations, one worker, a web pod", build).await?;
        let answered: Answered = parse(&answered)?;
        let built = answered.said.starts_with("ok from ");
        checks.push(Check::new("pod answers from the network", built, answered.said));

        let use_it = stage.run(["demo-probe", "use", "--notes", &notes]);
        let used: Vec<Check> =
            parse(&self.phase("use", "Secrets, ConfigMaps, a token; canaries once a second", use_it).await?)?;
        checks.extend(used);
        let writer = stage.start(["demo-probe", "canaries", "--log", &canaries])?;

        let snapshot = async {
            wait_for_canaries(Path::new(&canaries)).await?;
            // Someone copies a disk and forgets it: it turns up again at the end.
            tokio::try_join!(stage.run(["snapshot"]), stage.run(["demo-probe", "keep-disk", "--to", &disk]))
        };
        self.phase("snapshot", "etcd and the recovery set, encrypted, into the bucket", snapshot).await?;
        tokio::time::sleep(AFTER_SNAPSHOT).await;

        let lost_at = SystemClock.now();
        let what = format!("every server, every volume, hk-dr's state, all of {lost_location}");
        let destroyed = self.phase("lose", &what, lose(stage, &lost_location)).await?;
        drop(writer);
        checks.push(destroyed);

        let rebuild_began = SystemClock.now();
        let rebuild = async { tokio::try_join!(stage.run(["rebuild", "--yes"]), stage.run(["demo-probe", "await"])) };
        let (_, recovered) = self.phase("rebuild", "from Git, the bucket and one identity", rebuild).await?;
        let recovered: Recovered = parse(&recovered)?;
        let detail = format!("{}; first write acknowledged by {}", recovered.pod_said, recovered.written_to);
        checks.push(Check::new(
            "pod answers from the network again",
            recovered.pod_said.starts_with("ok from "),
            detail,
        ));

        let lost_at_text = lost_at.to_string();
        let prove = self.prove(&notes, &canaries, &disk, &lost_at_text, &lost_location);
        let (proofs, old_member) = prove.await?;
        checks.extend(proofs.checks);
        checks.push(old_member);

        let since = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
        Ok(Report {
            ok: !checks.is_empty() && checks.iter().all(|check| check.ok),
            phases: std::mem::take(&mut self.phases),
            seconds: self.began.elapsed().as_secs_f64(),
            build_pod_seconds: since(build_began, answered.at),
            rto_seconds: since(lost_at, recovered.written_at),
            rto_pod_seconds: since(lost_at, recovered.pod_answered_at),
            rebuild_pod_seconds: since(rebuild_began, recovered.pod_answered_at),
            rpo_seconds: proofs.rpo_seconds,
            objects: proofs.objects,
            checks,
            versions: [
                ("hk-dr".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("Kubernetes".to_owned(), cluster.kubernetes.version),
                ("etcd".to_owned(), cluster.etcd.version),
            ]
            .into(),
        })
    }

    async fn prove(
        &mut self,
        notes: &str,
        canaries: &str,
        disk: &str,
        lost_at: &str,
        lost_location: &str,
    ) -> Result<(Proofs, Check), DemoError> {
        let stage = self.stage;
        let fetched = path(&stage.note("fetched"));
        let prove = async {
            let proofs = async {
                stage.run(["snapshot", "fetch", "latest", "--to", &fetched]).await?;
                let snapshot = path(&etcd_file(Path::new(&fetched))?);
                let arguments = [
                    "demo-probe",
                    "prove",
                    "--notes",
                    notes,
                    "--canaries",
                    canaries,
                    "--snapshot",
                    &snapshot,
                    "--lost-at",
                    lost_at,
                    "--lost-location",
                    lost_location,
                ];
                stage.run(arguments).await
            };
            tokio::try_join!(proofs, stage.run(["demo-probe", "forgotten-disk", "--disk", disk]))
        };
        let (proofs, check) =
            self.phase("prove", "every object, token, Secret and watch; a member from before", prove).await?;
        Ok((parse(&proofs)?, parse(&check)?))
    }

    async fn phase<T>(
        &mut self,
        name: &str,
        what: &str,
        work: impl Future<Output = Result<T, DemoError>>,
    ) -> Result<T, DemoError> {
        self.watcher.begin(name, what);
        let started = self.began.elapsed().as_secs_f64();
        let value = work.await?;
        let seconds = self.began.elapsed().as_secs_f64() - started;
        self.watcher.end(name, seconds);
        self.phases.push(Phase { name: name.to_owned(), started_seconds: started, seconds });
        Ok(value)
    }
}

async fn lose(stage: &Stage, location: &str) -> Result<Check, DemoError> {
    let vandal =
        Vandal::new(format!("http://{}", stage.lab.api_published), SecretString::from(stage.lab.token.clone()))?;
    vandal.close_location(location).await?;
    let destroyed = vandal.destroy_everything().await?;
    let state = stage.state();
    std::fs::remove_dir_all(&state).map_err(|e| DemoError::io(format!("remove {}", state.display()), &e))?;
    let detail = format!(
        "{} and {} volumes, hk-dr's state directory, location {location}",
        destroyed.servers.join(", "),
        destroyed.volumes
    );
    Ok(Check::new(
        "everything was lost",
        !destroyed.servers.is_empty() && destroyed.volumes > 0 && !state.exists(),
        detail,
    ))
}

/// Until canaries flow.
async fn wait_for_canaries(log: &Path) -> Result<(), DemoError> {
    let end = Instant::now() + Duration::from_secs(20);
    while super::canary::read(log).map_or(0, |canaries| canaries.len()) < 2 {
        if Instant::now() > end {
            return Err(DemoError::new("no canary was acknowledged within 20 s"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn etcd_file(dir: &Path) -> Result<std::path::PathBuf, DemoError> {
    let entries = std::fs::read_dir(dir).map_err(|e| DemoError::io(format!("read {}", dir.display()), &e))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|p| p.to_string_lossy().ends_with(".etcd.db"))
        .ok_or_else(|| DemoError::new(format!("no etcd snapshot was fetched into {}", dir.display())))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn parse<T: DeserializeOwned>(output: &[u8]) -> Result<T, DemoError> {
    serde_json::from_slice(output).map_err(|e| {
        DemoError::new(format!("a probe answered with something else: {e}: {:.200}", String::from_utf8_lossy(output)))
    })
}
