use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::distribution::upstream::{MasterPlacement, master_files};
use crate::plan::params::MasterConfigure;
use crate::ports::{ErrorCode, PortError, PortResult};

/// Writes a master's configuration and certificates.
pub struct MasterConfigureStep;

#[async_trait]
impl StepKind for MasterConfigureStep {
    type Params = MasterConfigure;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &MasterConfigure) -> PortResult<Observed<()>> {
        // Certificates are issued anew each time; writing the files again changes nothing else.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &MasterConfigure) -> PortResult<()> {
        let cluster = &cx.world.cluster;
        let master = cluster.masters.iter().find(|m| m.name == params.master).ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("cluster.yaml has no master {} any more", params.master))
        })?;
        let secrets = cx.secrets().await?;
        let placement = MasterPlacement {
            volume_device: cx.volume(&params.volume).await?.device,
            etcd_token: secrets.etcd_token(&params.etcd.incarnation),
            etcd_state: params.etcd.state,
        };
        let files = master_files(cluster, &secrets, master, &placement, cx.world.clock.now())
            .map_err(|e| PortError::new(ErrorCode::Local, e.to_string()))?;
        cx.world.machines.configure(&cx.server(&params.server).await?.host(), &files).await
    }
}
