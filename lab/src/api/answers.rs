//! Answers to reads, kept until anything they tell of may have changed: clients ask for the same again and again, and an
//! answer about fifty servers takes far longer to put together than to send.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::header::{HOST, HeaderMap};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// How many answers are kept, and how many bytes of them; beyond that all are forgotten.
const ANSWERS_MAX: usize = 1000;
const BYTES_MAX: usize = 16 << 20;

/// One project's answers, all of one version of what they tell of.
#[derive(Default)]
pub struct Answers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    version: u64,
    bytes: usize,
    by_request: HashMap<String, (HeaderMap, Bytes)>,
}

/// What a request is known by, if its answer may be kept: host (links name it), path and query. Metrics are of now, and
/// load balancers are asked how they are.
pub fn key(request: &Request) -> Option<String> {
    let path = request.uri().path();
    if request.method() != Method::GET || path.ends_with("/metrics") || path.starts_with("/v1/load_balancers") {
        return None;
    }
    let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    Some(format!("{host} {}", request.uri().path_and_query()?))
}

impl Answers {
    pub fn find(&self, version: u64, key: &str) -> Option<Response> {
        let kept = self.kept();
        let (headers, body) = kept.by_request.get(key).filter(|_| kept.version == version)?;
        Some((headers.clone(), Body::from(body.clone())).into_response())
    }

    /// Keeps a good answer, which was put together when all was of this version.
    pub async fn keep(&self, version: u64, key: String, response: Response) -> Response {
        if response.status() != StatusCode::OK {
            return response;
        }
        let (parts, body) = response.into_parts();
        // It is in memory already, as a whole.
        let body = match to_bytes(body, usize::MAX).await {
            Ok(body) => body,
            Err(error) => return ApiError::new("server_error", error.to_string()).into_response(),
        };
        let mut kept = self.kept();
        let full = kept.by_request.len() >= ANSWERS_MAX || kept.bytes + body.len() > BYTES_MAX;
        if kept.version != version || full {
            *kept = Kept { version, ..Kept::default() };
        }
        kept.bytes += body.len();
        kept.by_request.insert(key, (parts.headers.clone(), body.clone()));
        drop(kept);
        Response::from_parts(parts, Body::from(body))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str) -> Request {
        Request::builder().method(method).uri(uri).header(HOST, "cloud").body(Body::empty()).expect("a request")
    }

    #[test]
    fn only_reads_of_what_is_known_to_change_are_kept() {
        assert_eq!(key(&request("GET", "/v1/servers?page=2")).as_deref(), Some("cloud /v1/servers?page=2"));
        for (method, uri) in [
            ("POST", "/v1/servers"),
            ("GET", "/v1/servers/1/metrics?type=cpu"),
            ("GET", "/v1/load_balancers"),
            ("GET", "/v1/load_balancers/7"),
        ] {
            assert_eq!(key(&request(method, uri)), None, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn an_answer_of_another_version_is_not_given() {
        let answers = Answers::default();
        answers.keep(7, "a".into(), "old".into_response()).await;
        assert!(answers.find(7, "a").is_some() && answers.find(8, "a").is_none() && answers.find(7, "b").is_none());
        answers.keep(8, "b".into(), "new".into_response()).await;
        assert!(answers.find(8, "a").is_none() && answers.find(8, "b").is_some());
        answers.keep(8, "c".into(), StatusCode::NOT_FOUND.into_response()).await;
        assert!(answers.find(8, "c").is_none());
    }
}
