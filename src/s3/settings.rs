//! How a bucket is set up, as far as backups care.

use aws_sdk_s3::primitives::ByteStream as Body;
use aws_sdk_s3::types::{BucketVersioningStatus, ExpirationStatus, LifecycleRule, ObjectLockEnabled};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{S3Store, error};
use crate::ports::{ErrorCode, PortResult};

/// Answers to three questions; each may be refused by itself.
#[derive(Debug)]
pub struct BucketSettings {
    /// Whether versions of objects are kept.
    pub versions: PortResult<bool>,
    /// When versions go that were overwritten or deleted.
    pub old_versions: PortResult<OldVersions>,
    /// Whether objects can be locked, and are by themselves.
    pub lock: PortResult<LockRule>,
    /// Whether a version that is locked as declared can't be deleted; none: no lock is declared.
    pub locks_hold: PortResult<Option<bool>>,
    /// Whether an object whose checksum is wrong is refused.
    pub refuses_wrong_checksums: PortResult<bool>,
}

/// What becomes of versions that were overwritten or deleted, by the bucket's lifecycle rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldVersions {
    Stay,
    /// So many days afterwards.
    GoAfterDays(i32),
}

/// What rules do to the old versions of everything below a prefix. A rule for some of it, or for tagged objects, is none.
fn old_versions(rules: &[LifecycleRule], prefix: &str) -> OldVersions {
    let covers = |rule: &LifecycleRule| match rule.filter() {
        Some(filter) => {
            filter.tag().is_none()
                && filter.and().is_none()
                && filter.object_size_greater_than().is_none()
                && filter.object_size_less_than().is_none()
                && prefix.starts_with(filter.prefix().unwrap_or_default())
        }
        None => true,
    };
    let days = rules
        .iter()
        .filter(|rule| *rule.status() == ExpirationStatus::Enabled && covers(rule))
        .filter_map(|rule| rule.noncurrent_version_expiration()?.noncurrent_days());
    days.min().map_or(OldVersions::Stay, OldVersions::GoAfterDays)
}

/// What a bucket does about locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockRule {
    /// Objects cannot be locked.
    Impossible,
    /// They are locked if whoever writes them says so.
    Possible,
    /// Every object is locked, in words for how long.
    Default(String),
}

impl S3Store {
    /// Asks how the bucket is set up. The probes of checksums and locks write below `<cluster>/doctor/<nonce>/`.
    pub async fn settings(&self, cluster: &str, nonce: &str) -> BucketSettings {
        BucketSettings {
            versions: self.keeps_versions().await,
            old_versions: self.old_versions(&format!("{cluster}/")).await,
            lock: self.lock_rule().await,
            locks_hold: self.locks_hold(&format!("{cluster}/doctor/{nonce}/locked")).await,
            refuses_wrong_checksums: self.refuses_wrong_checksums(&format!("{cluster}/doctor/{nonce}/checksum")).await,
        }
    }

    pub(super) async fn keeps_versions(&self) -> PortResult<bool> {
        let asked = self.client.get_bucket_versioning().bucket(&self.bucket).send().await;
        let answer = asked.map_err(|e| error::map(&self.name, "ask whether versions are kept", &e))?;
        Ok(answer.status() == Some(&BucketVersioningStatus::Enabled))
    }

    async fn old_versions(&self, prefix: &str) -> PortResult<OldVersions> {
        match self.client.get_bucket_lifecycle_configuration().bucket(&self.bucket).send().await {
            Ok(answer) => Ok(old_versions(answer.rules(), prefix)),
            Err(e) => {
                let none = aws_sdk_s3::error::ProvideErrorMetadata::code(&e) == Some("NoSuchLifecycleConfiguration");
                let mapped = error::map(&self.name, "ask when old versions go", &e);
                if none || mapped.code == ErrorCode::NotFound { Ok(OldVersions::Stay) } else { Err(mapped) }
            }
        }
    }

    async fn lock_rule(&self) -> PortResult<LockRule> {
        let asked = self.client.get_object_lock_configuration().bucket(&self.bucket).send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(e) => {
                let none =
                    aws_sdk_s3::error::ProvideErrorMetadata::code(&e) == Some("ObjectLockConfigurationNotFoundError");
                let mapped = error::map(&self.name, "ask whether objects can be locked", &e);
                let none = none || mapped.code == ErrorCode::NotFound;
                return if none { Ok(LockRule::Impossible) } else { Err(mapped) };
            }
        };
        let Some(configuration) = answer.object_lock_configuration() else { return Ok(LockRule::Impossible) };
        if configuration.object_lock_enabled() != Some(&ObjectLockEnabled::Enabled) {
            return Ok(LockRule::Impossible);
        }
        let rule = configuration.rule().and_then(|rule| rule.default_retention());
        Ok(match rule {
            Some(rule) => {
                let mode = rule.mode().map_or("some", |mode| mode.as_str()).to_lowercase();
                LockRule::Default(match (rule.days(), rule.years()) {
                    (Some(days), _) => format!("{mode} mode, {days} days"),
                    (None, Some(years)) => format!("{mode} mode, {years} years"),
                    (None, None) => format!("{mode} mode"),
                })
            }
            None => LockRule::Possible,
        })
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

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{LifecycleRuleFilter, NoncurrentVersionExpiration};

    use super::*;

    fn rule(status: ExpirationStatus, filter: Option<LifecycleRuleFilter>, days: i32) -> LifecycleRule {
        let expiration = NoncurrentVersionExpiration::builder().noncurrent_days(days).build();
        let rule = LifecycleRule::builder().status(status).set_filter(filter);
        rule.noncurrent_version_expiration(expiration).build().unwrap()
    }

    #[test]
    fn old_versions_go_by_the_first_rule_that_is_about_all_of_them() {
        let below = |prefix: &str| Some(LifecycleRuleFilter::builder().prefix(prefix).build());
        let tagged = aws_sdk_s3::types::Tag::builder().key("k").value("v").build().unwrap();
        let tagged = Some(LifecycleRuleFilter::builder().tag(tagged).build());
        let none = [
            rule(ExpirationStatus::Disabled, None, 1),
            rule(ExpirationStatus::Enabled, below("other/"), 2),
            rule(ExpirationStatus::Enabled, below("demo/log/"), 3),
            rule(ExpirationStatus::Enabled, tagged, 4),
            LifecycleRule::builder().status(ExpirationStatus::Enabled).build().unwrap(),
        ];
        assert_eq!(old_versions(&none, "demo/"), OldVersions::Stay);
        for filter in [None, below(""), below("demo/")] {
            let rules = [&none[..], &[rule(ExpirationStatus::Enabled, filter, 40)]].concat();
            assert_eq!(old_versions(&rules, "demo/"), OldVersions::GoAfterDays(40));
        }
    }
}
