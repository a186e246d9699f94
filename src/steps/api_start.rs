use std::time::Duration;

use async_trait::async_trait;

use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::ApiStart;
use crate::ports::{PortResult, Service};

/// Starts the API server of one master and waits until it is ready.
pub struct ApiStartStep;

const READY_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(100);

#[async_trait]
impl StepKind for ApiStartStep {
    type Params = ApiStart;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &ApiStart) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ApiStart) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.start(&host, Service::ApiServer).await?;
        let kube = cx.world.kube(&host).await?;
        until("waiting for the API server", READY_WITHIN, ASK_EVERY, || async {
            Ok(if kube.ready().await? { Ok(()) } else { Err("it is not ready".into()) })
        })
        .await
    }
}
