use std::fmt;

/// What went wrong at a port, as far as a decision depends on it. Adapters map their protocol's codes onto these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The thing does not exist.
    NotFound,
    /// The thing exists already, or a condition on its state did not hold (conditional put, uniqueness).
    Conflict,
    /// The other side is busy with the same resource: try again shortly.
    Locked,
    /// The credential was not accepted.
    Unauthorized,
    /// The credential is good but may not do this.
    Forbidden,
    /// The location has no capacity for this now.
    NoCapacity,
    /// A quota or size limit of the account or bucket is reached.
    LimitExceeded,
    /// Too many requests.
    RateLimited,
    /// No answer in time; the effect may or may not have happened.
    Timeout,
    /// No connection could be made.
    Unreachable,
    /// The other side failed internally.
    ServerError,
    /// The data does not have the digest, length or form it must have.
    Corrupt,
    /// The request itself is wrong.
    Invalid,
    /// A host key, certificate or signature is not the pinned one.
    Untrusted,
    /// An object is not signed, or not by a key that is declared.
    Unsigned,
    /// Local input or output failed (disk full, no permission).
    Local,
}

/// Decides about retry, in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The same call may succeed shortly.
    Transient,
    /// Someone else changed the state: look again, then decide.
    Conflict,
    /// The same call will fail again.
    Permanent,
    /// A person must act (credential, quota, capacity).
    NeedsOperator,
}

impl ErrorCode {
    /// The retry class of this code.
    pub fn class(self) -> ErrorClass {
        match self {
            Self::Locked | Self::RateLimited | Self::Timeout | Self::Unreachable | Self::ServerError => {
                ErrorClass::Transient
            }
            Self::Conflict => ErrorClass::Conflict,
            Self::NotFound | Self::Corrupt | Self::Invalid => ErrorClass::Permanent,
            Self::Unauthorized
            | Self::Forbidden
            | Self::NoCapacity
            | Self::LimitExceeded
            | Self::Untrusted
            | Self::Unsigned
            | Self::Local => ErrorClass::NeedsOperator,
        }
    }
}

/// An error at a port: what was being done, the code decisions depend on, and what a person can do next.
#[derive(Debug, Clone, thiserror::Error)]
pub struct PortError {
    /// The code that decisions depend on.
    pub code: ErrorCode,
    /// What was attempted and what came back, in one sentence; never a secret.
    pub message: String,
    /// What to do next, when the adapter knows.
    pub hint: Option<String>,
}

impl PortError {
    /// An error with a message and no hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what a person can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being attempted before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The retry class.
    pub fn class(&self) -> ErrorClass {
        self.code.class()
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Short for results at ports.
pub type PortResult<T> = Result<T, PortError>;
