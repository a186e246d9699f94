use async_trait::async_trait;

use super::volume_provide::VolumeOutput;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::{VolumeAttach, VolumeDetach};
use crate::ports::{ErrorCode, PortError, PortResult, Volume};

/// Detaches a volume.
pub struct VolumeDetachStep;

/// Attaches a volume that exists.
pub struct VolumeAttachStep;

async fn own(cx: &StepContext<'_>, id: u64, name: &str) -> PortResult<Result<Volume, String>> {
    Ok(match cx.world.cloud.volume_by_name(name).await? {
        Some(volume) if volume.id == id && cx.world.owns(&volume.labels) => Ok(volume),
        Some(volume) => Err(format!(
            "{name} is volume {} now, the plan was made for volume {id} with this cluster's label",
            volume.id
        )),
        None => {
            return Err(PortError::new(ErrorCode::NotFound, format!("volume {name} does not exist any more"))
                .hint("no other was made in its place: `hk-dr status` shows what there is"));
        }
    })
}

#[async_trait]
impl StepKind for VolumeDetachStep {
    type Params = VolumeDetach;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &VolumeDetach) -> PortResult<Observed<()>> {
        let volume = match own(cx, params.id, &params.name).await? {
            Err(foreign) => return Ok(Observed::Foreign(foreign)),
            Ok(volume) => volume,
        };
        Ok(if volume.server.is_none() { Observed::Done(()) } else { Observed::Absent })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &VolumeDetach) -> PortResult<()> {
        cx.world.cloud.detach_volume(params.id).await
    }
}

#[async_trait]
impl StepKind for VolumeAttachStep {
    type Params = VolumeAttach;
    type Output = VolumeOutput;

    async fn observe(&self, cx: &StepContext<'_>, params: &VolumeAttach) -> PortResult<Observed<VolumeOutput>> {
        let volume = match own(cx, params.id, &params.name).await? {
            Err(foreign) => return Ok(Observed::Foreign(foreign)),
            Ok(volume) => volume,
        };
        let server = server_id(cx, &params.server).await?;
        Ok(match volume.server {
            None => Observed::Absent,
            Some(id) if id == server => Observed::Done(VolumeOutput { id: volume.id, device: volume.device }),
            Some(id) => Observed::Foreign(format!(
                "volume {} is attached to server {id}, not to {}; detach it if that server must not use it",
                params.name, params.server
            )),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &VolumeAttach) -> PortResult<VolumeOutput> {
        cx.world.cloud.attach_volume(params.id, server_id(cx, &params.server).await?).await?;
        cx.volume(&params.name).await
    }
}

async fn server_id(cx: &StepContext<'_>, name: &str) -> PortResult<u64> {
    Ok(cx.server(name).await?.id)
}
