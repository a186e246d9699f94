use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backup::local_etcd::LocalEtcd;
use crate::backup::log::{CutRule, NewBase, ShipEvent, ShipReport, ShipRequest, ship, status};
use crate::backup::tests::support::{Keys, keys, take_from};
use crate::backup::{Archive, Manifest};
use crate::bolt::tests::binary;
use crate::ports::{Clock, Etcd, ObjectStore, PortResult, SystemClock};
use crate::s3::S3Store;
use crate::s3::versitygw::VersityGw;

pub const CLUSTER: &str = "demo";

/// Takes snapshots of one etcd.
pub struct Takes {
    pub etcd: Arc<dyn Etcd>,
    pub store: Arc<dyn ObjectStore>,
    pub keys: Arc<Keys>,
}

#[async_trait]
impl NewBase for Takes {
    async fn take(&self) -> PortResult<Manifest> {
        take_from(self.etcd.as_ref(), self.store.as_ref(), &self.keys).await.map(|taken| taken.manifest)
    }
}

/// A bucket, keys, and a directory.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Arc<dyn ObjectStore>,
    pub keys: Arc<Keys>,
    pub _server: Option<VersityGw>,
}

impl Place {
    /// With a real S3 server.
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("mat-log-").tempdir().unwrap();
        let server = VersityGw::start(&binary("versitygw-1.8.0"), dir.path()).unwrap();
        let store = S3Store::connect(&server.config("backups")).unwrap();
        store.ensure_bucket().await.unwrap();
        Self { dir, store: Arc::new(store), keys: Arc::new(keys()), _server: Some(server) }
    }

    /// With any bucket.
    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        let dir = tempfile::Builder::new().prefix("mat-log-").tempdir().unwrap();
        Self { dir, store, keys: Arc::new(keys()), _server: None }
    }

    pub async fn etcd(&self, name: &str) -> LocalEtcd {
        LocalEtcd::start(&binary("etcd-3.6.16"), &self.dir.path().join(name), &[]).await.unwrap()
    }

    pub fn archive(&self) -> Archive {
        Archive {
            store: Arc::clone(&self.store),
            cluster: CLUSTER.to_owned(),
            identities: self.keys.first.clone(),
            scratch: self.dir.path().join("scratch"),
        }
    }

    pub fn spool(&self, holder: &str) -> PathBuf {
        self.dir.path().join("spool").join(holder)
    }

    /// Ships until it is stopped.
    pub fn ship(&self, etcd: Arc<dyn Etcd>, holder: &str) -> Shipping {
        self.ship_limited(etcd, holder, 1 << 30)
    }

    pub fn ship_limited(&self, etcd: Arc<dyn Etcd>, holder: &str, spool_limit_bytes: u64) -> Shipping {
        let events: Arc<Mutex<Vec<ShipEvent>>> = Arc::default();
        let stop = CancellationToken::new();
        let (store, keys, holder) = (Arc::clone(&self.store), Arc::clone(&self.keys), holder.to_owned());
        let (spool, stopped, heard) = (self.spool(&holder), stop.clone(), Arc::clone(&events));
        let task = tokio::spawn(async move {
            let takes = Takes { etcd: Arc::clone(&etcd), store: Arc::clone(&store), keys: Arc::clone(&keys) };
            let event = move |event: ShipEvent| heard.lock().unwrap().push(event);
            ship(
                &ShipRequest {
                    cluster: CLUSTER,
                    etcd: etcd.as_ref(),
                    store,
                    recipients: &keys.recipients,
                    clock: Arc::new(SystemClock),
                    new_base: &takes,
                    holder,
                    spool,
                    spool_limit_bytes,
                    cut: CutRule { bytes: 1 << 20, after: Duration::from_millis(150) },
                    event: &event,
                },
                stopped.cancelled_owned(),
            )
            .await
        });
        Shipping { task, stop, events }
    }

    /// Waits until a revision can be had from the bucket.
    pub async fn covered(&self, revision: i64) {
        for _ in 0..300 {
            let now = status(self.store.as_ref(), CLUSTER, SystemClock.now()).await;
            if now.is_ok_and(|now| now.covered_revision >= revision) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("revision {revision} did not get into the bucket within 30 s");
    }
}

pub struct Shipping {
    pub task: JoinHandle<PortResult<ShipReport>>,
    pub stop: CancellationToken,
    events: Arc<Mutex<Vec<ShipEvent>>>,
}

impl Shipping {
    pub async fn stop(self) -> PortResult<ShipReport> {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    pub fn events(&self) -> Vec<ShipEvent> {
        self.events.lock().unwrap().clone()
    }

    /// Waits until something was told.
    pub async fn heard(&self, what: impl Fn(&ShipEvent) -> bool) {
        for _ in 0..300 {
            if self.events().iter().any(&what) {
                return;
            }
            assert!(!self.task.is_finished(), "it ended: {:?}", self.events());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not within 30 s; it told {:?}", self.events());
    }
}

pub fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}
