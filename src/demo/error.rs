use hk_lab::LabError;

use crate::ports::PortError;

/// Why the demo could not be played to its end. A check that does not hold is no such error: it is in the report.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct DemoError {
    /// What happened.
    pub message: String,
    /// What to do next, and what the command that failed said last, a line each.
    pub hints: Vec<String>,
}

impl DemoError {
    /// An error without hints.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new() }
    }

    /// Adds a line.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(super) fn io(doing: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(format!("{doing}: {error}"))
    }
}

impl From<PortError> for DemoError {
    fn from(error: PortError) -> Self {
        Self { message: error.message, hints: error.hint.into_iter().collect() }
    }
}

impl From<LabError> for DemoError {
    fn from(error: LabError) -> Self {
        Self { message: error.message, hints: error.hint.into_iter().collect() }
    }
}
