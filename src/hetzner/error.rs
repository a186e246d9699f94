use super::wire::{Action, ApiError};
use crate::ports::{ErrorCode, PortError};

/// What a refusal means. The API's code decides; the status only when the code is unknown.
pub(super) fn from_api(error: &ApiError, status: u16) -> PortError {
    let code = by_code(&error.code).unwrap_or_else(|| by_status(status));
    let message = if error.message.is_empty() { "no message" } else { &error.message };
    with_hint(PortError::new(
        code,
        format!("{message} ({})", if error.code.is_empty() { "no code" } else { &error.code }),
    ))
}

/// What a failed action means.
pub(super) fn from_action(action: &Action) -> PortError {
    let error = action.error.clone().unwrap_or_default();
    let code = by_code(&error.code).unwrap_or(ErrorCode::ServerError);
    let said = if error.message.is_empty() { "no reason given" } else { &error.message };
    with_hint(PortError::new(
        code,
        format!("action {} ({}) failed: {said} ({})", action.command, action.id, error.code),
    ))
}

fn with_hint(error: PortError) -> PortError {
    match error.code {
        ErrorCode::Unauthorized => error.hint("check the cloud token; nothing was changed"),
        ErrorCode::Forbidden => {
            error.hint("the token may only read, or the resource is protected; nothing was changed")
        }
        ErrorCode::NoCapacity => error.hint("try another location or server type, or wait"),
        ErrorCode::LimitExceeded => {
            error.hint("ask the provider to raise the project's limit, or delete what is not needed")
        }
        _ => error,
    }
}

fn by_code(code: &str) -> Option<ErrorCode> {
    Some(match code {
        "unauthorized" => ErrorCode::Unauthorized,
        "forbidden" | "token_readonly" | "protected" => ErrorCode::Forbidden,
        "not_found" => ErrorCode::NotFound,
        "invalid_input" | "json_error" | "unsupported_error" | "method_not_allowed" | "invalid_server_type" => {
            ErrorCode::Invalid
        }
        // `conflict`: the resource changed while the request was served. Official clients repeat it.
        "locked" | "conflict" => ErrorCode::Locked,
        "uniqueness_error"
        | "resource_in_use"
        | "server_not_stopped"
        | "server_already_attached"
        | "server_already_added"
        | "volume_already_attached"
        | "ip_not_available"
        | "no_subnet_available"
        | "networks_overlap" => ErrorCode::Conflict,
        "resource_unavailable" | "placement_error" | "no_space_left_in_location" => ErrorCode::NoCapacity,
        "resource_limit_exceeded" | "limit_reached" => ErrorCode::LimitExceeded,
        "rate_limit_exceeded" => ErrorCode::RateLimited,
        "timeout" => ErrorCode::Timeout,
        "bad_gateway" | "service_error" | "server_error" | "maintenance" | "unavailable" | "action_failed" => {
            ErrorCode::ServerError
        }
        _ => return None,
    })
}

fn by_status(status: u16) -> ErrorCode {
    match status {
        401 => ErrorCode::Unauthorized,
        403 => ErrorCode::Forbidden,
        404 | 410 => ErrorCode::NotFound,
        409 | 412 => ErrorCode::Conflict,
        423 => ErrorCode::Locked,
        429 => ErrorCode::RateLimited,
        408 | 504 => ErrorCode::Timeout,
        400..=499 => ErrorCode::Invalid,
        _ => ErrorCode::ServerError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_before_the_status() {
        let error = |code: &str, status| from_api(&ApiError { code: code.into(), message: "m".into() }, status).code;
        assert_eq!(error("resource_unavailable", 412), ErrorCode::NoCapacity);
        assert_eq!(error("conflict", 409), ErrorCode::Locked);
        assert_eq!(error("uniqueness_error", 409), ErrorCode::Conflict);
        assert_eq!(error("invented_next_year", 409), ErrorCode::Conflict);
        assert_eq!(error("invented_next_year", 503), ErrorCode::ServerError);
        assert_eq!(error("", 401), ErrorCode::Unauthorized);
    }
}
