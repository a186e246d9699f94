use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{NodeDelete, NodeDrain, NodeUncordon};
use crate::ports::{Collection, ErrorCode, Kube, PortError, PortResult};

/// Keeps new pods from a Node and evicts its pods.
pub struct NodeDrainStep;

/// Lets pods be scheduled on a Node again.
pub struct NodeUncordonStep;

/// Deletes a Node object whose server is gone.
pub struct NodeDeleteStep;

const ASK_EVERY: Duration = Duration::from_millis(500);
/// Pods that an error names.
const PODS_NAMED: usize = 5;

fn nodes() -> Collection {
    Collection { api_version: "v1".into(), plural: "nodes".into(), namespace: None }
}

#[async_trait]
impl StepKind for NodeDrainStep {
    type Params = NodeDrain;
    /// How many pods were evicted.
    type Output = u32;

    async fn observe(&self, _: &StepContext<'_>, _: &NodeDrain) -> PortResult<Observed<u32>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NodeDrain) -> PortResult<u32> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        if kube.get(&nodes(), &params.node).await?.is_none() {
            return Ok(0);
        }
        kube.patch(&nodes(), &params.node, &json!({"spec": {"unschedulable": true}})).await?;
        let end = Instant::now() + Duration::from_secs(params.within_seconds.into());
        let mut evicted = 0;
        loop {
            let mut left = Vec::new();
            for pod in pods_to_evict(kube.as_ref(), &params.node).await? {
                let name = name_of(&pod);
                left.push(match evict(kube.as_ref(), &pod).await? {
                    Eviction::Begun => {
                        evicted += 1;
                        name
                    }
                    // It leaves the list when it has ended.
                    Eviction::Ending | Eviction::Gone => name,
                    Eviction::Held(why) => format!("{name} ({why})"),
                });
            }
            if left.is_empty() {
                return Ok(evicted);
            }
            if Instant::now() + ASK_EVERY >= end {
                let more = left.len().saturating_sub(PODS_NAMED);
                left.truncate(PODS_NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let message = format!(
                    "{} still has pods after {} s: {}{more}",
                    params.node,
                    params.within_seconds,
                    left.join(", ")
                );
                return Err(PortError::new(ErrorCode::Invalid, message).hint(format!(
                    "the server was not touched, and {0} takes no new pods; let the pods' owners act, then `hk-dr resume` \
                     tries again, or keep the worker: `kubectl uncordon {0}`",
                    params.node
                )));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

enum Eviction {
    Begun,
    /// It was told to end before and has not yet.
    Ending,
    Gone,
    /// Its budget allows no further disruption now.
    Held(String),
}

/// Pods that have to leave: not those of DaemonSets, which come back at once; not static ones, which the kubelet itself
/// runs; not those that have ended.
async fn pods_to_evict(kube: &dyn Kube, node: &str) -> PortResult<Vec<Value>> {
    let all = Collection { api_version: "v1".into(), plural: "pods".into(), namespace: None };
    let stays = |pod: &Value| {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let daemon = owners.into_iter().flatten().any(|o| o["kind"] == "DaemonSet" && o["controller"] == true);
        let mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        daemon || mirror || ended
    };
    Ok(kube.list(&all).await?.into_iter().filter(|p| p["spec"]["nodeName"] == node && !stays(p)).collect())
}

fn name_of(pod: &Value) -> String {
    let part = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", part("namespace"), part("name"))
}

async fn evict(kube: &dyn Kube, pod: &Value) -> PortResult<Eviction> {
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return Ok(Eviction::Ending);
    }
    let part = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (part("name"), part("namespace"));
    let collection = Collection {
        api_version: "v1".into(),
        plural: format!("pods/{name}/eviction"),
        namespace: Some(namespace.clone()),
    };
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
    });
    match kube.create(&collection, &eviction).await {
        Ok(_) => Ok(Eviction::Begun),
        Err(error) if error.code == ErrorCode::NotFound => Ok(Eviction::Gone),
        // 429: the budget is used up. Whoever made it decides; we wait until the deadline.
        Err(error) if matches!(error.code, ErrorCode::RateLimited | ErrorCode::Conflict) => {
            Ok(Eviction::Held(error.message))
        }
        Err(error) => Err(error.context(format!("evicting pod {namespace}/{name}"))),
    }
}

#[async_trait]
impl StepKind for NodeUncordonStep {
    type Params = NodeUncordon;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &NodeUncordon) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NodeUncordon) -> PortResult<()> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        kube.patch(&nodes(), &params.node, &json!({"spec": {"unschedulable": null}})).await.map(|_| ())
    }
}

#[async_trait]
impl StepKind for NodeDeleteStep {
    type Params = NodeDelete;
    type Output = bool;

    async fn observe(&self, _: &StepContext<'_>, _: &NodeDelete) -> PortResult<Observed<bool>> {
        // Deleting what is not there does nothing.
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &NodeDelete) -> PortResult<bool> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        kube.delete(&nodes(), &params.node, Some(0)).await
    }
}
