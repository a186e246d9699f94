use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use aws_smithy_http_client::tls;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use secrecy::{ExposeSecret, SecretString};

use super::lock::checksum;
use super::upload::S3Upload;
use super::{ObjectLock, S3Config, check_key, error};
use crate::ports::{ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload};

/// One attempt of a request, its body included: 8 MiB at 100 kB/s.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(90);
/// A request with all its attempts.
const OPERATION_DEADLINE: Duration = Duration::from_secs(240);
/// Attempts of one request.
const ATTEMPTS: u32 = 4;
/// Silence in the middle of a body.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// How often a body that breaks off is continued from where it broke.
const RESUMPTIONS: u32 = 3;

/// A bucket on S3 or a compatible server (Hetzner's Ceph, MinIO, versitygw).
#[derive(Clone)]
pub struct S3Store {
    pub(super) client: Client,
    pub(super) bucket: String,
    pub(super) name: String,
    region: String,
    /// Set for servers other than AWS, whose location constraints are their own.
    compatible: bool,
    pub(super) lock: Option<ObjectLock>,
}

impl S3Store {
    /// Makes the client. Nothing is sent yet: a wrong credential or address shows at the first call.
    pub fn connect(config: &S3Config) -> PortResult<Self> {
        if let Some(endpoint) = &config.endpoint {
            let good = endpoint.parse::<http::Uri>().ok().filter(|uri| {
                uri.host().is_some_and(|host| !host.is_empty()) && matches!(uri.scheme_str(), Some("http" | "https"))
            });
            if good.is_none() {
                return Err(PortError::new(ErrorCode::Invalid, format!("{endpoint:?} is not an S3 endpoint"))
                    .hint("an endpoint is a URL such as https://fsn1.your-objectstorage.com"));
            }
        }
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let credentials =
            Credentials::new(&config.access_key, config.secret_key.expose_secret(), None, None, "hk-dr configuration");
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(config.region.clone()))
            .credentials_provider(credentials)
            // Ceph and MinIO refuse or ignore the newer checksum trailers unless the operation demands one. The content
            // is protected by SigV4's payload hash on its way and by the manifest's SHA-256 and age for ever.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // A reader that is slower than the network is no stall; READ_DEADLINE guards bodies.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(ATTEMPTS)
                    .with_initial_backoff(Duration::from_millis(200))
                    .with_max_backoff(Duration::from_secs(5)),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .operation_attempt_timeout(ATTEMPT_DEADLINE)
                    .operation_timeout(OPERATION_DEADLINE)
                    .build(),
            );
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint).force_path_style(true);
        }
        Ok(Self {
            client: Client::from_conf(builder.build()),
            bucket: config.bucket.clone(),
            name: config.display_name(),
            region: config.region.clone(),
            compatible: config.endpoint.is_some(),
            lock: config.lock,
        })
    }

    /// Creates the bucket, with object lock (which also means versions), unless it exists. Returns whether it was made.
    pub async fn ensure_bucket(&self) -> PortResult<bool> {
        match self.client.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => return Ok(false),
            Err(failed) => {
                let failed = error::map(&self.name, "look for the bucket", &failed);
                if failed.code != ErrorCode::NotFound {
                    return Err(failed);
                }
            }
        }
        let mut request = self.client.create_bucket().bucket(&self.bucket).object_lock_enabled_for_bucket(true);
        if !self.compatible && self.region != "us-east-1" {
            request = request.create_bucket_configuration(
                CreateBucketConfiguration::builder()
                    .location_constraint(BucketLocationConstraint::from(self.region.as_str()))
                    .build(),
            );
        }
        match request.send().await {
            Ok(_) => Ok(true),
            Err(failed) => {
                if aws_sdk_s3::error::ProvideErrorMetadata::code(&failed) == Some("BucketAlreadyOwnedByYou") {
                    return Ok(false);
                }
                Err(error::map(&self.name, "create the bucket", &failed))
            }
        }
    }

    /// One GET from an offset, of a version or of what is there now; with an etag it fails with `Conflict` when the object
    /// has changed in between.
    async fn open(
        &self,
        key: &str,
        version: Option<&str>,
        offset_bytes: u64,
        etag: Option<&str>,
    ) -> PortResult<(Body, Option<String>)> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(key);
        request = request.set_version_id(version.map(str::to_owned));
        if offset_bytes > 0 {
            request = request.range(format!("bytes={offset_bytes}-"));
        }
        request = request.set_if_match(etag.map(str::to_owned));
        match request.send().await {
            Ok(answer) => Ok((answer.body, answer.e_tag)),
            Err(failed) => {
                let failed = error::map(&self.name, &format!("read {key}"), &failed);
                // Reading from the very end of an object is an empty read, not an error.
                if offset_bytes > 0 && failed.message.contains("InvalidRange") {
                    let head = self.client.head_object().bucket(&self.bucket).key(key);
                    let head = head.set_version_id(version.map(str::to_owned)).send().await;
                    let head = head.map_err(|e| error::map(&self.name, &format!("look at {key}"), &e))?;
                    if u64::try_from(head.content_length.unwrap_or_default()) == Ok(offset_bytes) {
                        return Ok((Body::from_static(b""), etag.map(str::to_owned)));
                    }
                }
                Err(failed)
            }
        }
    }

    /// Reads an object, or one version of it, as a stream that continues itself when the connection breaks.
    pub(super) async fn stream_version(
        &self,
        key: &str,
        version: Option<&str>,
        offset_bytes: u64,
    ) -> PortResult<ByteStream> {
        check_key(key)?;
        let (body, etag) = self.open(key, version, offset_bytes, None).await?;
        let reader = Reader {
            store: self.clone(),
            key: key.to_owned(),
            version: version.map(str::to_owned),
            body,
            etag,
            position: offset_bytes,
            resumptions: RESUMPTIONS,
        };
        Ok(Box::pin(futures::stream::try_unfold(reader, Reader::next)))
    }
}

/// Reads a stream to its end into memory; more than the limit is refused.
pub(super) async fn collect(key: &str, mut stream: ByteStream, limit_bytes: u64) -> PortResult<Bytes> {
    let mut data = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if (data.len() + chunk.len()) as u64 > limit_bytes {
            return Err(PortError::new(
                ErrorCode::LimitExceeded,
                format!("read {key}: larger than the {limit_bytes} bytes it may have"),
            ));
        }
        data.extend_from_slice(&chunk);
    }
    Ok(data.freeze())
}

type Body = aws_sdk_s3::primitives::ByteStream;

/// A body that continues itself when the connection breaks.
struct Reader {
    store: S3Store,
    key: String,
    version: Option<String>,
    body: Body,
    etag: Option<String>,
    position: u64,
    resumptions: u32,
}

impl Reader {
    async fn next(mut self) -> PortResult<Option<(Bytes, Self)>> {
        loop {
            let broke = match tokio::time::timeout(READ_DEADLINE, self.body.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(data))) => {
                    self.position += data.len() as u64;
                    return Ok(Some((data, self)));
                }
                Ok(Some(Err(broke))) => broke.to_string(),
                Err(_) => format!("no data for {} s", READ_DEADLINE.as_secs()),
            };
            if self.resumptions == 0 {
                let message = format!("read {}: broke off after {} bytes: {broke}", self.key, self.position);
                return Err(PortError::new(ErrorCode::Unreachable, message)
                    .hint("nothing was changed; run the command again when the connection is stable"));
            }
            self.resumptions -= 1;
            let version = self.version.as_deref();
            (self.body, _) = self.store.open(&self.key, version, self.position, self.etag.as_deref()).await?;
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        check_key(key)?;
        let size_bytes = data.len() as u64;
        let mut request = self.client.put_object().bucket(&self.bucket).key(key);
        if let Some(lock) = self.lock_of(key) {
            request = request.object_lock_mode(lock.mode()).object_lock_retain_until_date(lock.until());
            request = request.checksum_sha256(checksum(&data));
        }
        let mut request = request.body(Body::from(data));
        match &condition {
            PutCondition::Any => {}
            PutCondition::Absent => request = request.if_none_match("*"),
            PutCondition::Match(etag) => request = request.if_match(etag),
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(failed) => {
                let failed = error::map(&self.name, &format!("write {key}"), &failed);
                return Err(self.about_lock(key, absent_is_conflict(failed, &condition)));
            }
        };
        Ok(ObjectInfo { key: key.to_owned(), size_bytes, etag: answer.e_tag.unwrap_or_default() })
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        collect(key, self.stream(key, 0).await?, limit_bytes).await
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        self.stream_version(key, None, offset_bytes).await
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        check_key(key)?;
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await
            .map_err(|failed| error::map(&self.name, &format!("look at {key}"), &failed))?;
        Ok(ObjectInfo {
            key: key.to_owned(),
            size_bytes: u64::try_from(answer.content_length.unwrap_or_default()).unwrap_or_default(),
            etag: answer.e_tag.unwrap_or_default(),
        })
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        let mut pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|failed| error::map(&self.name, &format!("list {prefix}"), &failed))?;
            found.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| {
                Some(ObjectInfo {
                    key: object.key?,
                    size_bytes: u64::try_from(object.size.unwrap_or_default()).unwrap_or_default(),
                    etag: object.e_tag.unwrap_or_default(),
                })
            }));
        }
        // Servers on a file system list directories in their own order.
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        check_key(key)?;
        Ok(Box::new(S3Upload::begin(self, key).await?))
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        check_key(key)?;
        self.client
            .delete_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await
            .map_err(|failed| error::map(&self.name, &format!("delete {key}"), &failed))?;
        Ok(())
    }

    async fn lock_again(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        check_key(key)?;
        match self.lock_of(key) {
            Some(lock) => self.extend_lock(key, lock).await.map(Some),
            None => Ok(None),
        }
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<SecretString> {
        check_key(key)?;
        let window = PresigningConfig::expires_in(valid)
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("presign {key} for {}s: {e}", valid.as_secs())))?;
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .presigned(window)
            .await
            .map_err(|failed| error::map(&self.name, &format!("presign {key}"), &failed))?;
        Ok(SecretString::from(request.uri().to_owned()))
    }
}

/// `If-Match` on an object that is gone is a failed condition, though servers answer "no such key".
pub(super) fn absent_is_conflict(mut failed: PortError, condition: &PutCondition) -> PortError {
    let key_gone = failed.code == ErrorCode::NotFound && !failed.message.contains("NoSuchBucket");
    if key_gone && matches!(condition, PutCondition::Match(_)) {
        failed.code = ErrorCode::Conflict;
    }
    failed
}
