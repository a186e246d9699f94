use async_trait::async_trait;

use super::servers::{HOST_KEY_LABEL, label_of_fingerprint};
use super::{Observed, ServerOutput, StepContext, StepKind};
use crate::plan::params::ServerCreate;
use crate::ports::{ErrorCode, PortError, PortResult, Server, ServerSpec, ServerStatus};

/// Creates a server whose host key hk-dr chose and pinned, and attaches it to the private network.
pub struct ServerCreateStep;

#[async_trait]
impl StepKind for ServerCreateStep {
    type Params = ServerCreate;
    type Output = ServerOutput;

    async fn observe(&self, cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<Observed<ServerOutput>> {
        let Some(server) = cx.world.cloud.server_by_name(&params.name).await? else { return Ok(Observed::Absent) };
        if !cx.world.owns(&server.labels) {
            let what = format!("a server named {} exists that is not this cluster's", params.name);
            return Ok(Observed::Foreign(what));
        }
        if server.location != params.location {
            let what = format!("server {} is in {}, the plan wants {}", params.name, server.location, params.location);
            return Ok(Observed::Foreign(what));
        }
        let attached = server.private.iter().any(|p| p.address == params.address);
        Ok(if attached && server.status == ServerStatus::Running {
            Observed::Done(ServerOutput::of(&server)?)
        } else {
            Observed::Partial
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<ServerOutput> {
        let cloud = &cx.world.cloud;
        let server = match cloud.server_by_name(&params.name).await? {
            Some(server) => server,
            None => create(cx, params).await?,
        };
        if !server.private.iter().any(|p| p.address == params.address) {
            let network = cloud.network_by_name(&params.network).await?.ok_or_else(|| {
                PortError::new(ErrorCode::NotFound, format!("network {} does not exist", params.network))
            })?;
            cloud.attach_network(server.id, network.id, params.address).await?;
        }
        if server.status == ServerStatus::Off {
            cloud.power_on(server.id).await?;
        }
        ServerOutput::of(&server)
    }
}

async fn create(cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<Server> {
    let cloud = &cx.world.cloud;
    let missing = |what: &str| PortError::new(ErrorCode::NotFound, format!("{what} does not exist"));
    let ssh_key = cloud.ssh_key_by_name(&params.ssh_key).await?.ok_or_else(|| missing("the cluster's SSH key"))?;
    let placement_group = match &params.placement_group {
        Some(name) => {
            Some(cloud.placement_group_by_name(name).await?.ok_or_else(|| missing("the placement group"))?.id)
        }
        None => None,
    };
    let host_key = crate::ssh::keypair()?;
    let pin = label_of_fingerprint(&host_key.fingerprint)
        .ok_or_else(|| PortError::new(ErrorCode::Invalid, "the host key has no usable fingerprint"))?;
    let mut labels = params.labels.clone();
    labels.insert(HOST_KEY_LABEL.into(), pin);
    let spec = ServerSpec {
        name: params.name.clone(),
        server_type: params.server_type.clone(),
        image: params.image.clone(),
        location: params.location.clone(),
        ssh_keys: vec![ssh_key.id],
        placement_group,
        labels,
        user_data: crate::distribution::first_boot_script(&host_key.private, &host_key.public),
    };
    cloud.create_server(&spec).await
}
