use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ports::ErrorCode;

/// The journal format this version writes. Another one is refused with a choice, never guessed.
pub const JOURNAL_FORMAT: u32 = 1;

/// One line of `journal.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 0, without gaps.
    pub seq: u64,
    pub at: Timestamp,
    pub format: u32,
    pub binary_version: String,
    #[serde(flatten)]
    pub body: Body,
}

impl Event {
    /// Reads one line.
    ///
    /// # Errors
    /// Why it is no event this version understands; of another format, which version wrote it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if value["format"] != JOURNAL_FORMAT {
            let writer = value["binary_version"].as_str().unwrap_or("of unknown version");
            return Err(format!(
                "the event has format {}, this version reads {JOURNAL_FORMAT} (written by hk-dr {writer})",
                value["format"]
            ));
        }
        serde_json::from_value(value).map_err(|e| e.to_string())
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Body {
    /// The first event: this run executes the plan with this id.
    RunStarted { run: String, plan: String },
    /// A process took the run up again; steps that were started and not finished may be started again.
    RunResumed,
    /// The step's effect begins after this event is durable.
    StepStarted { step: String, attempt: u32 },
    /// The step's effect is complete. `found`: it was there already, nothing was done.
    StepFinished { step: String, found: bool, output: Value },
    /// The attempt failed; the effect may or may not have happened.
    StepFailed { step: String, code: ErrorCode, message: String, hint: Option<String> },
    /// Every step has finished.
    RunFinished,
    /// The run will not be continued: a person gave it up, or another plan replaced it.
    RunAbandoned { reason: String },
}

impl Body {
    /// The step this event is about.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::StepStarted { step, .. } | Self::StepFinished { step, .. } | Self::StepFailed { step, .. } => {
                Some(step)
            }
            _ => None,
        }
    }
}
