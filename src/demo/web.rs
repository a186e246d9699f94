//! Plain HTTP as a user of the cluster speaks it: to a pod through its NodePort, and to the Kubernetes API with nothing but
//! a token.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Certificate, Client, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::DemoError;
use crate::distribution::API_PORT;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A pod that does not answer at once is asked again instead of being waited for.
const POD_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two tries.
const POD_ASK_EVERY: Duration = Duration::from_millis(50);

/// Asks until a pod answers over a node's public address, and returns what it said.
///
/// # Errors
/// It did not within the deadline.
pub async fn pod_answer(address: Ipv4Addr, port: u16, deadline: Duration) -> Result<String, DemoError> {
    let url = format!("http://{address}:{port}/");
    let client =
        Client::builder().no_proxy().timeout(POD_TIMEOUT).pool_max_idle_per_host(0).build().map_err(refused)?;
    let end = tokio::time::Instant::now() + deadline;
    let mut last = "it was never asked".to_owned();
    while tokio::time::Instant::now() < end {
        match client.get(&url).send().await {
            Ok(answer) if answer.status() == StatusCode::OK => match answer.text().await {
                Ok(text) if text.starts_with("ok from ") => return Ok(text.trim().to_owned()),
                Ok(text) => last = format!("it answered with something else: {:.60}", text),
                Err(error) => last = error.to_string(),
            },
            Ok(answer) => last = format!("it answered {}", answer.status()),
            Err(error) => last = said(&error),
        }
        tokio::time::sleep(POD_ASK_EVERY).await;
    }
    Err(DemoError::new(format!("no pod answered at {url} within {} s: {last}", deadline.as_secs())))
}

/// The Kubernetes API on one master's public address, for the holder of a token.
pub struct TokenApi {
    client: Client,
    base: String,
}

impl TokenApi {
    /// Trusts this CA alone; no client certificate is shown.
    pub fn new(ca_pem: &str, api_name: &str, master: Ipv4Addr) -> Result<Self, DemoError> {
        let ca = Certificate::from_pem(ca_pem.as_bytes()).map_err(refused)?;
        let client = Client::builder()
            .no_proxy()
            .timeout(CALL_TIMEOUT)
            .tls_certs_only([ca])
            .resolve(api_name, SocketAddr::from((master, API_PORT)))
            .build()
            .map_err(refused)?;
        Ok(Self { client, base: format!("https://{api_name}:{API_PORT}") })
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str, token: &SecretString) -> Result<(u16, Value), DemoError> {
        let request = self.client.get(format!("{}{path}", self.base)).bearer_auth(token.expose_secret());
        let answer = request.send().await.map_err(|e| DemoError::new(format!("GET {path}: {}", said(&e))))?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|e| DemoError::new(format!("GET {path}: {}", said(&e))))?;
        // A watch answers with one JSON object a line; the first says what matters.
        let first = text.lines().next().unwrap_or_default();
        Ok((status, serde_json::from_str(&text).or_else(|_| serde_json::from_str(first)).unwrap_or(Value::Null)))
    }

    /// Whom the API takes the token's bearer for; the status alone if it does not accept the token.
    pub async fn who_am_i(&self, token: &SecretString) -> Result<(u16, Option<String>), DemoError> {
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let review = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let request = self.client.post(format!("{}{path}", self.base)).bearer_auth(token.expose_secret()).json(&review);
        let answer = request.send().await.map_err(|e| DemoError::new(format!("POST {path}: {}", said(&e))))?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap_or(Value::Null);
        Ok((status, body["status"]["userInfo"]["username"].as_str().map(str::to_owned)))
    }
}

/// The whole chain of causes: the outermost alone says only that something failed.
pub(super) fn said(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        message = format!("{message}: {inner}");
        source = inner.source();
    }
    message
}

fn refused(error: reqwest::Error) -> DemoError {
    DemoError::new(format!("the HTTP client can't be made: {}", said(&error)))
}
