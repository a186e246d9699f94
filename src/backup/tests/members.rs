//! Which member gives the snapshot, and when none may.

use super::support::{FakeEtcd, keys, take_from};
use crate::backup::{Catalog, agree};
use crate::ports::{ErrorCode, HashKv, PortError};
use crate::s3::MemoryStore;

fn hash(hash: u32, compact_revision: i64) -> Result<HashKv, PortError> {
    Ok(HashKv { hash, hash_revision: 500, compact_revision })
}

#[tokio::test]
async fn a_follower_is_preferred_and_the_most_advanced_of_them() {
    let mut etcd = FakeEtcd::sample();
    assert_eq!(agree(&etcd).await.unwrap().source.name, "m2");
    etcd.0[1].status.as_mut().unwrap().is_learner = true;
    assert_eq!(agree(&etcd).await.unwrap().source.name, "m3");
    etcd.0[2].status = Err(PortError::new(ErrorCode::Unreachable, "no route"));
    let agreement = agree(&etcd).await.unwrap();
    assert_eq!(agreement.source.name, "m1");
    assert_eq!(agreement.check.not_compared, ["m3: no route"]);
    assert_eq!(agreement.check.agreed, ["m1", "m2"]);
}

#[tokio::test]
async fn a_member_whose_data_differs_is_named_and_nothing_is_taken() {
    let mut etcd = FakeEtcd::sample();
    etcd.0[2].hash = hash(0xbad, 300);
    let store = MemoryStore::new();
    let refused = take_from(&etcd, &store, &keys()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Corrupt);
    assert!(refused.message.contains("member m3 is corrupt"), "{refused}");
    assert!(store.keys().is_empty());

    // One against one: nobody can say who is right.
    etcd.0[0].status = Err(PortError::new(ErrorCode::Unreachable, "no route"));
    let refused = agree(&etcd).await.unwrap_err();
    assert!(refused.message.contains("no majority") && refused.message.contains("m3 00000bad"), "{refused}");
}

#[tokio::test]
async fn no_good_backup_is_replaced_by_a_corrupt_members() {
    let (store, keys) = (MemoryStore::new(), keys());
    let good = take_from(&FakeEtcd::sample(), &store, &keys).await.unwrap().manifest;
    let before = store.keys();
    crate::s3::contract::next_second().await;
    let mut etcd = FakeEtcd::sample();
    etcd.0[1].hash = hash(0xbad, 300);
    let refused = take_from(&etcd, &store, &keys).await.unwrap_err();
    assert!(refused.message.contains("member m2 is corrupt"), "{refused}");
    assert_eq!(store.keys(), before);
    assert_eq!(Catalog::new(&store, "demo").find("latest").await.unwrap().manifest, good);
}

#[tokio::test]
async fn hashes_of_different_compactions_are_not_compared() {
    let mut etcd = FakeEtcd::sample();
    etcd.0[2].hash = hash(0x999, 200);
    let agreement = agree(&etcd).await.unwrap();
    assert_eq!(agreement.check.agreed, ["m1", "m2"]);
    assert_eq!(agreement.check.not_compared, ["m3: compacted at 200, not at 300"]);
}

#[tokio::test]
async fn members_of_two_clusters_are_refused() {
    let mut etcd = FakeEtcd::sample();
    etcd.0[1].status.as_mut().unwrap().cluster_id = 7;
    assert_eq!(agree(&etcd).await.unwrap_err().code, ErrorCode::Untrusted);
}

#[tokio::test]
async fn with_no_member_left_the_error_says_why_of_each() {
    let mut etcd = FakeEtcd::sample();
    for member in &mut etcd.0 {
        member.status = Err(PortError::new(ErrorCode::Unreachable, "connection refused"));
    }
    let store = MemoryStore::new();
    let failed = take_from(&etcd, &store, &keys()).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Unreachable);
    assert_eq!(failed.message.matches("connection refused").count(), 3, "{failed}");
    let (entries, _) = Catalog::new(&store, "demo").list().await.unwrap();
    assert!(entries.is_empty());
}
