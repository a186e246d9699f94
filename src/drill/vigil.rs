//! Stands beside a run: does not let it begin outside of its runbook's windows, and ends it when what its runbook names in
//! `abortWhen` has come about, as long as there is a way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Pulse;
use crate::config::AbortWhen;
use crate::engine::Gate;
use crate::journal::{Body, Event};
use crate::plan::params::{ManualWait, Params};
use crate::plan::{Opening, Plan, PlanError, Reversal, Step, may_begin, opening, reversal_in};
use crate::ports::{Clock, ErrorCode, PortError, PortResult};

/// Says something to whoever watches.
pub type Say = Box<dyn Fn(&str) + Send + Sync>;

/// What is asked before each step of a runbook's run, and what may end it.
pub struct Vigil {
    gate: Arc<dyn Gate>,
    plan: Plan,
    abort: AbortWhen,
    clock: Arc<dyn Clock>,
    pulse: Option<Pulse>,
    /// A step that is not a person's was begun, by this process or one before.
    begun: watch::Sender<bool>,
    /// A step without a way back was begun.
    past: AtomicBool,
    window_ends: Option<Timestamp>,
    say: Say,
}

impl Vigil {
    /// Over another gate, for the run of a plan whose journal holds these events, with its canaries.
    pub fn over(
        gate: Arc<dyn Gate>,
        plan: &Plan,
        events: &[Event],
        clock: Arc<dyn Clock>,
        pulse: Option<Pulse>,
        say: Say,
    ) -> Arc<dyn Gate> {
        let Some(run) = &plan.runbook else { return gate };
        let abort = run.runbook.abort_when.clone();
        let started = |step: &&Step| {
            events.iter().any(|e| matches!(&e.body, Body::StepStarted { step: id, .. } if *id == step.id))
        };
        let begun = plan.steps.iter().filter(started).any(|step| !is_a_persons(step));
        let past = plan.steps.iter().filter(started).any(|step| has_no_way_back(plan, step));
        // A run that is taken up when its window is over was taken up on purpose.
        let window_ends = match opening(&run.runbook.guards.windows, clock.now()) {
            Opening::Until(end) if abort.window_ends => Some(end),
            _ => None,
        };
        Arc::new(Self {
            gate,
            plan: plan.clone(),
            abort,
            clock,
            pulse,
            begun: watch::Sender::new(begun),
            past: AtomicBool::new(past),
            window_ends,
            say,
        })
    }

    /// Which of the conditions comes about first.
    async fn condition(&self) -> String {
        tokio::select! {
            why = self.silence() => why,
            why = self.length() => why,
            why = self.window() => why,
        }
    }

    async fn silence(&self) -> String {
        let (Some(seconds), Some(pulse)) = (self.abort.outage_seconds, &self.pulse) else {
            return std::future::pending().await;
        };
        let mut acknowledged = pulse.acknowledged.clone();
        // An API that was away before this run began is brought back by it.
        if acknowledged.wait_for(|count| *count > 0).await.is_err() {
            return std::future::pending().await;
        }
        loop {
            match timeout(Duration::from_secs(seconds.into()), acknowledged.changed()).await {
                Ok(Ok(())) => {}
                // Nobody writes any more: the run has ended.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return format!("no API server has acknowledged a write for {seconds} s"),
            }
        }
    }

    async fn length(&self) -> String {
        let Some(seconds) = self.abort.run_seconds else { return std::future::pending().await };
        // The sender lives as long as this does.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
        sleep(Duration::from_secs(seconds.into())).await;
        format!("it takes longer than {seconds} s")
    }

    async fn window(&self) -> String {
        let Some(end) = self.window_ends else { return std::future::pending().await };
        let left = end.duration_since(self.clock.now());
        sleep(Duration::try_from(left).unwrap_or_default()).await;
        "its window is over".into()
    }
}

#[async_trait]
impl Gate for Vigil {
    async fn enter(&self, step: &Step) -> PortResult<()> {
        if is_a_persons(step) {
            return self.gate.enter(step).await;
        }
        if !*self.begun.borrow() {
            may_begin(&self.plan, self.clock.now()).map_err(closed)?;
        }
        if let Some(pulse) = &self.pulse {
            pulse.begin().await;
        }
        self.gate.enter(step).await?;
        self.begun.send_replace(true);
        if has_no_way_back(&self.plan, step) {
            self.past.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn broken(&self) -> PortError {
        let condition = async {
            let why = self.condition().await;
            if self.past.load(Ordering::SeqCst) {
                (self.say)(&format!("{why}, and there is no way back any more: the run goes on"));
                return std::future::pending().await;
            }
            PortError::new(ErrorCode::Timeout, format!("{why} (abortWhen)"))
                .hint("what was begun is undone; look at why it took so long before you run it again")
        };
        tokio::select! {
            why = condition => why,
            why = self.gate.broken() => why,
        }
    }
}

fn is_a_persons(step: &Step) -> bool {
    step.kind == ManualWait::KIND
}

fn has_no_way_back(plan: &Plan, step: &Step) -> bool {
    matches!(reversal_in(plan, step), Reversal::Never(_))
}

fn closed(refused: PlanError) -> PortError {
    let message = refused.to_string();
    let port = PortError::new(ErrorCode::Invalid, message);
    match refused {
        PlanError::Guard { hint, .. } => port.hint(format!("nothing was touched; {hint}: `hk-dr resume` goes on then")),
        _ => port,
    }
}
