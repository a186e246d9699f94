use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::backup::log::{CutRule, ShipRequest, ship};
use crate::backup::{
    Catalog, CompactRequest, Compression, Entry, Identities, Manifest, compact, plan_pruning, prune, verify,
};
use crate::cli::connect::Connected;
use crate::cli::drive::{Manner, draw_and_execute};
use crate::cli::members::FollowedEtcd;
use crate::cli::snapshot::take::{Takes, take_now};
use crate::cli::{CliError, Context, ExitKind, certificates, resume, runbook};
use crate::config::{Action, Approval, LogPolicy, RecoveryPointChoice, RetentionConfig};
use crate::drill::{Evidence, Verdict, any_api};
use crate::journal::{RunStatus, StepState, mirrored_runs, read_mirrored};
use crate::plan::Plan;
use crate::plan::schedule::draw;
use crate::ports::{ErrorCode, Kube, PortError, PortResult, Reading};
use crate::runs::Runs;
use crate::serve::{Gauges, Order, Report, RunView, Work};
use crate::steps::Mark;

/// Runs that are looked through for those that have not ended.
const RUNS_MAX: usize = 20;

/// Machines are asked for their certificates so often, and for so long.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(3600);
const CERTIFICATES_WITHIN: Duration = Duration::from_secs(30);

/// A dead operator's right to the cluster is waited for so often, and so long each time.
const RESUME_TRIES: u32 = 10;
const RESUME_PAUSE: Duration = Duration::from_secs(15);

/// Does what the commands do, with what the commands call.
pub(super) struct Commands {
    pub(super) context: Context,
    pub(super) connected: Connected,
    /// What stays when snapshots are pruned.
    retention: RetentionConfig,
    /// What stays when backups of volumes are.
    pub(super) volume_retention: RetentionConfig,
    /// The API that took the canary last.
    api: tokio::sync::Mutex<Option<Arc<dyn Kube>>>,
    /// When the first one ends, and when that was asked.
    certificates: tokio::sync::Mutex<Option<(Instant, Option<jiff::Timestamp>)>>,
}

impl Commands {
    pub fn new(
        context: &Context,
        connected: Connected,
        retention: RetentionConfig,
        volume_retention: RetentionConfig,
    ) -> Self {
        let context = Context::new(context.global.clone());
        Self {
            context,
            connected,
            retention,
            volume_retention,
            api: tokio::sync::Mutex::default(),
            certificates: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn cluster(&self) -> &str {
        &self.connected.declared.cluster.name
    }

    async fn newest(&self) -> PortResult<Vec<Entry>> {
        Ok(Catalog::new(self.connected.store.as_ref(), self.cluster()).list().await?.0)
    }

    async fn take(&self, order: &Order) -> PortResult<Report> {
        // An attempt that died after its snapshot was whole has done its work.
        let there = match order.attempt {
            1 => None,
            _ => self.newest().await?.into_iter().map(|e| e.manifest).find(|m| m.taken_at >= order.began),
        };
        let manifest = match there {
            Some(manifest) => manifest,
            None => take_now(&self.connected, Reading::Unhurried, &Arc::default()).await?.manifest,
        };
        let mut note = format!("snapshot {} of revision {}", manifest.id, manifest.revision);
        if order.schedule.verify {
            self.read_back(&manifest).await?;
            note += ", read back";
        }
        Ok(Report { good: true, run: None, note })
    }

    async fn read_back(&self, manifest: &Manifest) -> PortResult<u64> {
        let identities = Identities::load_given(self.context.global.identity.as_deref())?;
        let scratch = self.context.state_dir().join("scratch");
        let clock = self.connected.world.clock.as_ref();
        Ok(verify(self.connected.store.as_ref(), manifest, &identities, &scratch, clock).await?.keys)
    }

    /// The snapshot that the schedule means: the newest, or one drawn by the run's name.
    async fn chosen(&self, order: &Order) -> PortResult<Entry> {
        let mut entries = self.newest().await?;
        if entries.is_empty() {
            let message = format!("the bucket holds no snapshot of cluster {}", self.cluster());
            return Err(
                PortError::new(ErrorCode::NotFound, message).hint("nothing was done; `hk-dr snapshot` takes one")
            );
        }
        let drawn = match order.schedule.point {
            RecoveryPointChoice::Latest => 0,
            RecoveryPointChoice::Random => draw(&order.key(), u64::try_from(entries.len()).unwrap_or(1)),
        };
        Ok(entries.swap_remove(usize::try_from(drawn).unwrap_or_default()))
    }

    async fn prune(&self) -> PortResult<Report> {
        let store = self.connected.store.as_ref();
        let now = self.connected.world.clock.now();
        let pruning = plan_pruning(store, self.cluster(), &self.retention, now).await?;
        let gone = pruning.decisions.iter().filter(|decision| !decision.keep).count();
        let kept = pruning.decisions.len() - gone;
        let objects = prune(store, &pruning).await?;
        let mut note = format!(
            "{gone} snapshots and {} segments of the log removed ({objects} objects), {kept} snapshots kept",
            pruning.segments
        );
        if !pruning.unreadable.is_empty() {
            note += &format!("; {} manifests cannot be read and are kept", pruning.unreadable.len());
        }
        Ok(Report { good: true, run: None, note })
    }

    async fn verify(&self, order: &Order) -> PortResult<Report> {
        let entry = self.chosen(order).await?;
        let keys = self.read_back(&entry.manifest).await?;
        Ok(Report {
            good: true,
            run: None,
            note: format!("snapshot {} reads back whole, {keys} keys", entry.manifest.id),
        })
    }

    async fn compact(&self) -> PortResult<Report> {
        let archive = self.connected.archive(&self.context).map_err(port)?;
        let made = compact(&CompactRequest {
            archive: &archive,
            point: crate::backup::log::Point::Latest,
            recipients: &self.connected.declared.recipients,
            clock: self.connected.world.clock.as_ref(),
            compression: Compression::default(),
        })
        .await?;
        let note = match made {
            Ok(manifest) => format!("snapshot {} made of the log, revision {}", manifest.id, manifest.revision),
            Err(id) => format!("snapshot {id} holds the log's end already"),
        };
        Ok(Report { good: true, run: None, note })
    }

    /// The run that another instance began, perhaps elsewhere: each run's plan and journal are in the bucket.
    async fn begun_before(&self, order: &Order) -> PortResult<Option<String>> {
        let store = self.connected.world.store.as_ref();
        let ids = mirrored_runs(store, self.cluster()).await?;
        for id in ids.into_iter().rev().filter(|id| *id >= planned_since(order)) {
            let there = read_mirrored(store, self.cluster(), &id).await?;
            if serde_json::from_slice::<Plan>(&there.plan).is_ok_and(|plan| is_of(&plan, order)) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// On a thread of its own: the command's function brings its own runtime. The process does not wait for it when it ends.
    async fn rehearse(&self, order: &Order) -> PortResult<Report> {
        let begun = if order.attempt > 1 { self.begun_before(order).await? } else { None };
        let snapshot = match order.schedule.point {
            RecoveryPointChoice::Latest => None,
            RecoveryPointChoice::Random => Some(self.chosen(order).await?.manifest.id),
        };
        let context = Context::new(self.context.global.clone());
        let (order, cluster) = (order.clone(), self.cluster().to_owned());
        let (tell, told) = tokio::sync::oneshot::channel();
        let begun = std::thread::Builder::new().name("runbook".to_owned()).spawn(move || {
            // Whoever waited may be gone: the run's evidence says it too.
            let _ = tell.send(rehearse(&context, &cluster, &order, begun, snapshot));
        });
        begun.map_err(|e| PortError::new(ErrorCode::Local, format!("no thread for the runbook: {e}")))?;
        let died =
            |_| PortError::new(ErrorCode::Local, "the runbook's run died by a defect; `hk-dr resume` continues it");
        told.await.map_err(died)?
    }
}

/// Runs of this order have names from here on: they are named by the time at which they were planned.
fn planned_since(order: &Order) -> String {
    order.began.strftime("%Y%m%dt%H%M%S").to_string()
}

fn is_of(plan: &Plan, order: &Order) -> bool {
    plan.runbook.as_ref().is_some_and(|run| Some(&run.runbook.name) == order.turn.runbook.as_ref())
}

/// Finishes what a process began that died. Its right to the cluster runs out a little later than it was found dead.
fn finish(run: &str, context: &Context) -> Result<(), CliError> {
    let mut result = Ok(());
    for tried in 0..RESUME_TRIES {
        if tried > 0 {
            context.block_on(async { tokio::time::sleep(RESUME_PAUSE).await });
        }
        result = resume::run(resume::Args::of(run.to_owned()), context);
        if !result.as_ref().is_err_and(|error| error.kind == ExitKind::Failed) {
            break;
        }
    }
    result
}

fn rehearse(
    context: &Context,
    cluster: &str,
    order: &Order,
    elsewhere: Option<String>,
    snapshot: Option<String>,
) -> PortResult<Report> {
    let name = order.turn.runbook.as_deref().unwrap_or_default();
    let runs = Runs::of(&context.state_dir(), cluster);
    let since = planned_since(order);
    let own = |runs: &Runs| -> PortResult<Option<String>> {
        let mut ids = runs.ids()?;
        ids.retain(|id| id.as_str() >= since.as_str());
        Ok(ids.into_iter().rev().find(|id| runs.open(id).plan().is_ok_and(|plan| is_of(&plan, order))))
    };
    let begun = if order.attempt > 1 { own(&runs)?.max(elsewhere) } else { None };
    let result = match begun {
        Some(run) => finish(&run, context),
        None => {
            // A run of such a schedule is ordered when it was approved.
            let approved = order.schedule.approval == Approval::Required;
            let wanted = runbook::scheduled(&order.turn, snapshot, approved, context).map_err(port)?;
            draw_and_execute(context, &wanted, &Manner { yes: true, step: false }).map(|_| ())
        }
    };
    let run = own(&runs)?;
    let evidence = run.as_ref().and_then(|run| {
        let text = std::fs::read(runs.open(run).file("evidence.json")).ok()?;
        serde_json::from_slice::<Evidence>(&text).ok()
    });
    match (result, evidence) {
        (Ok(()), None) => Ok(Report { good: true, run, note: format!("runbook {name} had nothing to do") }),
        (_, Some(evidence)) => {
            let time = evidence.recovery.seconds.map_or_else(|| "not measured".into(), |s| format!("{s:.1} s"));
            let why = evidence.reasons.first().cloned().unwrap_or_default();
            let note = format!("{name} {:?}, recovery time {time}: {why}", evidence.verdict).to_lowercase();
            Ok(Report { good: evidence.verdict == Verdict::Passed, run, note })
        }
        (Err(error), None) => Err(port(error)),
    }
}

#[async_trait]
impl Work for Commands {
    async fn perform(&self, order: &Order) -> PortResult<Report> {
        match order.schedule.action {
            Action::SnapshotTake => self.take(order).await,
            Action::SnapshotVerify => self.verify(order).await,
            Action::SnapshotPrune => self.prune().await,
            Action::LogCompact => self.compact().await,
            Action::RunbookRun => self.rehearse(order).await,
            Action::VolumeBackup => self.back_volumes_up(order).await,
            Action::VolumeVerify => self.verify_volumes(order).await,
            Action::VolumePrune => self.prune_volumes().await,
        }
    }

    async fn ship(&self, log: &LogPolicy, stop: CancellationToken) -> PortResult<()> {
        let etcd = FollowedEtcd::find(&self.connected).await?;
        let cluster = self.cluster();
        let request = ShipRequest {
            cluster,
            etcd: &etcd,
            store: Arc::clone(&self.connected.store),
            recipients: &self.connected.declared.recipients,
            clock: Arc::clone(&self.connected.world.clock),
            new_base: &Takes(&self.connected),
            holder: super::holder(),
            spool: self.context.state_dir().join("spool").join(cluster),
            spool_limit_bytes: u64::from(log.spool_mib) << 20,
            cut: CutRule {
                bytes: (log.segment_kib as usize) << 10,
                after: Duration::from_millis(log.segment_milliseconds.into()),
            },
            event: &|event| super::tell(&crate::cli::log::tell(&event)),
        };
        ship(&request, async move { stop.cancelled().await }).await.map(|_| ())
    }

    async fn mark(&self, mark: Mark) -> PortResult<()> {
        let mut known = self.api.lock().await;
        let api = match known.take() {
            Some(api) => api,
            None => any_api(&self.connected.world).await?,
        };
        // One that failed is looked for anew next time: another master may answer.
        mark.write(api.as_ref()).await?;
        *known = Some(api);
        Ok(())
    }

    fn running(&self) -> Vec<RunView> {
        let runs = Runs::of(&self.context.state_dir(), self.cluster());
        let ids = runs.ids().unwrap_or_default();
        ids.iter().rev().take(RUNS_MAX).filter_map(|id| running(&runs, id)).collect()
    }

    async fn gauges(&self) -> Gauges {
        let mut known = self.certificates.lock().await;
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() >= CERTIFICATES_EVERY) {
            let asked = tokio::time::timeout(CERTIFICATES_WITHIN, certificates::ask(&self.connected.world)).await;
            // Machines that don't answer have no certificate that would be known.
            let all = asked.ok().and_then(Result::ok).unwrap_or_default();
            let ends = all.into_iter().filter_map(|(_, found)| found.ok()).flatten().map(|found| found.until).min();
            *known = Some((Instant::now(), ends));
        }
        let certificate_ends = known.as_ref().and_then(|(_, ends)| *ends);
        Gauges { cloud_requests_left: Some(self.connected.hetzner.requests_left()), certificate_ends }
    }
}

fn running(runs: &Runs, id: &str) -> Option<RunView> {
    let dir = runs.open(id);
    let plan = dir.plan().ok()?;
    let (events, state) = dir.replay(&plan).ok()?;
    if state.status() != RunStatus::Open {
        return None;
    }
    let what =
        plan.runbook.as_ref().map_or_else(|| format!("{:?}", plan.purpose).to_lowercase(), |r| r.runbook.name.clone());
    let word = |id: &str| match state.step(id) {
        None | Some(StepState::Waiting) => "waiting",
        Some(StepState::Started { .. }) => "running",
        Some(StepState::Failed { .. }) => "failed",
        Some(StepState::Finished { .. }) => "done",
    };
    let steps = plan.steps.iter().map(|step| (step.title.clone(), word(&step.id))).collect();
    Some(RunView { id: id.to_owned(), what, began: events.first().map(|e| e.at), steps })
}

/// What a command would have said, for the book and the notification.
pub(super) fn port(error: CliError) -> PortError {
    let message = if error.message.is_empty() { "it did not pass".to_owned() } else { error.message };
    let port = PortError::new(ErrorCode::Invalid, message);
    if error.hints.is_empty() { port } else { port.hint(error.hints.join("; ")) }
}
