//! What is signed, and what is refused without a signature.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;

use super::support::{FakeEtcd, Keys, backups, keys, recovery_set, take_from};
use crate::backup::{BucketVault, Catalog, SignedStore, adopt, verify};
use crate::ports::{Backups, ErrorCode, ObjectStore, PutCondition, SystemClock, Vault, Vouched};
use crate::s3::{Fault, MemoryStore, Operation};
use crate::sign::{SigningKey, Trust, signature_name};

struct Signed {
    bucket: MemoryStore,
    signer: Arc<SigningKey>,
    trust: Trust,
    keys: Keys,
}

impl Signed {
    fn new() -> Self {
        let signer = Arc::new(SigningKey::generate().unwrap());
        let trust = Trust::parse(&[signer.public().to_string()]).unwrap();
        Self { bucket: MemoryStore::new(), signer, trust, keys: keys() }
    }

    fn store(&self, accept_unsigned: bool) -> Arc<dyn ObjectStore> {
        SignedStore::over(Arc::new(self.bucket.clone()), &self.trust, Some(&self.signer), accept_unsigned)
    }

    async fn taken(&self) -> String {
        take_from(&FakeEtcd::sample(), self.store(false).as_ref(), &self.keys).await.unwrap().manifest_key
    }
}

async fn raw(bucket: &MemoryStore, key: &str) -> Bytes {
    bucket.get(key, 1 << 20).await.unwrap()
}

#[tokio::test]
async fn a_snapshot_is_signed_and_stock_minisign_agrees() {
    let signed = Signed::new();
    let key = signed.taken().await;
    let store = signed.store(false);
    let entry = Catalog::new(store.as_ref(), "demo").find("latest").await.unwrap();
    assert_eq!(entry.signature, Vouched::Signed { key: signed.signer.public().id() });
    let scratch = tempfile::tempdir().unwrap();
    let read = verify(store.as_ref(), &entry.manifest, &signed.keys.first, scratch.path(), &SystemClock).await;
    read.unwrap();
    for name in [key.clone(), key.replace("manifest", "verify")] {
        std::fs::write(scratch.path().join("o"), raw(&signed.bucket, &name).await).unwrap();
        let signature = raw(&signed.bucket, &signature_name(&name)).await;
        std::fs::write(scratch.path().join("o.minisig"), signature).unwrap();
        let checked = std::process::Command::new("minisign")
            .args(["-V", "-q", "-P", &signed.signer.public().to_string(), "-m"])
            .arg(scratch.path().join("o"))
            .status();
        assert!(checked.unwrap().success(), "{name}");
    }
    // A verification that was changed counts as none.
    signed.bucket.flip_bit(&key.replace("manifest", "verify"), 40, 1);
    let entry = Catalog::new(store.as_ref(), "demo").find("latest").await.unwrap();
    assert!(entry.verification.is_none());
}

#[tokio::test]
async fn unsigned_changed_copied_and_strangers_snapshots_are_refused_unless_accepted() {
    let signed = Signed::new();
    let key = signed.taken().await;
    let (manifest, signature) = (raw(&signed.bucket, &key).await, raw(&signed.bucket, &signature_name(&key)).await);
    let id = key.split('/').nth(2).unwrap().to_owned();
    let put = async |key: &str, data: Bytes| {
        signed.bucket.put(key, data, PutCondition::Any).await.unwrap();
    };
    let refused = async |why: &str| {
        let plain = signed.store(false);
        let error = backups(&plain, &signed.keys.first).open_etcd(&id).await.err().unwrap();
        assert_eq!(error.code, ErrorCode::Unsigned, "{error}");
        assert!(error.message.contains(why), "{error} for {why}");
        let latest = Catalog::new(plain.as_ref(), "demo").find("latest").await.unwrap_err();
        assert_eq!(latest.code, ErrorCode::Unsigned, "{latest}");
        let (entries, unreadable) = Catalog::new(plain.as_ref(), "demo").list().await.unwrap();
        assert!(entries.is_empty() && unreadable.len() == 1);
        // With the flag it can be used, and says what it is.
        let accepting = signed.store(true);
        let entry = Catalog::new(accepting.as_ref(), "demo").find("latest").await.unwrap();
        assert!(matches!(&entry.signature, Vouched::Accepted { problem } if problem.contains(why)));
        let stream = backups(&accepting, &signed.keys.first).open_etcd(&id).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap();
    };

    signed.bucket.delete(&signature_name(&key)).await.unwrap();
    refused("not signed").await;
    let stranger = SigningKey::generate().unwrap();
    put(&signature_name(&key), stranger.sign(&key, &manifest).unwrap().into()).await;
    refused("cluster.yaml does not name").await;
    put(&signature_name(&key), signed.signer.sign("demo/snapshots/other/manifest.json", &manifest).unwrap().into())
        .await;
    refused("copied from").await;
    put(&signature_name(&key), signature).await;
    let changed = String::from_utf8(manifest.to_vec()).unwrap().replace("\"m2\"", "\"m9\"");
    put(&key, changed.into()).await;
    refused("changed after").await;
    put(&key, manifest).await;
    assert!(Catalog::new(signed.store(false).as_ref(), "demo").find("latest").await.is_ok());
}

#[tokio::test]
async fn a_crash_between_signature_and_object_and_a_taken_name_harm_nothing() {
    let signed = Signed::new();
    let store = signed.store(false);
    let key = "demo/snapshots/x/manifest.json";
    let put = |data: &'static [u8]| store.put(key, Bytes::from_static(data), PutCondition::Absent);
    // The signature is written, the object is not.
    let away = crate::ports::PortError::new(ErrorCode::Forbidden, "no");
    signed.bucket.fail(Fault { operation: Operation::Put, nth: 2, error: away });
    assert_eq!(put(b"first").await.unwrap_err().code, ErrorCode::Forbidden);
    put(b"second").await.unwrap();
    assert_eq!(store.get(key, 100).await.unwrap(), "second");
    // Whoever comes later with other content breaks neither the object nor its signature.
    assert_eq!(put(b"third").await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(store.get(key, 100).await.unwrap(), "second");
    // The answer to the signature was lost.
    let key = "demo/snapshots/y/manifest.json";
    signed.bucket.lose_answer_of_put(7);
    store.put(key, Bytes::from_static(b"1"), PutCondition::Absent).await.unwrap();
    assert_eq!(store.get(key, 100).await.unwrap(), "1");
    store.delete(key).await.unwrap();
    assert!(!signed.bucket.keys().iter().any(|name| name.starts_with(key)));
}

#[tokio::test]
async fn without_the_secret_key_nothing_that_must_be_signed_is_written() {
    let signed = Signed::new();
    let store = SignedStore::over(Arc::new(signed.bucket.clone()), &signed.trust, None, false);
    let refused = take_from(&FakeEtcd::sample(), store.as_ref(), &signed.keys).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthorized);
    assert!(refused.hint.unwrap().contains("keys signing init"));
    assert!(!signed.bucket.keys().iter().any(|key| key.ends_with("manifest.json")));
}

#[tokio::test]
async fn what_was_there_before_the_key_is_adopted_and_what_is_forged_is_not() {
    let signed = Signed::new();
    let plain: Arc<dyn ObjectStore> = Arc::new(signed.bucket.clone());
    let vault = |store: &Arc<dyn ObjectStore>| BucketVault {
        store: Arc::clone(store),
        cluster: "demo".to_owned(),
        recipients: signed.keys.recipients.clone(),
        identities: Some(signed.keys.first.clone()),
        clock: Arc::new(SystemClock),
    };
    vault(&plain).create(&recovery_set()).await.unwrap();
    take_from(&FakeEtcd::sample(), plain.as_ref(), &signed.keys).await.unwrap();
    let forged = "demo/runs/1/evidence.json";
    plain.put(forged, Bytes::from_static(b"{}"), PutCondition::Any).await.unwrap();
    plain.put(&signature_name(forged), Bytes::from_static(b"x"), PutCondition::Any).await.unwrap();

    let store = signed.store(false);
    assert_eq!(vault(&store).load().await.unwrap_err().code, ErrorCode::Unsigned);
    let dry = adopt(plain.as_ref(), "demo", &signed.trust, &signed.signer, true).await.unwrap();
    assert_eq!((dry.signed.len(), dry.already, dry.refused.len()), (2, 0, 1));
    assert_eq!(vault(&store).load().await.unwrap_err().code, ErrorCode::Unsigned);
    let done = adopt(plain.as_ref(), "demo", &signed.trust, &signed.signer, false).await.unwrap();
    assert_eq!(done, dry);
    assert_eq!(vault(&store).load().await.unwrap(), Some(recovery_set()));
    Catalog::new(store.as_ref(), "demo").find("latest").await.unwrap();
    assert_eq!(store.get(forged, 10).await.unwrap_err().code, ErrorCode::Unsigned);
    let again = adopt(plain.as_ref(), "demo", &signed.trust, &signed.signer, false).await.unwrap();
    assert_eq!((again.signed.len(), again.already), (0, 2));
}
