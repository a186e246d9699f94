//! Several buckets as one. Everything is written to all of them and read from whichever is good; one that is gone,
//! read-only, slow or lying is noted and never stops the others. `mirror` brings it up to date again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::time::timeout;

use crate::ports::{
    ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload, Vouched,
};

/// How long one bucket may take for a small object, or for one part of a large one, before the others go on without it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Buckets that hold the same. The first one is home: it alone keeps the log's lease, of which there can be only one.
pub struct Copies {
    stores: Vec<Arc<dyn ObjectStore>>,
    patience: Duration,
    /// What went wrong last, by bucket.
    problems: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Copies {
    /// Puts several buckets together; the first is home.
    pub fn new(stores: Vec<Arc<dyn ObjectStore>>) -> Self {
        Self { stores, patience: PATIENCE, problems: Arc::default() }
    }

    /// With another patience.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Buckets that did not take or give everything, and why.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.iter().map(|(store, problem)| format!("{store}: {problem}")).collect()
    }

    fn home(&self) -> PortResult<&Arc<dyn ObjectStore>> {
        self.stores.first().ok_or_else(|| PortError::new(ErrorCode::Invalid, "no bucket is declared"))
    }

    fn note(&self, store: &dyn ObjectStore, problem: &PortError) {
        note(&self.problems, store, problem);
    }

    async fn put_one(
        &self,
        store: &dyn ObjectStore,
        key: &str,
        data: &Bytes,
        condition: &PutCondition,
    ) -> PortResult<ObjectInfo> {
        let put = async {
            let info = match store.put(key, data.clone(), condition.clone()).await {
                Err(e) if e.code == ErrorCode::Conflict => {
                    // An earlier attempt that reached only some, or `mirror`, has put it there.
                    match store.get(key, data.len() as u64).await {
                        Ok(there) if there == *data => return store.head(key).await,
                        _ => return Err(e),
                    }
                }
                other => other?,
            };
            // A bucket is believed when it gives back what it took.
            let back = store.get(key, data.len() as u64).await;
            match back {
                Ok(back) if back == *data => Ok(info),
                Ok(_) => Err(lying(store, key)),
                Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::LimitExceeded | ErrorCode::Unsigned) => {
                    Err(lying(store, key))
                }
                Err(e) => Err(e),
            }
        };
        timeout(self.patience, put).await.unwrap_or_else(|_| Err(late(store, key, self.patience)))
    }

    /// Asks one after the other. That something is nowhere is known only when all have said so.
    async fn first<'a, T: Send>(
        &'a self,
        key: &'a str,
        ask: impl Fn(&'a dyn ObjectStore) -> BoxFuture<'a, PortResult<T>> + Send + Sync,
    ) -> PortResult<(usize, T)> {
        let stores = if at_home(key) { &self.stores[..self.stores.len().min(1)] } else { &self.stores[..] };
        let mut missing = None;
        let mut failed = None;
        for (index, store) in stores.iter().enumerate() {
            let answer = timeout(self.patience, ask(store.as_ref())).await;
            match answer.unwrap_or_else(|_| Err(late(store.as_ref(), key, self.patience))) {
                Ok(found) => return Ok((index, found)),
                Err(e) if e.code == ErrorCode::NotFound => missing = Some(e),
                Err(e) => {
                    self.note(store.as_ref(), &e);
                    failed = failed.or(Some(e));
                }
            }
        }
        Err(failed.or(missing).unwrap_or_else(|| PortError::new(ErrorCode::Invalid, "no bucket is declared")))
    }
}

/// Whether an object is kept in the home bucket only: of a lease there can be only one.
pub(super) fn at_home(key: &str) -> bool {
    key.ends_with("/log/lease.json") || key.contains("/leases/")
}

/// Whether the home bucket decides who writes an object, before the others get it.
fn decided_at_home(key: &str) -> bool {
    key.contains("/log/") && key.ends_with("/epoch.json")
}

fn note(problems: &Mutex<BTreeMap<String, String>>, store: &dyn ObjectStore, problem: &PortError) {
    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
    problems.insert(store.name(), problem.message.clone());
}

fn lying(store: &dyn ObjectStore, key: &str) -> PortError {
    let message = format!("{} took {key} and does not give back what it took", store.name());
    PortError::new(ErrorCode::Corrupt, message).hint("the other buckets have it; do not rely on this one")
}

fn late(store: &dyn ObjectStore, key: &str, patience: Duration) -> PortError {
    let message = format!("{} did not answer for {key} within {} s", store.name(), patience.as_secs());
    PortError::new(ErrorCode::Timeout, message)
}

/// One success is enough, unless somebody says that the name is taken. The rest is noted.
fn settle(
    problems: &Mutex<BTreeMap<String, String>>,
    outcomes: Vec<(Arc<dyn ObjectStore>, PortResult<ObjectInfo>)>,
) -> PortResult<ObjectInfo> {
    let mut done = None;
    let mut failed: Option<PortError> = None;
    for (store, outcome) in outcomes {
        match outcome {
            Ok(info) => done = done.or(Some(info)),
            Err(e) => {
                note(problems, store.as_ref(), &e);
                if failed.as_ref().is_none_or(|before| before.code != ErrorCode::Conflict) {
                    failed = Some(e);
                }
            }
        }
    }
    match (done, failed) {
        (_, Some(conflict)) if conflict.code == ErrorCode::Conflict => Err(conflict),
        (Some(info), _) => Ok(info),
        (None, Some(failed)) => Err(failed),
        (None, None) => Err(PortError::new(ErrorCode::Invalid, "no bucket is declared")),
    }
}

#[async_trait]
impl ObjectStore for Copies {
    fn name(&self) -> String {
        self.stores.iter().map(|store| store.name()).collect::<Vec<_>>().join(" and ")
    }

    fn copies(&self) -> Vec<Arc<dyn ObjectStore>> {
        self.stores.clone()
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        // An etag is one bucket's.
        if at_home(key) || matches!(condition, PutCondition::Match(_)) {
            return self.home()?.put(key, data, condition).await;
        }
        if decided_at_home(key) {
            let info = self.home()?.put(key, data.clone(), condition).await?;
            for store in self.stores.iter().skip(1) {
                if let Err(e) = self.put_one(store.as_ref(), key, &data, &PutCondition::Any).await {
                    self.note(store.as_ref(), &e);
                }
            }
            return Ok(info);
        }
        let mut puts = Vec::new();
        for store in &self.stores {
            let put = async { (Arc::clone(store), self.put_one(store.as_ref(), key, &data, &condition).await) };
            puts.push(put.boxed());
        }
        settle(&self.problems, join_all(puts).await)
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        self.get_vouched(key, limit_bytes).await.map(|(data, _)| data)
    }

    async fn get_vouched(&self, key: &str, limit_bytes: u64) -> PortResult<(Bytes, Vouched)> {
        let found = self.first(key, |store| store.get_vouched(key, limit_bytes)).await?;
        Ok(found.1)
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        let found = self.first(key, |store| store.stream(key, offset_bytes)).await?;
        Ok(found.1)
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        let found = self.first(key, |store| store.head(key)).await?;
        Ok(found.1)
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        let mut lists = Vec::new();
        for store in &self.stores {
            lists.push(timeout(self.patience, store.list(prefix)));
        }
        let asked = join_all(lists).await;
        let mut all: BTreeMap<String, ObjectInfo> = BTreeMap::new();
        let (mut answered, mut failed) = (false, None);
        for (store, answer) in self.stores.iter().zip(asked) {
            match answer.unwrap_or_else(|_| Err(late(store.as_ref(), prefix, self.patience))) {
                Ok(objects) => {
                    answered = true;
                    for object in objects {
                        all.entry(object.key.clone()).or_insert(object);
                    }
                }
                Err(e) => {
                    self.note(store.as_ref(), &e);
                    failed = Some(e);
                }
            }
        }
        match failed {
            Some(failed) if !answered => Err(failed),
            _ => Ok(all.into_values().collect()),
        }
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        let mut uploads = Vec::new();
        for store in &self.stores {
            uploads.push(timeout(self.patience, store.upload(key)));
        }
        let begun = join_all(uploads).await;
        let (mut lanes, mut failed) = (Vec::new(), None);
        for (store, begun) in self.stores.iter().zip(begun) {
            match begun.unwrap_or_else(|_| Err(late(store.as_ref(), key, self.patience))) {
                Ok(upload) => lanes.push((Arc::clone(store), upload)),
                Err(e) => {
                    self.note(store.as_ref(), &e);
                    failed = Some(e);
                }
            }
        }
        match failed {
            Some(failed) if lanes.is_empty() => Err(failed),
            _ => Ok(Box::new(Uploads {
                key: key.to_owned(),
                lanes,
                patience: self.patience,
                problems: Arc::clone(&self.problems),
            })),
        }
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        let mut deletions = Vec::new();
        for store in &self.stores {
            let late = || late(store.as_ref(), key, self.patience);
            deletions.push(
                timeout(self.patience, store.delete(key)).map(move |ended| ended.unwrap_or_else(|_| Err(late()))),
            );
        }
        join_all(deletions).await.into_iter().collect()
    }

    /// Each bucket that has it; what it misses is for `mirror`, which locks what it writes. The earliest end counts.
    async fn lock_again(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        let mut locks = Vec::new();
        for store in &self.stores {
            locks.push(timeout(self.patience, store.lock_again(key)));
        }
        let ended = join_all(locks).await;
        let (mut earliest, mut failed, mut answered) = (None::<jiff::Timestamp>, None, false);
        for (store, until) in self.stores.iter().zip(ended) {
            match until.unwrap_or_else(|_| Err(late(store.as_ref(), key, self.patience))) {
                Ok(until) => {
                    answered = true;
                    earliest = earliest.into_iter().chain(until).min();
                }
                Err(e) => {
                    self.note(store.as_ref(), &e);
                    failed = Some(e);
                }
            }
        }
        match failed {
            Some(failed) if !answered => Err(failed),
            _ => Ok(earliest),
        }
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<secrecy::SecretString> {
        let (index, _) = self.first(key, |store| store.head(key)).await?;
        self.stores[index].presign_get(key, valid).await
    }
}

/// One upload to several buckets. A bucket that fails or is too slow falls out; the rest goes on.
struct Uploads {
    key: String,
    lanes: Vec<(Arc<dyn ObjectStore>, Box<dyn Upload>)>,
    patience: Duration,
    problems: Arc<Mutex<BTreeMap<String, String>>>,
}

#[async_trait]
impl Upload for Uploads {
    async fn part(&mut self, data: Bytes) -> PortResult<()> {
        let (patience, key) = (self.patience, self.key.clone());
        let lanes = std::mem::take(&mut self.lanes);
        let sent = join_all(lanes.into_iter().map(|(store, mut upload)| {
            let (data, key) = (data.clone(), key.clone());
            async move {
                let sent = timeout(patience, upload.part(data)).await;
                let sent = sent.unwrap_or_else(|_| Err(late(store.as_ref(), &key, patience)));
                (store, upload, sent)
            }
        }))
        .await;
        let mut failed = None;
        for (store, upload, sent) in sent {
            match sent {
                Ok(()) => self.lanes.push((store, upload)),
                Err(e) => {
                    note(&self.problems, store.as_ref(), &e);
                    // It is gone or slow: giving up may take as long, and nobody waits for it.
                    tokio::spawn(timeout(patience, upload.abort()));
                    failed = Some(e);
                }
            }
        }
        match failed {
            Some(failed) if self.lanes.is_empty() => Err(failed),
            _ => Ok(()),
        }
    }

    async fn complete(self: Box<Self>, condition: PutCondition) -> PortResult<ObjectInfo> {
        let Self { key, lanes, patience, problems } = *self;
        let ended = join_all(lanes.into_iter().map(|(store, upload)| {
            let (condition, key) = (condition.clone(), key.clone());
            async move {
                let ended = timeout(patience, upload.complete(condition)).await;
                let ended = ended.unwrap_or_else(|_| Err(late(store.as_ref(), &key, patience)));
                (store, ended)
            }
        }))
        .await;
        settle(&problems, ended)
    }

    async fn abort(self: Box<Self>) -> PortResult<()> {
        let ended = join_all(self.lanes.into_iter().map(|(_, upload)| upload.abort())).await;
        ended.into_iter().collect()
    }
}
