use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Observed, StepContext, StepKind};
use crate::lease::{put_document, read_document};
use crate::plan::params::ManualWait;
use crate::ports::{ObjectStore, PortResult, PutCondition};

/// Waits until a person says that something is done that hk-dr can't do. What they said lies in the bucket: it outlives
/// every process, and it can be said from anywhere.
pub struct ManualWaitStep;

const ASK_EVERY: Duration = Duration::from_secs(1);
const BYTES_MAX: u64 = 64 << 10;

/// `runs/<run>/approvals/<step>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub format: u32,
    pub step: String,
    /// User and machine.
    pub by: String,
    pub at: jiff::Timestamp,
}

fn key(cluster: &str, run: &str, step: &str) -> String {
    format!("{cluster}/runs/{run}/approvals/{}.json", step.replace('/', "-"))
}

/// Says that a manual step is done. `Conflict` if somebody said so before.
///
/// # Errors
/// Those of the store.
pub async fn approve(store: &dyn ObjectStore, cluster: &str, run: &str, approval: &Approval) -> PortResult<()> {
    put_document(store, &key(cluster, run, &approval.step), approval, PutCondition::Absent).await.map(|_| ())
}

/// Who said that a manual step is done, if anybody did.
///
/// # Errors
/// Those of the store.
pub async fn approval(store: &dyn ObjectStore, cluster: &str, run: &str, step: &str) -> PortResult<Option<Approval>> {
    Ok(read_document(store, &key(cluster, run, step), BYTES_MAX).await?.map(|(approval, _)| approval))
}

#[async_trait]
impl StepKind for ManualWaitStep {
    type Params = ManualWait;
    /// Who approved.
    type Output = String;

    async fn observe(&self, cx: &StepContext<'_>, params: &ManualWait) -> PortResult<Observed<String>> {
        let found = approval(cx.world.store.as_ref(), cx.world.folder(), cx.run, &params.id).await?;
        Ok(found.map_or(Observed::Absent, |approval| Observed::Done(approval.by)))
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ManualWait) -> PortResult<String> {
        // The engine ends this at the step's deadline; a bucket that is away for a while is asked again.
        loop {
            let asked = approval(cx.world.store.as_ref(), cx.world.folder(), cx.run, &params.id).await;
            match asked {
                Ok(Some(approval)) => return Ok(approval.by),
                Err(error) if error.class() != crate::ports::ErrorClass::Transient => return Err(error),
                _ => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    }
}
