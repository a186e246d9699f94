use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a plan is for. Decides what its execution is called in the list of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Make true what Git declares.
    Build,
    /// Bring the cluster back from Git and the bucket.
    Rebuild,
    /// Run a runbook.
    Runbook,
    /// Renew certificates.
    Certificates,
    /// Put another SSH key in the place of the one servers know.
    SshRotation,
    /// Delete what is the cluster's.
    Destroy,
    /// Undo what a run did that is given up.
    Abort,
}

/// Which runbook a plan is of, as it was when the plan was drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunbookRun {
    pub runbook: crate::config::Runbook,
    /// The masters that were chosen.
    pub servers: Vec<String>,
    /// The snapshot that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The location that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// The copy is to stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// What the copy costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CopyCost>,
}

/// What a copy of the cluster costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyCost {
    pub currency: String,
    /// For each hour that is begun, tax included.
    pub hour: f64,
}

/// One concrete effect on one thing. Its parameters are complete: execution makes no choices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique in the plan, readable: `server/m1`.
    pub id: String,
    /// Names the code that executes it: `server.create`.
    pub kind: String,
    /// Version of the parameters' meaning; an unknown one is refused, never guessed.
    pub version: u32,
    /// Never holds a secret.
    pub params: Value,
    /// Steps that must have finished before.
    pub needs: Vec<String>,
    /// What it does, for people: "create server m1 in fsn1".
    pub title: String,
    /// Why the planner wants it: "no server named demo-m1 exists".
    pub reason: String,
    pub deadline_seconds: u32,
    /// What it makes has a name of its own and was not there when the plan was drawn. Whoever begins it soon after may make it
    /// without a further look: should someone have been quicker, the cloud refuses the name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seen_absent: bool,
}

/// An immutable, complete, serialisable plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Format of this document.
    pub format: u32,
    pub id: String,
    pub cluster: String,
    pub purpose: Purpose,
    /// The snapshot that is restored.
    pub snapshot: Option<String>,
    /// Set if the purpose is a runbook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runbook: Option<RunbookRun>,
    /// The run that founded or last rebuilt the cluster: all plans of one build or rebuild share it.
    pub lineage: String,
    /// The plan this one replaced, if a run was re-planned.
    pub parent: Option<String>,
    pub created_at: Timestamp,
    /// SHA-256 over the configuration and the inventory that led to it.
    pub inputs_digest: String,
    /// Steps, each after all it needs.
    pub steps: Vec<Step>,
    /// What the planner found and decided, in words, before the steps.
    pub findings: Vec<String>,
}

/// The plan format this version writes and reads.
pub const PLAN_FORMAT: u32 = 1;
