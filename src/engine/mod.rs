//! Executes a plan through the journal. It makes no choices: it starts every step whose needs have finished, several at a
//! time, records each intent before its effect, retries what may pass, and stops at what may not.

mod gate;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::journal::{Body, Event, IllegalTransition, JOURNAL_FORMAT, Journal, JournalError, RunState, RunStatus};
use crate::plan::{Plan, Step};
use crate::ports::{ErrorClass, ErrorCode, PortError};
use crate::steps::{Observed, Registry, StepContext, UnknownStep, World};

pub use gate::{Gate, Open};
pub use progress::{Progress, Silent};

/// Steps under way at once: enough for the slowest part (machines booting), few enough for the cloud's rate limit.
const STEPS_AT_ONCE: usize = 12;
/// Starts of one step in one process before the run stops.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_DELAY_FIRST_MS: u64 = 200;
const RETRY_DELAY_MAX_MS: u64 = 5_000;
/// How long what the planner saw counts as seen just now. A provider takes minutes to build a cluster.
const LOOK_LASTS_SECONDS: i64 = 15 * 60;

/// Why a run stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("step {step} ({title}): {source}")]
    Step { step: String, title: String, source: PortError },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Unknown(#[from] UnknownStep),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("step {0} was not permitted; it was not begun")]
    Declined(String),
    #[error("{title} was not begun: {source}")]
    Refused { title: String, source: PortError },
    /// See [`Gate::broken`].
    #[error("ended: {0}")]
    Ended(PortError),
    #[error("the plan can't be executed: step {0} waits for one that can't start")]
    Stuck(String),
}

/// Drives one run.
pub struct Engine {
    pub registry: Arc<Registry>,
    pub world: World,
    pub progress: Arc<dyn Progress>,
    /// Asked before each step.
    pub gate: Arc<dyn Gate>,
}

/// A run: its id, its journal, and the state the journal adds up to.
pub struct Run {
    pub id: String,
    pub state: RunState,
    journal: Box<dyn Journal>,
    version: &'static str,
}

impl Run {
    /// Begins a run, or takes one up again after the events that its journal holds.
    pub fn open(id: &str, plan: &Plan, journal: Box<dyn Journal>, events: &[Event]) -> Result<Self, RunError> {
        Ok(Self {
            id: id.to_owned(),
            state: RunState::replay(plan, events)?,
            journal,
            version: env!("CARGO_PKG_VERSION"),
        })
    }

    /// Makes an event durable, then counts it.
    pub fn record(&mut self, world: &World, body: Body) -> Result<(), RunError> {
        let event = Event {
            seq: self.state.next_seq(),
            at: world.clock.now(),
            format: JOURNAL_FORMAT,
            binary_version: self.version.to_owned(),
            body,
        };
        // Checked on a copy first: an illegal event must not reach the file.
        let mut next = self.state.clone();
        next.apply(&event)?;
        self.journal.append(&event)?;
        self.state = next;
        Ok(())
    }
}

type Ended = (usize, Result<(bool, Value), PortError>);

impl Engine {
    /// Executes what remains of the plan. After an error, steps that were under way are let finish and recorded.
    pub async fn execute(&self, plan: &Plan, run: &mut Run) -> Result<(), RunError> {
        for step in &plan.steps {
            self.registry.find(&step.kind, step.version)?;
        }
        // A run that is taken up again may have died between an effect and its record: it looks before it acts.
        let new = run.state.status() == RunStatus::New;
        match run.state.status() {
            RunStatus::Finished => return Ok(()),
            RunStatus::New => {
                run.record(&self.world, Body::RunStarted { run: run.id.clone(), plan: plan.id.clone() })?;
            }
            RunStatus::Open => run.record(&self.world, Body::RunResumed)?,
            RunStatus::Abandoned => {}
        }
        let plan = Arc::new(plan.clone());
        let mut running: JoinSet<Ended> = JoinSet::new();
        let mut attempts_here = vec![0_u32; plan.steps.len()];
        let mut under_way = vec![false; plan.steps.len()];
        let mut failure: Option<RunError> = None;
        let gate = Arc::clone(&self.gate);
        let mut broken = gate.broken();
        loop {
            if failure.is_none() {
                match self.start_ready(&plan, run, new, &mut running, &mut attempts_here, &mut under_way).await {
                    Err(no @ (RunError::Declined(_) | RunError::Refused { .. })) => failure = Some(no),
                    other => other?,
                }
            }
            let ended = tokio::select! {
                biased;
                ended = running.join_next() => ended,
                why = &mut broken, if failure.is_none() => {
                    running.abort_all();
                    failure = Some(RunError::Ended(why));
                    continue;
                }
            };
            let (index, result) = match ended {
                None => break,
                Some(Ok(ended)) => ended,
                // What became of it is found out by whoever takes the run up.
                Some(Err(error)) if error.is_cancelled() => continue,
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            };
            under_way[index] = false;
            let step = &plan.steps[index];
            match result {
                Ok((found, output)) => {
                    run.record(&self.world, Body::StepFinished { step: step.id.clone(), found, output })?;
                    self.progress.finished(step, found);
                }
                Err(source) => {
                    run.record(
                        &self.world,
                        Body::StepFailed {
                            step: step.id.clone(),
                            code: source.code,
                            message: source.message.clone(),
                            hint: source.hint.clone(),
                        },
                    )?;
                    let again = matches!(source.class(), ErrorClass::Transient | ErrorClass::Conflict)
                        && attempts_here[index] < ATTEMPTS_MAX;
                    self.progress.failed(step, &source, again);
                    if !again && failure.is_none() {
                        failure = Some(RunError::Step { step: step.id.clone(), title: step.title.clone(), source });
                    }
                }
            }
        }
        if let Some(RunError::Ended(why)) = &failure {
            for (step, _) in plan.steps.iter().zip(&under_way).filter(|(_, under_way)| **under_way) {
                run.record(
                    &self.world,
                    Body::StepFailed {
                        step: step.id.clone(),
                        code: why.code,
                        message: format!("left where it was: {}", why.message),
                        hint: None,
                    },
                )?;
                self.progress.failed(step, why, false);
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some((waiting, _)) = run.state.steps().find(|(id, _)| !run.state.is_finished(id)) {
            return Err(RunError::Stuck(waiting.to_owned()));
        }
        run.record(&self.world, Body::RunFinished)
    }

    async fn start_ready(
        &self,
        plan: &Arc<Plan>,
        run: &mut Run,
        new: bool,
        running: &mut JoinSet<Ended>,
        attempts_here: &mut [u32],
        under_way: &mut [bool],
    ) -> Result<(), RunError> {
        for (index, step) in plan.steps.iter().enumerate() {
            let at_once = if self.progress.one_by_one() { 1 } else { STEPS_AT_ONCE };
            if running.len() >= at_once {
                break;
            }
            if under_way[index] {
                continue;
            }
            let Some(attempt) = run.state.next_attempt(&step.id) else { continue };
            if !self.progress.permits(step) {
                return Err(RunError::Declined(step.title.clone()));
            }
            let entered = self.gate.enter(step).await;
            entered.map_err(|source| RunError::Refused { title: step.title.clone(), source })?;
            run.record(&self.world, Body::StepStarted { step: step.id.clone(), attempt })?;
            self.progress.started(step);
            let outputs: BTreeMap<String, Value> = needed_outputs(plan, run);
            let (registry, world) = (Arc::clone(&self.registry), self.world.clone());
            let (plan, run_id) = (Arc::clone(plan), run.id.clone());
            let delay = backoff(attempts_here[index]);
            attempts_here[index] += 1;
            under_way[index] = true;
            let seen_ago = world.clock.now().duration_since(plan.created_at).as_secs();
            let absent = step.seen_absent && new && attempt == 1 && seen_ago < LOOK_LASTS_SECONDS;
            running.spawn(async move {
                tokio::time::sleep(delay).await;
                let cx = StepContext { world: &world, run: &run_id, outputs: &outputs, absent };
                (index, perform(&registry, &cx, &plan.steps[index]).await)
            });
        }
        Ok(())
    }
}

fn needed_outputs(plan: &Plan, run: &Run) -> BTreeMap<String, Value> {
    plan.steps.iter().filter_map(|s| run.state.output(&s.id).map(|o| (s.id.clone(), o.clone()))).collect()
}

fn backoff(attempts_before: u32) -> Duration {
    match attempts_before {
        0 => Duration::ZERO,
        n => Duration::from_millis((RETRY_DELAY_FIRST_MS << (n - 1).min(10)).min(RETRY_DELAY_MAX_MS)),
    }
}

/// Observes, unless the planner did so just now, and applies what is missing, within the step's deadline.
async fn perform(registry: &Registry, cx: &StepContext<'_>, step: &Step) -> Result<(bool, Value), PortError> {
    let kind =
        registry.find(&step.kind, step.version).map_err(|e| PortError::new(ErrorCode::Invalid, e.to_string()))?;
    let work = async {
        let found = if cx.absent { Observed::Absent } else { kind.observe(cx, &step.params).await? };
        let cx = &StepContext { absent: found == Observed::Absent, ..*cx };
        match found {
            Observed::Done(output) => Ok((true, output)),
            Observed::Absent | Observed::Partial => Ok((false, kind.apply(cx, &step.params).await?)),
            Observed::Foreign(what) => Err(PortError::new(ErrorCode::Invalid, what).hint(
                "nothing of it was touched; rename or remove it, or choose another cluster name, then run again",
            )),
        }
    };
    let deadline = Duration::from_secs(step.deadline_seconds.into());
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(PortError::new(ErrorCode::Timeout, format!("not done within {} s", step.deadline_seconds)))
    })
}
