//! The loss: every server and every volume is deleted through the cloud's API, by plain HTTP and behind hk-dr's back, and
//! one location is gone for good.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::DemoError;
use super::web::said;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// A volume that is just being detached answers `locked`.
const LOCKED: StatusCode = StatusCode::LOCKED;

/// The cloud's API, as anybody with the token can use it.
pub struct Vandal {
    client: Client,
    /// `http://…`, without `/v1`.
    base: String,
    token: SecretString,
}

/// What was destroyed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destroyed {
    pub servers: Vec<String>,
    pub volumes: usize,
}

impl Vandal {
    /// Uses the cloud API at this base URL.
    pub fn new(base: impl Into<String>, token: SecretString) -> Result<Self, DemoError> {
        let client = Client::builder().no_proxy().timeout(CALL_TIMEOUT).build();
        let client = client.map_err(|e| DemoError::new(format!("the HTTP client can't be made: {}", said(&e))))?;
        Ok(Self { client, base: base.into(), token })
    }

    /// Nothing can be created in this location any more.
    pub async fn close_location(&self, location: &str) -> Result<(), DemoError> {
        let fault = json!({"kind": "location_unavailable", "location": location});
        let (status, answer) = self.call(Method::POST, "/_lab/faults", Some(fault)).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(DemoError::new(format!("the lab did not close {location}: {status} {answer}")))
    }

    /// Deletes everything that runs or holds data; returns when it is gone.
    pub async fn destroy_everything(&self) -> Result<Destroyed, DemoError> {
        let servers = self.all("servers").await?;
        let deletions = servers.iter().map(|server| self.delete(format!("/v1/servers/{}", server["id"])));
        futures::future::try_join_all(deletions).await?;
        let end = tokio::time::Instant::now() + GONE_WITHIN;
        while !self.all("servers").await?.is_empty() {
            if tokio::time::Instant::now() > end {
                let seconds = GONE_WITHIN.as_secs();
                return Err(DemoError::new(format!("servers are still there {seconds} s after their deletion")));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let volumes = self.all("volumes").await?;
        futures::future::try_join_all(volumes.iter().map(|v| self.delete(format!("/v1/volumes/{}", v["id"])))).await?;
        let names = servers.iter().filter_map(|s| s["name"].as_str().map(str::to_owned)).collect();
        Ok(Destroyed { servers: names, volumes: volumes.len() })
    }

    async fn delete(&self, path: String) -> Result<(), DemoError> {
        let end = tokio::time::Instant::now() + GONE_WITHIN;
        loop {
            let (status, answer) = self.call(Method::DELETE, &path, None).await?;
            match status {
                _ if status.is_success() || status == StatusCode::NOT_FOUND => return Ok(()),
                LOCKED if tokio::time::Instant::now() < end => tokio::time::sleep(ASK_EVERY).await,
                _ => return Err(DemoError::new(format!("DELETE {path}: {status} {answer}"))),
            }
        }
    }

    async fn all(&self, what: &str) -> Result<Vec<Value>, DemoError> {
        let (status, mut answer) = self.call(Method::GET, &format!("/v1/{what}?per_page=50"), None).await?;
        match answer[what].take() {
            Value::Array(items) if status.is_success() => Ok(items),
            _ => Err(DemoError::new(format!("the cloud's list of {what} can't be read: {status} {answer}"))),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, Value), DemoError> {
        let doing = format!("{method} {path}");
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).bearer_auth(self.token.expose_secret());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|e| DemoError::new(format!("{doing}: {}", said(&e))))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| DemoError::new(format!("{doing}: {}", said(&e))))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }
}
