use std::io::Write;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use tempfile::NamedTempFile;

use super::log::Point;
use super::manifest::{Manifest, Sealed};
use super::{Archive, Identities, unseal};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// Files that a fetch wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fetched {
    /// The etcd snapshot, as `etcdutl snapshot restore` takes it.
    pub etcd: PathBuf,
    /// The recovery set, as `tar` takes it.
    pub recovery: PathBuf,
}

/// Writes both objects, decrypted and decompressed, into a directory. A file has its name only when it is whole and its
/// digest was checked, and belongs to its owner alone (0600). Files that exist already are not overwritten.
pub async fn fetch(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
    directory: &Path,
) -> PortResult<Fetched> {
    std::fs::create_dir_all(directory).map_err(|e| local(directory, &e))?;
    let fetched = Fetched {
        etcd: directory.join(format!("{}.etcd.db", manifest.id)),
        recovery: directory.join(format!("{}.recovery.tar", manifest.id)),
    };
    for path in [&fetched.etcd, &fetched.recovery] {
        if path.exists() {
            return Err(PortError::new(ErrorCode::Invalid, format!("{} exists already", path.display()))
                .hint("nothing was written; remove it or fetch into another directory"));
        }
    }
    one(store, manifest, &manifest.recovery, identities, &fetched.recovery).await?;
    match one(store, manifest, &manifest.etcd, identities, &fetched.etcd).await {
        Ok(()) => Ok(fetched),
        // Keys and tokens lie in the first file: they must not stay of a fetch that failed.
        Err(failed) => Err(match std::fs::remove_file(&fetched.recovery) {
            Ok(()) => failed,
            Err(e) => failed.hint(format!("{} could not be removed ({e}): remove it", fetched.recovery.display())),
        }),
    }
}

/// Writes the state at a point, and the recovery set of the snapshot that it begins with.
pub async fn fetch_at(archive: &Archive, point: Point, directory: &Path) -> PortResult<Fetched> {
    std::fs::create_dir_all(directory).map_err(|e| local(directory, &e))?;
    let manifest = archive.way(point).await?.base.manifest;
    let name = point.to_string().replace(' ', "-");
    let fetched = Fetched {
        etcd: directory.join(format!("{}.{name}.etcd.db", manifest.cluster)),
        recovery: directory.join(format!("{}.recovery.tar", manifest.id)),
    };
    if fetched.recovery.exists() {
        return Err(PortError::new(ErrorCode::Invalid, format!("{} exists already", fetched.recovery.display()))
            .hint("nothing was written; remove it or fetch into another directory"));
    }
    archive.materialize(point, &fetched.etcd).await?;
    one(archive.store.as_ref(), &manifest, &manifest.recovery, &archive.identities, &fetched.recovery).await?;
    Ok(fetched)
}

async fn one(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    sealed: &Sealed,
    identities: &Identities,
    path: &Path,
) -> PortResult<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut stream = unseal::open(store, sealed, &manifest.recipients, identities).await?;
    // Removed by itself if anything fails below; made with mode 0600.
    let mut file = NamedTempFile::new_in(directory).map_err(|e| local(directory, &e))?;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        file.write_all(&chunk).map_err(|e| local(path, &e))?;
    }
    file.as_file().sync_all().map_err(|e| local(path, &e))?;
    file.persist_noclobber(path).map_err(|e| local(path, &e.error))?;
    Ok(())
}

fn local(path: &Path, error: &std::io::Error) -> PortError {
    let failed = PortError::new(ErrorCode::Local, format!("write {}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            failed.hint("the disk is full; what was begun has been removed: free space or fetch into another directory")
        }
        _ => failed,
    }
}
