//! Faults of the cloud itself, set through `/_lab/faults`: small and general, so that tests and drills can compose them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{delete, get};
use serde_json::{Value, json};

use super::catalog;
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::{created, no_content, one};
use super::provider::Provider;

/// A fault that is set.
#[derive(Debug, Clone)]
pub struct Fault {
    pub id: u64,
    pub kind: Kind,
    /// How many requests it still strikes; none: until it is lifted.
    pub remaining: Option<u64>,
    /// How many requests it struck.
    pub struck: u64,
}

/// What a fault does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing can be created in a location.
    LocationUnavailable { location: String },
    /// Requests are refused with a code before anything happens.
    ApiError { code: String, message: String, requests: Requests },
    /// The work is done, but the client is told that a gateway gave up waiting.
    LostAnswer { requests: Requests },
}

/// Which requests a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    /// `GET`, `POST` …; none: any.
    pub method: Option<String>,
    /// Path below `/v1` in which `*` stands for anything, such as `/servers/*/actions/*`.
    pub path: String,
}

impl Requests {
    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method)) && glob(&self.path, path)
    }
}

/// Whether the text fits a pattern in which `*` stands for any text, slashes included.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The faults that are set, in the order they were set.
#[derive(Debug, Default)]
pub struct Faults {
    set: Vec<Fault>,
}

impl Faults {
    /// Takes one strike of the first fault that `strikes`.
    fn strike(&mut self, strikes: impl Fn(&Kind) -> bool) -> Option<Kind> {
        let fault = self.set.iter_mut().find(|f| f.remaining != Some(0) && strikes(&f.kind))?;
        fault.remaining = fault.remaining.map(|n| n - 1);
        fault.struck += 1;
        Some(fault.kind.clone())
    }

    /// The refusal for a request, if a fault strikes it.
    pub fn refusal(&mut self, method: &str, path: &str) -> Option<ApiError> {
        let kind =
            self.strike(|kind| matches!(kind, Kind::ApiError { requests, .. } if requests.matches(method, path)))?;
        match kind {
            Kind::ApiError { code, message, .. } => Some(ApiError::new(code, message)),
            _ => None,
        }
    }

    /// Whether this request's answer gets lost.
    pub fn loses_answer(&mut self, method: &str, path: &str) -> bool {
        self.strike(|kind| matches!(kind, Kind::LostAnswer { requests } if requests.matches(method, path))).is_some()
    }

    /// Whether the location has capacity; counts a strike if not.
    pub fn unavailable(&mut self, location: &str) -> bool {
        self.strike(|kind| matches!(kind, Kind::LocationUnavailable { location: l } if l == location)).is_some()
    }

    /// As `unavailable`, without counting.
    pub fn is_unavailable(&self, location: &str) -> bool {
        self.set.iter().any(|f| {
            f.remaining != Some(0) && matches!(&f.kind, Kind::LocationUnavailable { location: l } if l == location)
        })
    }
}

/// Routes below `/_lab`.
pub fn routes() -> Router<Arc<Provider>> {
    Router::new().route("/_lab/faults", get(list).post(add).delete(lift_all)).route("/_lab/faults/{id}", delete(lift))
}

async fn list(State(provider): State<Arc<Provider>>) -> Response {
    let faults: Vec<Value> = provider.common.faults().set.iter().map(render).collect();
    one("faults", Value::Array(faults))
}

async fn add(State(provider): State<Arc<Provider>>, input: Input) -> ApiResult {
    let count = input.number("count")?;
    let requests = |any_change: bool| -> ApiResult<Requests> {
        let path = input.string("path")?.unwrap_or_else(|| "*".into());
        let path = path.strip_prefix("/v1").unwrap_or(&path).to_owned();
        let method = input.string("method")?.or_else(|| any_change.then(|| "POST".to_owned()));
        Ok(Requests { method, path })
    };
    // A fault on requests strikes once unless told otherwise: a forgotten one would hang whatever runs next.
    let (kind, remaining) = match input.required_string("kind")?.as_str() {
        "location_unavailable" => {
            let location = input.required_string("location")?;
            if catalog::location(&location).is_none() {
                return Err(ApiError::field("location", format!("location '{location}' not found")));
            }
            (Kind::LocationUnavailable { location }, count)
        }
        "api_error" => {
            let code = input.required_string("code")?;
            let message = input.string("message")?.unwrap_or_else(|| format!("{code} (a fault set in the lab)"));
            (Kind::ApiError { code, message, requests: requests(false)? }, Some(count.unwrap_or(1)))
        }
        "lost_answer" => (Kind::LostAnswer { requests: requests(true)? }, Some(count.unwrap_or(1))),
        other => {
            let known = "location_unavailable, api_error, lost_answer";
            return Err(ApiError::field("kind", format!("'{other}' is none of {known}")));
        }
    };
    let fault = Fault { id: provider.common.next_id(), kind, remaining, struck: 0 };
    let rendered = render(&fault);
    provider.common.faults().set.push(fault);
    Ok(created(json!({"fault": rendered})))
}

async fn lift(State(provider): State<Arc<Provider>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut faults = provider.common.faults();
    let before = faults.set.len();
    faults.set.retain(|f| f.id != id);
    if faults.set.len() == before { Err(ApiError::not_found("fault", id)) } else { Ok(no_content()) }
}

async fn lift_all(State(provider): State<Arc<Provider>>) -> Response {
    provider.common.faults().set.clear();
    no_content()
}

fn render(fault: &Fault) -> Value {
    let mut value = match &fault.kind {
        Kind::LocationUnavailable { location } => json!({"kind": "location_unavailable", "location": location}),
        Kind::ApiError { code, message, requests } => json!({
            "kind": "api_error", "code": code, "message": message,
            "method": requests.method, "path": requests.path,
        }),
        Kind::LostAnswer { requests } => {
            json!({"kind": "lost_answer", "method": requests.method, "path": requests.path})
        }
    };
    value["id"] = json!(fault.id);
    value["remaining"] = json!(fault.remaining);
    value["struck"] = json!(fault.struck);
    value
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("/servers", "/servers", true),
            ("/servers", "/servers/1", false),
            ("/servers*", "/servers/1", true),
            ("/servers/*/actions/*", "/servers/1/actions/poweron", true),
            ("/servers/*/actions/*", "/servers/1", false),
            ("*", "/anything", true),
            ("*/actions/attach", "/volumes/3/actions/attach", true),
            ("*/actions/attach", "/volumes/3/actions/attach_to_network", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
