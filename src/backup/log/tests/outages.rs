//! What goes wrong, and that it is noticed and closed.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, CompactionOptions};

use super::support::{CLUSTER, Place, files};
use crate::backup::log::{Point, ShipEvent, status};
use crate::bolt::tests::binary;
use crate::etcd::EtcdClient;
use crate::ports::{
    ByteStream, Clock, ErrorCode, Etcd, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, SystemClock,
    Upload,
};
use crate::s3::MemoryStore;

async fn put(client: &mut Client, key: &str) -> i64 {
    client.put(key, vec![b'x'; 2000], None).await.unwrap().header().unwrap().revision()
}

fn watching(event: &ShipEvent) -> bool {
    matches!(event, ShipEvent::Watching { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_away_continues_and_a_compaction_that_overtook_it_is_closed_by_a_snapshot() {
    let place = Place::new().await;
    let etcd = place.etcd("live").await;
    let client: Arc<dyn Etcd> = Arc::new(etcd.client().await.unwrap());
    let mut direct = Client::connect([etcd.url()], None).await.unwrap();
    let shipping = place.ship(client.clone(), "first");
    shipping.heard(watching).await;
    put(&mut direct, "/1").await;
    let report = shipping.stop().await.unwrap();
    // Written while nobody ships.
    let away = put(&mut direct, "/2").await;
    let shipping = place.ship(client.clone(), "first");
    place.covered(away).await;
    assert!(!shipping.events().iter().any(|event| matches!(event, ShipEvent::NewBase { .. })));
    let again = shipping.stop().await.unwrap();
    assert!(again.epoch == report.epoch + 1 && again.segments == 1, "{again:?}");
    assert!(status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap().gaps.is_empty());

    let lost = put(&mut direct, "/2").await;
    let newest = put(&mut direct, "/2").await;
    direct.compact(newest, Some(CompactionOptions::new().with_physical())).await.unwrap();
    let shipping = place.ship(client, "first");
    shipping.heard(|event| matches!(event, ShipEvent::NewBase { why, .. } if why.contains("compacted"))).await;
    let after = put(&mut direct, "/3").await;
    place.covered(after).await;
    shipping.stop().await.unwrap();
    let now = status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap();
    assert_eq!((now.gaps.len(), now.gaps[0].after), (1, away), "{:?}", now.gaps);
    assert_eq!(now.gaps[0].closed_by.as_ref(), Some(&now.snapshot));
    let (recalled, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!(recalled.made.revision, after);
    // What was before the gap can still be had; what is in it can't, and that is said.
    place.archive().scratch(Point::Revision(away)).await.unwrap();
    assert_eq!(place.archive().scratch(Point::Revision(lost)).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_writers_stops_and_nothing_is_lost() {
    let place = Place::new().await;
    let etcd = place.etcd("live").await;
    let client: Arc<dyn Etcd> = Arc::new(etcd.client().await.unwrap());
    let mut direct = Client::connect([etcd.url()], None).await.unwrap();
    let first = place.ship(client.clone(), "first");
    first.heard(watching).await;
    put(&mut direct, "/1").await;
    let second = place.ship(client, "second");
    second.heard(watching).await;
    for n in 0..20 {
        put(&mut direct, &format!("/{n}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), first.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code, ErrorCode::Conflict);
    assert!(ended.message.contains("another writer now: second (epoch 2)"), "{ended}");
    let newest = put(&mut direct, "/last").await;
    place.covered(newest).await;
    second.stop().await.unwrap();
    let now = status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap();
    assert!(now.gaps.is_empty() && now.writer.unwrap().epoch == 2);
    // Both may have written the same revisions: every state still comes out once.
    let (recalled, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!(recalled.made.revision, newest);
    assert_eq!(recalled.made.versions, u64::try_from(newest - 1).unwrap());
}

/// A bucket that can be away, or forget its conditions.
struct Fickle {
    inner: MemoryStore,
    away: AtomicBool,
    careless: AtomicBool,
}

impl Fickle {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemoryStore::new(), away: AtomicBool::default(), careless: AtomicBool::default() })
    }

    fn there(&self) -> PortResult<&MemoryStore> {
        if self.away.load(Ordering::Relaxed) {
            return Err(PortError::new(ErrorCode::Unreachable, "the bucket is away"));
        }
        Ok(&self.inner)
    }
}

#[async_trait]
impl ObjectStore for Fickle {
    fn name(&self) -> String {
        "fickle".to_owned()
    }
    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        let condition = if self.careless.load(Ordering::Relaxed) { PutCondition::Any } else { condition };
        self.there()?.put(key, data, condition).await
    }
    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        self.there()?.get(key, limit_bytes).await
    }
    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        self.there()?.stream(key, offset_bytes).await
    }
    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        self.there()?.head(key).await
    }
    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        self.there()?.list(prefix).await
    }
    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        self.there()?.upload(key).await
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.there()?.delete(key).await
    }
    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<secrecy::SecretString> {
        self.there()?.presign_get(key, valid).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_is_waited_for_with_segments_on_the_disk() {
    let bucket = Fickle::new();
    let place = Place::over(bucket.clone());
    let etcd = place.etcd("live").await;
    let client: Arc<dyn Etcd> = Arc::new(etcd.client().await.unwrap());
    let mut direct = Client::connect([etcd.url()], None).await.unwrap();
    let shipping = place.ship(client.clone(), "first");
    shipping.heard(watching).await;
    let before = put(&mut direct, "/1").await;
    place.covered(before).await;

    bucket.away.store(true, Ordering::Relaxed);
    direct.put("/2", "a very secret value".repeat(10), None).await.unwrap();
    shipping.heard(|event| matches!(event, ShipEvent::BucketAway { .. })).await;
    put(&mut direct, "/3").await;
    while files(&place.spool("first")) < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for entry in std::fs::read_dir(place.spool("first")).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(content.starts_with(b"age-encryption.org/v1"));
        assert!(!content.windows(6).any(|window| window == b"secret"));
    }
    bucket.away.store(false, Ordering::Relaxed);
    let newest = put(&mut direct, "/4").await;
    place.covered(newest).await;
    shipping.heard(|event| *event == ShipEvent::BucketBack).await;
    assert_eq!(files(&place.spool("first")), 0);

    // Away again, and the writer dies with it: the next one brings what waits, and goes on behind it.
    bucket.away.store(true, Ordering::Relaxed);
    put(&mut direct, "/5").await;
    while files(&place.spool("first")) < 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shipping.task.abort();
    let _ = shipping.task.await;
    let shipping = place.ship(client, "first");
    shipping.heard(|event| matches!(event, ShipEvent::Lost { what } if what.contains("away"))).await;
    bucket.away.store(false, Ordering::Relaxed);
    let newest = put(&mut direct, "/6").await;
    place.covered(newest).await;
    shipping.stop().await.unwrap();
    assert_eq!(files(&place.spool("first")), 0);
    let (recalled, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!(recalled.made.revision, newest);
    assert!(status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap().gaps.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_ends_it_with_a_clear_message_and_the_next_start_loses_nothing() {
    let bucket = Fickle::new();
    let place = Place::over(bucket.clone());
    let etcd = place.etcd("live").await;
    let client: Arc<dyn Etcd> = Arc::new(etcd.client().await.unwrap());
    let mut direct = Client::connect([etcd.url()], None).await.unwrap();
    let shipping = place.ship_limited(client.clone(), "first", 3000);
    shipping.heard(watching).await;
    bucket.away.store(true, Ordering::Relaxed);
    for n in 0..12u32 {
        let noise: Vec<u8> = (0..900).map(|_| rand::random()).collect();
        direct.put(format!("/{n}"), noise, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), shipping.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code, ErrorCode::LimitExceeded);
    assert!(
        ended.message.contains("could not be kept") && ended.hint.unwrap().contains("--spool-max"),
        "{}",
        ended.message
    );
    bucket.away.store(false, Ordering::Relaxed);
    let newest = put(&mut direct, "/last").await;
    let shipping = place.ship(client, "first");
    place.covered(newest).await;
    shipping.stop().await.unwrap();
    let (recalled, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!((recalled.made.revision, recalled.made.versions), (newest, 13));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_ignores_conditions_is_refused() {
    let bucket = Fickle::new();
    bucket.careless.store(true, Ordering::Relaxed);
    let place = Place::over(bucket);
    let etcd = place.etcd("live").await;
    let shipping = place.ship(Arc::new(etcd.client().await.unwrap()), "first");
    let refused = shipping.task.await.unwrap().unwrap_err();
    assert!(refused.message.contains("ignores conditions"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_goes_away_and_comes_back_is_watched_again() {
    let place = Place::new().await;
    let port = crate::etcd::testing::free_port();
    let url = format!("http://127.0.0.1:{port}");
    let start = |data: &str| {
        let peer = format!("http://127.0.0.1:{}", crate::etcd::testing::free_port());
        let child = Command::new(binary("etcd-3.6.16"))
            .args(["--name=only", "--log-level=error", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", place.dir.path().join(data).display()))
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .args([format!("--listen-peer-urls={peer}"), "--force-new-cluster".to_owned()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        crate::etcd::testing::Process(child)
    };
    let mut process = start("data");
    let members = [("only".to_owned(), url.clone())];
    let client: Arc<dyn Etcd> = Arc::new(EtcdClient::direct(&members, None).await.unwrap());
    let shipping = place.ship(client.clone(), "first");
    shipping.heard(watching).await;
    for round in 0..2 {
        let revision = client.put("only", b"/a", format!("{round}").as_bytes()).await.unwrap();
        place.covered(revision).await;
        let before = shipping.events().iter().filter(|event| watching(event)).count();
        drop(process);
        process = start("data");
        let mut tries = 0;
        while client.put("only", b"/b", b"x").await.is_err() {
            tries += 1;
            assert!(tries < 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while shipping.events().iter().filter(|event| watching(event)).count() == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let newest = client.put("only", b"/c", b"x").await.unwrap();
    place.covered(newest).await;
    shipping.stop().await.unwrap();
    assert!(status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap().gaps.is_empty());
    drop(process);
}

/// Three members on loopback.
struct Three {
    members: Vec<(String, String)>,
    processes: Vec<Option<Child>>,
}

impl Three {
    async fn start(dir: &std::path::Path) -> Self {
        let ports: Vec<(u16, u16)> =
            (0..3).map(|_| (crate::etcd::testing::free_port(), crate::etcd::testing::free_port())).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let mut three = Self { members: Vec::new(), processes: Vec::new() };
        for (n, (client, peer)) in ports.iter().enumerate() {
            let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let child = Command::new(binary("etcd-3.6.16"))
                .args([format!("--name=m{n}"), "--log-level=error".to_owned(), "--unsafe-no-fsync".to_owned()])
                .arg(format!("--data-dir={}", dir.join(format!("m{n}")).display()))
                .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
                .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
                .arg(format!("--initial-cluster={}", peers.join(",")))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            three.members.push((format!("m{n}"), client));
            three.processes.push(Some(child));
        }
        three
    }

    fn kill(&mut self, name: &str) {
        let at = self.members.iter().position(|(member, _)| member == name).unwrap();
        if let Some(mut child) = self.processes[at].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        for name in ["m0", "m1", "m2"] {
            self.kill(name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leaders_death_costs_nothing() {
    let place = Place::new().await;
    let mut three = Three::start(place.dir.path()).await;
    let client: Arc<dyn Etcd> = Arc::new(EtcdClient::direct(&three.members, None).await.unwrap());
    let mut tries = 0;
    while client.put("m0", b"/a", b"x").await.is_err() {
        tries += 1;
        assert!(tries < 100);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shipping = place.ship(client.clone(), "first");
    shipping.heard(watching).await;
    let first = client.put("m1", b"/a", b"y").await.unwrap();
    place.covered(first).await;
    // The member that is watched is told by the events; its death, and the leader's, are both survived.
    let status_of = client.status("m0").await.unwrap();
    let mut leader = "m0".to_owned();
    for name in ["m0", "m1", "m2"] {
        if client.status(name).await.unwrap().member_id == status_of.leader_id {
            leader = name.to_owned();
        }
    }
    three.kill(&leader);
    let alive: Vec<String> = ["m0", "m1", "m2"].iter().map(|n| (*n).to_owned()).filter(|n| *n != leader).collect();
    let mut tries = 0;
    let newest = loop {
        match client.put(&alive[0], b"/a", b"z").await {
            Ok(revision) => break revision,
            Err(e) => {
                tries += 1;
                assert!(tries < 20, "{e}");
            }
        }
    };
    place.covered(newest).await;
    shipping.stop().await.unwrap();
    let (recalled, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!(recalled.made.revision, newest);
}
