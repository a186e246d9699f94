//! What every request passes: correlation id, token, rate limit, faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::cloud::{Cloud, now};
use super::error::ApiError;

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
pub async fn pass(State(cloud): State<Arc<Cloud>>, request: Request, next: Next) -> Response {
    let correlation = correlation_id();
    let mut response = admit(&cloud, request, next).await;
    if let Ok(value) = HeaderValue::from_str(&correlation) {
        response.headers_mut().insert(HeaderName::from_static("x-correlation-id"), value);
    }
    response
}

async fn admit(cloud: &Arc<Cloud>, request: Request, next: Next) -> Response {
    if !token_fits(request.headers(), &cloud.options.token) {
        return ApiError::new("unauthorized", "unable to authenticate").into_response();
    }
    let full_path = request.uri().path().to_owned();
    // The lab's own endpoints are no part of the cloud: neither limit nor fault applies.
    let Some(path) = full_path.strip_prefix("/v1") else {
        return next.run(request).await;
    };
    let method = request.method().as_str().to_owned();
    let (granted, headers) = cloud.with_bucket(|bucket| (bucket.take(Instant::now()), bucket.headers()));
    let mut response = if granted {
        answer(cloud, &method, path, request, next).await
    } else {
        ApiError::new("rate_limit_exceeded", "limit of requests per hour reached").into_response()
    };
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    response
}

async fn answer(cloud: &Arc<Cloud>, method: &str, path: &str, request: Request, next: Next) -> Response {
    if let Some(error) = cloud.state().faults.refusal(method, path) {
        return error.into_response();
    }
    let response = next.run(request).await;
    // Only an answer that tells of work done can be lost in a way that matters.
    if response.status().is_success() && cloud.state().faults.loses_answer(method, path) {
        return ApiError::new("timeout", "the gateway gave up waiting for an answer").into_response();
    }
    response
}

fn token_fits(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, value)| {
        scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && value.trim() == token
    })
}

fn correlation_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{:08x}{:08x}", rand::random::<u32>(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
