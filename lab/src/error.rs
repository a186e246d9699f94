use std::io;

/// Why something about the lab failed: what happened, and what to do next.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct LabError {
    pub message: String,
    /// What to do next, or what was left untouched.
    pub hint: Option<String>,
}

impl LabError {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Says what was attempted when an input or output failed.
pub(crate) trait Attempt<T> {
    /// `what` completes "cannot …".
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|error| LabError::new(format!("cannot {}: {error}", what())))
    }
}

impl<T> Attempt<T> for nix::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|error| LabError::new(format!("cannot {}: {error}", what())))
    }
}

impl From<LabError> for crate::backend::BackendError {
    fn from(error: LabError) -> Self {
        Self(error.message)
    }
}
