//! What every bucket promises, run on each implementation.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use secrecy::ExposeSecret;

use super::store::collect;
use super::versitygw::{VersityGw, pinned_binary};
use super::{AsOfStore, DirStore, Fault, MemoryStore, ObjectLock, Operation, S3Config, S3Store};
use crate::ports::{Clock, ErrorCode, ObjectInfo, ObjectStore, PortError, PutCondition, SystemClock};

async fn read_all(store: &dyn ObjectStore, key: &str, offset: u64) -> Vec<u8> {
    let chunks: Vec<Bytes> = store.stream(key, offset).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

async fn contract(store: &dyn ObjectStore) {
    // Reading back, whole and in part.
    let put = store.put("demo/a/one", Bytes::from_static(b"hello world"), PutCondition::Any).await.unwrap();
    assert_eq!(put.size_bytes, 11);
    assert_eq!(store.get("demo/a/one", 11).await.unwrap(), "hello world");
    assert_eq!(store.get("demo/a/one", 10).await.unwrap_err().code, ErrorCode::LimitExceeded);
    assert_eq!(read_all(store, "demo/a/one", 0).await, b"hello world");
    assert_eq!(read_all(store, "demo/a/one", 6).await, b"world");
    assert_eq!(read_all(store, "demo/a/one", 11).await, b"");
    let head = store.head("demo/a/one").await.unwrap();
    assert_eq!((head.size_bytes, &head.etag), (11, &put.etag));

    // What is not there.
    assert_eq!(store.get("demo/none", 10).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(store.head("demo/none").await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(store.stream("demo/none", 0).await.err().unwrap().code, ErrorCode::NotFound);
    store.delete("demo/none").await.unwrap();

    // Conditions hold.
    let absent = |data: &'static [u8]| store.put("demo/lock", Bytes::from_static(data), PutCondition::Absent);
    let first = absent(b"1").await.unwrap();
    assert_eq!(absent(b"2").await.unwrap_err().code, ErrorCode::Conflict);
    let changed = PutCondition::Match(first.etag.clone());
    let second = store.put("demo/lock", Bytes::from_static(b"3"), changed.clone()).await.unwrap();
    assert_ne!(first.etag, second.etag);
    let stale = store.put("demo/lock", Bytes::from_static(b"4"), changed.clone()).await.unwrap_err();
    assert_eq!(stale.code, ErrorCode::Conflict);
    assert_eq!(store.get("demo/lock", 9).await.unwrap(), "3");
    let gone = store.put("demo/nothing", Bytes::from_static(b"5"), changed).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::Conflict);

    // Of many writers one wins.
    let racers = (0..8).map(|n: u8| store.put("demo/race", Bytes::from(vec![n]), PutCondition::Absent));
    let results = futures::future::join_all(racers).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| e.code == ErrorCode::Conflict));

    // Lists are in key order, below the prefix only.
    for key in ["demo/list/b", "demo/list/a/x", "demo/listing", "demo/list/c"] {
        store.put(key, Bytes::from_static(b"x"), PutCondition::Any).await.unwrap();
    }
    let keys: Vec<String> = store.list("demo/list/").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["demo/list/a/x", "demo/list/b", "demo/list/c"]);
    assert!(store.list("demo/void/").await.unwrap().is_empty());

    // Uploads in parts: invisible before the end, whole after it, conditional.
    let part = |n: u8| Bytes::from(vec![n; 5 << 20]);
    let mut upload = store.upload("demo/big").await.unwrap();
    for n in 0..4 {
        upload.part(part(n)).await.unwrap();
    }
    upload.part(Bytes::from_static(b"end")).await.unwrap();
    assert_eq!(store.head("demo/big").await.unwrap_err().code, ErrorCode::NotFound);
    let info = upload.complete(PutCondition::Absent).await.unwrap();
    assert_eq!(info.size_bytes, (20 << 20) + 3);
    let back = read_all(store, "demo/big", 0).await;
    assert_eq!(back.len(), (20 << 20) + 3);
    assert!((0..4).all(|n| back[n << 20..][..100].len() == 100 && back[n * (5 << 20)] == n as u8));
    assert_eq!(read_all(store, "demo/big", 20 << 20).await, b"end");
    let mut upload = store.upload("demo/big").await.unwrap();
    upload.part(part(9)).await.unwrap();
    assert_eq!(upload.complete(PutCondition::Absent).await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(store.head("demo/big").await.unwrap().size_bytes, (20 << 20) + 3);
    let mut upload = store.upload("demo/given-up").await.unwrap();
    upload.part(part(1)).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(store.head("demo/given-up").await.unwrap_err().code, ErrorCode::NotFound);
    let empty = store.upload("demo/empty").await.unwrap();
    assert_eq!(empty.complete(PutCondition::Absent).await.unwrap().size_bytes, 0);

    // Deleting, and keys that could escape.
    store.delete("demo/a/one").await.unwrap();
    assert_eq!(store.head("demo/a/one").await.unwrap_err().code, ErrorCode::NotFound);
    for key in ["", "/a", "a//b", "a/../b", "a/"] {
        let refused = store.put(key, Bytes::new(), PutCondition::Any).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid, "{key:?}");
    }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(&MemoryStore::new()).await;
}

#[tokio::test]
async fn directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&DirStore::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn a_share_that_is_not_mounted_is_a_bucket_that_is_away_and_nothing_is_made_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::given(dir.path().join("share/demo"));
    let away = [
        store.put("demo/a", Bytes::from_static(b"x"), PutCondition::Any).await.map(|_| ()),
        store.get("demo/a", 9).await.map(|_| ()),
        store.head("demo/a").await.map(|_| ()),
        store.list("demo/").await.map(|_| ()),
        store.delete("demo/a").await,
        store.upload("demo/a").await.map(|_| ()),
    ];
    for outcome in away {
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Unreachable);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::create_dir_all(dir.path().join("share/demo")).unwrap();
    contract(&store).await;
}

/// A server for one test, and the directory it writes to.
pub(crate) fn s3_server() -> (VersityGw, tempfile::TempDir) {
    let cache = std::env::var_os("HK_DR_CACHE").map(std::path::PathBuf::from);
    let dir = tempfile::tempdir().unwrap();
    let binary = pinned_binary(cache.as_deref(), "versitygw-1.8.0").unwrap();
    (VersityGw::start(&binary, dir.path()).unwrap(), dir)
}

/// A credential that may write to a bucket and read it, and remove nothing.
pub(crate) async fn write_only(server: &VersityGw, bucket: &str) -> S3Config {
    let cache = std::env::var_os("HK_DR_CACHE").map(std::path::PathBuf::from);
    let root = server.config(bucket);
    let admin = tokio::process::Command::new(pinned_binary(cache.as_deref(), "versitygw-1.8.0").unwrap())
        .args(["admin", "--access", &root.access_key, "--secret", root.secret_key.expose_secret()])
        .args(["--endpoint-url", server.endpoint(), "create-user"])
        .args(["--access", "writer", "--secret", "writer-secret", "--role", "user"])
        .output();
    let admin = admin.await.unwrap();
    assert!(admin.status.success(), "{admin:?}");
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": "writer",
        "Action": ["s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts", "s3:ListBucketVersions", "s3:GetObjectVersion", "s3:GetBucketVersioning"],
        "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")],
    }]});
    let store = S3Store::connect(&root).unwrap();
    store.client.put_bucket_policy().bucket(bucket).policy(policy.to_string()).send().await.unwrap();
    S3Config { access_key: "writer".to_owned(), secret_key: "writer-secret".to_owned().into(), ..root }
}

/// Waits until the clock, which is the server's too, is in another second, and says which.
pub(crate) async fn next_second() -> jiff::Timestamp {
    let now = || SystemClock.now().as_second();
    let begun = now();
    while now() == begun {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    jiff::Timestamp::from_second(now()).unwrap()
}

#[tokio::test]
async fn s3_keeps_the_contract() {
    let (server, _dir) = s3_server();
    let store = S3Store::connect(&server.config("backups")).unwrap();
    let missing = store.put("a", Bytes::new(), PutCondition::Any).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    assert!(missing.hint.unwrap().contains("backup.bucket"));
    assert!(store.ensure_bucket().await.unwrap());
    assert!(!store.ensure_bucket().await.unwrap());
    contract(&store).await;

    // Whoever holds the URL reads the object with nothing else.
    store.put("demo/shared", Bytes::from_static(b"for servers"), PutCondition::Any).await.unwrap();
    let url = store.presign_get("demo/shared", Duration::from_secs(60)).await.unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let body = reqwest::get(url.expose_secret()).await.unwrap().text().await.unwrap();
    assert_eq!(body, "for servers");
}

/// What every bucket with versions promises to whoever looks back. `file` remembers what is written meanwhile.
pub(crate) async fn looks_back(now: &Arc<S3Store>, file: std::path::PathBuf) {
    let put = |key: &'static str, data: &'static str| now.put(key, Bytes::from(data), PutCondition::Any);
    put("demo/snapshots/a", "good").await.unwrap();
    put("demo/snapshots/b", "older").await.unwrap();
    put("demo/snapshots/b", "kept to be deleted").await.unwrap();
    put("demo/leases/x", "before").await.unwrap();
    let mut large = now.upload("demo/streams/large").await.unwrap();
    large.part(Bytes::from(vec![1; 5 << 20])).await.unwrap();
    large.part(Bytes::from_static(b"end")).await.unwrap();
    large.complete(PutCondition::Any).await.unwrap();
    let before = next_second().await;
    put("demo/snapshots/a", "overwritten").await.unwrap();
    now.delete("demo/snapshots/b").await.unwrap();
    now.delete("demo/streams/large").await.unwrap();
    put("demo/snapshots/planted", "junk").await.unwrap();
    put("demo/leases/x", "after").await.unwrap();

    let then = AsOfStore::new(Arc::clone(now), before, Some(file.clone()));
    assert_eq!(then.get("demo/snapshots/a", 99).await.unwrap(), "good");
    assert_eq!(then.get("demo/snapshots/b", 99).await.unwrap(), "kept to be deleted");
    assert_eq!(then.head("demo/snapshots/b").await.unwrap().size_bytes, 18);
    let planted = then.get("demo/snapshots/planted", 99).await.unwrap_err();
    assert_eq!(planted.code, ErrorCode::NotFound, "{planted}");
    let keys = |list: Vec<ObjectInfo>| list.into_iter().map(|o| o.key).collect::<Vec<_>>();
    let listed = keys(then.list("demo/snapshots/").await.unwrap());
    assert_eq!(listed, ["demo/snapshots/a", "demo/snapshots/b"]);
    let tail = collect("large", then.stream("demo/streams/large", 5 << 20).await.unwrap(), 9).await.unwrap();
    assert_eq!(tail, "end");
    let end = then.stream("demo/streams/large", (5 << 20) + 3).await.unwrap();
    assert_eq!(collect("large", end, 9).await.unwrap(), "");
    // What runs need is as it is.
    assert_eq!(then.get("demo/leases/x", 99).await.unwrap(), "after");

    // Nothing of the past can be removed; what is written meanwhile is seen, by a resumed run too.
    assert_eq!(then.delete("demo/snapshots/a").await.unwrap_err().code, ErrorCode::Invalid);
    then.put("demo/snapshots/made", Bytes::from_static(b"new"), PutCondition::Absent).await.unwrap();
    let resumed = AsOfStore::new(Arc::clone(now), before, Some(file));
    for store in [&then, &resumed] {
        assert_eq!(store.get("demo/snapshots/made", 99).await.unwrap(), "new");
        assert_eq!(store.list("demo/snapshots/").await.unwrap().len(), 3);
    }

    // Before anything there was nothing.
    let long_ago = AsOfStore::new(Arc::clone(now), jiff::Timestamp::from_second(1_000_000_000).unwrap(), None);
    assert!(long_ago.list("demo/").await.unwrap().is_empty());
}

/// Any server that is named, such as MinIO: HK_DR_TEST_S3 holds endpoint, access key and secret key, separated by blanks.
#[tokio::test]
#[ignore = "needs a server: HK_DR_TEST_S3='http://127.0.0.1:9000 KEY SECRET' cargo test -p hk-dr --lib another_s3 -- --ignored"]
async fn another_s3_server_keeps_the_contract() {
    let named = std::env::var("HK_DR_TEST_S3").unwrap();
    let [endpoint, access_key, secret_key] = named.split(' ').collect::<Vec<_>>()[..] else { panic!("{named:?}") };
    let config = S3Config {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        bucket: format!("hk-dr-contract-{}", std::process::id()),
        access_key: access_key.to_owned(),
        secret_key: secret_key.to_owned().into(),
        lock: None,
    };
    let store = S3Store::connect(&config).unwrap();
    store.ensure_bucket().await.unwrap();
    contract(&store).await;
    let dir = tempfile::tempdir().unwrap();
    looks_back(&Arc::new(store), dir.path().join("own")).await;
    locks_hold(&S3Config { bucket: format!("{}-locked", config.bucket), ..config }).await;
}

#[tokio::test]
async fn what_is_locked_outlives_whoever_may_delete() {
    let (server, _dir) = s3_server();
    locks_hold(&server.config("backups")).await;
}

/// In a bucket that does not exist yet.
async fn locks_hold(config: &S3Config) {
    let locking = |seconds| {
        let lock = Some(ObjectLock { compliance: true, seconds });
        S3Store::connect(&S3Config { lock, ..config.clone() }).unwrap()
    };
    let store = locking(3600);
    store.ensure_bucket().await.unwrap();
    contract(&store).await;
    let (small, large, lease) = ("demo/recovery/small", "demo/streams/large/etcd", "demo/leases/operator.json");
    for key in [small, lease] {
        store.put(key, Bytes::from_static(b"here"), PutCondition::Absent).await.unwrap();
    }
    let mut upload = store.upload(large).await.unwrap();
    upload.part(Bytes::from(vec![1; 5 << 20])).await.unwrap();
    upload.part(Bytes::from_static(b"end")).await.unwrap();
    upload.complete(PutCondition::Absent).await.unwrap();
    let version = async |key: &str| {
        let listed = store.client.list_object_versions().bucket(&config.bucket).prefix(key).send().await.unwrap();
        listed.versions()[0].version_id().unwrap().to_owned()
    };
    // Locked again, it is locked for as long as an object that is written now; what is rewritten all the time never is.
    let (was, longer) = (store.locked_until(small).await.unwrap(), locking(7200));
    let until = longer.lock_again(small).await.unwrap().expect("it is locked").as_second();
    assert!(until > was && store.locked_until(small).await == Some(until), "{was} {until}");
    assert_eq!(longer.lock_again(lease).await.unwrap(), None);
    let before = next_second().await;
    // By the owner's own credential: the name goes, what it named does not.
    for key in [small, large] {
        let version = version(key).await;
        let refused = store.delete_version(key, &version).await.unwrap_err();
        // MinIO calls it an invalid request.
        assert!(matches!(refused.code, ErrorCode::Forbidden | ErrorCode::Invalid), "{refused}");
        store.delete(key).await.unwrap();
        assert_eq!(store.get(key, 9).await.unwrap_err().code, ErrorCode::NotFound);
    }
    let rewritten = version(lease).await;
    store.delete_version(lease, &rewritten).await.unwrap();
    let then = AsOfStore::new(Arc::new(store), before, None);
    assert_eq!(then.get(small, 9).await.unwrap(), "here");
    assert_eq!(read_all(&then, large, 5 << 20).await, b"end");
}

#[tokio::test]
async fn s3_tells_a_wrong_credential_from_a_missing_server() {
    let (server, _dir) = s3_server();
    let mut config = server.config("backups");
    config.secret_key = "wrong".to_owned().into();
    let refused = S3Store::connect(&config).unwrap().list("x").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthorized, "{refused}");
    assert!(refused.hint.unwrap().contains("secrets.yaml.age"));
    assert!(!refused.message.contains("wrong"));

    let config = server.config("backups");
    drop(server);
    let unreachable = S3Store::connect(&config).unwrap().list("x").await.unwrap_err();
    assert_eq!(unreachable.code, ErrorCode::Unreachable, "{unreachable}");
    assert!(unreachable.message.contains("refused"), "{unreachable}");
}

#[tokio::test]
async fn s3_frees_the_parts_of_an_upload_that_was_dropped() {
    let (server, _dir) = s3_server();
    let store = S3Store::connect(&server.config("backups")).unwrap();
    store.ensure_bucket().await.unwrap();
    let mut upload = store.upload("half").await.unwrap();
    upload.part(Bytes::from(vec![1; 5 << 20])).await.unwrap();
    drop(upload);
    for _ in 0..200 {
        let open = store.client.list_multipart_uploads().bucket("backups").send().await.unwrap();
        if open.uploads().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the upload is still open");
}

#[tokio::test]
async fn planned_faults_strike_once_and_where_planned() {
    let store: Arc<MemoryStore> = Arc::default();
    let error = PortError::new(ErrorCode::Timeout, "planned");
    store.fail(Fault { operation: Operation::Put, nth: 2, error });
    let put = || store.put("k", Bytes::from_static(b"\0"), PutCondition::Any);
    assert!(put().await.is_ok());
    assert_eq!(put().await.unwrap_err().code, ErrorCode::Timeout);
    assert!(put().await.is_ok());
    store.flip_bit("k", 0, 3);
    assert_eq!(store.get("k", 1).await.unwrap()[0], 8);
    store.set_capacity(3);
    let full = store.put("more", Bytes::from_static(b"abc"), PutCondition::Any).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::LimitExceeded);
}
