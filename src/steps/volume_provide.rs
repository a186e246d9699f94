use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Observed, StepContext, StepKind};
use crate::plan::params::VolumeProvide;
use crate::ports::{ErrorCode, PortError, PortResult, VolumeSpec};

/// Creates a volume and attaches it.
pub struct VolumeProvideStep;

/// The attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeOutput {
    pub id: u64,
    pub device: String,
}

#[async_trait]
impl StepKind for VolumeProvideStep {
    type Params = VolumeProvide;
    type Output = VolumeOutput;

    async fn observe(&self, cx: &StepContext<'_>, params: &VolumeProvide) -> PortResult<Observed<VolumeOutput>> {
        let Some(volume) = cx.world.cloud.volume_by_name(&params.name).await? else { return Ok(Observed::Absent) };
        if !cx.world.owns(&volume.labels) {
            return Ok(Observed::Foreign(format!("a volume named {} exists that is not this cluster's", params.name)));
        }
        if volume.location != params.location {
            return Ok(Observed::Foreign(format!(
                "volume {} is in {}, its server in {}: volumes don't move between locations",
                params.name, volume.location, params.location
            )));
        }
        let server = cx.server(&params.server).await?;
        Ok(match volume.server {
            Some(id) if id == server.id => Observed::Done(VolumeOutput { id: volume.id, device: volume.device }),
            Some(id) => Observed::Foreign(format!(
                "volume {} is attached to server {id}, not to {}; detach it if that server must not use it",
                params.name, params.server
            )),
            None => Observed::Partial,
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &VolumeProvide) -> PortResult<VolumeOutput> {
        let cloud = &cx.world.cloud;
        let server = cx.server(&params.server).await?;
        if server.location != params.location {
            let message = format!(
                "{} is in {}, its volume {} is to be in {}",
                params.server, server.location, params.name, params.location
            );
            return Err(PortError::new(ErrorCode::Invalid, message)
                .hint("no volume was made; `hk-dr build` plans for where the server is now"));
        }
        let there = if cx.absent { None } else { cloud.volume_by_name(&params.name).await? };
        let volume = match there {
            Some(volume) => volume,
            None => {
                let spec = VolumeSpec {
                    name: params.name.clone(),
                    size_gb: params.size_gb,
                    location: params.location.clone(),
                    server: Some(server.id),
                    labels: params.labels.clone(),
                };
                cloud.create_volume(&spec).await?
            }
        };
        if volume.server != Some(server.id) {
            cloud.attach_volume(volume.id, server.id).await?;
        }
        if volume.device.is_empty() {
            return Err(PortError::new(ErrorCode::Invalid, format!("volume {} has no device path", params.name)));
        }
        Ok(VolumeOutput { id: volume.id, device: volume.device })
    }
}

impl StepContext<'_> {
    /// A volume of the cluster by name, with its device path.
    pub(super) async fn volume(&self, name: &str) -> PortResult<VolumeOutput> {
        if let Some(output) = self.outputs.get(&format!("volume/{name}"))
            && let Ok(volume) = serde_json::from_value::<VolumeOutput>(output.clone())
        {
            return Ok(volume);
        }
        let volume = self.world.cloud.volume_by_name(name).await?;
        let volume =
            volume.ok_or_else(|| PortError::new(ErrorCode::NotFound, format!("volume {name} does not exist")))?;
        Ok(VolumeOutput { id: volume.id, device: volume.device })
    }
}
