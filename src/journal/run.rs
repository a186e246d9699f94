use std::collections::BTreeMap;

use serde_json::Value;

use super::{Body, Event, JOURNAL_FORMAT};
use crate::plan::Plan;
use crate::ports::ErrorCode;

/// Where a step stands.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    Waiting,
    Started { attempt: u32 },
    Failed { attempt: u32, code: ErrorCode, message: String, hint: Option<String> },
    Finished { found: bool, output: Value },
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// No event yet.
    New,
    /// Started and not ended; the process that drove it may be gone.
    Open,
    Finished,
    Abandoned,
}

/// The state that a journal adds up to. Changed by events alone.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    plan_id: String,
    needs: BTreeMap<String, Vec<String>>,
    status: RunStatus,
    next_seq: u64,
    steps: BTreeMap<String, StepState>,
    /// Steps that were started before the last `RunResumed` and not ended: they may be started again.
    orphaned: std::collections::BTreeSet<String>,
}

/// An event that can't follow what came before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("journal event {seq} is not possible here: {reason}")]
pub struct IllegalTransition {
    pub seq: u64,
    pub reason: String,
}

impl RunState {
    /// The state before the first event of a run of this plan.
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan_id: plan.id.clone(),
            needs: plan.steps.iter().map(|s| (s.id.clone(), s.needs.clone())).collect(),
            status: RunStatus::New,
            next_seq: 0,
            steps: plan.steps.iter().map(|s| (s.id.clone(), StepState::Waiting)).collect(),
            orphaned: Default::default(),
        }
    }

    /// Adds up a whole journal.
    pub fn replay(plan: &Plan, events: &[Event]) -> Result<Self, IllegalTransition> {
        let mut state = Self::new(plan);
        for event in events {
            state.apply(event)?;
        }
        Ok(state)
    }

    /// Takes one event, or says why it can't follow.
    pub fn apply(&mut self, event: &Event) -> Result<(), IllegalTransition> {
        let illegal = |reason: String| IllegalTransition { seq: event.seq, reason };
        if event.format != JOURNAL_FORMAT {
            return Err(illegal(format!(
                "it has format {}, this version reads {JOURNAL_FORMAT} (written by hk-dr {})",
                event.format, event.binary_version
            )));
        }
        if event.seq != self.next_seq {
            return Err(illegal(format!("expected number {}", self.next_seq)));
        }
        match (&event.body, self.status) {
            (Body::RunStarted { plan, .. }, RunStatus::New) => {
                if *plan != self.plan_id {
                    return Err(illegal(format!("it belongs to plan {plan}, not {}", self.plan_id)));
                }
                self.status = RunStatus::Open;
            }
            (_, RunStatus::New) => return Err(illegal("the run has not started".into())),
            (Body::RunStarted { .. }, _) => return Err(illegal("the run has started already".into())),
            (_, RunStatus::Finished | RunStatus::Abandoned) => return Err(illegal("the run has ended".into())),
            (Body::RunResumed, RunStatus::Open) => {
                self.orphaned = self
                    .steps
                    .iter()
                    .filter(|(_, s)| matches!(s, StepState::Started { .. }))
                    .map(|(id, _)| id.clone())
                    .collect();
            }
            (Body::RunFinished, RunStatus::Open) => {
                if let Some((id, _)) = self.steps.iter().find(|(_, s)| !matches!(s, StepState::Finished { .. })) {
                    return Err(illegal(format!("step {id} has not finished")));
                }
                self.status = RunStatus::Finished;
            }
            (Body::RunAbandoned { .. }, RunStatus::Open) => self.status = RunStatus::Abandoned,
            (body, RunStatus::Open) => self.apply_step(body).map_err(illegal)?,
        }
        self.next_seq += 1;
        Ok(())
    }

    fn apply_step(&mut self, body: &Body) -> Result<(), String> {
        let id = body.step().ok_or("it names no step")?;
        let current = self.steps.get(id).ok_or_else(|| format!("the plan has no step {id}"))?;
        let next = match (body, current) {
            (Body::StepStarted { attempt: 1, .. }, StepState::Waiting) => {
                if let Some(missing) = self.needs[id].iter().find(|n| !self.is_finished(n)) {
                    return Err(format!("step {id} needs {missing}, which has not finished"));
                }
                StepState::Started { attempt: 1 }
            }
            (Body::StepStarted { attempt, .. }, StepState::Failed { attempt: before, .. })
                if *attempt == before + 1 =>
            {
                StepState::Started { attempt: *attempt }
            }
            (Body::StepStarted { attempt, .. }, StepState::Started { attempt: before })
                if *attempt == before + 1 && self.orphaned.contains(id) =>
            {
                self.orphaned.remove(id);
                StepState::Started { attempt: *attempt }
            }
            (Body::StepFinished { found, output, .. }, StepState::Started { .. }) if !self.orphaned.contains(id) => {
                StepState::Finished { found: *found, output: output.clone() }
            }
            (Body::StepFailed { code, message, hint, .. }, StepState::Started { attempt })
                if !self.orphaned.contains(id) =>
            {
                StepState::Failed { attempt: *attempt, code: *code, message: message.clone(), hint: hint.clone() }
            }
            (body, state) => return Err(format!("{body:?} can't follow {state:?}")),
        };
        self.steps.insert(id.to_owned(), next);
        Ok(())
    }

    /// Where the run stands.
    pub fn status(&self) -> RunStatus {
        self.status
    }

    /// The number the next event must have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Where a step stands; none if the plan has no such step.
    pub fn step(&self, id: &str) -> Option<&StepState> {
        self.steps.get(id)
    }

    /// All steps by id.
    pub fn steps(&self) -> impl Iterator<Item = (&str, &StepState)> {
        self.steps.iter().map(|(id, state)| (id.as_str(), state))
    }

    /// The output of a finished step.
    pub fn output(&self, id: &str) -> Option<&Value> {
        match self.steps.get(id) {
            Some(StepState::Finished { output, .. }) => Some(output),
            _ => None,
        }
    }

    /// Whether a step has finished.
    pub fn is_finished(&self, id: &str) -> bool {
        matches!(self.steps.get(id), Some(StepState::Finished { .. }))
    }

    /// The attempt number a new start of this step must carry; none if it can't be started now.
    pub fn next_attempt(&self, id: &str) -> Option<u32> {
        match self.steps.get(id)? {
            StepState::Waiting => self.needs[id].iter().all(|n| self.is_finished(n)).then_some(1),
            StepState::Failed { attempt, .. } => Some(attempt + 1),
            StepState::Started { attempt } if self.orphaned.contains(id) => Some(attempt + 1),
            _ => None,
        }
    }
}
