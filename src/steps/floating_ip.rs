//! Floating IPs: in the cloud, inside workers, and to whom they are routed.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{FloatingIpAssign, FloatingIpDelete, FloatingIpProvide, FrontConfigure};
use crate::ports::{ErrorCode, FloatingIp, PortError, PortResult, ServerStatus};

/// Creates a floating IP.
pub struct FloatingIpProvideStep;
/// Routes a floating IP to a server.
pub struct FloatingIpAssignStep;
/// Deletes a floating IP.
pub struct FloatingIpDeleteStep;
/// Configures floating IPs inside a worker.
pub struct FrontConfigureStep;

/// What later steps need to know of a floating IP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIpOutput {
    pub id: u64,
    pub name: String,
    pub address: Ipv4Addr,
}

impl From<FloatingIp> for FloatingIpOutput {
    fn from(found: FloatingIp) -> Self {
        Self { id: found.id, name: found.name, address: found.address }
    }
}

#[async_trait]
impl StepKind for FloatingIpProvideStep {
    type Params = FloatingIpProvide;
    type Output = FloatingIpOutput;

    async fn observe(
        &self,
        cx: &StepContext<'_>,
        params: &FloatingIpProvide,
    ) -> PortResult<Observed<FloatingIpOutput>> {
        Ok(match cx.world.cloud.floating_ip_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(f) if !cx.world.owns(&f.labels) => {
                Observed::Foreign(format!("a floating IP named {} exists that is not this cluster's", params.name))
            }
            Some(f) => Observed::Done(f.into()),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FloatingIpProvide) -> PortResult<FloatingIpOutput> {
        Ok(cx.world.cloud.create_floating_ip(&params.name, &params.location, &params.labels).await?.into())
    }
}

#[async_trait]
impl StepKind for FloatingIpAssignStep {
    type Params = FloatingIpAssign;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &FloatingIpAssign) -> PortResult<Observed<()>> {
        let cloud = &cx.world.cloud;
        let Some(floating) = cloud.floating_ip_by_name(&params.name).await? else {
            let message = format!("floating IP {} does not exist", params.name);
            return Err(PortError::new(ErrorCode::NotFound, message).hint("`hk-dr build` makes it"));
        };
        if !cx.world.owns(&floating.labels) {
            return Ok(Observed::Foreign(format!("floating IP {} is not this cluster's", params.name)));
        }
        let Some(holder) = floating.server else { return Ok(Observed::Absent) };
        for name in params.fine.iter().chain([&params.server]) {
            let well = |s: &crate::ports::Server| s.id == holder && s.status == ServerStatus::Running;
            if cloud.server_by_name(name).await?.is_some_and(|s| well(&s)) {
                return Ok(Observed::Done(()));
            }
        }
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FloatingIpAssign) -> PortResult<()> {
        let server = cx.server(&params.server).await?.id;
        let id = find(cx, &params.name).await?.id;
        cx.world.cloud.assign_floating_ip(id, server).await
    }
}

#[async_trait]
impl StepKind for FloatingIpDeleteStep {
    type Params = FloatingIpDelete;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &FloatingIpDelete) -> PortResult<Observed<()>> {
        Ok(match cx.world.cloud.floating_ip_by_name(&params.name).await? {
            Some(f) if f.id == params.id && !cx.world.owns(&f.labels) => {
                Observed::Foreign(format!("floating IP {} lost this cluster's label", params.id))
            }
            Some(f) if f.id == params.id => Observed::Absent,
            _ => Observed::Done(()),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FloatingIpDelete) -> PortResult<()> {
        match cx.world.cloud.delete_floating_ip(params.id).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl StepKind for FrontConfigureStep {
    type Params = FrontConfigure;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &FrontConfigure) -> PortResult<Observed<()>> {
        // The same addresses again change nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &FrontConfigure) -> PortResult<()> {
        let mut addresses = Vec::new();
        for name in &params.floating_ips {
            addresses.push(find(cx, name).await?.address);
        }
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.carry(&host, &addresses).await
    }
}

/// A floating IP by its full name: from this run, or as the cloud has it.
async fn find(cx: &StepContext<'_>, name: &str) -> PortResult<FloatingIpOutput> {
    let outputs = cx.outputs.iter().filter(|(step, _)| step.starts_with("floating/")).map(|(_, output)| output.clone());
    let made = outputs.filter_map(|output| serde_json::from_value::<FloatingIpOutput>(output).ok());
    if let Some(made) = made.into_iter().find(|made| made.name == name) {
        return Ok(made);
    }
    let missing = || PortError::new(ErrorCode::NotFound, format!("floating IP {name} does not exist"));
    Ok(cx.world.cloud.floating_ip_by_name(name).await?.ok_or_else(missing)?.into())
}
