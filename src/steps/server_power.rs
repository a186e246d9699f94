use async_trait::async_trait;

use super::{Observed, ServerOutput, StepContext, StepKind};
use crate::plan::params::{ServerPowerOff, ServerPowerOn};
use crate::ports::{ErrorCode, PortError, PortResult, Server, ServerStatus};

/// Cuts a server's power.
pub struct ServerPowerOffStep;

/// Switches a server on.
pub struct ServerPowerOnStep;

async fn own(cx: &StepContext<'_>, id: u64, name: &str) -> PortResult<Result<Server, String>> {
    Ok(match cx.world.cloud.server_by_name(name).await? {
        Some(server) if server.id == id && cx.world.owns(&server.labels) => Ok(server),
        Some(server) => Err(format!(
            "{name} is server {} now, the plan was made for server {id} with this cluster's label",
            server.id
        )),
        None => return Err(PortError::new(ErrorCode::NotFound, format!("server {name} does not exist any more"))),
    })
}

#[async_trait]
impl StepKind for ServerPowerOffStep {
    type Params = ServerPowerOff;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &ServerPowerOff) -> PortResult<Observed<()>> {
        Ok(match own(cx, params.id, &params.name).await? {
            Err(foreign) => Observed::Foreign(foreign),
            Ok(server) if server.status == ServerStatus::Off => Observed::Done(()),
            Ok(_) => Observed::Absent,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ServerPowerOff) -> PortResult<()> {
        let host = cx.server(&params.name).await?.host();
        cx.world.cloud.power_off(params.id).await?;
        // A connection to a machine without power would be found out only after many seconds of silence.
        cx.world.machines.forget(&host);
        Ok(())
    }
}

#[async_trait]
impl StepKind for ServerPowerOnStep {
    type Params = ServerPowerOn;
    type Output = ServerOutput;

    async fn observe(&self, cx: &StepContext<'_>, params: &ServerPowerOn) -> PortResult<Observed<ServerOutput>> {
        Ok(match own(cx, params.id, &params.name).await? {
            Err(foreign) => Observed::Foreign(foreign),
            Ok(server) if server.status == ServerStatus::Running => {
                Observed::Done(ServerOutput::of(&cx.world.cluster, &server)?)
            }
            Ok(_) => Observed::Absent,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ServerPowerOn) -> PortResult<ServerOutput> {
        cx.world.cloud.power_on(params.id).await?;
        cx.server(&params.name).await
    }
}
