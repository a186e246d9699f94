//! What somebody can do who stole the everyday credential, which writes and does not delete, on a real S3 server.

use bytes::Bytes;

use super::support::{FakeEtcd, keys, newest, take_from};
use crate::backup::{DoctorVerdict, plan_pruning, prune, try_out, verify};
use crate::config::RetentionConfig;
use crate::ports::{Clock, ErrorCode, ObjectStore, PutCondition, SystemClock};
use crate::s3::S3Store;
use crate::s3::contract::{s3_server, write_only};

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_only_writes_takes_snapshots_and_removes_nothing() {
    let (server, dir) = s3_server();
    let root = S3Store::connect(&server.config("backups")).unwrap();
    root.ensure_bucket().await.unwrap();
    let writer = S3Store::connect(&write_only(&server, "backups").await).unwrap();
    let keys = keys();
    let manifest = take_from(&FakeEtcd::sample(), &writer, &keys).await.unwrap().manifest;
    verify(&writer, &manifest, &keys.first, dir.path(), &SystemClock).await.unwrap();

    let before = root.list("demo/").await.unwrap();
    for object in &before {
        assert_eq!(writer.delete(&object.key).await.unwrap_err().code, ErrorCode::Forbidden, "{}", object.key);
    }
    assert_eq!(root.list("demo/").await.unwrap(), before);
    assert_eq!(newest(&root).await.manifest, manifest);
    let probes = try_out(&writer, "demo", "1").await.unwrap();
    let deletes = probes.iter().find(|probe| probe.what == "this credential deletes").unwrap();
    assert_eq!((deletes.found.as_str(), deletes.verdict), ("no", DoctorVerdict::Good));

    // Nor does pruning: it says which credential it needs.
    let old = "demo/streams/20200101T000000Z-0a0b0c0d/etcd.db.zst.age";
    writer.put(old, Bytes::from_static(b"left over"), PutCondition::Any).await.unwrap();
    let pruning = plan_pruning(&writer, "demo", &RetentionConfig::default(), SystemClock.now()).await.unwrap();
    assert_eq!(pruning.leftovers, 1);
    let refused = prune(&writer, &pruning).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    assert_eq!(prune(&root, &pruning).await.unwrap(), 1);
}
