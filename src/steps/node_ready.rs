use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::NodeReady;
use crate::ports::{Collection, PortResult};

/// Waits until a node is registered and ready, and sets its labels. After a rebuild the Node of the snapshot is deleted
/// before its kubelet starts, so a Node that is ready is ready now, not at the time of the snapshot.
pub struct NodeReadyStep;

const READY_WITHIN: Duration = Duration::from_secs(180);
const ASK_EVERY: Duration = Duration::from_millis(200);

#[async_trait]
impl StepKind for NodeReadyStep {
    type Params = NodeReady;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &NodeReady) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NodeReady) -> PortResult<()> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        let nodes = Collection { api_version: "v1".into(), plural: "nodes".into(), namespace: None };
        until("waiting for the node", READY_WITHIN, ASK_EVERY, || async {
            Ok(match kube.get(&nodes, &params.node).await? {
                None => Err("it has not registered".into()),
                Some(node) => ready(&node),
            })
        })
        .await?;
        if !params.labels.is_empty() {
            kube.patch(&nodes, &params.node, &json!({"metadata": {"labels": params.labels}})).await?;
        }
        Ok(())
    }
}

fn ready(node: &Value) -> Result<(), String> {
    let condition = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    match condition {
        Some(c) if c["status"] == "True" => Ok(()),
        Some(c) => Err(c["message"].as_str().unwrap_or("not ready").to_owned()),
        None => Err("it has not reported yet".into()),
    }
}
