use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::aftermath::{carry_out, look};
use super::{Observed, StepContext, StepKind};
use crate::plan::aftermath::{Known, decide};
use crate::plan::params::ClusterClean;
use crate::ports::{ErrorCode, PortResult, Service};

/// Clears away what the snapshot says of servers that are gone. Runs after the API server is up and before any controller:
/// one that sees a Node without a server, or a leader that will never renew, acts on it or waits for it.
pub struct ClusterCleanStep;

/// How often it is decided anew because somebody else changed something meanwhile.
const ROUNDS: u32 = 5;
/// Lines that are kept of what was done.
const LINES_MAX: usize = 200;

/// What was done, and what a person should know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    pub edits: u32,
    /// A line for each change; not more than two hundred.
    pub done: Vec<String>,
    pub findings: Vec<String>,
}

#[async_trait]
impl StepKind for ClusterCleanStep {
    type Params = ClusterClean;
    type Output = Cleaned;

    async fn observe(&self, _: &StepContext<'_>, _: &ClusterClean) -> PortResult<Observed<Cleaned>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ClusterClean) -> PortResult<Cleaned> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        let known = Known {
            living: params.living_nodes.iter().cloned().collect(),
            returning: params.returning_nodes.iter().cloned().collect(),
            server_ids: params.server_ids.clone(),
            locations: params.locations.iter().cloned().collect(),
            now: Some(cx.world.clock.now()),
        };
        let mut round = 1;
        let (aftermath, mut done) = loop {
            let aftermath = decide(&look(kube.as_ref()).await?, &known);
            match carry_out(kube.as_ref(), &aftermath).await {
                Ok(done) => break (aftermath, done),
                Err(error) if error.code == ErrorCode::Conflict && round < ROUNDS => round += 1,
                Err(error) => return Err(error),
            }
        };
        // A kubelet registers when it starts, and never again: one that joined after the snapshot would stay unknown.
        for node in &aftermath.unregistered {
            let host = cx.server(node).await?.host();
            cx.world.machines.stop(&host, &[Service::Worker]).await?;
            cx.world.machines.start(&host, Service::Worker).await?;
            done.push(format!("start kubelet on {node} anew: the restored state does not know it"));
        }
        let edits = u32::try_from(done.len()).unwrap_or(u32::MAX);
        done.truncate(LINES_MAX);
        Ok(Cleaned { edits, done, findings: aftermath.findings })
    }
}
