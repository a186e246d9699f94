//! Everything that is written comes back, at every revision.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, PutOptions, Txn, TxnOp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::{CLUSTER, Place};
use crate::backup::log::{Point, ShipEvent, canary, status};
use crate::backup::tests::oracle::{Workload, ask, restored};
use crate::backup::{Catalog, CompactRequest, Compression, compact, fetch_at, verify};
use crate::bolt::Backend;
use crate::ports::{Clock, ErrorCode, SystemClock};

#[tokio::test(flavor = "multi_thread")]
async fn every_revision_of_a_random_history_comes_back_from_the_bucket() {
    let place = Place::new().await;
    let etcd = place.etcd("live").await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut work = Workload::new(&etcd, seed).await;
    for _ in 0..20 {
        work.change().await;
    }
    let shipping = place.ship(Arc::new(etcd.client().await.unwrap()), "first");
    shipping.heard(|event| matches!(event, ShipEvent::Watching { .. })).await;
    let base = work.newest().await;
    // Large values, and a lease that runs out while nobody looks.
    let large: Vec<u8> = (0..1_500_000u32).map(|n| (n * 7 % 251) as u8).collect();
    work.client.put("/large", large, None).await.unwrap();
    let lease = work.client.lease_grant(1, None).await.unwrap().id();
    work.client.put("/expires", "x", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let leased = work.newest().await;
    for _ in 0..40 {
        work.change().await;
    }
    while work.client.get("/expires", None).await.unwrap().count() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let many: Vec<TxnOp> = (0..100).map(|n| TxnOp::put(format!("/many/{n}"), vec![n; 9000], None)).collect();
    work.client.txn(Txn::new().and_then(many)).await.unwrap();
    let before_it = work.newest().await;
    place.covered(before_it).await;
    let before_pause = SystemClock.now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    work.client.put("/after-the-pause", "x", None).await.unwrap();
    let newest = work.newest().await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut said = vec![ask(&etcd, newest).await, ask(&etcd, leased).await, ask(&etcd, newest - 1).await];
    said.push(ask(&etcd, random.random_range(base + 1..=newest)).await);
    place.covered(newest).await;
    let report = shipping.stop().await.unwrap();
    assert_eq!((report.covered_revision, report.spooled_bytes), (newest, 0));
    drop(etcd);

    for (number, said) in said.iter().enumerate() {
        let file = place.dir.path().join(format!("{number}.db"));
        let made = place.archive().materialize(Point::Revision(said.revision), &file).await.unwrap();
        assert!(made.made.from_log > 0 && made.segments > 0);
        let etcd = restored(&file, &place.dir.path().join(format!("{number}.data"))).await;
        let now = ask(&etcd, said.revision).await;
        assert!(now.keys == said.keys, "revision {}: the keys differ", said.revision);
        assert_eq!(now.hash, said.hash, "revision {}", said.revision);
        let mut client = Client::connect([etcd.url()], None).await.unwrap();
        for kv in said.keys.iter().filter(|kv| kv.lease != 0) {
            let ttl = client.lease_time_to_live(kv.lease, None).await.unwrap();
            assert!(ttl.granted_ttl() > 0, "revision {}: lease {:x} is unknown", said.revision, kv.lease);
        }
    }
    // By time: before the pause, its last key was not there. What is later than the log is not guessed.
    let (then, written) = place.archive().scratch(Point::Time(before_pause)).await.unwrap();
    assert_eq!(then.made.revision, newest - 1);
    let keys = Backend::open(written.file).unwrap().live_at(None).count();
    assert_eq!(keys, said[2].keys.len());
    let (latest, _) = place.archive().scratch(Point::Latest).await.unwrap();
    assert_eq!(latest.made.revision, newest);
    let future = SystemClock.now() + jiff::SignedDuration::from_secs(3600);
    let unknown = place.archive().scratch(Point::Time(future)).await.unwrap_err();
    assert!(unknown.code == ErrorCode::NotFound && unknown.message.contains("whole until"), "{unknown}");
    let early = SystemClock.now() - jiff::SignedDuration::from_secs(3600);
    assert_eq!(place.archive().scratch(Point::Time(early)).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_found_in_the_bucket_and_status_tells_how_far_it_is() {
    let place = Place::new().await;
    let etcd = place.etcd("live").await;
    let client = Arc::new(etcd.client().await.unwrap());
    let lonely = status(place.store.as_ref(), CLUSTER, SystemClock.now()).await.unwrap_err();
    assert!(lonely.hint.unwrap().contains("hk-dr log ship"));
    let shipping = place.ship(client.clone(), "first");
    shipping.heard(|event| matches!(event, ShipEvent::Watching { .. })).await;
    let second = Duration::from_secs(20);
    let (store, keys) = (place.store.as_ref(), &place.keys);
    let report = canary(client.as_ref(), store, CLUSTER, Some(&keys.second), &SystemClock, 3, second).await.unwrap();
    assert!(report.canaries == 3 && report.read_back && report.min_ms <= report.max_ms, "{report:?}");
    // An idle cluster is covered up to now, though nothing is written.
    let idle_since = SystemClock.now();
    let status = loop {
        let status = status(store, CLUSTER, SystemClock.now()).await.unwrap();
        if status.covered_at > idle_since {
            break status;
        }
        assert!(SystemClock.now().duration_since(idle_since).as_secs() < 30, "{status:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(status.covered_revision, ask(&etcd, 0).await.revision);
    assert!(status.gaps.is_empty() && status.segments >= 1 && status.writer.unwrap().holder == "first");
    shipping.stop().await.unwrap();
    // Nobody ships: a canary does not arrive, and the error says so.
    let deadline = Duration::from_millis(300);
    let lost = canary(client.as_ref(), store, CLUSTER, None, &SystemClock, 1, deadline).await.unwrap_err();
    assert_eq!(lost.code, ErrorCode::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_and_theft_of_segments_are_noticed() {
    let store = crate::s3::MemoryStore::new();
    let place = Place::over(Arc::new(store.clone()));
    let etcd = place.etcd("live").await;
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let shipping = place.ship(Arc::new(etcd.client().await.unwrap()), "first");
    shipping.heard(|event| matches!(event, ShipEvent::Watching { .. })).await;
    let mut newest = 0;
    for n in 0..4 {
        newest = client.put(format!("/{n}"), "x", None).await.unwrap().header().unwrap().revision();
        place.covered(newest).await;
    }
    shipping.stop().await.unwrap();
    let segments: Vec<String> = store.keys().into_iter().filter(|key| key.ends_with(".seg.zst.age")).collect();
    assert_eq!(segments.len(), 4, "{segments:?}");
    let archive = place.archive();
    archive.scratch(Point::Latest).await.unwrap();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for segment in &segments {
        let size = crate::ports::ObjectStore::head(&store, segment).await.unwrap().size_bytes as usize;
        for _ in 0..3 {
            let (offset, bit) = (random.random_range(0..size), random.random_range(0..8));
            store.flip_bit(segment, offset, bit);
            let failed = archive.scratch(Point::Latest).await.unwrap_err();
            assert!(failed.code == ErrorCode::Corrupt && failed.message.contains(segment), "{offset}.{bit}: {failed}");
            store.flip_bit(segment, offset, bit);
        }
    }
    // One segment in the place of another.
    let other = crate::ports::ObjectStore::get(&store, &segments[1], 1 << 20).await.unwrap();
    let own = crate::ports::ObjectStore::get(&store, &segments[2], 1 << 20).await.unwrap();
    put(&store, &segments[2], other).await;
    let failed = archive.scratch(Point::Latest).await.unwrap_err();
    assert!(failed.message.contains("another segment"), "{failed}");
    put(&store, &segments[2], own).await;
    // One that is gone: what is behind it cannot be had, what is before it can.
    crate::ports::ObjectStore::delete(&store, &segments[1]).await.unwrap();
    let (short, _) = archive.scratch(Point::Latest).await.unwrap();
    assert_eq!(short.made.revision, newest - 3);
    let gone = archive.scratch(Point::Revision(newest)).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
    let status = status(&store, CLUSTER, SystemClock.now()).await.unwrap();
    assert_eq!((status.gaps.len(), status.gaps[0].after), (1, newest - 3));
}

async fn put(store: &crate::s3::MemoryStore, key: &str, data: bytes::Bytes) {
    crate::ports::ObjectStore::put(store, key, data, crate::ports::PutCondition::Any).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_log_is_a_snapshot_like_any_other() {
    let place = Place::new().await;
    let etcd = place.etcd("live").await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut work = Workload::new(&etcd, seed).await;
    let shipping = place.ship(Arc::new(etcd.client().await.unwrap()), "first");
    shipping.heard(|event| matches!(event, ShipEvent::Watching { .. })).await;
    for _ in 0..40 {
        work.change().await;
    }
    let newest = work.newest().await;
    let said = ask(&etcd, newest).await;
    place.covered(newest).await;
    shipping.stop().await.unwrap();
    drop(etcd);
    let archive = place.archive();
    let request = |point| CompactRequest {
        archive: &archive,
        point,
        recipients: &place.keys.recipients,
        clock: &SystemClock,
        compression: Compression::default(),
    };
    let made = compact(&request(Point::Latest)).await.unwrap().unwrap();
    assert_eq!((made.revision, made.keys), (newest, Some(said.keys.len() as u64)));
    assert!(made.made_from.as_ref().is_some_and(|from| from.segments > 0));
    // It reads back, it is the newest, and there is nothing left to do.
    let scratch = place.dir.path().join("verify");
    let store = place.store.as_ref();
    let read = verify(store, &made, &place.keys.second, &scratch, &SystemClock).await.unwrap();
    assert_eq!((read.keys, read.recovery_files.len()), (said.keys.len() as u64, 2));
    assert_eq!(compact(&request(Point::Latest)).await.unwrap(), Err(made.id.clone()));
    let fetched = fetch_at(&archive, Point::Latest, &place.dir.path().join("fetched")).await.unwrap();
    let etcd = restored(&fetched.etcd, &place.dir.path().join("again")).await;
    let now = ask(&etcd, newest).await;
    assert!(now.hash == said.hash && now.keys == said.keys);
    // An earlier point becomes a snapshot of its own, which does not pass for the newest.
    let earlier = compact(&request(Point::Revision(newest - 5))).await.unwrap().unwrap();
    assert_eq!(earlier.revision, newest - 5);
    let (entries, _) = Catalog::new(store, CLUSTER).list().await.unwrap();
    assert_eq!(entries.iter().map(|e| e.manifest.revision).max(), Some(newest));
    let (latest, _) = archive.scratch(Point::Latest).await.unwrap();
    assert_eq!(latest.made.revision, newest);
}
