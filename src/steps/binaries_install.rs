use std::time::Duration;

use async_trait::async_trait;

use super::artifact_mirror::object_key;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::BinariesInstall;
use crate::ports::PortResult;

/// Installs pinned binaries from the bucket.
pub struct BinariesInstallStep;

/// How long the URLs that a server is given stay good.
const URL_VALID: Duration = Duration::from_secs(900);

#[async_trait]
impl StepKind for BinariesInstallStep {
    type Params = BinariesInstall;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &BinariesInstall) -> PortResult<Observed<()>> {
        // The machine itself skips what it has with the right digest.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &BinariesInstall) -> PortResult<()> {
        let mut wanted = Vec::with_capacity(params.binaries.len());
        for binary in &params.binaries {
            let key = object_key(cx.world.folder(), &binary.sha256);
            wanted.push((binary.clone(), cx.world.store.presign_get(&key, URL_VALID).await?));
        }
        cx.world.machines.install(&cx.server(&params.server).await?.host(), &wanted).await
    }
}
