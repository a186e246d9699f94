//! restic's REST protocol (<https://restic.readthedocs.io/en/stable/REST_backend.html>) over a bucket, on loopback. Files
//! lie in the bucket as restic's own S3 backend lays them, so stock restic opens the repository there without this. What
//! may be done is said by whoever opened it: nothing but reading, adding while a turn lasts, or removing while one does.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::turn::Turn;
use super::whole::Held;
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Largest file: restic's packs are 16 MiB, the last blob of one may be 8 MiB more; its settings go up to 128 MiB.
pub(super) const FILE_BYTES_MAX: usize = 160 << 20;
/// Folders of a repository. `locks` never leave this process: nothing is ever removed through it, which is what they guard.
const FOLDERS: [&str; 5] = ["data", "index", "keys", "snapshots", "locks"];
/// Those that are pruned.
const REMOVABLE: [&str; 3] = ["data", "index", "snapshots"];
const LIST_TYPE: &str = "application/vnd.x.restic.rest.v2";

/// A repository that can be reached at an address of this machine, by whoever knows its secret path.
pub struct Relay {
    address: SocketAddr,
    secret: String,
    state: Arc<Repo>,
    task: AbortHandle,
}

struct Repo {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    locks: Mutex<BTreeMap<String, Bytes>>,
    held: Held,
    /// What may be done beside reading, and as long as which turn lasts.
    allowed: Mutex<Option<(Deed, Arc<Turn>)>>,
    /// Full names of snapshots that came in.
    snapshots: Mutex<Vec<String>>,
    /// Why the bucket failed last, which restic shows as a number.
    trouble: Mutex<Option<PortError>>,
    /// Told when the bucket refused something for good: restic would ask again for a quarter of an hour.
    refused: Notify,
}

/// What is done to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Files are added.
    Add,
    /// Files are added and removed.
    Remove,
}

/// A permission that ends with this value.
pub(super) struct Permit(Arc<Repo>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.allowed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Listens on a free port of loopback.
    pub async fn open(store: Arc<dyn ObjectStore>, cluster: &str) -> PortResult<Self> {
        let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("listen on loopback: {e}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(local)?;
        let address = listener.local_addr().map_err(local)?;
        let secret: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let state = Arc::new(Repo {
            store,
            prefix: format!("{}/restic", super::prefix(cluster)),
            locks: Mutex::default(),
            held: Held::default(),
            snapshots: Mutex::default(),
            allowed: Mutex::default(),
            trouble: Mutex::default(),
            refused: Notify::new(),
        });
        let router = Router::new()
            .route(&format!("/{secret}/"), any(|| async { StatusCode::OK }))
            .route(&format!("/{secret}/config"), any(config))
            .route(&format!("/{secret}/{{folder}}/"), any(list))
            .route(&format!("/{secret}/{{folder}}/{{name}}"), any(file))
            .with_state(Arc::clone(&state));
        let task = tokio::spawn(async move {
            // Ends with this value.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, secret, state, task: task.abort_handle() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The repository as restic names it, reached at some port of loopback. A secret while it lasts.
    pub fn url(&self, port: u16) -> String {
        format!("rest:http://127.0.0.1:{port}/{}/", self.secret)
    }

    /// The snapshots that came in since this was asked last, by their full names.
    pub fn take_snapshots(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.snapshots.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Allows something while the answer is kept and the turn lasts.
    pub(super) fn allow(&self, deed: Deed, turn: &Arc<Turn>) -> Permit {
        let allowed = Some((deed, Arc::clone(turn)));
        *self.state.allowed.lock().unwrap_or_else(PoisonError::into_inner) = allowed;
        Permit(Arc::clone(&self.state))
    }

    /// What went wrong before does not explain what goes wrong from now on.
    pub(super) fn forget_trouble(&self) {
        *self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.state.refused.notified().now_or_never();
    }

    /// Ends when the bucket refuses something for good.
    pub(super) async fn refused(&self) {
        self.state.refused.notified().await;
    }

    /// Why the bucket failed last.
    pub fn trouble(&self) -> Option<PortError> {
        self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is a repository.
    pub async fn exists(&self) -> PortResult<bool> {
        match self.state.store.head(&format!("{}/config", self.state.prefix)).await {
            Ok(_) => Ok(true),
            Err(e) if e.code == ErrorCode::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn is_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Repo {
    fn key(&self, folder: &str, name: &str) -> String {
        match folder {
            "data" => format!("{}/data/{}/{name}", self.prefix, &name[..2]),
            _ => format!("{}/{folder}/{name}", self.prefix),
        }
    }

    fn failed(&self, error: PortError) -> Response {
        let status = match error.code {
            ErrorCode::NotFound => return StatusCode::NOT_FOUND.into_response(),
            ErrorCode::Forbidden | ErrorCode::Unauthorized | ErrorCode::Conflict => {
                self.refused.notify_one();
                StatusCode::FORBIDDEN
            }
            ErrorCode::LimitExceeded => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::BAD_GATEWAY,
        };
        let said = error.message.clone();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        (status, said).into_response()
    }

    /// Whether this may be done now.
    async fn allows(&self, deed: Deed) -> Result<(), Response> {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((_, turn)) = allowed.filter(|(allowed, _)| *allowed == Deed::Remove || *allowed == deed) else {
            return Err(StatusCode::FORBIDDEN.into_response());
        };
        turn.check().await.map_err(|e| self.failed(e))
    }

    /// Removes a file that holds data. What opens the repository stays, whatever is allowed.
    async fn remove(&self, folder: &str, key: &str) -> Response {
        if !REMOVABLE.contains(&folder) {
            return StatusCode::FORBIDDEN.into_response();
        }
        if let Err(refused) = self.allows(Deed::Remove).await {
            return refused;
        }
        match self.store.delete(key).await {
            Ok(()) => StatusCode::OK.into_response(),
            Err(e) => self.failed(e),
        }
    }

    /// Puts what is not there. What is there already stays as it is.
    async fn put(&self, key: &str, data: Bytes) -> Response {
        match self.store.put(key, data, PutCondition::Absent).await {
            Ok(_) => StatusCode::OK.into_response(),
            // Named by the digest of what it holds, it is the same.
            Err(e) if e.code == ErrorCode::Conflict && !key.ends_with("/config") => StatusCode::OK.into_response(),
            Err(e) if e.code == ErrorCode::Conflict => StatusCode::FORBIDDEN.into_response(),
            Err(e) => self.failed(e),
        }
    }

    async fn get(&self, key: &str, method: &Method, headers: &HeaderMap) -> Response {
        if self.store.copies().len() > 1 && method == Method::GET && !key.ends_with("/config") {
            return match self.held.whole(self.store.as_ref(), key).await {
                Ok(data) => part(&data, headers),
                Err(e) => self.failed(e),
            };
        }
        let size = match self.store.head(key).await {
            Ok(info) => info.size_bytes,
            Err(e) => return self.failed(e),
        };
        if method == Method::HEAD {
            return ([(header::CONTENT_LENGTH, size)], Body::empty()).into_response();
        }
        let Some((first, last)) = range(headers, size) else {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        };
        let whole = first == 0 && last + 1 == size;
        let mut stream = match self.store.stream(key, first).await {
            Ok(stream) => stream,
            Err(e) => return self.failed(e),
        };
        let wanted = usize::try_from(last + 1 - first).unwrap_or(usize::MAX).min(FILE_BYTES_MAX);
        let mut data = BytesMut::with_capacity(wanted);
        while data.len() < wanted
            && let Some(chunk) = stream.next().await
        {
            match chunk {
                Ok(chunk) => data.extend_from_slice(&chunk),
                Err(e) => return self.failed(e),
            }
        }
        data.truncate(wanted);
        (if whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT }, data.freeze()).into_response()
    }
}

/// What is asked for of a file.
fn part(data: &Bytes, headers: &HeaderMap) -> Response {
    let size = data.len() as u64;
    let Some((first, last)) = range(headers, size) else { return StatusCode::RANGE_NOT_SATISFIABLE.into_response() };
    let whole = first == 0 && last + 1 == size;
    let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(data.len());
    let status = if whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    (status, data.slice(within(first)..within(last + 1))).into_response()
}

/// The first and last byte that are asked for: `bytes=first-last` or `bytes=first-`; all of it without that.
fn range(headers: &HeaderMap, size: u64) -> Option<(u64, u64)> {
    let end = size.checked_sub(1)?;
    let Some(asked) = headers.get(header::RANGE) else { return Some((0, end)) };
    let (first, last) = asked.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    let last = if last.is_empty() { end } else { last.parse::<u64>().ok()?.min(end) };
    (first <= last).then_some((first, last))
}

async fn body(body: Body) -> Result<Bytes, Response> {
    axum::body::to_bytes(body, FILE_BYTES_MAX).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE.into_response())
}

async fn config(State(repo): State<Arc<Repo>>, method: Method, headers: HeaderMap, sent: Body) -> Response {
    let key = format!("{}/config", repo.prefix);
    match method {
        Method::GET | Method::HEAD => repo.get(&key, &method, &headers).await,
        Method::POST => match body(sent).await {
            Ok(data) => repo.put(&key, data).await,
            Err(refused) => refused,
        },
        _ => StatusCode::FORBIDDEN.into_response(),
    }
}

async fn list(State(repo): State<Arc<Repo>>, Path(folder): Path<String>) -> Response {
    if !FOLDERS.contains(&folder.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let files: Vec<(String, u64)> = if folder == "locks" {
        let locks = repo.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.iter().map(|(name, data)| (name.clone(), data.len() as u64)).collect()
    } else {
        match repo.store.list(&format!("{}/{folder}/", repo.prefix)).await {
            Ok(objects) => objects
                .into_iter()
                .filter_map(|o| Some((o.key.rsplit('/').next()?.to_owned(), o.size_bytes)))
                .filter(|(name, _)| is_name(name))
                .collect(),
            Err(e) => return repo.failed(e),
        }
    };
    let files: Vec<_> = files.into_iter().map(|(name, size)| serde_json::json!({"name": name, "size": size})).collect();
    ([(header::CONTENT_TYPE, LIST_TYPE)], serde_json::json!(files).to_string()).into_response()
}

async fn file(
    State(repo): State<Arc<Repo>>,
    Path((folder, name)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
    sent: Body,
) -> Response {
    if !FOLDERS.contains(&folder.as_str()) || !is_name(&name) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let data = if method == Method::POST {
        match body(sent).await {
            Ok(data) => data,
            Err(refused) => return refused,
        }
    } else {
        Bytes::new()
    };
    // Every file is named by the digest of what it holds: damage on the way is noticed before it is kept.
    if method == Method::POST && crate::backup::hex(&Sha256::digest(&data)) != name {
        return (StatusCode::BAD_REQUEST, "its SHA-256 is not its name").into_response();
    }
    if folder == "locks" {
        let mut locks = repo.locks.lock().unwrap_or_else(PoisonError::into_inner);
        return match method {
            Method::POST => {
                locks.insert(name, data);
                StatusCode::OK.into_response()
            }
            Method::DELETE => {
                locks.remove(&name);
                StatusCode::OK.into_response()
            }
            _ => locks
                .get(&name)
                .map_or_else(|| StatusCode::NOT_FOUND.into_response(), |data| data.clone().into_response()),
        };
    }
    let key = repo.key(&folder, &name);
    match method {
        Method::GET | Method::HEAD => repo.get(&key, &method, &headers).await,
        Method::POST => {
            // A key is made with the repository; whatever follows needs a turn.
            if folder != "keys"
                && let Err(refused) = repo.allows(Deed::Add).await
            {
                return refused;
            }
            let answer = repo.put(&key, data).await;
            if folder == "snapshots" && answer.status().is_success() {
                repo.snapshots.lock().unwrap_or_else(PoisonError::into_inner).push(name);
            }
            answer
        }
        Method::DELETE => repo.remove(&folder, &key).await,
        _ => StatusCode::FORBIDDEN.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_restic_asks_for_them() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            if !text.is_empty() {
                headers.insert(header::RANGE, text.parse().unwrap());
            }
            range(&headers, 10)
        };
        assert_eq!((of(""), of("bytes=2-4"), of("bytes=2-")), (Some((0, 9)), Some((2, 4)), Some((2, 9))));
        assert_eq!((of("bytes=2-99"), of("bytes=9-2"), of("lines=1-2")), (Some((2, 9)), None, None));
    }
}
