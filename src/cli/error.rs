use std::process::ExitCode;

use super::Context;
use crate::ports::{ErrorCode, PortError};

/// Why a command failed, as an exit code that scripts can rely on. Documented in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// Something failed that has no code of its own.
    Failed = 1,
    /// There is something to change (`plan`, `drift`), or a check did not hold.
    Differs = 2,
    /// The command line or a file of the Git directory is wrong; nothing was touched.
    Usage = 3,
    /// A credential, key or identity was refused.
    Credentials = 4,
    /// Stored data is damaged, incomplete or missing.
    Data = 5,
    /// A service could not be reached or did not answer in time.
    Unreachable = 6,
    /// The cloud has no capacity, or a limit is reached.
    Capacity = 7,
    /// A run stopped midway; `hk-dr resume` continues it.
    Incomplete = 8,
    /// Stored data is not signed, or not by a key that cluster.yaml names.
    Unsigned = 9,
}

/// An error as a person reads it: what happened, what was left untouched, what to do next.
#[derive(Debug)]
pub struct CliError {
    pub kind: ExitKind,
    pub message: String,
    /// What was left untouched and what to do next, a line each.
    pub hints: Vec<String>,
    /// A report with a source span, printed instead of the message.
    pub report: Option<miette::Report>,
}

impl CliError {
    /// An error without hints.
    pub fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new(), report: None }
    }

    /// Adds a line that says what was left untouched or what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(super) fn render(self, context: &Context) -> ExitCode {
        if context.global.json && !self.message.is_empty() {
            let value = serde_json::json!({"error": {
                "exit_code": self.kind as u8, "message": self.message, "hints": self.hints}});
            println!("{value}");
        }
        match self.report {
            Some(report) => eprintln!("{report:?}"),
            // A result such as "there are differences" is no error and was printed already.
            None if self.message.is_empty() => {}
            None => eprintln!("error: {}", self.message),
        }
        for hint in self.hints {
            eprintln!("  → {hint}");
        }
        ExitCode::from(self.kind as u8)
    }
}

impl From<PortError> for CliError {
    fn from(error: PortError) -> Self {
        let kind = match error.code {
            ErrorCode::Unauthorized | ErrorCode::Forbidden | ErrorCode::Untrusted => ExitKind::Credentials,
            ErrorCode::Unsigned => ExitKind::Unsigned,
            ErrorCode::Corrupt | ErrorCode::NotFound => ExitKind::Data,
            ErrorCode::Unreachable | ErrorCode::Timeout | ErrorCode::ServerError | ErrorCode::RateLimited => {
                ExitKind::Unreachable
            }
            ErrorCode::NoCapacity | ErrorCode::LimitExceeded => ExitKind::Capacity,
            ErrorCode::Invalid => ExitKind::Usage,
            ErrorCode::Conflict | ErrorCode::Locked | ErrorCode::Local => ExitKind::Failed,
        };
        let mut cli = Self::new(kind, error.message);
        cli.hints.extend(error.hint);
        cli
    }
}
