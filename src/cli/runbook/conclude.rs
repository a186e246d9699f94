//! Canaries around a run, and its evidence after it.

use std::time::Duration;

use crate::cli::connect::Connected;
use crate::cli::{CliError, Context, ExitKind};
use crate::drill::{
    Attempt, Canaries, Circumstances, Evidence, Link, Pulse, Verdict, any_api, evidence, read_canaries,
    remove_canaries, survivors,
};
use crate::plan::{APPROVAL, Plan, works_on_copy};
use crate::ports::{PortResult, PutCondition};
use crate::report::{digest, run_page};
use crate::runs::{RunDir, Runs};
use crate::steps::Mark;

/// How long the first canary may take before the run goes on without.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
const EVIDENCE_FILE: &str = "evidence.json";
const EVIDENCE_BYTES_MAX: u64 = 8 << 20;
/// Beside the run's journal: the service's canary as it was when the run began.
const MARK_FILE: &str = "canary.json";
const REPORT_FILE: &str = "report.html";

/// A run that is measured.
pub struct Measured {
    canaries: Option<Canaries>,
}

impl Measured {
    /// Starts the canaries. Where none is acknowledged, the run goes on: a cluster that is down is to be brought back.
    pub async fn begin(context: &Context, connected: &Connected, plan: &Plan, dir: &RunDir) -> Self {
        if on_copy(plan) {
            note_mark(connected, plan, dir).await;
            return Self::of_a_copy();
        }
        // Nobody knows how long a person takes: until then nothing is written.
        let held = plan.steps.iter().any(|step| step.id == APPROVAL)
            && dir.replay(plan).is_ok_and(|(_, state)| !state.is_finished(APPROVAL));
        let canaries = match Canaries::start(&connected.world, &plan.id, &dir.file("canaries.jsonl"), held) {
            Ok(mut canaries) => {
                if !held && !canaries.first(FIRST_WITHIN).await && !context.global.quiet {
                    eprintln!("note: no API server acknowledges writes now; canaries begin when one does");
                }
                Some(canaries)
            }
            Err(error) => {
                if !context.global.quiet {
                    eprintln!("note: {error}; what is lost will not be measured");
                }
                None
            }
        };
        Self { canaries }
    }

    /// Nothing is written into production for a rehearsal beside it.
    pub fn of_a_copy() -> Self {
        Self { canaries: None }
    }

    /// What the run is to know of its canaries; none: none are written.
    pub fn pulse(&self) -> Option<Pulse> {
        self.canaries.as_ref().map(Canaries::pulse)
    }

    /// Ends the canaries, counts them, draws up the evidence, keeps it here and in the bucket, and says how it was.
    pub async fn conclude(
        self,
        context: &Context,
        connected: &Connected,
        plan: &Plan,
        dir: &RunDir,
        ended: bool,
    ) -> Result<(), CliError> {
        if let Some(canaries) = self.canaries {
            canaries.stop().await;
        }
        let attempts = read_canaries(&dir.file("canaries.jsonl")).unwrap_or_default();
        let there = if on_copy(plan) { None } else { survivors(&connected.world, &plan.id).await.ok() };
        let previous = previous(connected, plan).await.unwrap_or_else(|error| {
            if !context.global.quiet {
                eprintln!("warning: the evidence follows none, the one before could not be read: {error}");
            }
            None
        });
        let evidence = draw_up(connected, plan, dir, &attempts, there.as_ref(), previous)?;
        let text = serde_json::to_vec_pretty(&evidence)
            .map_err(|e| CliError::new(ExitKind::Failed, format!("the evidence can't be written as JSON: {e}")))?;
        let path = dir.file(EVIDENCE_FILE);
        let kept = crate::secrets::write_file(&path, 0o600, &text, true);
        // A run that is taken up again needs its canaries; otherwise nothing of the measurement stays in the cluster.
        if ended && let Some(there) = &there {
            let _ = remove_canaries(&connected.world, there).await;
        }
        let page = run_page(&evidence, &text).into_bytes();
        let page_kept = crate::secrets::write_file(&dir.file(REPORT_FILE), 0o600, &page, true);
        for (name, content) in [(EVIDENCE_FILE, text), (REPORT_FILE, page)] {
            let key = format!("{}/runs/{}/{name}", plan.cluster, plan.id);
            if let Err(error) = connected.world.store.put(&key, content.into(), PutCondition::Any).await
                && !context.global.quiet
            {
                eprintln!("warning: {name} of this run is not in the bucket: {error}");
            }
        }
        kept.and(page_kept)?;
        if !ended {
            return Ok(());
        }
        say(context, &evidence, &path.display().to_string());
        if evidence.verdict == Verdict::Passed {
            return Ok(());
        }
        Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None })
    }
}

/// Whether a plan works on a copy of the cluster.
pub fn on_copy(plan: &Plan) -> bool {
    plan.runbook.as_ref().is_some_and(|r| works_on_copy(&r.runbook))
}

/// The newest evidence in the bucket of a run before this one: runs are named by the time at which they were planned.
async fn previous(connected: &Connected, plan: &Plan) -> PortResult<Option<Link>> {
    let (store, prefix) = (&connected.world.store, format!("{}/runs/", plan.cluster));
    let runs = store.list(&prefix).await?.into_iter().filter_map(|object| {
        let run = object.key.strip_prefix(&prefix)?.strip_suffix(&format!("/{EVIDENCE_FILE}"))?;
        (run < plan.id.as_str()).then(|| run.to_owned())
    });
    let Some(run) = runs.max() else { return Ok(None) };
    let document = store.get(&format!("{prefix}{run}/{EVIDENCE_FILE}"), EVIDENCE_BYTES_MAX).await?;
    Ok(Some(Link { run, sha256: digest(&document) }))
}

/// Notes the service's canary as production has it when a rehearsal beside it begins. Reads only; where nothing can be read,
/// the age of the snapshot has to do.
async fn note_mark(connected: &Connected, plan: &Plan, dir: &RunDir) {
    let is_new = dir.replay(plan).is_ok_and(|(events, _)| events.is_empty());
    if !is_new || dir.file(MARK_FILE).exists() {
        return;
    }
    let read = async { Mark::read(any_api(&connected.world).await.ok()?.as_ref()).await.ok()? };
    if let Ok(Some(mark)) = tokio::time::timeout(FIRST_WITHIN, read).await
        && let Ok(text) = serde_json::to_vec(&mark)
    {
        // What can't be kept is not measured by.
        let _ = crate::secrets::write_file(&dir.file(MARK_FILE), 0o600, &text, true);
    }
}

fn noted_mark(dir: &RunDir) -> Option<Mark> {
    serde_json::from_slice(&std::fs::read(dir.file(MARK_FILE)).ok()?).ok()
}

fn draw_up(
    connected: &Connected,
    plan: &Plan,
    dir: &RunDir,
    attempts: &[Attempt],
    survivors: Option<&std::collections::BTreeSet<String>>,
    previous: Option<Link>,
) -> Result<Evidence, CliError> {
    let (events, _) = dir.replay(plan)?;
    Ok(evidence(
        plan,
        &events,
        &Circumstances {
            cluster: &connected.world.cluster,
            started_by: who(),
            git_commit: connected.declared.git_commit.clone(),
            attempts,
            survivors,
            previous,
            mark: noted_mark(dir),
        },
    ))
}

/// The person and the machine, for people.
pub fn who() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".into());
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", machine.trim())
}

fn say(context: &Context, evidence: &Evidence, path: &str) {
    if context.global.json {
        println!("{}", serde_json::json!(evidence));
        return;
    }
    let verdict = match evidence.verdict {
        Verdict::Passed => "PASSED",
        Verdict::Failed => "FAILED",
        Verdict::Inconclusive => "INCONCLUSIVE",
    };
    println!("{verdict}: {} on cluster {} (run {})", evidence.runbook, evidence.cluster, evidence.run);
    for reason in &evidence.reasons {
        println!("  · {reason}");
    }
    let number = |value: Option<f64>| value.map_or_else(|| "not measured".to_owned(), |s| format!("{s:.1} s"));
    println!(
        "Recovery time   {:>10}   from the first stop, or the beginning, to an acknowledged write",
        number(evidence.recovery.seconds)
    );
    println!("Recovery point  {:>10}   age of what was lost", number(evidence.recovery_point.seconds));
    if evidence.copy.is_some() {
        println!("Evidence        {path}");
        return;
    }
    println!(
        "Writes          {:>10}   of {} acknowledged; longest gap {}",
        evidence.writes.percent.map_or_else(|| "-".into(), |p| format!("{p:.1}%")),
        evidence.writes.attempted,
        number(evidence.writes.longest_gap_seconds)
    );
    println!("Evidence        {path}");
}

/// Seconds that finished runs of the same runbook took on this machine, oldest first.
pub fn earlier_runs(context: &Context, plan: &Plan) -> Vec<f64> {
    let Some(wanted) = plan.runbook.as_ref().map(|r| r.runbook.name.as_str()) else { return Vec::new() };
    let runs = Runs::of(&context.state_dir(), &plan.cluster);
    let mut seconds = Vec::new();
    for id in runs.ids().unwrap_or_default() {
        let Ok(text) = std::fs::read(runs.open(&id).file(EVIDENCE_FILE)) else { continue };
        let Ok(evidence) = serde_json::from_slice::<Evidence>(&text) else { continue };
        if evidence.runbook != wanted {
            continue;
        }
        let time = |text: &Option<String>| text.as_ref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        if let (Some(began), Some(ended)) = (time(&evidence.began), time(&evidence.ended)) {
            seconds.push(ended.duration_since(began).as_secs_f64());
        }
    }
    seconds
}
