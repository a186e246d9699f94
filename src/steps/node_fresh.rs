use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::NodeFresh;
use crate::ports::{Collection, PortResult};

/// Waits until a kubelet has renewed its lease since the step began: what a Node says of itself may be from before.
pub struct NodeFreshStep;

const RENEWED_WITHIN: Duration = Duration::from_secs(180);
const ASK_EVERY: Duration = Duration::from_millis(200);

#[async_trait]
impl StepKind for NodeFreshStep {
    type Params = NodeFresh;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &NodeFresh) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NodeFresh) -> PortResult<()> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        let leases = Collection {
            api_version: "coordination.k8s.io/v1".into(),
            plural: "leases".into(),
            namespace: Some("kube-node-lease".into()),
        };
        // The first value that is seen says nothing: only that it changes does.
        let first: OnceCell<Value> = OnceCell::new();
        until("waiting for the kubelet", RENEWED_WITHIN, ASK_EVERY, || async {
            let Some(lease) = kube.get(&leases, &params.node).await? else {
                return Ok(Err("it has no lease".into()));
            };
            let renewed = &lease["spec"]["renewTime"];
            let before = first.get_or_init(|| async { renewed.clone() }).await;
            Ok(if before == renewed { Err(format!("its lease is from {renewed}")) } else { Ok(()) })
        })
        .await
    }
}
