//! Object locks: versions that nobody deletes before their time.

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{ObjectLock, S3Store, error};
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, SystemClock};

/// How long the probe of locks stays: nobody can remove it earlier.
const PROBE_SECONDS: u32 = 60;

impl ObjectLock {
    pub(super) fn mode(&self) -> ObjectLockMode {
        if self.compliance { ObjectLockMode::Compliance } else { ObjectLockMode::Governance }
    }

    /// From now on.
    pub(super) fn until(&self) -> DateTime {
        DateTime::from_secs(SystemClock.now().as_second() + i64::from(self.seconds))
    }
}

/// S3 takes an object with a lock only with a checksum of what is sent.
pub(super) fn checksum(data: &[u8]) -> String {
    BASE64_STANDARD.encode(Sha256::digest(data))
}

impl S3Store {
    /// The lock for an object of this name.
    pub(super) fn lock_of(&self, key: &str) -> Option<ObjectLock> {
        self.lock.filter(|_| ObjectLock::holds_for(key))
    }

    /// Tries whether a version that is locked can be deleted by this credential. What was written for it lies below
    /// `<cluster>/doctor/<nonce>/`, hidden, and can be removed after a minute. None: no lock is declared.
    pub(super) async fn locks_hold(&self, key: &str) -> PortResult<Option<bool>> {
        let Some(declared) = self.lock else { return Ok(None) };
        let lock = ObjectLock { seconds: PROBE_SECONDS, ..declared };
        let data = Bytes::from_static(b"locked");
        let put = self.put_locked(key, data, lock).await;
        let version = match put {
            Ok(Some(version)) => version,
            // Without versions there is nothing that could be kept.
            Ok(None) => return Ok(Some(false)),
            Err(e) if matches!(e.code, ErrorCode::Invalid | ErrorCode::Conflict) => return Ok(Some(false)),
            Err(e) => return Err(e),
        };
        // That it can't be deleted may have other reasons.
        let kept = self.lock_on(key, &version).await? == Some(lock.mode());
        let deleted = self.delete_version(key, &version).await;
        // The name goes; where it may not, it says nothing.
        let _ = self.delete(key).await;
        match deleted {
            Ok(()) => Ok(Some(false)),
            Err(e) if matches!(e.code, ErrorCode::Forbidden | ErrorCode::Invalid | ErrorCode::Conflict) => {
                Ok(Some(kept))
            }
            Err(e) => Err(e),
        }
    }

    async fn put_locked(&self, key: &str, data: Bytes, lock: ObjectLock) -> PortResult<Option<String>> {
        let put = self.client.put_object().bucket(&self.bucket).key(key).checksum_sha256(checksum(&data));
        let put = put.object_lock_mode(lock.mode()).object_lock_retain_until_date(lock.until());
        let sent = put.body(data.into()).send().await;
        Ok(sent.map_err(|e| error::map(&self.name, "write an object with a lock", &e))?.version_id)
    }

    /// How a version is locked; none: not at all.
    async fn lock_on(&self, key: &str, version: &str) -> PortResult<Option<ObjectLockMode>> {
        let asked = self.client.head_object().bucket(&self.bucket).key(key).version_id(version).send().await;
        let answer = asked.map_err(|e| error::map(&self.name, "ask for the lock of an object", &e))?;
        Ok(answer.object_lock_mode().cloned())
    }

    /// Until when the newest version is locked, in seconds since 1970.
    #[cfg(test)]
    pub(crate) async fn locked_until(&self, key: &str) -> Option<i64> {
        let answer = self.client.head_object().bucket(&self.bucket).key(key).send().await.unwrap();
        answer.object_lock_retain_until_date().map(DateTime::secs)
    }

    /// Locks the newest version from now on.
    pub(super) async fn extend_lock(&self, key: &str, lock: ObjectLock) -> PortResult<Timestamp> {
        let until = lock.until();
        let retention = ObjectLockRetention::builder().mode(match lock.compliance {
            true => ObjectLockRetentionMode::Compliance,
            false => ObjectLockRetentionMode::Governance,
        });
        let retention = retention.retain_until_date(until).build();
        let sent = self.client.put_object_retention().bucket(&self.bucket).key(key).retention(retention).send().await;
        sent.map_err(|e| self.about_lock(key, error::map(&self.name, &format!("lock {key} again"), &e)))?;
        Timestamp::from_second(until.secs())
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("lock {key} again: {e}")))
    }

    /// Deletes one version for good.
    pub(super) async fn delete_version(&self, key: &str, version: &str) -> PortResult<()> {
        let sent = self.client.delete_object().bucket(&self.bucket).key(key).version_id(version).send().await;
        sent.map(|_| ()).map_err(|e| error::map(&self.name, &format!("delete a version of {key}"), &e))
    }

    /// A refusal of a lock says what to do.
    pub(super) fn about_lock(&self, key: &str, failed: PortError) -> PortError {
        if self.lock_of(key).is_none() {
            return failed;
        }
        match failed.code {
            ErrorCode::Invalid | ErrorCode::Forbidden => failed.hint(
                "an object lock is declared: the bucket must have been made with object lock, and the credential must be \
                 allowed to set it (s3:PutObjectRetention); `hk-dr doctor` tries it",
            ),
            _ => failed,
        }
    }
}
