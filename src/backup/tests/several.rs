//! Two buckets, of which one fails in every way there is.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;

use super::support::{FakeEtcd, Keys, backups, keys, take_from};
use crate::backup::{
    Catalog, Copies, DoctorVerdict, MirrorRequest, Mirrored, Probe, SignedStore, judge_settings, mirror, try_out,
    verify,
};
use crate::ports::{
    Backups, ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, SystemClock, Upload,
};
use crate::s3::contract::s3_server;
use crate::s3::{MemoryStore, ObjectLock, S3Config, S3Store};
use crate::sign::{SigningKey, Trust};

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Gone,
    ReadOnly,
    Slow,
    /// Takes everything and forgets it.
    Lying,
    /// Ignores conditions.
    Careless,
}

/// A bucket in memory with a fault, and a name of its own.
#[derive(Clone)]
struct Faulty {
    name: &'static str,
    inner: MemoryStore,
    fault: Fault,
}

impl Faulty {
    async fn pass(&self, writes: bool) -> PortResult<()> {
        match self.fault {
            Fault::Gone => Err(PortError::new(ErrorCode::Unreachable, "connection refused")),
            Fault::ReadOnly if writes => Err(PortError::new(ErrorCode::Forbidden, "read-only")),
            Fault::Slow => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

struct Forgetful;

#[async_trait]
impl Upload for Forgetful {
    async fn part(&mut self, _: Bytes) -> PortResult<()> {
        Ok(())
    }
    async fn complete(self: Box<Self>, _: PutCondition) -> PortResult<ObjectInfo> {
        Ok(ObjectInfo { key: String::new(), size_bytes: 0, etag: "1".into() })
    }
    async fn abort(self: Box<Self>) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    fn name(&self) -> String {
        self.name.to_owned()
    }
    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        self.pass(true).await?;
        if self.fault == Fault::Lying {
            return Ok(ObjectInfo { key: key.to_owned(), size_bytes: data.len() as u64, etag: "1".into() });
        }
        let condition = if self.fault == Fault::Careless { PutCondition::Any } else { condition };
        self.inner.put(key, data, condition).await
    }
    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        self.pass(false).await?;
        self.inner.get(key, limit_bytes).await
    }
    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        self.pass(false).await?;
        self.inner.stream(key, offset_bytes).await
    }
    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        self.pass(false).await?;
        self.inner.head(key).await
    }
    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        self.pass(false).await?;
        self.inner.list(prefix).await
    }
    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        self.pass(true).await?;
        if self.fault == Fault::Lying {
            return Ok(Box::new(Forgetful));
        }
        self.inner.upload(key).await
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.pass(true).await?;
        self.inner.delete(key).await
    }
    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<secrecy::SecretString> {
        self.inner.presign_get(key, valid).await
    }
}

struct Pair {
    buckets: [Faulty; 2],
    signer: Arc<SigningKey>,
    trust: Trust,
    keys: Keys,
}

impl Pair {
    fn new() -> Self {
        let signer = Arc::new(SigningKey::generate().unwrap());
        let trust = Trust::parse(&[signer.public().to_string()]).unwrap();
        let bucket = |name| Faulty { name, inner: MemoryStore::new(), fault: Fault::None };
        Self { buckets: [bucket("home"), bucket("away")], signer, trust, keys: keys() }
    }

    fn copies(&self) -> Arc<Copies> {
        let over =
            |bucket: &Faulty| SignedStore::over(Arc::new(bucket.clone()), &self.trust, Some(&self.signer), false);
        Arc::new(Copies::new(self.buckets.iter().map(over).collect()).patience(Duration::from_millis(300)))
    }

    async fn mirror(&self, deep: bool, dry_run: bool) -> Mirrored {
        let stores: Vec<Arc<dyn ObjectStore>> = self.buckets.iter().map(|b| Arc::new(b.clone()) as _).collect();
        let request = MirrorRequest { stores: &stores, cluster: "demo", trust: &self.trust, deep, dry_run };
        mirror(&request).await.unwrap()
    }

    /// The newest snapshot, restored from this bucket alone.
    async fn restores_from(&self, index: usize) {
        let alone: Arc<dyn ObjectStore> =
            SignedStore::over(Arc::new(self.buckets[index].inner.clone()), &self.trust, None, false);
        let id = Catalog::new(alone.as_ref(), "demo").find("latest").await.unwrap().manifest.id;
        let stream = backups(&alone, &self.keys.first).open_etcd(&id).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap();
        backups(&alone, &self.keys.second).open_recovery_set(&id).await.unwrap();
    }
}

#[tokio::test]
async fn one_bucket_gone_read_only_slow_or_lying_never_stops_the_other_and_mirror_heals_it() {
    for fault in [Fault::Gone, Fault::ReadOnly, Fault::Slow, Fault::Lying] {
        for broken in [0, 1] {
            let mut pair = Pair::new();
            pair.buckets[broken].fault = fault;
            let copies = pair.copies();
            let taken = take_from(&FakeEtcd::sample(), copies.as_ref(), &pair.keys).await.unwrap();
            let problems = copies.problems();
            assert!(problems.len() == 1 && problems[0].starts_with(pair.buckets[broken].name), "{problems:?}");
            pair.restores_from(1 - broken).await;
            let scratch = tempfile::tempdir().unwrap();
            verify(copies.as_ref(), &taken.manifest, &pair.keys.first, scratch.path(), &SystemClock).await.unwrap();

            // It is well again, and gets what it lacks.
            pair.buckets[broken].fault = Fault::None;
            let before = pair.buckets[broken].inner.keys();
            let dry = pair.mirror(false, true).await;
            assert_eq!(pair.buckets[broken].inner.keys(), before);
            let done = pair.mirror(false, false).await;
            assert_eq!(done.copied, dry.copied);
            assert!(done.unresolved.is_empty() && done.copied.iter().all(|c| c.to == pair.buckets[broken].name));
            pair.restores_from(broken).await;
            assert!(pair.mirror(true, false).await.copied.is_empty());
        }
    }
}

#[tokio::test]
async fn restore_takes_whichever_copy_is_good_and_mirror_replaces_the_bad() {
    let pair = Pair::new();
    let copies = pair.copies();
    let manifest = take_from(&FakeEtcd::sample(), copies.as_ref(), &pair.keys).await.unwrap().manifest;
    assert!(copies.problems().is_empty());
    let manifest_key = format!("demo/snapshots/{}/manifest.json", manifest.id);
    // Of each object another bucket has the good copy.
    pair.buckets[0].inner.flip_bit(&manifest.etcd.key, 900, 2);
    pair.buckets[0].inner.flip_bit(&manifest_key, 30, 1);
    pair.buckets[1].inner.truncate(&manifest.recovery.key, 100);
    let store: Arc<dyn ObjectStore> = copies.clone();
    let id = Catalog::new(copies.as_ref(), "demo").find("latest").await.unwrap().manifest.id;
    let stream = backups(&store, &pair.keys.first).open_etcd(&id).await.unwrap();
    stream.try_collect::<Vec<_>>().await.unwrap();
    backups(&store, &pair.keys.first).open_recovery_set(&id).await.unwrap();

    let done = pair.mirror(true, false).await;
    assert!(done.unresolved.is_empty(), "{done:?}");
    assert_eq!(done.copied.iter().filter(|copied| copied.replaced).count(), 3, "{done:?}");
    for index in [0, 1] {
        pair.restores_from(index).await;
    }

    // Damaged everywhere: nothing is given out, and nothing copied.
    pair.buckets.iter().for_each(|bucket| bucket.inner.flip_bit(&manifest.etcd.key, 900, 2));
    let refused = backups(&store, &pair.keys.first).open_etcd(&id).await.err().unwrap();
    assert!(refused.code == ErrorCode::Corrupt && refused.message.contains("no bucket has it whole"), "{refused}");
    let done = pair.mirror(true, false).await;
    assert_eq!((done.copied.len(), done.unresolved.len()), (0, 1));
}

#[tokio::test]
async fn a_file_of_a_volumes_backup_is_good_where_it_has_the_digest_it_is_named_by() {
    let pair = Pair::new();
    let data = Bytes::from_static(b"a pack");
    let name = crate::backup::hex(&<sha2::Sha256 as sha2::Digest>::digest(&data));
    let key = format!("demo/volumes/restic/data/{}/{name}", &name[..2]);
    pair.copies().put(&key, data.clone(), PutCondition::Absent).await.unwrap();
    pair.buckets[0].inner.flip_bit(&key, 2, 3);
    assert!(pair.mirror(false, false).await.copied.is_empty(), "lengths are the same");
    let done = pair.mirror(true, false).await;
    assert!(done.unresolved.is_empty() && done.copied.len() == 1 && done.copied[0].to == "home", "{done:?}");
    assert_eq!(pair.buckets[0].inner.get(&key, 99).await.unwrap(), data);
    pair.buckets.iter().for_each(|bucket| bucket.inner.flip_bit(&key, 2, 3));
    let done = pair.mirror(true, false).await;
    assert_eq!((done.copied.len(), done.unresolved.len()), (0, 1));
}

#[tokio::test]
async fn that_something_is_nowhere_is_known_only_when_every_bucket_says_so() {
    let mut pair = Pair::new();
    pair.buckets[0].fault = Fault::Gone;
    let copies = pair.copies();
    let unknown = copies.get("demo/recovery/secrets.tar.zst.age", 100).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::Unreachable);
    pair.buckets[0].fault = Fault::None;
    assert_eq!(pair.copies().get("demo/x", 100).await.unwrap_err().code, ErrorCode::NotFound);
    // Of two writers of one name one wins, also where each reaches another bucket first.
    let copies = pair.copies();
    pair.buckets[1].inner.put("demo/x", Bytes::from_static(b"other"), PutCondition::Any).await.unwrap();
    let refused = copies.put("demo/x", Bytes::from_static(b"mine"), PutCondition::Absent).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
}

#[tokio::test]
async fn the_doctor_tells_what_a_bucket_really_does() {
    let verdict = |probes: &[Probe], what: &str| probes.iter().find(|p| p.what == what).map(|p| p.verdict).unwrap();
    let (server, _dir) = s3_server();
    let store = S3Store::connect(&server.config("backups")).unwrap();
    store.ensure_bucket().await.unwrap();
    let probes = try_out(&store, "demo", "1").await.unwrap();
    assert!(
        probes.iter().all(|p| p.verdict == DoctorVerdict::Good || p.what == "this credential deletes"),
        "{probes:?}"
    );
    let set_up = judge_settings(&store.settings("demo", "1").await);
    assert_eq!(verdict(&set_up, "versions"), DoctorVerdict::Good, "{set_up:?}");
    assert!(set_up.iter().any(|p| p.what == "old versions" && p.found.starts_with("not known")), "{set_up:?}");
    assert_eq!(verdict(&set_up, "object lock"), DoctorVerdict::Weak, "possible is not done: {set_up:?}");
    for compliance in [true, false] {
        let lock = Some(ObjectLock { compliance, seconds: 86_400 });
        let locking = S3Store::connect(&S3Config { lock, ..server.config("backups") }).unwrap();
        let set_up = judge_settings(&locking.settings("demo", "1").await);
        assert_eq!(verdict(&set_up, "object lock"), DoctorVerdict::Good, "{set_up:?}");
    }
    assert_eq!(verdict(&set_up, "checksums"), DoctorVerdict::Good, "{set_up:?}");
    assert!(store.list("demo/").await.unwrap().is_empty());

    let mut bucket = Faulty { name: "b", inner: MemoryStore::new(), fault: Fault::Careless };
    let probes = try_out(&bucket, "demo", "2").await.unwrap();
    for what in ["write only if absent", "write only if unchanged"] {
        assert_eq!(verdict(&probes, what), DoctorVerdict::Bad, "{probes:?}");
        assert!(probes.iter().any(|p| p.what == what && p.follows.contains("the log refuse")));
    }
    assert_eq!(verdict(&probes, "uploads in parts"), DoctorVerdict::Good);
    bucket.fault = Fault::ReadOnly;
    assert_eq!(try_out(&bucket, "demo", "3").await.unwrap_err().code, ErrorCode::Forbidden);
}
