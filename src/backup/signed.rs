//! A bucket whose important objects are signed when they are written and checked when they are read. It stands between
//! everything else and the bucket, so that no reader can forget to check and no writer to sign.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ports::{
    ByteStream, ErrorClass, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload, Vouched,
};
use crate::sign::{Refusal, SIGNATURE_BYTES_MAX, SigningKey, Trust, signature_name};

/// Whether objects of this name are signed: whatever leads to all the rest, and what people show as a proof. What lies
/// behind a manifest's digests needs no signature of its own.
pub fn is_signed_kind(key: &str) -> bool {
    let named = |name: &str| key.rsplit('/').next() == Some(name);
    (key.contains("/snapshots/") && ["manifest.json", "verify.json", "bad.json"].iter().any(|name| named(name)))
        || (key.contains("/log/") && (key.ends_with(".seg.zst.age") || named("epoch.json")))
        || (key.contains("/runs/") && (named("evidence.json") || named("report.html")))
        || key.ends_with("/recovery/secrets.tar.zst.age")
        || key.ends_with("/volumes/password.age")
        || key.ends_with("/volumes/locked.json")
        || (key.contains("/volumes/backups/") && key.ends_with(".json"))
}

/// A bucket behind signatures.
pub struct SignedStore {
    inner: Arc<dyn ObjectStore>,
    trust: Trust,
    /// None: nothing that must be signed can be written.
    signer: Option<Arc<SigningKey>>,
    /// A person said that what is not signed, or wrongly, may be read.
    accept_unsigned: bool,
}

impl SignedStore {
    /// Puts signatures before a bucket. With no key to trust nothing is signed or checked, as before there were keys.
    pub fn over(
        inner: Arc<dyn ObjectStore>,
        trust: &Trust,
        signer: Option<&Arc<SigningKey>>,
        accept_unsigned: bool,
    ) -> Arc<dyn ObjectStore> {
        if trust.is_empty() {
            return inner;
        }
        Arc::new(Self { inner, trust: trust.clone(), signer: signer.cloned(), accept_unsigned })
    }

    async fn signature_of(&self, key: &str) -> PortResult<Option<Bytes>> {
        match self.inner.get(&signature_name(key), SIGNATURE_BYTES_MAX).await {
            Ok(signature) => Ok(Some(signature)),
            Err(e) if e.code == ErrorCode::NotFound => Ok(None),
            // Too large to be one: it is there, and wrong.
            Err(e) if e.code == ErrorCode::LimitExceeded => Ok(Some(Bytes::new())),
            Err(e) => Err(e),
        }
    }

    async fn check(&self, key: &str, data: &[u8]) -> PortResult<Result<String, Refusal>> {
        let signature = self.signature_of(key).await?;
        Ok(self.trust.check(key, data, signature.as_deref()))
    }

    /// Writes the signature before its object: where the object is, its signature is. A signature whose object never came
    /// is replaced; one of an object that is there is not touched.
    async fn put_signature(&self, key: &str, data: &[u8], condition: &PutCondition) -> PortResult<()> {
        let signer = self.signer.as_ref().ok_or_else(|| {
            PortError::new(ErrorCode::Unauthorized, format!("{key} must be signed, and there is no signing key"))
                .hint("nothing was written; cluster.yaml names public keys in backup.signedBy, so secrets.yaml.age must hold the secret one: `hk-dr keys signing init`")
        })?;
        let (name, signature) = (signature_name(key), Bytes::from(signer.sign(key, data)?));
        if *condition != PutCondition::Absent {
            return self.inner.put(&name, signature, PutCondition::Any).await.map(|_| ());
        }
        let failed = match self.inner.put(&name, signature.clone(), PutCondition::Absent).await {
            Ok(_) => return Ok(()),
            Err(failed) => failed,
        };
        if !matches!(failed.class(), ErrorClass::Conflict | ErrorClass::Transient) {
            return Err(failed);
        }
        if self.check(key, data).await?.is_ok() {
            return Ok(());
        }
        match self.inner.head(key).await {
            Ok(_) => Err(PortError::new(ErrorCode::Conflict, format!("write {key}: it exists with other content"))),
            Err(e) if e.code == ErrorCode::NotFound && failed.code == ErrorCode::Conflict => {
                self.inner.put(&name, signature, PutCondition::Any).await.map(|_| ())
            }
            Err(_) => Err(failed),
        }
    }
}

#[async_trait]
impl ObjectStore for SignedStore {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        if is_signed_kind(key) {
            self.put_signature(key, &data, &condition).await?;
        }
        self.inner.put(key, data, condition).await
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        self.get_vouched(key, limit_bytes).await.map(|(data, _)| data)
    }

    async fn get_vouched(&self, key: &str, limit_bytes: u64) -> PortResult<(Bytes, Vouched)> {
        let data = self.inner.get(key, limit_bytes).await?;
        if !is_signed_kind(key) {
            return Ok((data, Vouched::Unsigned));
        }
        match self.check(key, &data).await? {
            Ok(key) => Ok((data, Vouched::Signed { key })),
            Err(refusal) if self.accept_unsigned => Ok((data, Vouched::Accepted { problem: refusal.to_string() })),
            Err(refusal) => Err(refusal.error(key, &self.name())),
        }
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        self.inner.stream(key, offset_bytes).await
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        self.inner.list(prefix).await
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        self.inner.upload(key).await
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        self.inner.delete(key).await?;
        if is_signed_kind(key) {
            self.inner.delete(&signature_name(key)).await?;
        }
        Ok(())
    }

    async fn lock_again(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        let until = self.inner.lock_again(key).await?;
        if is_signed_kind(key) {
            self.inner.lock_again(&signature_name(key)).await?;
        }
        Ok(until)
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<secrecy::SecretString> {
        self.inner.presign_get(key, valid).await
    }
}

/// What [`adopt`] did, or would do.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Adopted {
    /// Objects without a signature, which have one now.
    pub signed: Vec<String>,
    /// Objects with a good one.
    pub already: usize,
    /// Objects whose signature is wrong, and why. They are left as they are.
    pub refused: Vec<(String, String)>,
}

/// Signs what a cluster's bucket holds without signature, from before there was a key. Objects that are wrongly signed are
/// named and not touched.
pub async fn adopt(
    store: &dyn ObjectStore,
    cluster: &str,
    trust: &Trust,
    signer: &SigningKey,
    dry_run: bool,
) -> PortResult<Adopted> {
    /// Larger than any object of these kinds.
    const OBJECT_BYTES_MAX: u64 = 256 << 20;
    let mut adopted = Adopted::default();
    for object in store.list(&format!("{cluster}/")).await? {
        let key = object.key;
        if !is_signed_kind(&key) {
            continue;
        }
        let data = store.get(&key, OBJECT_BYTES_MAX).await?;
        let name = signature_name(&key);
        let signature = match store.get(&name, SIGNATURE_BYTES_MAX).await {
            Ok(signature) => Some(signature),
            Err(e) if e.code == ErrorCode::NotFound => None,
            Err(e) => return Err(e),
        };
        match trust.check(&key, &data, signature.as_deref()) {
            Ok(_) => adopted.already += 1,
            Err(Refusal::Unsigned) => {
                if !dry_run {
                    store.put(&name, signer.sign(&key, &data)?.into(), PutCondition::Absent).await?;
                }
                adopted.signed.push(key);
            }
            Err(refusal) => adopted.refused.push((key, refusal.to_string())),
        }
    }
    Ok(adopted)
}
