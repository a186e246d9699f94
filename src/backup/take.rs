use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::agree::{Agreement, agree};
use super::manifest::{FORMAT, Manifest, Sealed};
use super::seal::{self, Inspected, Stored};
use super::ways::{Broken, TakeRequest};
use super::{in_place, layout, pack, require, through_api};
use crate::ports::{ErrorClass, ErrorCode, MemberFile, MemberStatus, ObjectStore, PortError, PortResult, PutCondition};

/// How long an abort may take: the error it follows must get out.
const ABORT_DEADLINE: Duration = Duration::from_secs(30);

/// What every failure begins with.
const NOT_TAKEN: &str = "the snapshot was not taken";

/// A snapshot that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub manifest: Manifest,
    /// The manifest's key in the bucket.
    pub manifest_key: String,
    /// The most memory that this program held on the member's machine, where it read there.
    pub beside_peak_kib: Option<u64>,
}

/// Takes a snapshot: compares the members, streams one of them through check, compression and encryption into the bucket,
/// stores the recovery set beside it, and writes the manifest last. Whatever fails before that leaves no snapshot.
pub async fn take(request: &TakeRequest<'_>) -> PortResult<Taken> {
    require(request.recovery, request.required)?;
    let taken_at = request.clock.now();
    let packed = pack(request.recovery, taken_at)?;
    let agreement = agree(request.etcd).await?;
    let source = &agreement.source;
    request.progress.expect(u64::try_from(source.db_size_bytes).unwrap_or_default());

    let (streamed, not_in_place) = match file_of(request, source) {
        None => (attempt(request, &agreement, taken_at, None).await, None),
        Some(file) => match attempt(request, &agreement, taken_at, Some(file.as_ref())).await {
            Err(Broken { error, by_bucket: false }) => {
                request.progress.begin_anew();
                let again = attempt(request, &agreement, taken_at, None).await;
                (again.map_err(|broken| broken.after(&error)), Some(error.message))
            }
            done => (done, None),
        },
    };
    let Streamed { key: stream_key, inspected, stored, beside_peak_kib } =
        streamed.map_err(|broken| broken.error.context(NOT_TAKEN))?;
    let finished_at = request.clock.now();

    let summary = &inspected.summary;
    let id = layout::snapshot_id(taken_at, summary.revision);
    let recovery = {
        let (sealed, stored) = seal::seal_small(&packed, request.recipients)?;
        let key = layout::beside(request.cluster, &id, layout::RECOVERY);
        put_once(request.store, &key, sealed).await.map_err(|failed| failed.context(NOT_TAKEN))?;
        use sha2::Digest;
        Sealed {
            key,
            plain_bytes: packed.len() as u64,
            plain_sha256: seal::hex(&sha2::Sha256::digest(&packed)),
            stored_bytes: stored.bytes,
            stored_sha256: stored.sha256,
        }
    };
    let manifest = Manifest {
        format: FORMAT,
        id: id.clone(),
        cluster: request.cluster.to_owned(),
        taken_at,
        finished_at,
        source_member: source.name.clone(),
        etcd_version: source.version.clone(),
        etcd_cluster_id: format!("{:x}", source.cluster_id),
        revision: summary.revision,
        compact_revision: summary.compact_revision,
        keys: summary.keys,
        versions: summary.versions,
        etcd: Sealed {
            key: stream_key,
            plain_bytes: inspected.bytes,
            plain_sha256: inspected.sha256.clone(),
            stored_bytes: stored.bytes,
            stored_sha256: stored.sha256,
        },
        recovery,
        recipients: request.recipients.names(),
        git_commit: request.git_commit.clone(),
        hash_kv: agreement.check.clone(),
        not_in_place,
        made_from: None,
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let manifest_key = layout::beside(request.cluster, &id, layout::MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write the manifest: {e}")))?;
    put_once(request.store, &manifest_key, Bytes::from(text)).await.map_err(|failed| failed.context(NOT_TAKEN))?;
    Ok(Taken { manifest, manifest_key, beside_peak_kib })
}

/// The source's file, if it is worth it.
fn file_of(request: &TakeRequest<'_>, source: &MemberStatus) -> Option<Arc<dyn MemberFile>> {
    let bytes = u64::try_from(source.db_size_bytes).unwrap_or_default();
    if bytes < request.in_place_from_bytes { None } else { request.etcd.file(&source.name) }
}

/// A stream that is stored.
struct Streamed {
    key: String,
    inspected: Inspected,
    stored: Stored,
    beside_peak_kib: Option<u64>,
}

/// Stores the stream under a name of its own; one that breaks leaves nothing.
async fn attempt(
    request: &TakeRequest<'_>,
    agreement: &Agreement,
    taken_at: Timestamp,
    file: Option<&dyn MemberFile>,
) -> Result<Streamed, Broken> {
    let nonce = seal::hex(&rand::random::<[u8; 4]>());
    let key = layout::stream_key(request.cluster, taken_at, &nonce);
    // The bucket is asked first: if it is gone, etcd need not read its whole file.
    let mut upload = request.store.upload(&key).await.map_err(Broken::by_bucket)?;
    let streamed = match file {
        None => through_api::stream(request, agreement, upload.as_mut()).await.map(|done| (done, None)),
        Some(file) => in_place::stream(request, agreement, file, upload.as_mut()).await,
    };
    match streamed {
        Ok(((inspected, stored), beside_peak_kib)) => {
            upload.complete(PutCondition::Absent).await.map_err(Broken::by_bucket)?;
            Ok(Streamed { key, inspected, stored, beside_peak_kib })
        }
        Err(Broken { error, by_bucket }) => Err(match tokio::time::timeout(ABORT_DEADLINE, upload.abort()).await {
            Ok(Ok(())) => Broken { error, by_bucket },
            _ => {
                Broken::by_bucket(error.hint(format!("the unfinished upload of {key} could not be aborted: remove it")))
            }
        }),
    }
}

/// Writes an object that must not exist yet. When an answer is lost, the store's own repetition meets what the first
/// attempt wrote: then what is there is ours, byte for byte, and that is success.
pub(super) async fn put_once(store: &dyn ObjectStore, key: &str, data: Bytes) -> PortResult<()> {
    let Err(failed) = store.put(key, data.clone(), PutCondition::Absent).await else { return Ok(()) };
    let unsure = matches!(failed.class(), ErrorClass::Transient | ErrorClass::Conflict);
    if unsure && store.get(key, data.len() as u64).await.is_ok_and(|there| there == data) {
        return Ok(());
    }
    Err(failed)
}
