use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::distribution::upstream::{WorkerPlacement, worker_files};
use crate::plan::params::WorkerConfigure;
use crate::ports::{ErrorCode, PortError, PortResult};

/// Writes a worker's configuration and loads its images.
pub struct WorkerConfigureStep;

#[async_trait]
impl StepKind for WorkerConfigureStep {
    type Params = WorkerConfigure;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &WorkerConfigure) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &WorkerConfigure) -> PortResult<()> {
        let cluster = &cx.world.cluster;
        let worker = cluster.workers.iter().find(|w| w.name == params.worker).ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("cluster.yaml has no worker {} any more", params.worker))
        })?;
        let secrets = cx.secrets().await?;
        let server = cx.server(&params.server).await?;
        let placement = WorkerPlacement { location: server.location.clone() };
        let files = worker_files(cluster, &secrets, worker, &placement, cx.world.clock.now())
            .map_err(|e| PortError::new(ErrorCode::Local, e.to_string()))?;
        let host = server.host();
        cx.world.machines.configure(&host, &files).await?;
        cx.world.machines.prepare_worker(&host).await
    }
}
