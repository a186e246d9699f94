use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Form, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::books::{Books, book_key};
use super::metrics::metrics;
use super::page::{Seen, live, page};
use super::service::Service;
use super::tend::told;
use super::tls::Peer;
use crate::ports::ErrorCode;

/// Sessions that are remembered; beyond, the signed-in sign in again.
const SESSIONS_MAX: usize = 100;
const COOKIE: &str = "hk-dr-session";

/// Largest report that is passed on.
const REPORT_BYTES_MAX: u64 = 8 << 20;

/// Who asks.
pub struct Caller {
    headers: HeaderMap,
    /// Showed a certificate of the CA that is trusted.
    certified: bool,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let certified = parts.extensions.get::<ConnectInfo<Peer>>().is_some_and(|info| info.0.certified);
        Ok(Self { headers: parts.headers.clone(), certified })
    }
}

impl Caller {
    /// Whether a browser says that another site's page sent this. A certificate goes along whoever asks, unlike a cookie
    /// that is for this site only.
    fn is_sent_by_another_site(&self) -> bool {
        let text = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        let elsewhere = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
        let origin = text("origin").map(|origin| origin.rsplit("//").next().unwrap_or_default().to_owned());
        elsewhere || origin.is_some_and(|origin| Some(origin.as_str()) != text("host"))
    }
}

/// Who may come in.
pub struct Door {
    /// The bearer token of those who may approve; none: nobody may.
    pub token: Option<SecretString>,
    /// Whether one must be signed in to read, too: the address can be reached from other machines.
    pub reading_needs_token: bool,
    sessions: Mutex<BTreeSet<[u8; 32]>>,
}

impl Door {
    /// Nobody is signed in yet.
    pub fn new(token: Option<SecretString>, reading_needs_token: bool) -> Self {
        Self { token, reading_needs_token, sessions: Mutex::default() }
    }

    fn is_token(&self, given: &str) -> bool {
        // Digests are compared, so that the time it takes says nothing of the token.
        self.token.as_ref().is_some_and(|token| digest(token.expose_secret()) == digest(given))
    }

    fn is_signed_in(&self, caller: &Caller) -> bool {
        let headers = &caller.headers;
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let mut cookies =
            text(header::COOKIE).unwrap_or_default().split(';').filter_map(|one| one.trim().split_once('='));
        let session = cookies.find(|(name, _)| *name == COOKIE).map(|(_, value)| digest(value));
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        caller.certified
            || bearer.is_some_and(|given| self.is_token(given))
            || session.is_some_and(|session| sessions.contains(&session))
    }

    fn begin_session(&self) -> String {
        let name: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(digest(&name));
        name
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

type House = State<(Arc<Service>, Arc<Door>)>;

/// All that is answered. Nothing but `/approve` changes anything.
pub fn router(service: Arc<Service>, door: Arc<Door>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/live", get(live_part))
        .route("/evidence/{cluster}/{run}", get(evidence))
        .route("/api/status", get(status))
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/sign-in", post(sign_in))
        .route("/approve", post(approve))
        .with_state((service, door))
}

/// Refuses those who may not read.
#[expect(clippy::result_large_err, reason = "the error is the answer itself, once a request")]
fn reading(door: &Door, caller: &Caller) -> Result<bool, Response<Body>> {
    let signed_in = door.is_signed_in(caller);
    if door.reading_needs_token && !signed_in {
        let page = Html(super::page::sign_in_page().into_string());
        return Err((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], page).into_response());
    }
    Ok(signed_in)
}

fn seen(door: &Door, signed_in: bool) -> Seen {
    Seen { signed_in, can_sign_in: door.token.is_some() }
}

async fn status_page(State((service, door)): House, caller: Caller) -> Result<impl IntoResponse, Response<Body>> {
    let seen = seen(&door, reading(&door, &caller)?);
    // No script or style but the page's own, and nobody's frame.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  form-action 'self'; frame-ancestors 'none'";
    Ok(([(header::CONTENT_SECURITY_POLICY, policy)], Html(page(&service.view(), seen).into_string())))
}

async fn live_part(State((service, door)): House, caller: Caller) -> Result<Html<String>, Response<Body>> {
    let seen = seen(&door, reading(&door, &caller)?);
    Ok(Html(live(&service.view(), seen).into_string()))
}

/// A run's report as it lies in the bucket: one file with everything in it, so it gets nothing from anywhere.
async fn evidence(
    State((service, door)): House,
    Path((cluster, run)): Path<(String, String)>,
    caller: Caller,
) -> Result<impl IntoResponse, Response<Body>> {
    reading(&door, &caller)?;
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let Some(tended) = service.clusters.iter().find(|tended| tended.name == cluster && plain(&run)) else {
        return Err((StatusCode::NOT_FOUND, "there is no such run here\n").into_response());
    };
    match tended.store.get(&format!("{cluster}/runs/{run}/report.html"), REPORT_BYTES_MAX).await {
        Ok(page) => {
            let policy =
                "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox";
            let kind = "text/html; charset=utf-8";
            Ok(([(header::CONTENT_SECURITY_POLICY, policy), (header::CONTENT_TYPE, kind)], page))
        }
        Err(error) if error.code == ErrorCode::NotFound => {
            let text = format!("the bucket has no report of run {run}; `hk-dr report show {run}` draws one up\n");
            Err((StatusCode::NOT_FOUND, text).into_response())
        }
        Err(error) => Err((StatusCode::BAD_GATEWAY, told(&error) + "\n").into_response()),
    }
}

async fn status(State((service, door)): House, caller: Caller) -> Result<impl IntoResponse, Response<Body>> {
    reading(&door, &caller)?;
    Ok(axum::Json(serde_json::json!(service.view())))
}

async fn scrape(State((service, door)): House, caller: Caller) -> Result<impl IntoResponse, Response<Body>> {
    reading(&door, &caller)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], metrics(&service.view())))
}

async fn ready(State((service, _)): House) -> Response<Body> {
    match service.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
}

async fn sign_in(State((_, door)): House, Form(form): Form<SignIn>) -> Response<Body> {
    if !door.is_token(&form.token) {
        // Guessing is slow.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        return (StatusCode::UNAUTHORIZED, "that is not the token\n").into_response();
    }
    // Strict: no other site's page can send an approval with it.
    let cookie = format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/; Max-Age=43200", door.begin_session());
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

#[derive(Deserialize)]
struct Approve {
    cluster: String,
    policy: String,
    schedule: String,
}

async fn approve(State((service, door)): House, caller: Caller, Form(form): Form<Approve>) -> Response<Body> {
    if !door.is_signed_in(&caller) {
        return (StatusCode::UNAUTHORIZED, "sign in first; nothing was approved\n").into_response();
    }
    if caller.is_sent_by_another_site() {
        return (StatusCode::FORBIDDEN, "this was sent by another site's page; nothing was approved\n").into_response();
    }
    let Some(tended) = service.clusters.iter().find(|tended| tended.name == form.cluster) else {
        return (StatusCode::NOT_FOUND, "there is no such cluster here\n").into_response();
    };
    let key = book_key(&form.cluster, &form.policy, &form.schedule);
    if !tended.policies.iter().any(|p| p.name == form.policy && p.schedules.iter().any(|s| s.name == form.schedule)) {
        return (StatusCode::NOT_FOUND, "there is no such schedule\n").into_response();
    }
    let mut books = Books::new(Arc::clone(&tended.store), key);
    let approved = async {
        let Some(book) = books.read(tended.clock.now()).await?.approve("the status page") else { return Ok(None) };
        books.replace(book).await.map(Some)
    };
    match approved.await {
        Ok(Some(true)) => Redirect::to("/").into_response(),
        Ok(Some(false)) => (StatusCode::CONFLICT, "it was decided meanwhile; nothing was approved\n").into_response(),
        Ok(None) => (StatusCode::CONFLICT, "nothing waits for approval there\n").into_response(),
        Err(error) => {
            let error: crate::ports::PortError = error;
            (StatusCode::BAD_GATEWAY, told(&error) + "\n").into_response()
        }
    }
}
