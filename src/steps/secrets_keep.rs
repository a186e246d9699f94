use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::distribution::pki::ClusterSecrets;
use crate::plan::params::SecretsKeep;
use crate::ports::{ErrorCode, PortError, PortResult};

/// Keeps the cluster's secrets offsite, encrypted. Output: their fingerprint.
pub struct SecretsKeepStep;

#[async_trait]
impl StepKind for SecretsKeepStep {
    type Params = SecretsKeep;
    type Output = String;

    async fn observe(&self, cx: &StepContext<'_>, params: &SecretsKeep) -> PortResult<Observed<String>> {
        let Some(kept) = cx.world.vault.load().await? else { return Ok(Observed::Absent) };
        let kept = decode(&kept)?;
        if let Some(snapshot) = &params.from_snapshot {
            let saved = decode(&cx.world.backups.open_recovery_set(snapshot).await?)?;
            if saved.fingerprint() != kept.fingerprint() {
                return Ok(Observed::Foreign(format!(
                    "the bucket keeps other secrets for this cluster than snapshot {snapshot} was taken with"
                )));
            }
        }
        Ok(Observed::Done(kept.fingerprint()))
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &SecretsKeep) -> PortResult<String> {
        let set = match &params.from_snapshot {
            Some(snapshot) => cx.world.backups.open_recovery_set(snapshot).await?,
            None => ClusterSecrets::generate(&cx.world.cluster, cx.world.clock.now())
                .map_err(|e| PortError::new(ErrorCode::Local, e.to_string()))?
                .to_recovery_set(),
        };
        let fingerprint = decode(&set)?.fingerprint();
        cx.world.vault.create(&set).await?;
        Ok(fingerprint)
    }
}

pub(super) fn decode(set: &crate::ports::RecoverySet) -> PortResult<ClusterSecrets> {
    ClusterSecrets::from_recovery_set(set).map_err(|e| {
        PortError::new(ErrorCode::Corrupt, e.to_string())
            .hint("nothing was changed; use a snapshot whose recovery set is whole (hk-dr snapshot verify)")
    })
}
