use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use http::{Method, Request, Uri};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::port_error;
use crate::ports::{ClientTls, Collection, ErrorCode, Kube, PortError, PortResult};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects asked for in one answer; an answer is held in memory twice, as text and as values.
const PAGE_OBJECTS: u32 = 250;
/// Pages of one list: 2.5 million objects, far beyond what etcd holds.
const PAGES_MAX: u32 = 10_000;
/// How often a list may begin anew because the server forgot where it was (after five minutes, or a compaction).
const LIST_ATTEMPTS: u32 = 3;

/// Tells why connections fail, when what carries them knows better than the client.
pub(crate) type Explain = Arc<dyn Fn() -> Option<PortError> + Send + Sync>;

/// [`Kube`] over HTTPS with a client certificate.
pub struct KubeClient {
    client: kube::Client,
    explain: Option<Explain>,
    /// Keeps a forwarded port open.
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

impl KubeClient {
    /// Reaches the API at a URL (`https://127.0.0.1:6443`). Connects to nothing yet. Must be called within a runtime.
    pub fn direct(url: &str, tls: &ClientTls) -> PortResult<Self> {
        Self::new(url, tls, None, None)
    }

    /// Like `direct`; `guard` lives as long as the client.
    pub(crate) fn new(
        url: &str,
        tls: &ClientTls,
        guard: Option<Box<dyn Any + Send + Sync>>,
        explain: Option<Explain>,
    ) -> PortResult<Self> {
        let invalid =
            |what: &str, e: &dyn std::fmt::Display| PortError::new(ErrorCode::Invalid, format!("{what}: {e}"));
        let uri: Uri = url.parse().map_err(|e| invalid("the Kubernetes API's URL is not one", &e))?;
        let roots = CertificateDer::pem_slice_iter(tls.ca_pem.as_bytes())
            .map(|der| der.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| invalid("the Kubernetes API's CA is not PEM", &e))?;
        let base64 = base64::engine::general_purpose::STANDARD;
        let mut config = kube::Config::new(uri);
        config.root_cert = Some(roots);
        config.tls_server_name = Some(tls.server_name.clone());
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Whether to try again is decided by the caller, in one place.
        config.default_retry = false;
        config.auth_info.client_certificate_data = Some(base64.encode(&tls.cert_pem));
        config.auth_info.client_key_data = Some(SecretString::from(base64.encode(tls.key_pem.expose_secret())));
        let client =
            kube::Client::try_from(config).map_err(|e| port_error(&e).context("prepare the Kubernetes API"))?;
        Ok(Self { client, explain, _guard: guard })
    }

    async fn text(&self, request: Request<Vec<u8>>) -> PortResult<String> {
        let doing = format!("{} {}", request.method(), request.uri().path());
        let error = match timeout(CALL_TIMEOUT, self.client.request_text(request)).await {
            Ok(Ok(text)) => return Ok(text),
            Ok(Err(error)) => port_error(&error),
            Err(_) => PortError::new(ErrorCode::Timeout, format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        };
        let carried = matches!(error.code, ErrorCode::Unreachable | ErrorCode::Timeout);
        let error = self.explain.as_ref().filter(|_| carried).and_then(|explain| explain()).unwrap_or(error);
        Err(error.context(format!("Kubernetes API, {doing}")))
    }

    async fn json(&self, request: Request<Vec<u8>>) -> PortResult<Value> {
        let doing = format!("{} {}", request.method(), request.uri().path());
        let text = self.text(request).await?;
        serde_json::from_str(&text).map_err(|e| {
            PortError::new(ErrorCode::ServerError, format!("Kubernetes API, {doing}: the answer is not JSON: {e}"))
        })
    }

    async fn pages(&self, collection: &Collection) -> PortResult<Vec<Value>> {
        let mut found = Vec::new();
        let mut query = format!("limit={PAGE_OBJECTS}");
        for _ in 0..PAGES_MAX {
            let mut list = self.json(request(Method::GET, &collection.path(), &query, None)?).await?;
            let kind = list["kind"].as_str().and_then(|k| k.strip_suffix("List")).map(str::to_owned);
            let version = list["apiVersion"].as_str().map(str::to_owned);
            if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
                for item in items.iter_mut() {
                    // Lists name version and kind once; an object that leaves its list must carry them itself.
                    complete(item, "kind", kind.as_deref());
                    complete(item, "apiVersion", version.as_deref());
                }
                found.append(items);
            }
            match list["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => query = format!("limit={PAGE_OBJECTS}&continue={}", escaped(token)),
                None => return Ok(found),
            }
        }
        Err(PortError::new(ErrorCode::LimitExceeded, format!("{} has too many pages", collection.path())))
    }
}

#[async_trait]
impl Kube for KubeClient {
    async fn ready(&self) -> PortResult<bool> {
        match self.text(request(Method::GET, "/readyz", "", None)?).await {
            Ok(text) => Ok(text.trim() == "ok"),
            Err(error) if error.code == ErrorCode::ServerError => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, collection: &Collection, name: &str) -> PortResult<Option<Value>> {
        absent_is(None, self.json(request(Method::GET, &path(collection, name), "", None)?).await.map(Some))
    }

    async fn list(&self, collection: &Collection) -> PortResult<Vec<Value>> {
        let mut attempt = 1;
        loop {
            match self.pages(collection).await {
                // 410 Gone: the snapshot that the pages belong to is compacted.
                Err(error) if error.message.contains(": 410 ") && attempt < LIST_ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn apply(&self, collection: &Collection, object: &Value) -> PortResult<Value> {
        let name = object["metadata"]["name"].as_str().ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("an object for {} has no metadata.name", collection.path()))
        })?;
        let body = Some(("application/apply-patch+yaml", object));
        self.json(request(Method::PATCH, &path(collection, name), "fieldManager=hk-dr&force=true", body)?).await
    }

    async fn delete(&self, collection: &Collection, name: &str, grace_seconds: Option<u32>) -> PortResult<bool> {
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(seconds) = grace_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        let body = Some(("application/json", &options));
        absent_is(false, self.json(request(Method::DELETE, &path(collection, name), "", body)?).await.map(|_| true))
    }

    async fn patch(&self, collection: &Collection, name: &str, patch: &Value) -> PortResult<Value> {
        let body = Some(("application/merge-patch+json", patch));
        self.json(request(Method::PATCH, &path(collection, name), "fieldManager=hk-dr", body)?).await
    }

    async fn create(&self, collection: &Collection, object: &Value) -> PortResult<Value> {
        let body = Some(("application/json", object));
        self.json(request(Method::POST, &collection.path(), "fieldManager=hk-dr", body)?).await
    }
}

/// An absent object is an answer; an absent collection (a kind that is not served) stays an error.
fn absent_is<T>(value: T, result: PortResult<T>) -> PortResult<T> {
    match result {
        Err(error) if error.code == ErrorCode::NotFound && error.message.contains("not found") => Ok(value),
        other => other,
    }
}

fn complete(item: &mut Value, field: &str, value: Option<&str>) {
    if let (Some(object), Some(value)) = (item.as_object_mut(), value) {
        object.entry(field).or_insert_with(|| value.into());
    }
}

fn path(collection: &Collection, name: &str) -> String {
    format!("{}/{}", collection.path(), escaped(name))
}

/// Percent-encodes what is not allowed in a path segment or a query value.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn request(method: Method, path: &str, query: &str, body: Option<(&str, &Value)>) -> PortResult<Request<Vec<u8>>> {
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut builder = Request::builder().method(method).uri(uri).header(http::header::ACCEPT, "application/json");
    let mut bytes = Vec::new();
    if let Some((content_type, value)) = body {
        builder = builder.header(http::header::CONTENT_TYPE, content_type);
        bytes = value.to_string().into_bytes();
    }
    builder.body(bytes).map_err(|e| PortError::new(ErrorCode::Invalid, format!("{path} does not make a request: {e}")))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn names_cannot_leave_their_collection() {
        let roles = Collection {
            api_version: "rbac.authorization.k8s.io/v1".into(),
            plural: "clusterroles".into(),
            namespace: None,
        };
        assert_eq!(path(&roles, "system:node"), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node");
        assert!(path(&roles, "../x?y").ends_with("/clusterroles/..%2Fx%3Fy"));
    }
}
