use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;

use super::manifest::{FORMAT, Manifest, Verification};
use super::{Identities, catalog, kind_of, layout, unseal};
use crate::bolt::Backend;
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Reads a snapshot back (level `read`): decrypts and decompresses both objects, checks every digest, walks etcd's file,
/// compares it with the manifest, and counts keys by kind. Success is recorded beside the manifest. The plain file lies
/// unlinked in `scratch` meanwhile, so that nothing of it remains whatever happens.
pub async fn verify(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
    scratch: &Path,
    clock: &dyn Clock,
) -> PortResult<Verification> {
    let recovery = catalog::read_recovery(store, manifest, identities).await?;
    let local = |e: std::io::Error| {
        PortError::new(ErrorCode::Local, format!("write the plain snapshot to {}: {e}", scratch.display()))
            .hint(format!("{} bytes are needed there; --state names another directory", manifest.etcd.plain_bytes))
    };
    std::fs::create_dir_all(scratch).map_err(local)?;
    let mut file = tempfile::tempfile_in(scratch).map_err(local)?;
    let mut stream = unseal::open(store, &manifest.etcd, &manifest.recipients, identities).await?;
    while let Some(chunk) = stream.next().await {
        file.write_all(&chunk?).map_err(local)?;
    }
    let walked = tokio::task::spawn_blocking(move || walk(file))
        .await
        .map_err(|e| PortError::new(ErrorCode::Local, format!("reading the snapshot died: {e}")))??;
    compare(manifest, &walked)?;

    let verification = Verification {
        format: FORMAT,
        level: "read".to_owned(),
        at: clock.now(),
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: walked.revision,
        keys: walked.kinds.values().sum(),
        versions: walked.versions,
        kinds: walked.kinds,
        recovery_files: recovery.into_keys().collect(),
    };
    record(store, manifest, &verification).await?;
    Ok(verification)
}

/// Writes `verify.json`, unless what is there proves more.
async fn record(store: &dyn ObjectStore, manifest: &Manifest, verification: &Verification) -> PortResult<()> {
    let key = layout::beside(&manifest.cluster, &manifest.id, layout::VERIFY);
    match store.get(&key, Manifest::BYTES_MAX).await {
        Ok(bytes) => {
            let proven = serde_json::from_slice::<Verification>(&bytes).is_ok_and(|v| v.level != "read");
            if proven {
                return Ok(());
            }
        }
        Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::Unsigned) => {}
        Err(e) => return Err(e),
    }
    let text = serde_json::to_vec_pretty(verification)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write {key}: {e}")))?;
    store.put(&key, Bytes::from(text), PutCondition::Any).await?;
    Ok(())
}

struct Walked {
    revision: i64,
    compact_revision: i64,
    versions: u64,
    kinds: BTreeMap<String, u64>,
}

fn walk(file: File) -> PortResult<Walked> {
    let backend = Backend::open(file)?;
    let info = backend.info()?;
    let mut walked = Walked {
        revision: info.finished_compact_revision.max(1),
        compact_revision: info.finished_compact_revision,
        versions: 0,
        kinds: BTreeMap::new(),
    };
    // Every version is decoded once; a page that can't be read ends it.
    for version in backend.key_values() {
        let version = version?;
        walked.versions += 1;
        walked.revision = walked.revision.max(version.revision.main);
    }
    for version in backend.live_at(None) {
        *walked.kinds.entry(kind_of(&version?.key_value.key)).or_default() += 1;
    }
    Ok(walked)
}

fn compare(manifest: &Manifest, walked: &Walked) -> PortResult<()> {
    let keys: u64 = walked.kinds.values().sum();
    let differences: Vec<String> = [
        ("revision", manifest.revision.to_string(), walked.revision.to_string()),
        ("compact revision", manifest.compact_revision.to_string(), walked.compact_revision.to_string()),
        ("versions", manifest.versions.to_string(), walked.versions.to_string()),
        ("keys", manifest.keys.unwrap_or(keys).to_string(), keys.to_string()),
    ]
    .into_iter()
    .filter(|(_, said, found)| said != found)
    .map(|(what, said, found)| format!("{what} {found} where the manifest says {said}"))
    .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("snapshot {} is not what its manifest says: {}", manifest.id, differences.join(", "));
    Err(PortError::new(ErrorCode::Corrupt, message).hint("do not restore it; use another snapshot"))
}
