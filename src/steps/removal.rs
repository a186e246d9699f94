use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{BackupsDelete, NetworkDelete, PlacementGroupDelete, SshKeyDelete, VolumeDelete};
use crate::ports::{ErrorCode, Labels, PortResult};

/// Deletes a volume with its data.
pub struct VolumeDeleteStep;
/// Deletes the private network.
pub struct NetworkDeleteStep;
/// Deletes the placement group.
pub struct PlacementGroupDeleteStep;
/// Deletes the cluster's SSH key.
pub struct SshKeyDeleteStep;
/// Deletes everything of the cluster in the bucket.
pub struct BackupsDeleteStep;

/// What has the name now: the thing of the plan, something of someone else's, or nothing of it any more.
fn observed(cx: &StepContext<'_>, what: &str, id: u64, found: Option<(u64, &Labels)>) -> Observed<()> {
    match found {
        Some((there, labels)) if there == id && !cx.world.owns(labels) => {
            Observed::Foreign(format!("{what} {id} lost this cluster's label"))
        }
        Some((there, _)) if there == id => Observed::Absent,
        _ => Observed::Done(()),
    }
}

fn gone(result: PortResult<()>) -> PortResult<()> {
    match result {
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => other,
    }
}

macro_rules! removal {
    ($step:ident, $params:ident, $what:literal, $find:ident, $delete:ident) => {
        #[async_trait]
        impl StepKind for $step {
            type Params = $params;
            type Output = ();

            async fn observe(&self, cx: &StepContext<'_>, params: &$params) -> PortResult<Observed<()>> {
                let found = cx.world.cloud.$find(&params.name).await?;
                Ok(observed(cx, $what, params.id, found.as_ref().map(|f| (f.id, &f.labels))))
            }

            async fn apply(&self, cx: &StepContext<'_>, params: &$params) -> PortResult<()> {
                gone(cx.world.cloud.$delete(params.id).await)
            }
        }
    };
}

removal!(VolumeDeleteStep, VolumeDelete, "volume", volume_by_name, delete_volume);
removal!(NetworkDeleteStep, NetworkDelete, "network", network_by_name, delete_network);
removal!(
    PlacementGroupDeleteStep,
    PlacementGroupDelete,
    "placement group",
    placement_group_by_name,
    delete_placement_group
);
removal!(SshKeyDeleteStep, SshKeyDelete, "SSH key", ssh_key_by_name, delete_ssh_key);

#[async_trait]
impl StepKind for BackupsDeleteStep {
    type Params = BackupsDelete;
    type Output = u64;

    async fn observe(&self, _: &StepContext<'_>, _: &BackupsDelete) -> PortResult<Observed<u64>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &BackupsDelete) -> PortResult<u64> {
        let mut deleted = 0;
        for object in cx.world.store.list(&params.prefix).await? {
            gone(cx.world.store.delete(&object.key).await)?;
            deleted += 1;
        }
        Ok(deleted)
    }
}
