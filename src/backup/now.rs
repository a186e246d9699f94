//! A snapshot of the cluster as it is declared and running now.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use super::pace::Rate;
use super::{Catalog, Compression, Identities, Progress, Recipients, TakeRequest, Taken, take, verify};
use crate::distribution::pki::ClusterSecrets;
use crate::ports::{Clock, ErrorCode, Etcd, ObjectStore, PortError, PortResult, Reading, RecoverySet, Vault};

/// How much faster is read what something waits for (docs/DECISIONS.md).
const AWAITED_TIMES: NonZeroU64 = NonZeroU64::new(5).expect("it is not zero");

/// What a snapshot is made of beside etcd's data.
#[derive(Clone)]
pub struct Source {
    pub cluster: String,
    /// The text of `cluster.yaml`.
    pub declaration: String,
    pub git_commit: Option<String>,
    pub recipients: Recipients,
    pub vault: Arc<dyn Vault>,
    pub clock: Arc<dyn Clock>,
    /// How fast a member is read when nobody waits.
    pub rate: Rate,
    /// Databases from this size on are read from the member's file where it lies.
    pub in_place_from_bytes: u64,
    /// Where plain files lie unlinked while a snapshot is read back.
    pub scratch: PathBuf,
}

impl Source {
    /// The cluster's secrets and what else a recovery needs.
    ///
    /// # Errors
    /// The bucket keeps no secrets, or they are incomplete: then there must be no snapshot that looks whole.
    pub async fn recovery_set(&self) -> PortResult<RecoverySet> {
        let mut recovery = self.vault.load().await?.ok_or_else(|| {
            PortError::new(ErrorCode::NotFound, format!("the bucket keeps no secrets of cluster {}", self.cluster))
                .hint("no snapshot was taken; a cluster that hk-dr built has them: run `hk-dr build` first")
        })?;
        // Names what is missing or unusable, better than a list of paths could.
        ClusterSecrets::from_recovery_set(&recovery)
            .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("no snapshot was taken: {e}")))?;
        recovery.insert("cluster.yaml".to_owned(), (0o644, self.declaration.clone().into_bytes()));
        if let Some(commit) = &self.git_commit {
            recovery.insert("git-commit".to_owned(), (0o644, format!("{commit}\n").into_bytes()));
        }
        Ok(recovery)
    }

    /// Takes a snapshot of these members.
    pub async fn take(
        &self,
        etcd: &dyn Etcd,
        store: &dyn ObjectStore,
        reading: Reading,
        progress: &Arc<Progress>,
    ) -> PortResult<Taken> {
        take(&TakeRequest {
            cluster: &self.cluster,
            etcd,
            store,
            recipients: &self.recipients,
            recovery: &self.recovery_set().await?,
            required: &["cluster.yaml"],
            git_commit: self.git_commit.clone(),
            clock: self.clock.as_ref(),
            compression: Compression::default(),
            rate: rate(self.rate, reading),
            in_place_from_bytes: self.in_place_from_bytes,
            progress,
        })
        .await
    }

    /// Reads a snapshot back.
    pub async fn verify(&self, id: &str, store: &dyn ObjectStore, identities: &Identities) -> PortResult<()> {
        let entry = Catalog::new(store, &self.cluster).find(id).await?;
        verify(store, &entry.manifest, identities, &self.scratch, self.clock.as_ref()).await.map(|_| ())
    }
}

/// How fast a member is read; none: as fast as it goes.
fn rate(declared: Rate, reading: Reading) -> Option<Rate> {
    match reading {
        Reading::Unhurried => Some(declared),
        Reading::Awaited => Some(declared.times(AWAITED_TIMES)),
        Reading::AtOnce => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_served_faster() {
        let declared = Rate::beside(NonZeroU64::new(25_000_000).unwrap());
        assert_eq!(rate(declared, Reading::Unhurried), Some(declared));
        let awaited = rate(declared, Reading::Awaited).unwrap();
        assert_eq!((awaited.in_place.get(), awaited.through_api.get()), (125_000_000, 25_000_000));
        assert_eq!(rate(declared, Reading::AtOnce), None);
    }
}
