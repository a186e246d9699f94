//! A plain client and the fake cloud it talks to.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hk_lab::api::{Options, Served, serve_fake, serve_fake_with};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::document;

/// Two real key blobs, so that two keys can be registered.
pub const KEY_ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR one";
pub const KEY_TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqS two";

/// No action of the fake takes anywhere near this long.
const ACTION_DEADLINE: Duration = Duration::from_secs(20);

pub struct Lab {
    pub served: Served,
    pub http: reqwest::Client,
    /// Whom requests come from.
    pub token: String,
    /// Operations that answered with success, by name.
    used: Mutex<BTreeSet<String>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body of an answer that must be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.body);
        self.body
    }

    /// Status and code of an answer that must be an error.
    #[track_caller]
    pub fn refused(&self) -> (u16, &str) {
        assert!(self.status >= 400, "{} {}", self.status, self.body);
        (self.status, self.body["error"]["code"].as_str().expect("an error has a code"))
    }

    /// The field an `invalid_input` names.
    #[track_caller]
    pub fn wrong_field(&self) -> &str {
        assert_eq!(self.refused(), (422, "invalid_input"), "{}", self.body);
        self.body["error"]["details"]["fields"][0]["name"].as_str().expect("invalid_input names a field")
    }
}

impl Lab {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::around(serve_fake(listener).unwrap())
    }

    pub async fn with(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::around(serve_fake_with(listener, options).unwrap())
    }

    fn around(served: Served) -> Self {
        // reqwest insists on a TLS provider even for plain HTTP; a second installation of the same is no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let token = served.token.clone();
        Self { served, http, token, used: Mutex::default() }
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let base = self.served.endpoint.trim_end_matches("/v1");
        let url = if path.starts_with("/_lab") { format!("{base}{path}") } else { format!("{base}/v1{path}") };
        let mut request = self.http.request(method.clone(), url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        document::check(method.as_str(), path, status, &body);
        if (200..300).contains(&status)
            && let Some(name) = document::name(method.as_str(), path)
        {
            self.used.lock().unwrap().insert(name);
        }
        Answer { status, headers, body }
    }

    /// The operations that answered with success so far.
    pub fn used(&self) -> BTreeSet<String> {
        self.used.lock().unwrap().clone()
    }

    /// The same lab with another token.
    pub fn holding(self, token: &Value) -> Self {
        Self { token: token.as_str().expect("a token").to_owned(), ..self }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    /// Waits for the actions of an answer, `next_actions` included; returns the answer, and the actions at their ends.
    pub async fn end_of(&self, answer: Answer) -> (Value, Vec<Value>) {
        let body = answer.ok();
        let mut ids: Vec<u64> = body["action"]["id"].as_u64().into_iter().collect();
        ids.extend(body["next_actions"].as_array().into_iter().flatten().filter_map(|a| a["id"].as_u64()));
        if ids.is_empty() {
            return (body, Vec::new());
        }
        let query: Vec<String> = ids.iter().map(|id| format!("id={id}")).collect();
        let deadline = Instant::now() + ACTION_DEADLINE;
        loop {
            let actions = self.get(&format!("/actions?{}", query.join("&"))).await.ok();
            let actions = actions["actions"].as_array().unwrap().clone();
            assert_eq!(actions.len(), ids.len());
            if actions.iter().all(|a| a["status"] != "running") {
                return (body, actions);
            }
            assert!(Instant::now() < deadline, "still running: {actions:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As `end_of`, for actions that must succeed.
    pub async fn done(&self, answer: Answer) -> Value {
        let (body, actions) = self.end_of(answer).await;
        for action in &actions {
            assert_eq!(action["status"], "success", "{action}");
            assert_eq!(action["progress"], 100);
        }
        body
    }

    /// Waits until something holds.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + ACTION_DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "still not so");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What held may have to be written down by the task that made it so.
        tokio::task::yield_now().await;
    }

    /// A running server in fsn1.
    pub async fn server(&self, name: &str) -> u64 {
        let body = self.done(self.post("/servers", server_body(name, json!({}))).await).await;
        body["server"]["id"].as_u64().unwrap()
    }

    /// A volume of 10 GB.
    pub async fn volume(&self, name: &str, location: &str) -> u64 {
        let body = json!({"name": name, "size": 10, "location": location});
        self.done(self.post("/volumes", body).await).await["volume"]["id"].as_u64().unwrap()
    }

    /// 10.0.0.0/16 with the subnet 10.0.0.0/24 for Europe.
    pub async fn network(&self, name: &str) -> u64 {
        let body = json!({"name": name, "ip_range": "10.0.0.0/16", "subnets": [
            {"type": "cloud", "network_zone": "eu-central", "ip_range": "10.0.0.0/24"},
        ]});
        self.post("/networks", body).await.ok()["network"]["id"].as_u64().unwrap()
    }
}

/// A body for `POST /servers` with `more` laid over it.
pub fn server_body(name: &str, more: Value) -> Value {
    let mut body = json!({"name": name, "server_type": "cx23", "image": "debian-12", "location": "fsn1"});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}
