//! A recovered state to look into: its file, and an API server over it.

use std::path::PathBuf;

use super::connect::Connected;
use super::{CliError, Context};
use crate::backup::log::Point;
use crate::backup::{IsolatedApi, Programs, Recalled};
use crate::bolt::Backend;
use crate::distribution::pki::ClusterSecrets;
use crate::ports::{ErrorCode, PortError, PortResult};

/// A state on the disk, plain, below a directory that nobody else can read and that goes with this value.
pub(super) struct Recovered {
    pub recalled: Recalled,
    file: PathBuf,
    dir: tempfile::TempDir,
}

impl Recovered {
    /// Fetches and writes a state.
    pub async fn at(point: Point, connected: &Connected, context: &Context) -> Result<Self, CliError> {
        let archive = connected.archive(context)?;
        let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("make a working directory: {e}"));
        std::fs::create_dir_all(&archive.scratch).map_err(local)?;
        let dir = tempfile::Builder::new().prefix("recovered-").tempdir_in(&archive.scratch).map_err(local)?;
        let file = dir.path().join("etcd.db");
        let recalled = archive.materialize(point, &file).await?;
        Ok(Self { recalled, file, dir })
    }

    /// Its content.
    pub fn backend(&self) -> PortResult<Backend> {
        let file = std::fs::File::open(&self.file)
            .map_err(|e| PortError::new(ErrorCode::Local, format!("read {}: {e}", self.file.display())))?;
        Ok(Backend::open(file)?)
    }

    /// An API server that serves it, with the keys of the snapshot that it began with.
    pub async fn api(&self, connected: &Connected) -> PortResult<IsolatedApi> {
        let world = &connected.world;
        let programs = programs(connected).await?;
        let set = world.backups.open_recovery_set(&self.recalled.snapshot).await?;
        let secrets = ClusterSecrets::from_recovery_set(&set)
            .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("the snapshot's recovery set: {e}")))?;
        let (dir, clock) = (self.dir.path(), world.clock.as_ref());
        IsolatedApi::start(&programs, &self.file, &world.cluster, &secrets, dir, clock).await
    }
}

/// The pinned programs that serve a recovered state.
pub(super) async fn programs(connected: &Connected) -> PortResult<Programs> {
    let artifacts = &connected.world.artifacts;
    let fetch = async |name: &str| {
        let (version, _) = artifacts.pinned(name, None)?;
        Ok::<_, PortError>(artifacts.fetch(name, &version).await?.0)
    };
    Ok(Programs {
        etcd: fetch("etcd").await?,
        etcdutl: fetch("etcdutl").await?,
        apiserver: fetch("kube-apiserver").await?,
    })
}
