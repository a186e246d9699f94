use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::budget::Budget;
use super::error;
use super::wire::{ApiError, ErrorBody, Meta};
use crate::ports::{ErrorCode, PortError, PortResult};

/// One request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// One call with all its repetitions.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How often a refused or lost request is repeated.
const REPEATS_MAX: usize = 10;
/// Most requests under way at a time.
const IN_FLIGHT_MAX: usize = 8;
/// The most the API gives.
const PER_PAGE: u32 = 50;
/// 500,000 things of one kind: a project has far fewer.
const PAGES_MAX: u32 = 10_000;
/// Largest answer that is read.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// Requests of this process by method and path.
static REQUESTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// How many requests this process has sent, by method and path, `GET /servers/{id}`. Repeated ones count.
pub fn requests() -> BTreeMap<String, u64> {
    REQUESTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn count(method: &Method, path: &str) {
    let path = path.split('?').next().unwrap_or(path);
    let part = |part: &str| if part.parse::<u64>().is_ok() { "{id}".to_owned() } else { part.to_owned() };
    let shape = path.split('/').map(part).collect::<Vec<_>>().join("/");
    let mut requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry(format!("{method} {shape}")).or_default() += 1;
}

/// Sends requests with the token, within the budget, and repeats what may be repeated.
pub(super) struct Http {
    client: Client,
    base: String,
    token: HeaderValue,
    pub(super) budget: Budget,
    in_flight: Arc<Semaphore>,
}

/// How one attempt failed.
pub(super) struct Failure {
    pub(super) error: PortError,
    /// The effect may have happened: the request left and no answer of the API came back.
    pub(super) ambiguous: bool,
}

impl Http {
    pub(super) fn new(endpoint: &str, token: &SecretString) -> PortResult<Self> {
        let invalid = |what: String| PortError::new(ErrorCode::Invalid, what);
        let url = reqwest::Url::parse(endpoint).map_err(|e| invalid(format!("{endpoint:?} is not a URL: {e}")))?;
        // The command line has chosen this provider already; a library user may not have.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("hk-dr/", env!("CARGO_PKG_VERSION")))
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(Duration::from_secs(10))
            // The token goes to the endpoint and nowhere else.
            .redirect(reqwest::redirect::Policy::none());
        if url.scheme() == "http" {
            // A lab on this machine: a proxy could not reach it, and must not see the token in the clear.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| invalid(format!("could not prepare HTTP: {e}")))?;
        let mut token = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
            .map_err(|_| invalid("the cloud token holds characters that no token has".into()))?;
        token.set_sensitive(true);
        let base = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { client, base, token, budget: Budget::new(), in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) })
    }

    /// One attempt.
    pub(super) async fn attempt(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.budget.take().await;
        count(method, path);
        // The semaphore is never closed.
        let _place = self.in_flight.acquire().await.ok();
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
        request = request.header(AUTHORIZATION, self.token.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| lost(method, path, &e))?;
        let status = response.status();
        if status != reqwest::StatusCode::TOO_MANY_REQUESTS {
            self.learn(response.headers());
        }
        let reset = reset(response.headers());
        let bytes = read(response).await.map_err(|e| lost(method, path, &e))?;
        if status.is_success() {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&bytes).map_err(|e| Failure {
                error: PortError::new(ErrorCode::ServerError, format!("{method} {path}: the answer is not JSON: {e}")),
                ambiguous: true,
            });
        }
        let parsed = serde_json::from_slice::<ErrorBody>(&bytes).ok().map(|body| body.error);
        // A gateway that gave up does not know what became of the request, whether or not it says so in JSON.
        let gateway = matches!(status.as_u16(), 502 | 504)
            || parsed.as_ref().is_some_and(|e| matches!(e.code.as_str(), "bad_gateway" | "timeout"));
        let ambiguous = gateway || (parsed.is_none() && status.is_server_error());
        let error = error::from_api(&parsed.unwrap_or_else(|| plain(status)), status.as_u16());
        if error.code == ErrorCode::RateLimited {
            self.budget.refused(reset);
        }
        Err(Failure { error: error.context(format!("{method} {path}")), ambiguous })
    }

    /// Repeats while the API is busy or lost, within bounds. Only for what may happen twice. Also tells whether an earlier
    /// attempt was ambiguous.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (PortResult<Value>, bool) {
        let mut pauses = Pauses::new();
        let mut ambiguous = false;
        loop {
            let failure = match self.attempt(&method, path, body).await {
                Ok(value) => return (Ok(value), ambiguous),
                Err(failure) => failure,
            };
            ambiguous |= failure.ambiguous;
            if let Err(error) = pauses.after(failure.error).await {
                return (Err(error), ambiguous);
            }
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> PortResult<T> {
        let value = self.call(Method::GET, path, None).await.0?;
        parsed(value, path)
    }

    /// All things of a list, over all pages. `query` comes without `page` and `per_page`.
    pub(super) async fn list<T: DeserializeOwned>(&self, list: &str, query: &str) -> PortResult<Vec<T>> {
        let mut found = Vec::new();
        let mut page = 1;
        for _ in 0..PAGES_MAX {
            let path = format!("/{list}?page={page}&per_page={PER_PAGE}{query}");
            let mut value: Value = self.get(&path).await?;
            let items: Vec<T> = parsed(value[list].take(), &path)?;
            found.extend(items);
            let meta: Meta =
                parsed(value.get_mut("meta").map(Value::take).unwrap_or_default(), &path).unwrap_or_default();
            match meta.pagination.next_page {
                Some(next) if next > page => page = next,
                _ => return Ok(found),
            }
        }
        Err(PortError::new(ErrorCode::LimitExceeded, format!("the list of {list} does not end")))
    }

    fn learn(&self, headers: &HeaderMap) {
        self.budget.learn(number(headers, "ratelimit-limit"), number(headers, "ratelimit-remaining"));
    }
}

/// The pauses between attempts of one call.
pub(super) struct Pauses {
    pauses: backon::ExponentialBackoff,
    end: Instant,
}

impl Pauses {
    pub(super) fn new() -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(REPEATS_MAX)
            .with_jitter()
            .build();
        Self { pauses, end: Instant::now() + CALL_DEADLINE }
    }

    /// Waits before the next attempt, or returns the error when there is to be none.
    pub(super) async fn after(&mut self, error: PortError) -> PortResult<()> {
        if error.class() != crate::ports::ErrorClass::Transient {
            return Err(error);
        }
        match self.pauses.next() {
            Some(pause) if Instant::now() + pause < self.end => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            _ => Err(error.context(format!("tried {} times or {} s", REPEATS_MAX + 1, CALL_DEADLINE.as_secs()))),
        }
    }
}

pub(super) fn parsed<T: DeserializeOwned>(value: Value, path: &str) -> PortResult<T> {
    serde_json::from_value(value).map_err(|e| {
        PortError::new(ErrorCode::ServerError, format!("{path}: the answer is not of the known form: {e}"))
    })
}

/// Percent-encodes a query value.
pub(super) fn query_value(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

async fn read(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        // What is cut off here is no JSON and reported as such.
        if bytes.len() + chunk.len() > ANSWER_MAX_BYTES {
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn lost(method: &Method, path: &str, error: &reqwest::Error) -> Failure {
    let mut message = format!("{method} {path}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        message = format!("{message}: {inner}");
        source = inner.source();
    }
    let code = if error.is_timeout() { ErrorCode::Timeout } else { ErrorCode::Unreachable };
    // Without a connection nothing was sent.
    Failure { error: PortError::new(code, message), ambiguous: !error.is_connect() && !error.is_builder() }
}

fn plain(status: reqwest::StatusCode) -> ApiError {
    ApiError { code: String::new(), message: format!("HTTP status {status} without an error of the API") }
}

fn number(headers: &HeaderMap, name: &str) -> Option<f64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// `RateLimit-Reset` is a Unix time in seconds.
#[expect(clippy::disallowed_methods, reason = "the header is a Unix time, and only how long to wait comes out")]
fn reset(headers: &HeaderMap) -> Option<Duration> {
    let at = number(headers, "ratelimit-reset")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Duration::try_from_secs_f64((at - now).max(0.0)).ok()
}
