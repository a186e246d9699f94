//! How a bucket is set up, as far as backups care.

use aws_sdk_s3::primitives::ByteStream as Body;
use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{S3Store, error};
use crate::ports::{ErrorCode, PortResult};

/// Answers to three questions; each may be refused by itself.
#[derive(Debug)]
pub struct BucketSettings {
    /// Whether versions of objects are kept.
    pub versions: PortResult<bool>,
    /// The lock, in words; none: objects cannot be locked.
    pub lock: PortResult<Option<String>>,
    /// Whether an object whose checksum is wrong is refused.
    pub refuses_wrong_checksums: PortResult<bool>,
}

impl S3Store {
    /// Asks how the bucket is set up. The probe of checksums writes below `<cluster>/doctor/<nonce>/` if it is accepted.
    pub async fn settings(&self, cluster: &str, nonce: &str) -> BucketSettings {
        BucketSettings {
            versions: self.keeps_versions().await,
            lock: self.lock().await,
            refuses_wrong_checksums: self.refuses_wrong_checksums(&format!("{cluster}/doctor/{nonce}/checksum")).await,
        }
    }

    pub(super) async fn keeps_versions(&self) -> PortResult<bool> {
        let asked = self.client.get_bucket_versioning().bucket(&self.bucket).send().await;
        let answer = asked.map_err(|e| error::map(&self.name, "ask whether versions are kept", &e))?;
        Ok(answer.status() == Some(&BucketVersioningStatus::Enabled))
    }

    async fn lock(&self) -> PortResult<Option<String>> {
        let asked = self.client.get_object_lock_configuration().bucket(&self.bucket).send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(e) => {
                let none =
                    aws_sdk_s3::error::ProvideErrorMetadata::code(&e) == Some("ObjectLockConfigurationNotFoundError");
                let mapped = error::map(&self.name, "ask whether objects can be locked", &e);
                return if none || mapped.code == ErrorCode::NotFound { Ok(None) } else { Err(mapped) };
            }
        };
        let Some(configuration) = answer.object_lock_configuration() else { return Ok(None) };
        if configuration.object_lock_enabled() != Some(&ObjectLockEnabled::Enabled) {
            return Ok(None);
        }
        let rule = configuration.rule().and_then(|rule| rule.default_retention());
        Ok(Some(match rule {
            Some(rule) => {
                let mode = rule.mode().map_or("some", |mode| mode.as_str()).to_lowercase();
                match (rule.days(), rule.years()) {
                    (Some(days), _) => format!("{mode} mode, {days} days"),
                    (None, Some(years)) => format!("{mode} mode, {years} years"),
                    (None, None) => format!("{mode} mode"),
                }
            }
            None => "possible, without a default: versions can be deleted by whoever may".to_owned(),
        }))
    }

    async fn refuses_wrong_checksums(&self, key: &str) -> PortResult<bool> {
        let wrong = BASE64_STANDARD.encode([0u8; 32]);
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(Body::from_static(b"checksum"));
        match put.checksum_sha256(wrong).send().await {
            Ok(_) => {
                self.client
                    .delete_object()
                    .bucket(&self.bucket)
                    .key(key)
                    .send()
                    .await
                    .map_err(|e| error::map(&self.name, "remove the probe of checksums", &e))?;
                Ok(false)
            }
            Err(e) => {
                let mapped = error::map(&self.name, "try a wrong checksum", &e);
                match mapped.code {
                    ErrorCode::Corrupt | ErrorCode::Invalid => Ok(true),
                    _ => Err(mapped),
                }
            }
        }
    }
}
