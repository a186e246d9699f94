//! A thief of the write credential overwrote and deleted what the bucket holds, which keeps versions.

use std::sync::Arc;

use bytes::Bytes;

use super::support::{FakeEtcd, keys, take_from};
use crate::backup::log::Point;
use crate::backup::{Archive, Catalog, SignedStore, fetch};
use crate::ports::{ErrorCode, ObjectStore, PutCondition};
use crate::s3::contract::{next_second, s3_server};
use crate::s3::{AsOfStore, S3Store};
use crate::sign::{SigningKey, Trust};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thief_overwrote_and_deleted_is_restored_as_it_was() {
    let (server, dir) = s3_server();
    let bucket = Arc::new(S3Store::connect(&server.config("backups")).unwrap());
    bucket.ensure_bucket().await.unwrap();
    let signer = Arc::new(SigningKey::generate().unwrap());
    let trust = Trust::parse(&[signer.public().to_string()]).unwrap();
    let keys = keys();
    let signed = |store: Arc<dyn ObjectStore>| SignedStore::over(store, &trust, Some(&signer), false);
    let now = signed(Arc::clone(&bucket) as _);
    let first = take_from(&FakeEtcd::sample(), now.as_ref(), &keys).await.unwrap().manifest;
    next_second().await;
    let second = take_from(&FakeEtcd::sample(), now.as_ref(), &keys).await.unwrap().manifest;
    let before = next_second().await;

    for object in bucket.list("demo/").await.unwrap() {
        if object.key.contains(&first.id) || object.key == first.etcd.key {
            bucket.delete(&object.key).await.unwrap();
        } else {
            bucket.put(&object.key, Bytes::from_static(b"you have been robbed"), PutCondition::Any).await.unwrap();
        }
    }
    let (entries, unreadable) = Catalog::new(now.as_ref(), "demo").list().await.unwrap();
    assert_eq!((entries.len(), unreadable.len()), (0, 1));

    let then = signed(Arc::new(AsOfStore::new(bucket, before, None)));
    let catalog = Catalog::new(then.as_ref(), "demo");
    let ids: Vec<String> = catalog.list().await.unwrap().0.into_iter().map(|entry| entry.manifest.id).collect();
    assert_eq!(ids, [second.id.as_str(), first.id.as_str()]);
    for manifest in [&first, &second] {
        assert_eq!(catalog.find(&manifest.id).await.unwrap().manifest, *manifest);
        fetch(then.as_ref(), manifest, &keys.first, &dir.path().join("fetched")).await.unwrap();
    }
    let archive = Archive {
        store: Arc::clone(&then),
        cluster: "demo".to_owned(),
        identities: keys.second.clone(),
        scratch: dir.path().join("scratch"),
    };
    let made = archive.materialize(Point::Latest, &dir.path().join("etcd.db")).await.unwrap();
    assert_eq!(made.snapshot, second.id);
    let damaged = Archive { store: now, ..archive }.materialize(Point::Latest, &dir.path().join("none.db")).await;
    assert_eq!(damaged.unwrap_err().code, ErrorCode::NotFound);
}
