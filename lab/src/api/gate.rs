//! What every request passes: correlation id, token, rate limit, faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower::ServiceExt as _;

use super::answers;
use super::cloud::{Cloud, now};
use super::error::ApiError;
use super::overview;
use super::provider::{Access, Project, Provider};

/// How fast a project may ask.
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// Requests at once.
    pub burst: u32,
    /// Requests a second that come back.
    pub refill_per_second: f64,
}

impl Default for RateLimit {
    /// Hetzner's: 3600 an hour, one a second.
    fn default() -> Self {
        Self { burst: 3600, refill_per_second: 1.0 }
    }
}

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, level: f64::from(limit.burst), at: Instant::now() }
    }

    /// Takes one request if there is one.
    fn take(&mut self, at: Instant) -> bool {
        let elapsed = at.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * self.limit.refill_per_second).min(f64::from(self.limit.burst));
        self.at = at;
        let granted = self.level >= 1.0;
        if granted {
            self.level -= 1.0;
        }
        granted
    }

    fn headers(&self) -> [(&'static str, u64); 3] {
        let missing = f64::from(self.limit.burst) - self.level;
        let full_in = (missing / self.limit.refill_per_second.max(f64::MIN_POSITIVE)).ceil();
        let now = now().as_second().max(0) as u64;
        [
            ("ratelimit-limit", u64::from(self.limit.burst)),
            ("ratelimit-remaining", self.level.max(0.0) as u64),
            ("ratelimit-reset", now.saturating_add(full_in as u64)),
        ]
    }
}

/// The middleware.
pub async fn pass(State(provider): State<Arc<Provider>>, request: Request, next: Next) -> Response {
    let correlation = correlation_id();
    let mut response = admit(&provider, request, next).await;
    // Whatever the answer tells of is on disk before it leaves.
    if let Err(error) = provider.common.changes.settled().await {
        response = ApiError::new("service_error", error.message).into_response();
    }
    if let Ok(value) = HeaderValue::from_str(&correlation) {
        response.headers_mut().insert(HeaderName::from_static("x-correlation-id"), value);
    }
    response
}

async fn admit(provider: &Provider, mut request: Request, next: Next) -> Response {
    // Looking at the lab as a whole needs no token: a browser has none.
    if request.method() == Method::GET && overview::is_open(request.uri().path()) {
        return next.run(request).await;
    }
    let Some((project, access)) = provider.admit(request.headers()) else {
        return ApiError::new("unauthorized", "unable to authenticate").into_response();
    };
    let may = access == Access::ReadWrite || matches!(*request.method(), Method::GET | Method::HEAD);
    let full_path = request.uri().path().to_owned();
    // The lab's own endpoints are no part of the cloud: neither limit nor fault applies.
    let Some(path) = full_path.strip_prefix("/v1") else {
        return if may { next.run(request).await } else { readonly() };
    };
    let cloud = Arc::clone(&project.cloud);
    let (project_name, began) = (project.name.clone(), Instant::now());
    request.extensions_mut().insert(project);
    let method = request.method().as_str().to_owned();
    let (granted, headers) = cloud.with_bucket(|bucket| (bucket.take(Instant::now()), bucket.headers()));
    let mut response = if !may {
        readonly()
    } else if granted {
        answer(provider, &cloud, &method, path, request, next).await
    } else {
        ApiError::new("rate_limit_exceeded", "limit of requests per hour reached").into_response()
    };
    let exhausted = response.status() == StatusCode::TOO_MANY_REQUESTS;
    for (name, value) in headers {
        // Whoever is told that nothing is left reads the same in the headers.
        let value = if exhausted && name == "ratelimit-remaining" { 0 } else { value };
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    provider.common.calls().note(&project_name, &method, path, response.status().as_u16(), began.elapsed());
    response
}

async fn answer(
    provider: &Provider,
    cloud: &Arc<Cloud>,
    method: &str,
    path: &str,
    request: Request,
    next: Next,
) -> Response {
    let refusal = provider.common.faults().refusal(method, path);
    if let Some(error) = refusal {
        return error.into_response();
    }
    let delay = provider.common.faults().delay(method, path);
    // Faults change answers by counts and by dice.
    let key = if provider.common.faults().all().is_empty() { answers::key(&request) } else { None };
    let version = provider.common.changes.version();
    let changes = !matches!(method, "GET" | "HEAD");
    let response = match key {
        None => next.run(request).await,
        Some(key) => match cloud.answers.find(version, &key) {
            Some(response) => response,
            None => {
                let response = next.run(request).await;
                // What changed meanwhile may be told of in part.
                if provider.common.changes.version() == version {
                    cloud.answers.keep(version, key, response).await
                } else {
                    response
                }
            }
        },
    };
    if changes {
        cloud.changed();
    }
    if let Some(delay) = delay {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    // Only an answer that tells of work done can be lost in a way that matters.
    if response.status().is_success() && provider.common.faults().loses_answer(method, path) {
        return ApiError::new("timeout", "the gateway gave up waiting for an answer").into_response();
    }
    response
}

fn readonly() -> Response {
    ApiError::new("token_readonly", "the token is only allowed to perform GET requests").into_response()
}

/// Hands a request to the API of the project that its token belongs to.
pub async fn to_project(request: Request) -> Response {
    match request.extensions().get::<Project>() {
        // A router refuses nothing itself: its error type has no value.
        Some(project) => project.router.clone().oneshot(request).await.into_response(),
        None => super::no_path(request).await.into_response(),
    }
}

fn correlation_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{:08x}{:08x}", rand::random::<u32>(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_grants_its_burst_and_then_what_comes_back() {
        let mut bucket = Bucket::new(RateLimit { burst: 2, refill_per_second: 1.0 });
        let start = bucket.at;
        assert!(bucket.take(start));
        assert!(bucket.take(start));
        assert!(!bucket.take(start));
        assert!(bucket.take(start + Duration::from_secs(1)));
        assert!(!bucket.take(start + Duration::from_secs(1)));
        // It never holds more than its burst.
        assert!(bucket.take(start + Duration::from_secs(100)));
        assert!(bucket.take(start + Duration::from_secs(100)));
        assert!(!bucket.take(start + Duration::from_secs(100)));
    }
}
