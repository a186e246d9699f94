//! `/_lab/faults`: setting, listing and lifting faults.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{delete, get};
use serde_json::{Value, json};

use super::catalog;
use super::cloud::{now, time_json};
use super::error::{ApiError, ApiResult};
use super::fault::{Fault, KINDS, Kind};
use super::input::{Input, path_id};
use super::listing::{created, no_content, one};
use super::provider::Provider;

/// Longest time after which a fault lifts itself: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// A clock is ten years off at most.
const SKEW_MAX_MS: u64 = 10 * 365 * 86_400 * 1000;

/// Routes below `/_lab`.
pub fn routes() -> Router<Arc<Provider>> {
    Router::new().route("/_lab/faults", get(list).post(add).delete(lift_all)).route("/_lab/faults/{id}", delete(lift))
}

async fn list(State(provider): State<Arc<Provider>>) -> Response {
    one("faults", provider.common.faults().all().iter().map(render).collect())
}

async fn add(State(provider): State<Arc<Provider>>, input: Input) -> ApiResult {
    let kind = read_kind(&provider, &input)?;
    let count = input.number("count")?;
    let number = |name: &str| -> ApiResult<Option<f64>> {
        let wrong = || ApiError::field(name, "must be a number and not negative");
        input.get(name).map(|v| v.as_f64().filter(|n| *n >= 0.0).ok_or_else(wrong)).transpose()
    };
    let (probability, seconds) = (number("probability")?, number("for_seconds")?);
    if probability.is_some_and(|p| p > 1.0) {
        return Err(ApiError::field("probability", "must be between 0 and 1"));
    }
    if seconds.is_some_and(|s| s > SECONDS_MAX) {
        return Err(ApiError::field("for_seconds", format!("must be at most {SECONDS_MAX}")));
    }
    for (name, given) in [("count", count.is_some()), ("probability", probability.is_some())] {
        if given && !kind.strikes_requests() {
            return Err(ApiError::field(name, "this fault strikes all the time: it can only be timed or lifted"));
        }
    }
    let once = kind.strikes_once() && probability.is_none() && seconds.is_none();
    let mut fault = Fault::new(provider.common.next_id(), kind);
    if let Some(probability) = probability {
        fault =
            fault.with_chance(probability, input.number("seed")?.unwrap_or_else(|| u64::from(rand::random::<u32>())));
    }
    fault.remaining = count.or(once.then_some(1));
    let length = seconds.map(Duration::from_secs_f64);
    fault.until = length.and_then(|length| now().checked_add(length).ok());
    let (id, rendered) = (fault.id, render(&fault));
    provider.common.faults().add(fault);
    if let Err(error) = provider.apply_faults().await {
        provider.common.faults().lift(id);
        // What was set before can be set again.
        let _ = provider.apply_faults().await;
        return Err(ApiError::unsupported(error.0));
    }
    if let Some(length) = length {
        tokio::spawn(async move {
            tokio::time::sleep(length).await;
            provider.common.faults().lift(id);
            if let Err(error) = provider.apply_faults().await {
                eprintln!("fault {id} could not be lifted: {error}");
            }
        });
    }
    Ok(created(json!({"fault": rendered})))
}

/// Reads what is to fail, and checks that it exists.
fn read_kind(provider: &Provider, input: &Input) -> ApiResult<Kind> {
    let name = input.required_string("kind")?;
    if !KINDS.contains(&name.as_str()) {
        return Err(ApiError::field("kind", format!("'{name}' is none of {}", KINDS.join(", "))));
    }
    let mut fields = input.fields();
    // Servers and volumes may be named.
    for (field, find) in
        [("server", Provider::find_server as fn(&Provider, &str) -> Option<u64>), ("volume", Provider::find_volume)]
    {
        if let Some(reference) = input.reference(field)? {
            let id = find(provider, &reference)
                .ok_or_else(|| ApiError::field(field, format!("{field} '{reference}' not found")))?;
            fields.insert(field.to_owned(), json!(id));
        }
    }
    // Requests are named as clients send them, or below `/v1`. What was read gets lost where work was done, unless told otherwise.
    if let Some(below) =
        input.string("path")?.as_deref().and_then(|p| p.strip_prefix("/v1")).filter(|p| p.starts_with(['/', '*']))
    {
        fields.insert("path".to_owned(), json!(below));
    }
    if name == "lost_answer" && input.string("method")?.is_none() {
        fields.insert("method".to_owned(), json!("POST"));
    }
    let mut kind: Kind = serde_json::from_value(Value::Object(fields)).map_err(|error| {
        let text = error.to_string();
        let field = text.split('`').nth(1).unwrap_or("kind").to_owned();
        ApiError::field(&field, text)
    })?;
    if let Some(location) = kind.location()
        && catalog::location(location).is_none()
    {
        return Err(ApiError::field("location", format!("location '{location}' not found")));
    }
    if let Some(to) = kind.to() {
        if to != "internet" && to != "others" && catalog::location(to).is_none() {
            return Err(ApiError::field("to", format!("'{to}' is no location, nor 'others' or 'internet'")));
        }
        if kind.location() == Some(to) {
            return Err(ApiError::field("to", "a link has two ends"));
        }
    }
    match &kind {
        Kind::LinkLoss { percent, .. } if !(0.01..=100.0).contains(percent) => {
            return Err(ApiError::field("percent", "must be between 0.01 and 100"));
        }
        Kind::LinkRate { kbit, .. } if *kbit < 8 => return Err(ApiError::field("kbit", "must be at least 8")),
        Kind::LinkDelay { delay_ms, .. } if !(1..=10_000).contains(delay_ms) => {
            return Err(ApiError::field("delay_ms", "must be between 1 and 10000"));
        }
        Kind::ClockSkew { offset_ms, .. } if !(1..=SKEW_MAX_MS).contains(&offset_ms.unsigned_abs()) => {
            return Err(ApiError::field(
                "offset_ms",
                format!("must be between 1 and {SKEW_MAX_MS}, or as far below 0"),
            ));
        }
        Kind::S3Error { status, .. } if !(400..=599).contains(status) => {
            return Err(ApiError::field("status", "must be between 400 and 599"));
        }
        _ => {}
    }
    if let Kind::ApiError { message, code, .. } = &mut kind
        && message.is_empty()
    {
        *message = format!("the lab was told to answer {code}");
    }
    if let Kind::ActionError { message, .. } = &mut kind
        && message.is_empty()
    {
        *message = "the lab was told to let this action fail".to_owned();
    }
    Ok(kind)
}

async fn lift(State(provider): State<Arc<Provider>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    if !provider.common.faults().lift(id) {
        return Err(ApiError::not_found("fault", id));
    }
    provider.apply_faults().await.map_err(|error| ApiError::new("service_error", error.0))?;
    Ok(no_content())
}

async fn lift_all(State(provider): State<Arc<Provider>>) -> ApiResult {
    provider.common.faults().clear();
    provider.apply_faults().await.map_err(|error| ApiError::new("service_error", error.0))?;
    Ok(no_content())
}

/// A fault as JSON.
pub fn render(fault: &Fault) -> Value {
    let mut value = serde_json::to_value(&fault.kind).unwrap_or_default();
    value["id"] = json!(fault.id);
    value["remaining"] = json!(fault.remaining);
    value["struck"] = json!(fault.struck);
    value["probability"] = json!(fault.chance.map(|(probability, _)| probability));
    value["seed"] = json!(fault.chance.map(|(_, seed)| seed));
    value["until"] = fault.until.map_or(Value::Null, time_json);
    value
}
