use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream as Body;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::lock::checksum;
use super::{S3Store, error};
use crate::ports::{ErrorCode, ObjectInfo, PortError, PortResult, PutCondition, Upload};

/// Parts on their way at the same time. With 8 MiB parts this bounds the upload's memory to 24 MiB.
const PARTS_IN_FLIGHT: usize = 3;

/// A multipart upload. Dropped without an end, it aborts itself in the background.
pub(super) struct S3Upload {
    store: S3Store,
    key: String,
    id: String,
    /// Number of the next part, from 1.
    next_part: i32,
    size_bytes: u64,
    /// Its parts need checksums then.
    locked: bool,
    in_flight: JoinSet<PortResult<CompletedPart>>,
    done: Vec<CompletedPart>,
    ended: bool,
}

impl S3Upload {
    pub(super) async fn begin(store: &S3Store, key: &str) -> PortResult<Self> {
        let mut request = store.client.create_multipart_upload().bucket(&store.bucket).key(key);
        let lock = store.lock_of(key);
        if let Some(lock) = lock {
            request = request.object_lock_mode(lock.mode()).object_lock_retain_until_date(lock.until());
            request = request.checksum_algorithm(ChecksumAlgorithm::Sha256);
        }
        let answer = request.send().await.map_err(|failed| {
            store.about_lock(key, error::map(&store.name, &format!("begin the upload of {key}"), &failed))
        })?;
        let id = answer.upload_id.ok_or_else(|| {
            PortError::new(
                ErrorCode::ServerError,
                format!("begin the upload of {key}: {} gave no upload id", store.name),
            )
        })?;
        Ok(Self {
            store: store.clone(),
            key: key.to_owned(),
            id,
            next_part: 1,
            size_bytes: 0,
            locked: lock.is_some(),
            in_flight: JoinSet::new(),
            done: Vec::new(),
            ended: false,
        })
    }

    /// Waits for one part to arrive.
    async fn collect_one(&mut self) -> PortResult<()> {
        if let Some(ended) = self.in_flight.join_next().await {
            let part = ended.map_err(|e| {
                PortError::new(ErrorCode::ServerError, format!("upload {}: the task of a part died: {e}", self.key))
            })??;
            self.done.push(part);
        }
        Ok(())
    }

    async fn abort_now(store: &S3Store, key: &str, id: &str) -> PortResult<()> {
        let sent = store.client.abort_multipart_upload().bucket(&store.bucket).key(key).upload_id(id).send().await;
        match sent.map_err(|failed| error::map(&store.name, &format!("abort the upload of {key}"), &failed)) {
            Err(failed) if failed.code != ErrorCode::NotFound => Err(failed),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn part(&mut self, data: Bytes) -> PortResult<()> {
        if self.next_part > 10_000 {
            return Err(PortError::new(
                ErrorCode::LimitExceeded,
                format!("upload {}: more than 10,000 parts", self.key),
            ));
        }
        while self.in_flight.len() >= PARTS_IN_FLIGHT {
            self.collect_one().await?;
        }
        let number = self.next_part;
        self.next_part += 1;
        self.size_bytes += data.len() as u64;
        let (store, key, id) = (self.store.clone(), self.key.clone(), self.id.clone());
        let locked = self.locked;
        self.in_flight.spawn(async move {
            let sum = locked.then(|| checksum(&data));
            let answer = store
                .client
                .upload_part()
                .bucket(&store.bucket)
                .key(&key)
                .upload_id(id)
                .part_number(number)
                .set_checksum_sha256(sum.clone())
                .body(Body::from(data))
                .customize()
                .disable_payload_signing()
                .send()
                .await
                .map_err(|failed| error::map(&store.name, &format!("upload part {number} of {key}"), &failed))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).set_checksum_sha256(sum).build())
        });
        Ok(())
    }

    async fn complete(mut self: Box<Self>, condition: PutCondition) -> PortResult<ObjectInfo> {
        if self.next_part == 1 {
            // S3 has no multipart upload without parts.
            self.part(Bytes::new()).await?;
        }
        while !self.in_flight.is_empty() {
            self.collect_one().await?;
        }
        self.done.sort_by_key(|part| part.part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.done))).build();
        let mut request = self
            .store
            .client
            .complete_multipart_upload()
            .bucket(&self.store.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .multipart_upload(parts);
        match &condition {
            PutCondition::Any => {}
            PutCondition::Absent => request = request.if_none_match("*"),
            PutCondition::Match(etag) => request = request.if_match(etag),
        }
        let sent = request.send().await;
        match sent {
            Ok(answer) => {
                self.ended = true;
                Ok(ObjectInfo {
                    key: self.key.clone(),
                    size_bytes: self.size_bytes,
                    etag: answer.e_tag.unwrap_or_default(),
                })
            }
            Err(failed) => {
                let failed = error::map(&self.store.name, &format!("complete the upload of {}", self.key), &failed);
                // A refused condition leaves the parts in place: nobody will ask for them again.
                self.ended = Self::abort_now(&self.store, &self.key, &self.id).await.is_ok();
                Err(super::store::absent_is_conflict(failed, &condition))
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> PortResult<()> {
        // A part that arrives after the abort would stay: stop them first.
        self.in_flight.shutdown().await;
        self.ended = true;
        Self::abort_now(&self.store, &self.key, &self.id).await
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key, id) = (self.store.clone(), self.key.clone(), self.id.clone());
            let mut in_flight = std::mem::take(&mut self.in_flight);
            runtime.spawn(async move {
                in_flight.shutdown().await;
                // The upload failed already and its error is on its way; a second one here has no reader.
                let _ = Self::abort_now(&store, &key, &id).await;
            });
        }
    }
}
