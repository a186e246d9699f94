use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::ServerFence;
use crate::ports::{ErrorCode, PortResult};

/// Deletes a server of this cluster, so that nothing on it can act any more.
pub struct ServerFenceStep;

#[async_trait]
impl StepKind for ServerFenceStep {
    type Params = ServerFence;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &ServerFence) -> PortResult<Observed<()>> {
        Ok(match cx.world.cloud.server_by_name(&params.name).await? {
            Some(server) if server.id == params.id && !cx.world.owns(&server.labels) => {
                Observed::Foreign(format!("server {} lost this cluster's label", params.name))
            }
            Some(server) if server.id == params.id => Observed::Absent,
            _ => Observed::Done(()),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ServerFence) -> PortResult<()> {
        match cx.world.cloud.delete_server(params.id).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    }
}
