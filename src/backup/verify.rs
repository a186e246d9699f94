use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;

use super::manifest::{FORMAT, Finding, Manifest, Verification};
use super::{Identities, catalog, kind_of, layout, unseal};
use crate::bolt::Backend;
use crate::ports::{Clock, ErrorClass, ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Looks at a snapshot without opening it (level `check`): both objects are there and have the digests that the manifest
/// names. Needs no identity, and proves nothing that is recorded.
pub async fn check(store: &dyn ObjectStore, manifest: &Manifest) -> PortResult<()> {
    for sealed in [&manifest.etcd, &manifest.recovery] {
        unseal::check_stored(store, sealed, store.patience()).await?;
    }
    Ok(())
}

/// Reads a snapshot back (level `read`): decrypts and decompresses both objects, checks every digest, walks etcd's file,
/// compares it with the manifest, and counts keys by kind. What was found is recorded beside the manifest, also that it is
/// damaged. The plain file lies unlinked in `scratch` meanwhile, so that nothing of it remains whatever happens.
pub async fn verify(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
    scratch: &Path,
    clock: &dyn Clock,
) -> PortResult<Verification> {
    let read = async {
        let local = |e: std::io::Error| unwritable(manifest, scratch, &e);
        std::fs::create_dir_all(scratch).map_err(local)?;
        let file = tempfile::tempfile_in(scratch).map_err(local)?;
        read_into(store, manifest, identities, file, scratch, clock).await
    };
    judge(store, manifest, clock, read.await).await
}

/// Records what came of a verification. A failure that says nothing about the data records nothing.
pub(super) async fn judge(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    clock: &dyn Clock,
    outcome: PortResult<Verification>,
) -> PortResult<Verification> {
    match outcome {
        Ok(verification) => {
            record(store, manifest, &verification).await?;
            clear_finding(store, manifest, clock).await?;
            Ok(verification)
        }
        Err(e) if e.code == ErrorCode::Corrupt => {
            let noted = record_finding(store, manifest, clock, Some(e.message.clone())).await;
            Err(match noted {
                Ok(()) => e,
                Err(unnoted) => e.context(format!("this could not be noted in the bucket ({unnoted})")),
            })
        }
        Err(e) => Err(e),
    }
}

/// Decrypts into a file, and reads all of it.
pub(super) async fn read_into(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
    mut file: File,
    scratch: &Path,
    clock: &dyn Clock,
) -> PortResult<Verification> {
    let recovery = catalog::read_recovery(store, manifest, identities).await?;
    let mut stream = unseal::open(store, &manifest.etcd, &manifest.recipients, identities).await?;
    while let Some(chunk) = stream.next().await {
        file.write_all(&chunk?).map_err(|e| unwritable(manifest, scratch, &e))?;
    }
    let walked = tokio::task::spawn_blocking(move || walk(file))
        .await
        .map_err(|e| PortError::new(ErrorCode::Local, format!("reading the snapshot died: {e}")))??;
    compare(manifest, &walked)?;
    Ok(Verification {
        format: FORMAT,
        level: "read".to_owned(),
        at: clock.now(),
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: walked.revision,
        keys: walked.kinds.values().sum(),
        versions: walked.versions,
        kinds: walked.kinds,
        recovery_files: recovery.into_keys().collect(),
        not_served: BTreeMap::new(),
        hash_agreed: Vec::new(),
    })
}

fn unwritable(manifest: &Manifest, scratch: &Path, e: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("write the plain snapshot to {}: {e}", scratch.display()))
        .hint(format!("{} bytes are needed there; --state names another directory", manifest.etcd.plain_bytes))
}

/// How much a level proves.
fn rank(level: &str) -> u8 {
    match level {
        "drill" => 3,
        "boot" => 2,
        "read" => 1,
        _ => 0,
    }
}

/// Writes `verify.json`, unless what is there proves more and was not contradicted since.
async fn record(store: &dyn ObjectStore, manifest: &Manifest, verification: &Verification) -> PortResult<()> {
    let key = layout::beside(&manifest.cluster, &manifest.id, layout::VERIFY);
    match store.get(&key, Manifest::BYTES_MAX).await {
        Ok(bytes) => {
            let proven = serde_json::from_slice::<Verification>(&bytes)
                .is_ok_and(|there| rank(&there.level) > rank(&verification.level));
            if proven {
                return Ok(());
            }
        }
        Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::Unsigned) => {}
        // One of several buckets is away and may have it: what was found now is written to those that are there.
        Err(e) if e.class() == ErrorClass::Transient => {}
        Err(e) => return Err(e),
    }
    write(store, &key, verification).await
}

/// Notes that a snapshot that was found damaged once was read whole. Overwriting needs no right to delete.
async fn clear_finding(store: &dyn ObjectStore, manifest: &Manifest, clock: &dyn Clock) -> PortResult<()> {
    let key = layout::beside(&manifest.cluster, &manifest.id, layout::BAD);
    match store.head(&key).await {
        Ok(_) => record_finding(store, manifest, clock, None).await,
        Err(e) if e.code == ErrorCode::NotFound || e.class() == ErrorClass::Transient => Ok(()),
        Err(e) => Err(e),
    }
}

async fn record_finding(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    clock: &dyn Clock,
    problem: Option<String>,
) -> PortResult<()> {
    let key = layout::beside(&manifest.cluster, &manifest.id, layout::BAD);
    let hk_dr_version = env!("CARGO_PKG_VERSION").to_owned();
    write(store, &key, &Finding { format: FORMAT, at: clock.now(), hk_dr_version, problem }).await
}

async fn write(store: &dyn ObjectStore, key: &str, document: &impl serde::Serialize) -> PortResult<()> {
    let text = serde_json::to_vec_pretty(document)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write {key}: {e}")))?;
    store.put(key, Bytes::from(text), PutCondition::Any).await.map(|_| ())
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
