use std::time::Duration;

use async_trait::async_trait;

use super::etcd_agree::{Agreement, agreement};
use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::EtcdUnchanged;
use crate::ports::{ErrorCode, PortError, PortResult};

/// Waits until all members agree, and compares what they agree on with what they agreed on before.
pub struct EtcdUnchangedStep;

const AGREE_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(50);

#[async_trait]
impl StepKind for EtcdUnchangedStep {
    type Params = EtcdUnchanged;
    type Output = Agreement;

    async fn observe(&self, _: &StepContext<'_>, _: &EtcdUnchanged) -> PortResult<Observed<Agreement>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &EtcdUnchanged) -> PortResult<Agreement> {
        let before: Agreement = cx
            .outputs
            .get(&params.since)
            .and_then(|output| serde_json::from_value(output.clone()).ok())
            .ok_or_else(|| PortError::new(ErrorCode::Invalid, format!("step {} left no hash", params.since)))?;
        let etcd = cx.etcd(&params.servers).await?;
        let now = until("waiting for etcd", AGREE_WITHIN, ASK_EVERY, || agreement(etcd.as_ref())).await?;
        let same = (now.revision, now.hash) == (before.revision, before.hash)
            && (!params.same_cluster || now.cluster_id == before.cluster_id);
        if !same {
            let say =
                |a: &Agreement| format!("hash {:08x} at revision {} of cluster {:x}", a.hash, a.revision, a.cluster_id);
            let message = format!("etcd has {} where it had {}", say(&now), say(&before));
            return Err(PortError::new(ErrorCode::Corrupt, message).hint(
                "no API server was started; the volumes were left as they are, and the snapshot taken before opens with \
                 `hk-dr snapshot show latest`; decide between `hk-dr rebuild --even-if-alive` and a look at the members",
            ));
        }
        Ok(now)
    }
}
