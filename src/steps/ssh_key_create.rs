use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::SshKeyCreate;
use crate::ports::PortResult;

/// Registers the cluster's SSH key. Output: its id.
pub struct SshKeyCreateStep;

#[async_trait]
impl StepKind for SshKeyCreateStep {
    type Params = SshKeyCreate;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &SshKeyCreate) -> PortResult<Observed<u64>> {
        Ok(match cx.world.cloud.ssh_key_by_name(&params.name).await? {
            None => Observed::Absent,
            Some(k) if !cx.world.owns(&k.labels) || !same_key(&k.public_key, &params.public_key) => {
                Observed::Foreign(format!("an SSH key named {} exists that is not this cluster's", params.name))
            }
            Some(k) => Observed::Done(k.id),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &SshKeyCreate) -> PortResult<u64> {
        Ok(cx.world.cloud.create_ssh_key(&params.name, &params.public_key, &params.labels).await?.id)
    }
}

/// Algorithm and key are the same; comments don't count.
fn same_key(a: &str, b: &str) -> bool {
    let parts = |k: &str| k.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    parts(a) == parts(b)
}
