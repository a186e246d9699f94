use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use secrecy::SecretString;

use super::check_key;
use crate::ports::{ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload};

/// Chunks of a streamed body: small, so that readers meet many boundaries.
const CHUNK_BYTES: usize = 64 << 10;

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Put,
    Read,
    Head,
    List,
    BeginUpload,
    Part,
    Complete,
    Delete,
}

/// One planned failure: the `nth` call of an operation (from 1, counted from the store's beginning) answers `error`.
#[derive(Debug, Clone)]
pub struct Fault {
    pub operation: Operation,
    pub nth: u64,
    pub error: PortError,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    next_etag: u64,
    open_uploads: u64,
    calls: BTreeMap<Operation, u64>,
    faults: Vec<Fault>,
    /// Numbers of puts that take effect although they answer an error.
    lost_answers: Vec<u64>,
    capacity_bytes: Option<u64>,
    staged_bytes: u64,
}

impl State {
    fn used(&self) -> u64 {
        self.staged_bytes + self.objects.values().map(|(data, _)| data.len() as u64).sum::<u64>()
    }

    fn room_for(&self, bytes: usize, doing: &str) -> PortResult<()> {
        match self.capacity_bytes {
            Some(capacity) if self.used() + bytes as u64 > capacity => {
                Err(PortError::new(ErrorCode::LimitExceeded, format!("{doing}: the bucket in memory is full"))
                    .hint("the bucket is full or over its quota: raise the quota or remove old snapshots"))
            }
            _ => Ok(()),
        }
    }

    fn insert(&mut self, key: &str, data: Bytes, condition: &PutCondition) -> PortResult<ObjectInfo> {
        let present = self.objects.get(key).map(|(_, etag)| etag.to_string());
        let holds = match condition {
            PutCondition::Any => true,
            PutCondition::Absent => present.is_none(),
            PutCondition::Match(etag) => present.as_ref() == Some(etag),
        };
        if !holds {
            return Err(PortError::new(
                ErrorCode::Conflict,
                format!("write {key}: the object in memory is not in the expected state"),
            ));
        }
        self.next_etag += 1;
        let info = ObjectInfo { key: key.to_owned(), size_bytes: data.len() as u64, etag: self.next_etag.to_string() };
        self.objects.insert(key.to_owned(), (data, self.next_etag));
        Ok(info)
    }
}

/// A bucket in memory, for tests and plans: with conditions that hold, and failures, damage and fullness on request.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

impl MemoryStore {
    /// An empty bucket.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans a failure.
    pub fn fail(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// The `nth` put (from 1) takes effect, but its answer is lost: the caller sees a timeout.
    pub fn lose_answer_of_put(&self, nth: u64) {
        self.lock().lost_answers.push(nth);
    }

    /// Every write that would take the bucket beyond this size fails with `LimitExceeded`.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity_bytes = Some(bytes);
    }

    /// Cuts a stored object short.
    pub fn truncate(&self, key: &str, bytes: usize) {
        self.change(key, |data| data.truncate(bytes));
    }

    /// Flips one bit of a stored object.
    pub fn flip_bit(&self, key: &str, offset: usize, bit: u8) {
        self.change(key, |data| {
            if let Some(byte) = data.get_mut(offset) {
                *byte ^= 1 << (bit % 8);
            }
        });
    }

    /// Uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> u64 {
        self.lock().open_uploads
    }

    /// How often an operation was called so far.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.lock().calls.get(&operation).copied().unwrap_or_default()
    }

    /// Keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    fn change(&self, key: &str, how: impl FnOnce(&mut Vec<u8>)) {
        if let Some((data, _)) = self.lock().objects.get_mut(key) {
            let mut changed = data.to_vec();
            how(&mut changed);
            *data = Bytes::from(changed);
        }
    }

    /// A panic in another test thread must not hide behind a poisoned lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and fails it if that was planned.
    fn call(&self, operation: Operation) -> PortResult<MutexGuard<'_, State>> {
        let mut state = self.lock();
        let count = state.calls.entry(operation).or_default();
        *count += 1;
        let count = *count;
        match state.faults.iter().find(|fault| fault.operation == operation && fault.nth == count) {
            Some(fault) => Err(fault.error.clone()),
            None => Ok(state),
        }
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: String,
    data: BytesMut,
}

impl Drop for MemoryUpload {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        state.open_uploads -= 1;
        state.staged_bytes -= self.data.len() as u64;
    }
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn part(&mut self, data: Bytes) -> PortResult<()> {
        let mut state = self.store.call(Operation::Part)?;
        state.room_for(data.len(), &format!("upload {}", self.key))?;
        state.staged_bytes += data.len() as u64;
        drop(state);
        self.data.extend_from_slice(&data);
        Ok(())
    }

    async fn complete(self: Box<Self>, condition: PutCondition) -> PortResult<ObjectInfo> {
        let data = Bytes::copy_from_slice(&self.data);
        self.store.call(Operation::Complete)?.insert(&self.key, data, &condition)
    }

    async fn abort(self: Box<Self>) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        check_key(key)?;
        let mut state = self.call(Operation::Put)?;
        state.room_for(data.len(), &format!("write {key}"))?;
        let info = state.insert(key, data, &condition)?;
        let nth = state.calls.get(&Operation::Put).copied().unwrap_or_default();
        if state.lost_answers.contains(&nth) {
            return Err(PortError::new(ErrorCode::Timeout, format!("write {key}: the answer was lost")));
        }
        Ok(info)
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        let state = self.call(Operation::Read)?;
        let (data, _) = state.objects.get(key).ok_or_else(|| missing("read", key))?;
        if data.len() as u64 > limit_bytes {
            let message = format!("read {key}: larger than the {limit_bytes} bytes it may have");
            return Err(PortError::new(ErrorCode::LimitExceeded, message));
        }
        Ok(data.clone())
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        let state = self.call(Operation::Read)?;
        let (data, _) = state.objects.get(key).ok_or_else(|| missing("read", key))?;
        let from = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(data.len());
        let mut rest = data.slice(from..);
        let chunks = std::iter::from_fn(move || {
            let chunk = rest.split_to(CHUNK_BYTES.min(rest.len()));
            (!chunk.is_empty()).then_some(Ok(chunk))
        });
        Ok(Box::pin(futures::stream::iter(chunks)))
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        let state = self.call(Operation::Head)?;
        let (data, etag) = state.objects.get(key).ok_or_else(|| missing("look at", key))?;
        Ok(ObjectInfo { key: key.to_owned(), size_bytes: data.len() as u64, etag: etag.to_string() })
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        let state = self.call(Operation::List)?;
        let below = state.objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(below
            .map(|(key, (data, etag))| ObjectInfo {
                key: key.clone(),
                size_bytes: data.len() as u64,
                etag: etag.to_string(),
            })
            .collect())
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        check_key(key)?;
        self.call(Operation::BeginUpload)?.open_uploads += 1;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_owned(), data: BytesMut::new() }))
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        self.call(Operation::Delete)?.objects.remove(key);
        Ok(())
    }

    async fn presign_get(&self, key: &str, _valid: Duration) -> PortResult<SecretString> {
        Ok(SecretString::from(format!("memory:///{key}")))
    }
}

fn missing(doing: &str, key: &str) -> PortError {
    PortError::new(ErrorCode::NotFound, format!("{doing} {key}: no such object in memory"))
}
