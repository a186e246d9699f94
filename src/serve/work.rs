use async_trait::async_trait;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::view::{Gauges, RunView};
use crate::config::{LogPolicy, Schedule};
use crate::plan::schedule::Turn;
use crate::ports::PortResult;
use crate::steps::Mark;

/// One run of a schedule.
#[derive(Debug, Clone)]
pub struct Order {
    pub policy: String,
    pub schedule: Schedule,
    /// The scheduled instant.
    pub at: Timestamp,
    /// What a rotation has come to.
    pub turn: Turn,
    /// From 1; more: a process before this one died while it carried it out.
    pub attempt: u32,
    /// When the first attempt began.
    pub began: Timestamp,
}

impl Order {
    /// Names the run: the same for every attempt, different for every run.
    pub fn key(&self) -> String {
        format!("{}.{}.{}", self.policy, self.schedule.name, self.at)
    }
}

/// What came out of a run that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// It did what it should, and a drill passed.
    pub good: bool,
    /// The run in `runs/`, where there is one.
    pub run: Option<String>,
    /// In a sentence.
    pub note: String,
}

/// What the service can have done for one cluster. Each is what the command of that name does.
#[async_trait]
pub trait Work: Send + Sync {
    /// Carries out one run. Called again with a higher attempt it finishes what the attempt before left.
    async fn perform(&self, order: &Order) -> PortResult<Report>;
    /// Ships the log until `stop`, or until something needs a person.
    async fn ship(&self, log: &LogPolicy, stop: CancellationToken) -> PortResult<()>;
    /// Writes the canary by which rehearsals measure what would be lost.
    async fn mark(&self, mark: Mark) -> PortResult<()>;
    /// Runs on this machine that have not ended, step by step.
    fn running(&self) -> Vec<RunView>;
    /// What only this cluster's connections know.
    async fn gauges(&self) -> Gauges;
}
