use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::SnapshotTake;
use crate::ports::{PortResult, Reading};

/// Takes a snapshot into the bucket. Output: its name.
pub struct SnapshotTakeStep;

#[async_trait]
impl StepKind for SnapshotTakeStep {
    type Params = SnapshotTake;
    type Output = String;

    async fn observe(&self, _: &StepContext<'_>, _: &SnapshotTake) -> PortResult<Observed<String>> {
        // One that an interrupted run took is older than this moment: another is taken, and both are kept.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &SnapshotTake) -> PortResult<String> {
        let etcd = cx.etcd(&params.servers).await?;
        // The API is away meanwhile: nobody's writes need consideration, and everybody waits.
        let reading = if params.idle { Reading::AtOnce } else { Reading::Awaited };
        let id = cx.world.backups.take(etcd, reading).await?;
        if params.verify {
            cx.world.backups.verify(&id).await?;
        }
        Ok(id)
    }
}
