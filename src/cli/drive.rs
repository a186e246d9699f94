//! Takes a plan to its end: shows it, asks, executes it through the journal, and plans anew when a location turns out to
//! have no capacity.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::connect::Connected;
use super::display::StepLines;
use super::hold::{Held, hold};
use super::runbook::{Measured, on_copy};
use super::{CliError, Context, ExitKind};
use crate::config::{Cluster, OnFailure};
use crate::drawing::{Course, DrawError, Wanted, draw_plan, world_of};
use crate::drill::{Pulse, Vigil};
use crate::engine::{Engine, Run, RunError};
use crate::journal::{Body, Event, FileJournal, JournalError, Mirror, MirroredJournal, RunState};
use crate::plan::{
    DestroyChoice, Plan, PlanError, Purpose, RebuildChoice, RunbookChoice, RunbookRun, may_begin, may_go_elsewhere,
};
use crate::ports::ErrorCode;
use crate::runs::{RunDir, Runs, other_version};
use crate::steps::{Cleaned, Registry};

/// Plans of one run that may replace one another: one per location that fails, and one to spare.
const PLANS_MAX: usize = 8;
/// How long the end of a run may be held up for the bucket to get the rest of its journal.
const MIRRORED_WITHIN: Duration = Duration::from_secs(10);

/// Observes and plans. Touches nothing.
pub async fn draw(connected: &Connected, wanted: &Wanted, course: &Course) -> Result<Plan, CliError> {
    let now = connected.world.clock.now();
    let plan_id = format!("{}-{:06x}", now.strftime("%Y%m%dt%H%M%S"), rand::random::<u32>() >> 8);
    draw_plan(&connected.world, &connected.ssh_public_key, wanted, course, &plan_id).await.map_err(|e| match e {
        DrawError::Port(error) => error.into(),
        DrawError::Plan(error) => refused(error),
    })
}

/// What a plan that was given up has made: nobody should have to find it out from the cloud's console.
fn made(plan: &Plan, dir: &RunDir) -> Result<Vec<String>, CliError> {
    let events = FileJournal::read(&dir.journal()).map_err(|e| stopped(plan, e.into()))?;
    let state = RunState::replay(plan, &events).map_err(|e| stopped(plan, e.into()))?;
    let created = plan.steps.iter().filter(|step| step.kind.ends_with(".create") && state.is_finished(&step.id));
    Ok(created.map(|step| step.title.clone()).collect())
}

/// Says what earlier plans of the same command left, when there is no further plan.
fn left_behind(error: CliError, made: &[String]) -> CliError {
    if made.is_empty() {
        return error.hint("nothing was created");
    }
    error
        .hint(format!("done before and kept: {}", made.join(", ")))
        .hint("`hk-dr plan` shows what is missing; a further build or rebuild uses what is there")
}

fn refused(error: PlanError) -> CliError {
    let message = error.to_string();
    match error {
        PlanError::NoLocation { .. } => CliError::new(ExitKind::Capacity, message)
            .hint("add a location to fallbackLocations, or wait and run again"),
        PlanError::Foreign(_) => CliError::new(ExitKind::Failed, message)
            .hint("nothing was touched; rename or remove what is in the way, or choose another cluster name"),
        PlanError::DataExists { volumes, .. } => {
            let mut cli = CliError::new(ExitKind::Failed, message)
                .hint("nothing was touched: building would found an empty cluster where this one can be brought back");
            if !volumes.is_empty() {
                let servers: String = volumes.iter().map(|v| format!(" --server {v}")).collect();
                cli = cli
                    .hint(format!("volumes with etcd's data exist: {}", volumes.join(", ")))
                    .hint(format!("`hk-dr runbook run masters-from-volumes{servers}` brings it back with all of it"));
            }
            cli.hint("`hk-dr rebuild` brings it back from a snapshot; for a new, empty cluster choose another name")
        }
        PlanError::Guard { hint, .. } => {
            CliError::new(ExitKind::Differs, message).hint("nothing was touched").hint(hint)
        }
        PlanError::Alive { .. } => CliError::new(ExitKind::Failed, message)
            .hint("nothing was touched: a rebuild deletes every server of the cluster and goes back to a snapshot")
            .hint("if that is what you want, pass --even-if-alive"),
        PlanError::Unbuildable { hint, .. } => CliError::new(ExitKind::Failed, message).hint(hint),
        PlanError::NoSnapshot { .. } => CliError::new(ExitKind::Data, message)
            .hint("nothing was touched; `hk-dr snapshot list` shows what there is"),
    }
}

/// How a plan is executed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Don't ask whether to begin.
    pub yes: bool,
    /// Ask before each step.
    pub step: bool,
}

/// Draws the plan, shows it, asks, and executes it. Returns the id of the last run.
pub fn draw_and_execute(context: &Context, wanted: &Wanted, manner: &Manner) -> Result<Option<String>, CliError> {
    let connected = super::connect::connect(context)?;
    context.block_on(async {
        // Held from before the first look: nobody changes what the plan is drawn from.
        let held = hold(context, &connected, &purpose(wanted), false).await?;
        let drawn = async {
            let plan = draw(&connected, wanted, &Course::default()).await?;
            if plan.steps.is_empty() {
                return Ok(None);
            }
            may_begin(&plan, connected.world.clock.now()).map_err(refused)?;
            confirm(context, &plan, manner)?;
            let runs = Runs::of(&context.state_dir(), &connected.world.cluster.name);
            let dir = runs.create(&plan, &connected.declared.text)?;
            follow(context, &connected, &held, wanted, plan, dir, manner).await.map(Some)
        };
        let result = drawn.await;
        held.release().await;
        result
    })
}

/// What others are told who want to change the cluster meanwhile.
fn purpose(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Build => "build".into(),
        Wanted::Rebuild(_) => "rebuild".into(),
        Wanted::Runbook(choice) => format!("runbook {}", choice.runbook.name),
        Wanted::Destroy(_) => "destroy".into(),
        Wanted::Abort(choice) => format!("abort {}", choice.plan.id),
        Wanted::Certificates { .. } => "certificates renew".into(),
        Wanted::Workers(_) => "workers".into(),
        Wanted::SshRotation { .. } => "keys rotate ssh".into(),
    }
}

/// Executes a plan that was shown and agreed to. Returns the id of the last run.
pub fn execute_drawn(
    context: &Context,
    connected: &Connected,
    wanted: &Wanted,
    plan: Plan,
    manner: &Manner,
) -> Result<String, CliError> {
    context.block_on(async {
        let held = hold(context, connected, &purpose(wanted), false).await?;
        let runs = Runs::of(&context.state_dir(), &connected.world.cluster.name);
        let result = match runs.create(&plan, &connected.declared.text) {
            Ok(dir) => follow(context, connected, &held, wanted, plan, dir, manner).await,
            Err(error) => Err(error.into()),
        };
        held.release().await;
        result
    })
}

/// Continues the run of a plan. Returns the id of the last run.
pub async fn resume(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: Plan,
    dir: RunDir,
) -> Result<String, CliError> {
    let wanted = match plan.purpose {
        Purpose::Build => Wanted::Build,
        // Whatever is planned anew asks again for what is still to be renewed.
        Purpose::Certificates => Wanted::Certificates { all: false },
        // It creates no server: it is never planned anew.
        Purpose::SshRotation => Wanted::SshRotation { before: String::new() },
        // The snapshot that was chosen then, whatever has been taken since.
        Purpose::Rebuild => Wanted::Rebuild(RebuildChoice { snapshot: plan.snapshot.clone(), even_if_alive: true }),
        // What was agreed to stands in the plan's steps; nothing of it is ever planned anew.
        Purpose::Destroy | Purpose::Abort => Wanted::Destroy(DestroyChoice::default()),
        Purpose::Runbook => {
            let run = plan.runbook.clone().ok_or_else(|| {
                CliError::new(
                    ExitKind::Data,
                    format!("the plan of run {} does not say which runbook it is of", plan.id),
                )
                .hint("nothing was touched; plan again with `hk-dr runbook plan`")
            })?;
            let RunbookRun { runbook, servers, snapshot, location, keep, cost: _ } = run;
            Wanted::Runbook(RunbookChoice {
                servers,
                snapshot,
                location,
                keep,
                ..RunbookChoice::new(runbook, Vec::new())
            })
        }
    };
    follow(context, connected, held, &wanted, plan, dir, &Manner::default()).await
}

/// Executes a plan and, when a location turns out to have no capacity, the plan that replaces it.
async fn follow(
    context: &Context,
    connected: &Connected,
    held: &Held,
    wanted: &Wanted,
    mut plan: Plan,
    mut dir: RunDir,
    manner: &Manner,
) -> Result<String, CliError> {
    let runs = Runs::of(&context.state_dir(), &connected.world.cluster.name);
    let mut course = Course::default();
    let mut all_made = Vec::new();
    for _ in 0..PLANS_MAX {
        let Err(failed) = measure(context, connected, held, &plan, &dir, manner).await? else {
            if plan.steps.iter().any(|s| s.kind == "ssh_key.revoke") {
                super::keys::rotation_ended(context, connected)?;
            }
            return Ok(plan.id);
        };
        let location = location_without_capacity(&plan, &failed);
        let copies = on_copy(&plan);
        if unwinds(&plan, &failed) && !(copies && location.is_some()) {
            return Err(super::abort::unwind(context, connected, held, &plan, &dir, failed).await);
        }
        let Some(location) = location else { return Err(stopped(&plan, failed)) };
        note(context, &format!("{location} has no capacity: planning again without it"));
        course.unavailable.insert(location);
        course.lineage = Some(plan.lineage.clone());
        course.parent = Some(plan.id.clone());
        all_made.extend(made(&plan, &dir)?);
        let next = match draw(connected, wanted, &course).await {
            Ok(next) => next,
            Err(error) if copies && unwinds(&plan, &failed) => {
                note(context, &error.message);
                Measured::of_a_copy().conclude(context, connected, &plan, &dir, false).await?;
                return Err(super::abort::unwind(context, connected, held, &plan, &dir, failed).await);
            }
            Err(error) => return Err(left_behind(error, &all_made)),
        };
        // The new run exists before the old one is given up: whenever this dies, one of them can be resumed.
        let next_dir = runs.create(&next, &connected.declared.text)?;
        abandon(connected, &plan, &dir, &format!("replaced by plan {}", next.id)).await?;
        (plan, dir) = (next, next_dir);
    }
    let gave_up = format!("gave up after {PLANS_MAX} plans: no location has capacity");
    Err(left_behind(CliError::new(ExitKind::Capacity, gave_up), &all_made))
}

/// Executes a plan; a runbook's run is measured meanwhile, and its evidence is drawn up. The inner error is the run's.
async fn measure(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: &Plan,
    dir: &RunDir,
    manner: &Manner,
) -> Result<Result<(), RunError>, CliError> {
    if plan.purpose != Purpose::Runbook {
        return Ok(execute(context, connected, held, plan, dir, manner).await);
    }
    let measured = Measured::begin(context, connected, plan, dir).await;
    let result = execute_watched(context, connected, held, plan, dir, manner, measured.pulse()).await;
    // What comes of a rehearsal that has to go elsewhere is said by the plan that replaces this one, or when there is none.
    if on_copy(plan) && result.as_ref().is_err_and(|failed| location_without_capacity(plan, failed).is_some()) {
        return Ok(result);
    }
    let concluded = measured.conclude(context, connected, plan, dir, result.is_ok()).await;
    match result {
        Ok(()) => concluded.map(Ok),
        // The run's own error is what a person must read first.
        Err(failed) => Ok(Err(failed)),
    }
}

/// Executes a plan from its run directory, from the beginning or from where it stopped.
pub(super) async fn execute(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: &Plan,
    dir: &RunDir,
    manner: &Manner,
) -> Result<(), RunError> {
    execute_watched(context, connected, held, plan, dir, manner, None).await
}

/// The same; a runbook's run may be ended by its canaries.
async fn execute_watched(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: &Plan,
    dir: &RunDir,
    manner: &Manner,
    pulse: Option<Pulse>,
) -> Result<(), RunError> {
    let (journal, events) = FileJournal::open(&dir.journal())?;
    let mut journal = super::crash::wrap(journal);
    // Who deletes all that the bucket has of the cluster does not write there meanwhile.
    let mirror = match plan.steps.iter().any(|s| s.kind == "backups.delete") {
        true => None,
        false => Some(Arc::new(mirror(connected, plan, dir, &events)?)),
    };
    if let Some(mirror) = &mirror {
        journal = Box::new(MirroredJournal { journal, mirror: Arc::clone(mirror) });
    }
    let mut run = Run::open(&plan.id, plan, journal, &events)?;
    let progress = Arc::new(StepLines::new(context, plan, manner.step));
    let (registry, mut gate) = (Arc::new(Registry::standard()), held.gate(context, mirror.clone()));
    if plan.purpose == Purpose::Runbook {
        let (clock, quiet) = (Arc::clone(&connected.world.clock), context.global.quiet);
        let say = move |text: &str| {
            if !quiet {
                eprintln!("note: {text}");
            }
        };
        gate = Vigil::over(gate, plan, &events, clock, pulse, Box::new(say));
    }
    let engine = Engine { registry, world: world_of(plan, &connected.world)?, progress, gate };
    let result = engine.execute(plan, &mut run).await;
    for finding in left_to_a_person(plan, dir) {
        note(context, &format!("note: {finding}"));
    }
    if let Some(mirror) = mirror
        && let Some(missing) = mirror.finish(MIRRORED_WITHIN).await
    {
        let kept = dir.journal();
        note(
            context,
            &format!(
                "warning: the bucket lacks the end of this run's journal, which is in {}: {missing}",
                kept.display()
            ),
        );
    }
    result
}

/// What the steps that cleaned up a restored cluster have found.
fn left_to_a_person(plan: &Plan, dir: &RunDir) -> Vec<String> {
    let cleaning = plan.steps.iter().filter(|s| matches!(s.kind.as_str(), "cluster.clean" | "cluster.settle"));
    let Ok((_, state)) = dir.replay(plan) else { return Vec::new() };
    let outputs = cleaning.filter_map(|step| serde_json::from_value::<Cleaned>(state.output(&step.id)?.clone()).ok());
    outputs.flat_map(|cleaned| cleaned.findings).collect()
}

fn mirror(connected: &Connected, plan: &Plan, dir: &RunDir, events: &[Event]) -> Result<Mirror, RunError> {
    let (text, declaration) = dir.texts()?;
    let (store, cluster) = (Arc::clone(&connected.world.store), &connected.declared.cluster.name);
    Ok(Mirror::start(store, cluster, &plan.id, text, declaration, events))
}

/// Records that a run will not be continued, here and in the bucket.
pub(super) async fn abandon(connected: &Connected, plan: &Plan, dir: &RunDir, reason: &str) -> Result<(), CliError> {
    let give_up = async {
        let (journal, events) = FileJournal::open(&dir.journal())?;
        let mirror = Arc::new(mirror(connected, plan, dir, &events)?);
        let journal = Box::new(MirroredJournal { journal: Box::new(journal), mirror: Arc::clone(&mirror) });
        let mut run = Run::open(&plan.id, plan, journal, &events)?;
        run.record(&connected.world, Body::RunAbandoned { reason: reason.to_owned() })?;
        // What the bucket lacks now, it gets when this place looks at the run again; nobody waits for that.
        let _ = mirror.finish(MIRRORED_WITHIN).await;
        Ok(())
    };
    give_up.await.map_err(|e| stopped(plan, e))
}

/// Whether the runbook wants its way back at once. A person who says no, and another operator, are no failure.
fn unwinds(plan: &Plan, error: &RunError) -> bool {
    // A copy that is to be looked at is most worth a look when something went wrong.
    matches!(error, RunError::Step { .. } | RunError::Ended(_))
        && plan.runbook.as_ref().is_some_and(|r| r.runbook.on_failure == OnFailure::Unwind && !r.keep)
}

fn location_without_capacity(plan: &Plan, error: &RunError) -> Option<String> {
    let RunError::Step { step, source, .. } = error else { return None };
    if source.code != ErrorCode::NoCapacity {
        return None;
    }
    may_go_elsewhere(plan, step).map(str::to_owned)
}

/// The error of a run that stopped midway.
pub fn stopped(plan: &Plan, error: RunError) -> CliError {
    let hint = match &error {
        RunError::Step { source, .. } | RunError::Refused { source, .. } | RunError::Ended(source) => {
            source.hint.clone()
        }
        _ => None,
    };
    let kind = match &error {
        RunError::Journal(JournalError::Busy { .. }) => ExitKind::Failed,
        RunError::Unknown(_) | RunError::Illegal(_) => ExitKind::Usage,
        _ => ExitKind::Incomplete,
    };
    let mut cli = CliError::new(kind, format!("run {} stopped: {error}", plan.id));
    cli.hints.extend(hint);
    if matches!(error, RunError::Unknown(_) | RunError::Illegal(_)) {
        // This version would only refuse it again.
        return cli.hint(other_version(&plan.id));
    }
    cli.hint(format!("what was done is recorded; `hk-dr resume {}` continues from here", plan.id))
}

/// Shows the plan and asks. Without a terminal, `--yes` is needed.
pub(super) fn confirm(context: &Context, plan: &Plan, manner: &Manner) -> Result<(), CliError> {
    let watched = std::io::stdin().is_terminal() && !context.global.json;
    if manner.step && !watched {
        return Err(CliError::new(ExitKind::Usage, "nobody can be asked here before each step")
            .hint("nothing was touched; leave --step out, or run it in a terminal"));
    }
    if manner.yes {
        return Ok(());
    }
    if !watched {
        return Err(CliError::new(ExitKind::Usage, "nobody can be asked here whether to go on")
            .hint("nothing was touched; look at the plan with `hk-dr plan`, then pass --yes"));
    }
    match plan.purpose {
        Purpose::Runbook => {
            eprint!("{}", super::runbook::render(plan, &super::runbook::earlier_runs(context, plan)));
        }
        _ => eprint!("{}", super::plan::render(plan)),
    }
    let question = match plan.purpose {
        Purpose::Build => "Go on?",
        Purpose::Rebuild => "This deletes what is left of the cluster's servers and restores a snapshot. Go on?",
        Purpose::Certificates | Purpose::SshRotation | Purpose::Runbook | Purpose::Destroy | Purpose::Abort => "Go on?",
    };
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| CliError::new(ExitKind::Usage, e.to_string()))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CliError::new(ExitKind::Failed, "not confirmed; nothing was touched"))
}

pub(super) fn note(context: &Context, text: &str) {
    if !context.global.quiet {
        eprintln!("{text}");
    }
}

/// The cluster as it was declared when a run began.
pub fn declared_then(path: &Path) -> Result<(Cluster, String), CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| CliError::new(ExitKind::Data, format!("cannot read {}: {e}", path.display())))?;
    Ok((super::validate::check(&text, &PathBuf::from(path))?, text))
}
