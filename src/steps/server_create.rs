use async_trait::async_trait;
use zeroize::Zeroizing;

use super::servers::{HOST_KEY_LABEL, label_of_fingerprint};
use super::{Observed, ServerOutput, StepContext, StepKind};
use crate::config::Range;
use crate::distribution::upstream::{VPN_FIRST_BOOT, first_boot_files};
use crate::distribution::{files_script, first_boot_script, server_name, way_out_script};
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
            Observed::Done(ServerOutput::of(&cx.world.cluster, &server)?)
        } else {
            Observed::Partial
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<ServerOutput> {
        let cloud = &cx.world.cloud;
        let there = if cx.absent { None } else { cloud.server_by_name(&params.name).await? };
        let server = match there {
            Some(server) => server,
            None => create(cx, params).await?,
        };
        if !server.private.iter().any(|p| p.address == params.address) {
            let network = match cx.made("network") {
                Some(id) => id,
                None => {
                    let missing = || format!("network {} does not exist", params.network);
                    let network = cloud.network_by_name(&params.network).await?;
                    network.ok_or_else(|| PortError::new(ErrorCode::NotFound, missing()))?.id
                }
            };
            cloud.attach_network(server.id, network, params.address).await?;
        }
        if server.status == ServerStatus::Off {
            cloud.power_on(server.id).await?;
        }
        ServerOutput::of(&cx.world.cluster, &server)
    }
}

async fn create(cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<Server> {
    let cloud = &cx.world.cloud;
    let missing = |what: &str| PortError::new(ErrorCode::NotFound, format!("{what} does not exist"));
    let ssh_key = match cx.made("ssh-key") {
        Some(id) => id,
        None => cloud.ssh_key_by_name(&params.ssh_key).await?.ok_or_else(|| missing("the cluster's SSH key"))?.id,
    };
    let placement_group = match (&params.placement_group, cx.made("placement-group")) {
        (Some(_), Some(id)) => Some(id),
        (Some(name), None) => {
            Some(cloud.placement_group_by_name(name).await?.ok_or_else(|| missing("the placement group"))?.id)
        }
        (None, _) => None,
    };
    let host_key = crate::ssh::keypair()?;
    let pin = label_of_fingerprint(&host_key.fingerprint)
        .ok_or_else(|| PortError::new(ErrorCode::Invalid, "the host key has no usable fingerprint"))?;
    let then = role_script(cx, params).await?;
    let mut labels = params.labels.clone();
    labels.insert(HOST_KEY_LABEL.into(), pin);
    let spec = ServerSpec {
        name: params.name.clone(),
        server_type: params.server_type.clone(),
        image: params.image.clone(),
        location: params.location.clone(),
        ssh_keys: vec![ssh_key],
        placement_group,
        labels,
        public_ipv4: params.public_ipv4,
        // One without a public address can't boot before it is attached.
        start: params.public_ipv4,
        user_data: first_boot_script(&host_key.private, &host_key.public, &then),
    };
    cloud.create_server(&spec).await
}

/// What a server's first boot does beside letting hk-dr in.
async fn role_script(cx: &StepContext<'_>, params: &ServerCreate) -> PortResult<Zeroizing<String>> {
    let cluster = &cx.world.cluster;
    let unusable = |e: String| PortError::new(ErrorCode::Invalid, e);
    if let Some(vpn) = cluster.vpn.as_ref().filter(|v| server_name(cluster, &v.name) == params.name) {
        let files =
            first_boot_files(cluster, vpn, cx.secrets().await?.as_ref()).map_err(|e| unusable(e.to_string()))?;
        let mut script = files_script(&files);
        script.push_str(VPN_FIRST_BOOT);
        return Ok(script);
    }
    if params.public_ipv4 {
        return Ok(Zeroizing::new(String::new()));
    }
    let gateway = cluster.network.range.parse::<Range>().map_err(unusable)?.nth(1);
    let gateway = gateway.ok_or_else(|| unusable("the network's range has no gateway".into()))?;
    Ok(Zeroizing::new(way_out_script(params.address, gateway)))
}
