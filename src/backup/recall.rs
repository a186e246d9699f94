//! Any point within a snapshot's or the log's reach, fetched and written as an etcd snapshot.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use serde::Serialize;

use super::log::{Changes, Index, Point, Way, read_changes, way};
use super::materialize::{Materialized, rewrite};
use super::{Catalog, Identities, seal, unseal};
use crate::bolt::{Backend, Untrailed, Written};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// Where points are fetched from.
#[derive(Clone)]
pub struct Archive {
    pub store: Arc<dyn ObjectStore>,
    pub cluster: String,
    pub identities: Identities,
    /// Plain data lies there unlinked while it is worked on; as large as the database.
    pub scratch: PathBuf,
}

/// A state that was written.
#[derive(Debug, Clone, Serialize)]
pub struct Recalled {
    #[serde(flatten)]
    pub made: Materialized,
    /// The snapshot it began with, and how many segments followed.
    pub snapshot: String,
    pub segments: u64,
    /// When the newest change in it had been seen; none if it has nothing from the log.
    pub seen_at: Option<Timestamp>,
}

/// What is needed to write a state: a snapshot on the disk, unlinked, and changes on their way.
pub struct Opened {
    pub way: Way,
    base: File,
    changes: Changes,
    point: Point,
    /// Up to when the log is known to be whole.
    covered_at: Option<Timestamp>,
}

impl Archive {
    /// Finds the way to a point; fetches nothing but names and manifests.
    pub async fn way(&self, point: Point) -> PortResult<Way> {
        let (entries, _) = Catalog::new(self.store.as_ref(), &self.cluster).list().await?;
        way(&entries, &Index::load(self.store.as_ref(), &self.cluster).await?, point)
    }

    /// Finds the way to a point and fetches what it needs. Every digest is checked.
    pub async fn open(&self, point: Point) -> PortResult<Opened> {
        let store = self.store.as_ref();
        let (entries, _) = Catalog::new(store, &self.cluster).list().await?;
        let index = Index::load(store, &self.cluster).await?;
        let way = way(&entries, &index, point)?;
        let manifest = &way.base.manifest;
        let until = match point {
            Point::Time(at) => Some(at),
            Point::Latest | Point::Revision(_) => None,
        };
        let lease = index.lease.as_ref().filter(|lease| {
            lease.etcd_cluster_id == manifest.etcd_cluster_id && lease.covered_revision <= way.path.reaches
        });
        let covered_at = lease.and_then(|lease| lease.covered_at);
        let changes = read_changes(
            Arc::clone(&self.store),
            self.cluster.clone(),
            manifest.etcd_cluster_id.clone(),
            &index,
            way.path.segments.clone(),
            self.identities.clone(),
            until,
        );
        let local = |e: std::io::Error| {
            PortError::new(ErrorCode::Local, format!("write the plain snapshot to {}: {e}", self.scratch.display()))
                .hint(format!("{} bytes are needed there; --state names another directory", manifest.etcd.plain_bytes))
        };
        std::fs::create_dir_all(&self.scratch).map_err(local)?;
        let mut base = tempfile::tempfile_in(&self.scratch).map_err(local)?;
        let mut stream = unseal::open(store, &manifest.etcd, &manifest.recipients, &self.identities).await?;
        while let Some(chunk) = stream.next().await {
            base.write_all(&chunk?).map_err(local)?;
        }
        Ok(Opened { way, base, changes, point, covered_at })
    }

    /// Writes a point into a file of that name: private, and there only when it is whole.
    pub async fn materialize(&self, point: Point, path: &Path) -> PortResult<Recalled> {
        super::materialize::refuse_existing(path)?;
        let opened = self.open(point).await?;
        let path = path.to_owned();
        blocking(move || super::place(&path, |out| opened.write(out))).await.map(|(recalled, _)| recalled)
    }

    /// Writes a point into a file without a name, for reading.
    pub async fn scratch(&self, point: Point) -> PortResult<(Recalled, Written)> {
        let opened = self.open(point).await?;
        let scratch = self.scratch.clone();
        blocking(move || {
            let out = tempfile::tempfile_in(&scratch)
                .map_err(|e| PortError::new(ErrorCode::Local, format!("write to {}: {e}", scratch.display())))?;
            opened.write(out)
        })
        .await
    }
}

impl Opened {
    /// Writes the state. Blocks.
    pub fn write(self, out: File) -> PortResult<(Recalled, Written)> {
        let (mut recalled, file) = self.rewrite(out)?;
        let written = file.trail()?;
        recalled.made.sha256 = Some(seal::hex(&written.sha256));
        Ok((recalled, written))
    }

    /// Writes the state without a trailer. Blocks.
    pub(super) fn rewrite(mut self, out: File) -> PortResult<(Recalled, Untrailed)> {
        let base = Backend::open(self.base)?;
        let at = match self.point {
            Point::Revision(revision) => Some(revision),
            Point::Latest | Point::Time(_) => None,
        };
        let (made, file) = rewrite(&base, &mut self.changes, at, out)?;
        if let Point::Time(at) = self.point
            && !self.changes.passed()
            && self.covered_at.is_none_or(|covered| covered < at)
        {
            let known = self.covered_at.or(self.changes.seen()).unwrap_or(self.way.base.manifest.finished_at);
            let message = format!("the state at {at} is not known: the log is known to be whole until {known}");
            return Err(PortError::new(ErrorCode::NotFound, message).hint(format!(
                "nothing was written; `--at {known}` or `--at latest` gives the newest state (revision {})",
                made.revision
            )));
        }
        let recalled = Recalled {
            made,
            snapshot: self.way.base.manifest.id,
            segments: self.way.path.segments.len() as u64,
            seen_at: self.changes.seen(),
        };
        Ok((recalled, file))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> PortResult<T> + Send + 'static) -> PortResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| PortError::new(ErrorCode::Local, format!("writing etcd's file died: {e}")))?
}
