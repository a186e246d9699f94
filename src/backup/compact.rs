//! A snapshot and the log behind it become a new whole snapshot in the bucket. The cluster is not asked.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::log::Point;
use super::manifest::{FORMAT, HashKvCheck, MadeFrom, Manifest, Sealed};
use super::seal::{self, BLOCK_BYTES, Compression, Inspected, Stored};
use super::take::put_once;
use super::ways::died;
use super::{Archive, Recipients, catalog, layout, pack};
use crate::bolt::Untrailed;
use crate::ports::{Clock, ErrorCode, PortError, PortResult, PutCondition, Upload};

/// Blocks of the file between two stages.
const QUEUE: usize = 2;

/// What is made, from what, and for whom.
pub struct CompactRequest<'a> {
    pub archive: &'a Archive,
    pub point: Point,
    pub recipients: &'a Recipients,
    pub clock: &'a dyn Clock,
    pub compression: Compression,
}

/// Makes a snapshot of a point. None: a snapshot of exactly that state is there already, and its name is returned.
pub async fn compact(request: &CompactRequest<'_>) -> PortResult<Result<Manifest, String>> {
    let archive = request.archive;
    let store = archive.store.as_ref();
    let opened = archive.open(request.point).await?;
    let base = opened.way.base.manifest.clone();
    let is_base = |revision: i64| revision == base.revision;
    if matches!(request.point, Point::Revision(revision) if is_base(revision)) {
        return Ok(Err(base.id));
    }
    let recovery = catalog::read_recovery(store, &base, &archive.identities).await?;
    let scratch = archive.scratch.clone();
    let (recalled, file) = tokio::task::spawn_blocking(move || {
        let out = tempfile::tempfile_in(&scratch)
            .map_err(|e| PortError::new(ErrorCode::Local, format!("write to {}: {e}", scratch.display())))?;
        opened.rewrite(out)
    })
    .await
    .map_err(died)??;
    if is_base(recalled.made.revision) {
        return Ok(Err(base.id));
    }
    // The time of the data, not of its making: a snapshot is chosen by what it holds.
    let taken_at = recalled.seen_at.unwrap_or(base.taken_at);
    let nonce = seal::hex(&rand::random::<[u8; 4]>());
    let stream_key = layout::stream_key(&archive.cluster, taken_at, &nonce);
    let mut upload = store.upload(&stream_key).await?;
    let streamed = stream(request, file, recalled.made.compact_revision, upload.as_mut()).await;
    let (inspected, stored) = match streamed {
        Ok(done) => done,
        Err(failed) => {
            // The error that is returned is the first one; an upload that stays open is no object.
            let _ = upload.abort().await;
            return Err(failed.context("no snapshot was made"));
        }
    };
    upload.complete(PutCondition::Absent).await?;

    let id = layout::snapshot_id(taken_at, recalled.made.revision);
    let packed = pack(&recovery, taken_at)?;
    let (sealed, sealed_as) = seal::seal_small(&packed, request.recipients)?;
    let recovery_key = layout::beside(&archive.cluster, &id, layout::RECOVERY);
    put_once(store, &recovery_key, sealed).await?;
    let manifest = Manifest {
        format: FORMAT,
        id: id.clone(),
        cluster: archive.cluster.clone(),
        taken_at,
        finished_at: taken_at,
        source_member: base.source_member.clone(),
        etcd_version: base.etcd_version.clone(),
        etcd_cluster_id: base.etcd_cluster_id.clone(),
        revision: recalled.made.revision,
        compact_revision: recalled.made.compact_revision,
        keys: inspected.summary.keys,
        versions: recalled.made.versions,
        etcd: Sealed {
            key: stream_key,
            plain_bytes: inspected.bytes,
            plain_sha256: inspected.sha256,
            stored_bytes: stored.bytes,
            stored_sha256: stored.sha256,
        },
        recovery: Sealed {
            key: recovery_key,
            plain_bytes: packed.len() as u64,
            plain_sha256: seal::hex(&Sha256::digest(&packed)),
            stored_bytes: sealed_as.bytes,
            stored_sha256: sealed_as.sha256,
        },
        recipients: request.recipients.names(),
        git_commit: base.git_commit.clone(),
        hash_kv: HashKvCheck {
            revision: recalled.made.revision,
            hash: None,
            agreed: Vec::new(),
            not_compared: vec!["made from the log: no member was asked".to_owned()],
            compact_revision: None,
        },
        not_in_place: None,
        made_from: Some(MadeFrom { snapshot: base.id, segments: recalled.segments, made_at: request.clock.now() }),
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write the manifest: {e}")))?;
    put_once(store, &layout::beside(&archive.cluster, &id, layout::MANIFEST), Bytes::from(text)).await?;
    Ok(Ok(manifest))
}

/// The file through the same stages as a snapshot's stream: looked through, completed by its trailer, sealed, uploaded in parts.
async fn stream(
    request: &CompactRequest<'_>,
    file: Untrailed,
    compact_hint: i64,
    upload: &mut dyn Upload,
) -> PortResult<(Inspected, Stored)> {
    let (to_inspect, from_file) = mpsc::channel(QUEUE);
    let (to_seal, from_inspect) = std::sync::mpsc::sync_channel(QUEUE);
    let (to_upload, mut from_seal) = mpsc::channel(1);
    let reading = tokio::task::spawn_blocking(move || read(&file, &to_inspect));
    let inspecting = tokio::task::spawn_blocking(move || seal::append_trailer(from_file, &to_seal, compact_hint));
    let (recipients, compression) = (request.recipients.clone(), request.compression);
    let sealing = tokio::task::spawn_blocking(move || seal::seal(&from_inspect, &recipients, compression, to_upload));
    let mut sent = Ok(());
    while let Some(part) = from_seal.recv().await {
        sent = upload.part(part).await;
        if sent.is_err() {
            break;
        }
    }
    // A stage that stops drops its ends of the queues, so its neighbours stop too.
    drop(from_seal);
    let (read, inspected, sealed) =
        (reading.await.map_err(died)?, inspecting.await.map_err(died)?, sealing.await.map_err(died)?);
    sent?;
    read?;
    // Where the last stage fails, the one before it only stops.
    let stored = sealed?;
    Ok((inspected?, stored))
}

fn read(pages: &Untrailed, out: &mpsc::Sender<Bytes>) -> PortResult<()> {
    let mut at = 0;
    while at < pages.bytes {
        let now = usize::try_from(pages.bytes - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let mut piece = vec![0; now];
        pages
            .file
            .read_exact_at(&mut piece, at)
            .map_err(|e| PortError::new(ErrorCode::Local, format!("read the new snapshot back: {e}")))?;
        at += now as u64;
        if out.blocking_send(Bytes::from(piece)).is_err() {
            // The next stage stopped and says why.
            return Ok(());
        }
    }
    Ok(())
}
