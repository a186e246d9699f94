use std::error::Error as _;

use kube::Error;

use crate::ports::{ErrorCode, PortError};

/// Maps an error of the client onto the codes decisions depend on.
pub(super) fn port_error(error: &Error) -> PortError {
    match error {
        Error::Api(status) => {
            let said = match (status.reason.as_str(), status.message.as_str()) {
                ("", message) => message.to_owned(),
                (reason, message) => format!("{message} ({reason})"),
            };
            PortError::new(from_status(status.code), format!("{} {said}", status.code))
        }
        Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(inner) = source {
                let text = inner.to_string();
                if !message.contains(&text) {
                    message = format!("{message}: {text}");
                }
                source = inner.source();
            }
            if message.contains("invalid peer certificate") {
                return PortError::new(ErrorCode::Untrusted, message)
                    .hint("the API server's certificate is not from this cluster's CA, or names another host");
            }
            if message.contains("received fatal alert") {
                return PortError::new(ErrorCode::Unauthorized, message)
                    .hint("the API server does not accept this cluster's client certificate");
            }
            let code = if message.contains("timed out") { ErrorCode::Timeout } else { ErrorCode::Unreachable };
            PortError::new(code, message)
        }
        Error::SerdeError(_) | Error::FromUtf8(_) => PortError::new(ErrorCode::ServerError, error.to_string()),
        other => PortError::new(ErrorCode::Invalid, other.to_string()),
    }
}

fn from_status(code: u16) -> ErrorCode {
    match code {
        401 => ErrorCode::Unauthorized,
        403 => ErrorCode::Forbidden,
        404 | 410 => ErrorCode::NotFound,
        409 | 412 => ErrorCode::Conflict,
        413 => ErrorCode::LimitExceeded,
        429 => ErrorCode::RateLimited,
        408 | 504 => ErrorCode::Timeout,
        400..=499 => ErrorCode::Invalid,
        _ => ErrorCode::ServerError,
    }
}
