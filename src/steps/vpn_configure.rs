use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::distribution::upstream::vpn_files;
use crate::plan::params::VpnConfigure;
use crate::ports::{ErrorCode, PortError, PortResult, Service};

/// Makes the VPN host what Git declares: its peers above all. Open tunnels stay open.
pub struct VpnConfigureStep;

#[async_trait]
impl StepKind for VpnConfigureStep {
    type Params = VpnConfigure;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &VpnConfigure) -> PortResult<Observed<()>> {
        // The same files again change nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &VpnConfigure) -> PortResult<()> {
        let cluster = &cx.world.cluster;
        let vpn = cluster
            .vpn
            .as_ref()
            .ok_or_else(|| PortError::new(ErrorCode::Invalid, "cluster.yaml declares no VPN any more"))?;
        let files = vpn_files(cluster, vpn, cx.secrets().await?.as_ref())
            .map_err(|e| PortError::new(ErrorCode::Local, e.to_string()))?;
        let host = cx.server(&params.server).await?.host();
        cx.world.machines.configure(&host, &files).await?;
        cx.world.machines.start(&host, Service::Vpn).await
    }
}
