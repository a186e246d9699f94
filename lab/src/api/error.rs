//! Errors as the API answers them: a code for machines, a message for people, details where a code has them.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refused request. Clients decide by `code`; the status follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub code: String,
    pub message: String,
    /// `null`, or an object whose shape depends on the code.
    pub details: Value,
}

/// Short for answers of handlers.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), details: Value::Null }
    }

    pub fn not_found(kind: &str, id: u64) -> Self {
        Self::new("not_found", format!("{kind} with ID '{id}' not found"))
    }

    /// A field with a bad value; `details.fields` names it as the real API does.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: "invalid_input".into(),
            message: format!("invalid input in field '{name}': {message}"),
            details: json!({"fields": [{"name": name, "messages": [message]}]}),
        }
    }

    /// A value that must be unique and is not.
    pub fn uniqueness(field: &str, message: impl Into<String>) -> Self {
        Self { code: "uniqueness_error".into(), message: message.into(), details: json!({"fields": [{"name": field}]}) }
    }

    pub fn limit(name: &str) -> Self {
        Self {
            code: "resource_limit_exceeded".into(),
            message: format!("{name} limit exceeded"),
            details: json!({"limits": [{"name": name}]}),
        }
    }

    pub fn locked(kind: &str, id: u64) -> Self {
        Self::new("locked", format!("{kind} {id} is locked: another action is running"))
    }

    /// What clients change by several requests at a time: they try again by themselves when they are told of a conflict.
    pub fn changing(kind: &str, id: u64) -> Self {
        Self::new("conflict", format!("{kind} {id} is being changed by another action, try again"))
    }

    pub fn protected(kind: &str) -> Self {
        Self::new("protected", format!("{kind} deletion is protected"))
    }

    /// Something the real API has and the lab has not.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("unsupported_error", message)
    }

    /// Something of this location is not to be had.
    pub fn unavailable(location: &str) -> Self {
        Self::new("resource_unavailable", format!("resources in location '{location}' are currently unavailable"))
    }

    /// The HTTP status that goes with the code.
    pub fn status(&self) -> StatusCode {
        match self.code.as_str() {
            "json_error" => StatusCode::BAD_REQUEST,
            "unauthorized" => StatusCode::UNAUTHORIZED,
            "forbidden" | "resource_limit_exceeded" | "token_readonly" => StatusCode::FORBIDDEN,
            "not_found" => StatusCode::NOT_FOUND,
            "method_not_allowed" => StatusCode::METHOD_NOT_ALLOWED,
            "uniqueness_error"
            | "conflict"
            | "server_already_added"
            | "server_already_attached"
            | "resource_in_use" => StatusCode::CONFLICT,
            "deprecated_api_endpoint" => StatusCode::GONE,
            "resource_unavailable" | "placement_error" => StatusCode::PRECONDITION_FAILED,
            "locked" | "protected" => StatusCode::LOCKED,
            "rate_limit_exceeded" => StatusCode::TOO_MANY_REQUESTS,
            "server_error" => StatusCode::INTERNAL_SERVER_ERROR,
            "not_implemented" => StatusCode::NOT_IMPLEMENTED,
            "bad_gateway" => StatusCode::BAD_GATEWAY,
            "service_error" | "maintenance" | "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "timeout" => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = json!({"error": {"code": self.code, "message": self.message, "details": self.details}});
        (status, axum::Json(body)).into_response()
    }
}
