use crate::plan::Step;
use crate::ports::PortError;

/// Who watches a run.
pub trait Progress: Send + Sync {
    fn started(&self, step: &Step);
    /// `found`: it was there already.
    fn finished(&self, step: &Step, found: bool);
    fn failed(&self, step: &Step, error: &PortError, will_retry: bool);
    /// Whether steps are started one after the other, each only when it is permitted.
    fn one_by_one(&self) -> bool {
        false
    }
    /// Whether this step may start. No ends the run here; it can be resumed.
    fn permits(&self, _: &Step) -> bool {
        true
    }
}

/// Nobody watches.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _: &Step) {}
    fn finished(&self, _: &Step, _: bool) {}
    fn failed(&self, _: &Step, _: &PortError, _: bool) {}
}
