//! Where several buckets hold the same, a file is given out only if it has the digest that it is named by, from whichever
//! bucket has it so: one that is damaged in one of them stops no restore.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::relay::FILE_BYTES_MAX;
use crate::backup::hex;
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// restic reads parts of a few files at a time, and comes back to them: so many bytes of files are held.
const HELD_BYTES_MAX: usize = 96 << 20;

/// Files that were read last, newest in front.
#[derive(Default)]
pub(super) struct Held(Mutex<VecDeque<(String, Bytes)>>);

impl Held {
    fn find(&self, key: &str) -> Option<Bytes> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().find(|(name, _)| name == key).map(|(_, data)| data.clone())
    }

    fn keep(&self, key: &str, data: &Bytes) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_front((key.to_owned(), data.clone()));
        let mut bytes = 0;
        held.retain(|(_, data)| {
            bytes += data.len();
            bytes <= HELD_BYTES_MAX
        });
    }

    /// A file that is named by its digest, from the first bucket that has it whole. One that none has whole is given out as
    /// it is: restic says which backups need it.
    pub async fn whole(&self, store: &dyn ObjectStore, key: &str) -> PortResult<Bytes> {
        if let Some(data) = self.find(key) {
            return Ok(data);
        }
        let name = key.rsplit('/').next().unwrap_or_default();
        let (mut damaged, mut failed, mut missing) = (None, None, None);
        for copy in store.copies() {
            let limit = FILE_BYTES_MAX as u64;
            let answer = tokio::time::timeout(store.patience() * 4, copy.get(key, limit)).await;
            let late = || PortError::new(ErrorCode::Timeout, format!("{} did not give {key} in time", copy.name()));
            match answer.unwrap_or_else(|_| Err(late())) {
                Ok(data) if hex(&Sha256::digest(&data)) == name => {
                    self.keep(key, &data);
                    return Ok(data);
                }
                Ok(data) => damaged = damaged.or(Some(data)),
                Err(e) if e.code == ErrorCode::NotFound => missing = Some(e),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        match (failed, damaged, missing) {
            // It may be whole there.
            (Some(failed), ..) => Err(failed),
            (None, Some(damaged), _) => Ok(damaged),
            (None, None, Some(missing)) => Err(missing),
            (None, None, None) => Err(PortError::new(ErrorCode::Invalid, "no bucket is declared")),
        }
    }
}
