use std::error::Error as _;

use etcd_client::Error;

use crate::ports::{ErrorCode, PortError};

// gRPC's status codes by number: https://grpc.github.io/grpc/core/md_doc_statuscodes.html
const CANCELLED: i32 = 1;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAVAILABLE: i32 = 14;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

/// What the client says when the connection, not etcd, failed.
const BROKEN: [&str; 4] =
    ["transport error", "error reading a body from connection", "connection reset", "broken pipe"];

/// Maps an error of the client onto the codes decisions depend on.
pub(super) fn port_error(error: &Error) -> PortError {
    match error {
        Error::GRpcStatus(status) => {
            let mut message = status.message().to_owned();
            // Errors of the connection arrive as a status whose reason is in its sources.
            let mut source = status.source();
            while let Some(inner) = source {
                let text = inner.to_string();
                if !message.contains(&text) {
                    message = format!("{message}: {text}");
                }
                source = inner.source();
            }
            from_status(status.code() as i32, message)
        }
        Error::TransportError(inner) => {
            let mut message = inner.to_string();
            let mut source = inner.source();
            while let Some(inner) = source {
                message = format!("{message}: {inner}");
                source = inner.source();
            }
            from_status(UNAVAILABLE, message)
        }
        Error::IoError(inner) => from_status(UNAVAILABLE, inner.to_string()),
        // The stream's own task has ended with the connection: the client gives no other reason for these.
        Error::WatchError(inner) | Error::LeaseKeepAliveError(inner) => from_status(UNAVAILABLE, inner.clone()),
        other => PortError::new(ErrorCode::Invalid, other.to_string()),
    }
}

fn from_status(code: i32, message: String) -> PortError {
    let code = match code {
        // What TLS found wrong is told only in words.
        _ if message.contains("invalid peer certificate") => ErrorCode::Untrusted,
        _ if message.contains("received fatal alert") => ErrorCode::Unauthorized,
        // A connection that broke has the code "unknown" or "internal"; only the words tell it from a failure of etcd.
        _ if BROKEN.iter().any(|words| message.contains(words)) => ErrorCode::Unreachable,
        INVALID_ARGUMENT => ErrorCode::Invalid,
        DEADLINE_EXCEEDED => ErrorCode::Timeout,
        // Compacted or future revisions are out of range.
        NOT_FOUND | OUT_OF_RANGE => ErrorCode::NotFound,
        PERMISSION_DENIED => ErrorCode::Forbidden,
        RESOURCE_EXHAUSTED if message.contains("too many requests") => ErrorCode::RateLimited,
        RESOURCE_EXHAUSTED => ErrorCode::LimitExceeded,
        FAILED_PRECONDITION => ErrorCode::Conflict,
        UNAVAILABLE | CANCELLED => ErrorCode::Unreachable,
        DATA_LOSS => ErrorCode::Corrupt,
        UNAUTHENTICATED => ErrorCode::Unauthorized,
        _ => ErrorCode::ServerError,
    };
    let error = PortError::new(code, message);
    match code {
        ErrorCode::Untrusted => {
            error.hint("the member's certificate is not from this cluster's CA, or names another host")
        }
        ErrorCode::Unauthorized => error.hint("the member does not accept this cluster's client certificate"),
        ErrorCode::LimitExceeded => {
            error.hint("if the database is full: compact, defragment, then disarm the NOSPACE alarm")
        }
        _ => error,
    }
}
