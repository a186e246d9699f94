use async_trait::async_trait;

use crate::plan::Step;
use crate::ports::PortResult;

/// What must hold before any step begins, whatever the plan says: that nobody else works on the cluster, that what was done
/// so far is known elsewhere.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Returns when the step may begin. Steps that are under way go on meanwhile.
    ///
    /// # Errors
    /// Why it must not begin. The run ends there and can be resumed.
    async fn enter(&self, step: &Step) -> PortResult<()>;
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
