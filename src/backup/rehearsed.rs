//! Whether what was restored onto servers is what a snapshot has: every key in etcd, every object through the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::boot::{read_all, stored_objects};
use super::catalog::BucketBackups;
use super::manifest::{Manifest, Verification};
use super::objects::{Change, Comparer, Contents, ObjectName, differences};
use super::{Catalog, Identities, verify};
use crate::bolt::Backend;
use crate::ports::{Clock, Compared, ErrorCode, Etcd, Kube, ObjectStore, PortError, PortResult, Served};

/// Keys that differ, as far as they are named.
const NAMED: usize = 10;

/// A snapshot's plain file, in a directory that only its owner reads and that goes with this value.
pub(super) struct Plain {
    pub path: PathBuf,
    pub verification: Verification,
    pub dir: tempfile::TempDir,
}

/// Decrypts a snapshot into a file, and reads all of it.
pub(super) async fn plain(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    identities: &Identities,
    scratch: &Path,
    clock: &dyn Clock,
) -> PortResult<Plain> {
    let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("work below {}: {e}", scratch.display()));
    std::fs::create_dir_all(scratch).map_err(local)?;
    let dir = tempfile::Builder::new().prefix("plain-").tempdir_in(scratch).map_err(local)?;
    let path = dir.path().join("etcd.db");
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(local)?;
    let verification = verify::read_into(store, manifest, identities, file, scratch, clock).await?;
    Ok(Plain { path, verification, dir })
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> PortResult<T> + Send + 'static) -> PortResult<T> {
    let died = |e| PortError::new(ErrorCode::Local, format!("reading the snapshot died: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(died)?
}

impl BucketBackups {
    async fn plain(&self, id: &str) -> PortResult<(Manifest, Plain)> {
        let manifest = Catalog::new(self.store.as_ref(), &self.cluster).find(id).await?.manifest;
        let source = self.source()?;
        let (scratch, clock) = (&source.scratch, source.clock.as_ref());
        let plain = plain(self.store.as_ref(), &manifest, &self.identities, scratch, clock).await?;
        Ok((manifest, plain))
    }

    pub(super) async fn compared(&self, id: &str, etcd: &dyn Etcd) -> PortResult<Compared> {
        let (manifest, plain) = self.plain(id).await?;
        let path = plain.path.clone();
        let (comparer, saved, leased) = off_thread(move || {
            let comparer = Comparer::default();
            let open = || {
                let failed =
                    |e| PortError::new(ErrorCode::Local, format!("read the plain snapshot {}: {e}", path.display()));
                Ok::<_, PortError>(Backend::open(File::open(&path).map_err(failed)?)?)
            };
            let (saved, leased) = (comparer.file(&open()?)?, leased(&open()?)?);
            Ok((comparer, saved, leased))
        })
        .await?;
        let (there, _) = comparer.live(etcd).await?;
        Ok(judge(&manifest, plain.verification.keys, &saved, &there, &leased))
    }

    pub(super) async fn found_served(&self, id: &str, kube: &dyn Kube) -> PortResult<Served> {
        let (manifest, plain) = self.plain(id).await?;
        let path = plain.path.clone();
        let stored = off_thread(move || stored_objects(&path)).await?;
        let objects = stored.count();
        let not_served = read_all(kube, stored).await.map_err(|e| match e.code {
            ErrorCode::Corrupt => e,
            _ => e.context(format!("reading the objects of {id}")),
        })?;
        // Servers were made from it, and all it has is there: that is the most a snapshot can show.
        let mut verification = plain.verification;
        verification.level = "drill".to_owned();
        verification.not_served.clone_from(&not_served);
        let clock = self.source()?.clock.as_ref();
        verify::judge(self.store.as_ref(), &manifest, clock, Ok(verification)).await?;
        Ok(Served { objects, not_served, canary: None })
    }
}

/// Objects that end with a lease: they may go while a copy comes up.
fn leased(backend: &Backend) -> PortResult<BTreeSet<ObjectName>> {
    let mut names = BTreeSet::new();
    for version in backend.live_at(None) {
        let kv = version?.key_value;
        if kv.lease != 0 {
            names.insert(ObjectName::of(&kv.key));
        }
    }
    Ok(names)
}

fn judge(
    manifest: &Manifest,
    keys: u64,
    saved: &Contents,
    there: &Contents,
    leased: &BTreeSet<ObjectName>,
) -> Compared {
    let found = differences(saved, there);
    let (ended, differing): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(name, change)| *change == Change::Removed && leased.contains(name));
    let mut counts: BTreeMap<Change, u64> = BTreeMap::new();
    for (_, change) in &differing {
        *counts.entry(*change).or_default() += 1;
    }
    let of_saved = |change| counts.get(&change).copied().unwrap_or_default();
    let ended = ended.len() as u64;
    let named = differing.iter().take(NAMED).map(|(name, change)| match change {
        Change::Removed => format!("{name} is lost"),
        Change::Added => format!("{name} was not saved"),
        Change::Changed => format!("{name} differs"),
    });
    Compared {
        taken_at: manifest.taken_at,
        revision: manifest.revision,
        keys,
        equal: keys.saturating_sub(ended + of_saved(Change::Removed) + of_saved(Change::Changed)),
        ended_with_lease: ended,
        differing: named.collect(),
    }
}
