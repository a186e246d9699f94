use async_trait::async_trait;

use crate::plan::Step;
use crate::ports::{PortError, PortResult};

/// What must hold before any step begins, whatever the plan says: that nobody else works on the cluster, that what was done
/// so far is known elsewhere.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Returns when the step may begin. Steps that are under way go on meanwhile.
    ///
    /// # Errors
    /// Why it must not begin. The run ends there and can be resumed.
    async fn enter(&self, step: &Step) -> PortResult<()>;

    /// Returns when the run has to be ended although nothing of it has failed, and why. Asked once for each execution. Steps
    /// that are under way are left where they are then, as if this process had died.
    async fn broken(&self) -> PortError {
        std::future::pending().await
    }
}

/// Nothing must hold.
#[derive(Debug, Default, Clone, Copy)]
pub struct Open;

#[async_trait]
impl Gate for Open {
    async fn enter(&self, _: &Step) -> PortResult<()> {
        Ok(())
    }
}
