use crate::ports::{ErrorCode, PortError};

/// Why a backend file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The file cannot be what etcd wrote.
    #[error("etcd's file is damaged in page {page}: {what}")]
    Corrupt { page: u64, what: String },
    /// A structure that is legal but larger than this reader's limits.
    #[error("etcd's file is beyond a limit of this reader: {0}")]
    TooLarge(String),
    /// The file could not be read.
    #[error("etcd's file cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The file could not be written.
    #[error("etcd's file cannot be written: {0}")]
    Write(#[source] std::io::Error),
    /// The writer was used as it must not be: a mistake of hk-dr's.
    #[error("etcd's file cannot be written as asked: {0}")]
    Misuse(String),
}

impl BoltError {
    pub(super) fn corrupt(page: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { page, what: what.into() }
    }
}

impl From<BoltError> for PortError {
    fn from(error: BoltError) -> Self {
        let code = match &error {
            BoltError::Corrupt { .. } => ErrorCode::Corrupt,
            BoltError::TooLarge(_) => ErrorCode::LimitExceeded,
            BoltError::Io(_) | BoltError::Write(_) => ErrorCode::Local,
            BoltError::Misuse(_) => ErrorCode::Invalid,
        };
        Self::new(code, error.to_string())
    }
}
