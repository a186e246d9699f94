//! What is removed from a bucket, and what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use jiff::Timestamp;

use super::support::{FakeEtcd, Keys, keys, recovery_set};
use crate::backup::{Catalog, Compression, Manifest, TakeRequest, plan_pruning, prune, take, verify};
use crate::config::RetentionConfig;
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PutCondition};
use crate::s3::{Fault, MemoryStore, Operation};

/// Stands where it is put.
struct Fixed(AtomicI64);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap()
    }
}

const NOW: i64 = 1_795_000_000;
const HOUR: i64 = 3600;

struct Bucket {
    store: MemoryStore,
    keys: Keys,
    clock: Fixed,
}

impl Bucket {
    async fn take(&self, hours_ago: i64, read: bool) -> Manifest {
        self.clock.0.store(NOW - hours_ago * HOUR, Ordering::Relaxed);
        let taken = take(&TakeRequest {
            cluster: "demo",
            etcd: &FakeEtcd::sample(),
            store: &self.store,
            recipients: &self.keys.recipients,
            recovery: &recovery_set(),
            required: &["cluster.yaml"],
            git_commit: None,
            clock: &self.clock,
            compression: Compression::default(),
            rate: None,
            in_place_from_bytes: u64::MAX,
            progress: &Arc::default(),
        })
        .await
        .unwrap();
        if read {
            let scratch = tempfile::tempdir().unwrap();
            verify(&self.store, &taken.manifest, &self.keys.first, scratch.path(), &self.clock).await.unwrap();
        }
        taken.manifest
    }

    async fn ids(&self) -> Vec<String> {
        let (entries, _) = Catalog::new(&self.store, "demo").list().await.unwrap();
        entries.into_iter().map(|entry| entry.manifest.id).collect()
    }
}

#[tokio::test]
async fn what_is_removed_leaves_nothing_behind_and_what_stays_can_be_read() {
    let bucket = Bucket { store: MemoryStore::new(), keys: keys(), clock: Fixed(AtomicI64::new(NOW)) };
    let now = Timestamp::from_second(NOW).unwrap();
    let policy = RetentionConfig::default();
    // Four days ago: two of one hour and day; ten days ago: the log's base; now: one that nobody has read.
    let base = bucket.take(240, true).await;
    let first = bucket.take(98, true).await;
    let second = bucket.take(97, true).await;
    let unread = bucket.take(1, false).await;
    let plan = async || plan_pruning(&bucket.store, "demo", &policy, now).await.unwrap();

    let before = bucket.store.keys();
    let pruning = plan().await;
    // The newest that was read back stays whatever else there is.
    assert_eq!((pruning.objects(), pruning.log_base.as_deref()), (0, Some(base.id.as_str())));
    let newest = bucket.take(2, true).await;
    let pruning = plan().await;
    let removed: Vec<&str> = pruning.decisions.iter().filter(|d| !d.keep).map(|d| d.id.as_str()).collect();
    assert_eq!(removed, [second.id.as_str()]);
    assert!(bucket.store.keys().len() > before.len());

    // Leftovers of failed work go when they are old; those of work under way don't.
    let put = async |key: &str| {
        bucket.store.put(key, Bytes::from_static(b"x"), PutCondition::Any).await.unwrap();
    };
    put("demo/streams/20260101T000000Z-0a0b0c0d/etcd.db.zst.age").await;
    put("demo/snapshots/20260101T000000Z-r5/recovery.tar.zst.age").await;
    let fresh = now.strftime("demo/streams/%Y%m%dT%H%M%SZ-0a0b0c0d/etcd.db.zst.age").to_string();
    put(&fresh).await;
    // Others' objects and everything else of the cluster are not looked at.
    put("other/streams/20260101T000000Z-0a0b0c0d/etcd.db.zst.age").await;
    put("demo/recovery/secrets.tar.zst.age").await;
    let pruning = plan().await;
    assert_eq!(pruning.leftovers, 2);

    // Refused halfway: what is left is no snapshot any more, and the next run takes the rest.
    let refused = PortError::new(ErrorCode::Forbidden, "write-only credential");
    bucket.store.fail(Fault { operation: Operation::Delete, nth: 2, error: refused });
    let failed = prune(&bucket.store, &pruning).await.unwrap_err();
    assert!(failed.message.contains("1 of") && failed.hint.unwrap().contains("AWS_ACCESS_KEY_ID"));
    assert!(!bucket.ids().await.contains(&second.id));
    prune(&bucket.store, &plan().await).await.unwrap();
    assert_eq!(plan().await.objects(), 0);
    let left = bucket.store.keys();
    assert!(!left.iter().any(|key| key.contains(&second.id)
        || *key == second.etcd.key
        || key.starts_with("demo/") && key.contains("20260101")));
    assert!(left.contains(&fresh) && left.iter().any(|key| key.starts_with("other/")));
    assert_eq!(bucket.ids().await, [&unread.id, &newest.id, &first.id, &base.id].map(Clone::clone));
    let scratch = tempfile::tempdir().unwrap();
    for manifest in [&unread, &newest, &first, &base] {
        verify(&bucket.store, manifest, &bucket.keys.second, scratch.path(), &bucket.clock).await.unwrap();
    }
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_keeps_every_leftover() {
    let bucket = Bucket { store: MemoryStore::new(), keys: keys(), clock: Fixed(AtomicI64::new(NOW)) };
    let manifest = bucket.take(100, true).await;
    bucket.store.truncate(&format!("demo/snapshots/{}/manifest.json", manifest.id), 20);
    let now = Timestamp::from_second(NOW).unwrap();
    let pruning = plan_pruning(&bucket.store, "demo", &RetentionConfig::default(), now).await.unwrap();
    assert_eq!((pruning.objects(), pruning.unreadable.len()), (0, 1));
}
