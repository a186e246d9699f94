use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{SshKeyAuthorize, SshKeyRevoke};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Lets a second SSH key log in, and tries it.
pub struct SshKeyAuthorizeStep;

/// Takes an SSH key off a server, and proves that it is refused.
pub struct SshKeyRevokeStep;

#[async_trait]
impl StepKind for SshKeyAuthorizeStep {
    type Params = SshKeyAuthorize;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &SshKeyAuthorize) -> PortResult<Observed<()>> {
        // Adding a key that is there does nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &SshKeyAuthorize) -> PortResult<()> {
        let (host, machines) = (cx.server(&params.server).await?.host(), &cx.world.machines);
        machines.authorize(&host, &params.public_key).await?;
        if machines.accepts(&host, &params.public_key).await? {
            return Ok(());
        }
        let message = format!("{} does not accept the new SSH key though it was added", host.name);
        Err(PortError::new(ErrorCode::Invalid, message)
            .hint("the old key still works everywhere; look at sshd's configuration there, then `hk-dr resume`"))
    }
}

#[async_trait]
impl StepKind for SshKeyRevokeStep {
    type Params = SshKeyRevoke;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &SshKeyRevoke) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &SshKeyRevoke) -> PortResult<()> {
        let (host, machines) = (cx.server(&params.server).await?.host(), &cx.world.machines);
        // Over a connection of the new key: what is taken away must not be what we stand on.
        machines.forget(&host);
        machines.revoke(&host, &params.public_key, &params.kept).await?;
        if !machines.accepts(&host, &params.public_key).await? {
            return Ok(());
        }
        let message = format!("{} still accepts the old SSH key", host.name);
        Err(PortError::new(ErrorCode::Invalid, message).hint(
            "the new key works; the old one is allowed by another file than /root/.ssh/authorized_keys: take it off there, \
             then `hk-dr resume`",
        ))
    }
}
