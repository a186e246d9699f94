use std::sync::Arc;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::seal::seal_small;
use super::{Identities, Recipients, pack, unpack};
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, PutCondition, RecoverySet, Vault};

/// Larger than any set of keys and certificates.
const SEALED_BYTES_MAX: u64 = 16 << 20;

/// The cluster's secrets as one sealed object in the bucket, from the first build on: between that and the first snapshot
/// they exist nowhere else but on the masters.
pub struct BucketVault {
    pub store: Arc<dyn ObjectStore>,
    pub cluster: String,
    pub recipients: Recipients,
    /// None: the vault can be filled, not opened.
    pub identities: Option<Identities>,
    pub clock: Arc<dyn Clock>,
}

impl BucketVault {
    fn key(&self) -> String {
        format!("{}/recovery/secrets.tar.zst.age", self.cluster)
    }

    /// The packed set, decrypted.
    async fn plain(&self) -> PortResult<Option<Zeroizing<Vec<u8>>>> {
        let key = self.key();
        let sealed = match self.store.get(&key, SEALED_BYTES_MAX).await {
            Ok(sealed) => sealed,
            Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(error.context("reading the cluster's secrets")),
        };
        let identities = self.identities.as_ref().ok_or_else(|| {
            PortError::new(ErrorCode::Unauthorized, "the cluster's secrets are encrypted and no age identity was given")
                .hint("pass --identity FILE or set HK_DR_IDENTITY")
        })?;
        let damaged = |e: &dyn std::fmt::Display| {
            PortError::new(ErrorCode::Corrupt, format!("{key} in {} is damaged: {e}", self.store.name())).hint(
                "nothing was changed; the recovery set of any snapshot holds the same secrets (hk-dr snapshot list)",
            )
        };
        let decryptor = age::Decryptor::new(&sealed[..]).map_err(|e| damaged(&e))?;
        let reader = decryptor.decrypt(identities.keys()).map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => identities.refused(&key, &self.recipients.names()),
            other => damaged(&other),
        })?;
        let mut plain = Zeroizing::new(Vec::new());
        let mut decoder = zstd::Decoder::new(reader).map_err(|e| damaged(&e))?;
        std::io::Read::read_to_end(&mut std::io::Read::take(&mut decoder, SEALED_BYTES_MAX), &mut plain)
            .map_err(|e| damaged(&e))?;
        Ok(Some(plain))
    }

    /// Encrypts what is kept anew to `self.recipients`, in its place. Returns whether there was anything.
    ///
    /// # Errors
    /// As loading it; what is kept is then as it was.
    pub async fn rewrap(&self) -> PortResult<bool> {
        let Some(plain) = self.plain().await? else { return Ok(false) };
        let (sealed, _) = seal_small(&plain, &self.recipients)?;
        let put = self.store.put(&self.key(), sealed, PutCondition::Any).await;
        put.map(|_| true).map_err(|e| e.context("encrypting the cluster's secrets in the bucket anew"))
    }
}

#[async_trait]
impl Vault for BucketVault {
    async fn load(&self) -> PortResult<Option<RecoverySet>> {
        self.plain().await?.map(|plain| unpack(&plain)).transpose()
    }

    async fn create(&self, set: &RecoverySet) -> PortResult<()> {
        let plain = pack(set, self.clock.now())?;
        let (sealed, _) = seal_small(&plain, &self.recipients)?;
        self.store.put(&self.key(), sealed, PutCondition::Absent).await.map(|_| ()).map_err(|e| match e.code {
            ErrorCode::Conflict => {
                e.hint("the bucket keeps secrets of a cluster of this name already; none were replaced")
            }
            _ => e.context("keeping the cluster's secrets in the bucket"),
        })
    }
}
