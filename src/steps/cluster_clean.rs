use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Observed, StepContext, StepKind};
use crate::plan::params::ClusterClean;
use crate::ports::{Collection, Kube, PortResult};

/// Deletes what the snapshot says of servers that are gone. Runs after the API server is up and before any controller:
/// a controller that sees a Node without a server, or a leader that will never renew, acts on it or waits for it.
pub struct ClusterCleanStep;

#[async_trait]
impl StepKind for ClusterCleanStep {
    type Params = ClusterClean;
    type Output = u32;

    async fn observe(&self, _: &StepContext<'_>, _: &ClusterClean) -> PortResult<Observed<u32>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ClusterClean) -> PortResult<u32> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        let kube = kube.as_ref();
        let mut deleted = 0;
        let nodes = collection("v1", "nodes", None);
        for node in names(&kube.list(&nodes).await?) {
            if params.living_nodes.contains(&node) {
                continue;
            }
            deleted += u32::from(kube.delete(&nodes, &node, Some(0)).await?);
            if !params.returning_nodes.contains(&node) {
                deleted += delete_pods_of(kube, &node).await?;
            }
        }
        let attachments = collection("storage.k8s.io/v1", "volumeattachments", None);
        for attachment in kube.list(&attachments).await? {
            let (name, node) = (&attachment["metadata"]["name"], attachment["spec"]["nodeName"].as_str());
            let Some(name) = name.as_str() else { continue };
            if node.is_some_and(|node| params.living_nodes.iter().any(|living| living == node)) {
                continue;
            }
            // The attacher that would take its finalizer off is not running yet, and the server it speaks of is gone.
            kube.patch(&attachments, name, &json!({"metadata": {"finalizers": null}})).await?;
            deleted += u32::from(kube.delete(&attachments, name, None).await?);
        }
        // Leases of nodes, and of controllers whose leaders died: a new leader would wait for their end.
        for namespace in ["kube-node-lease", "kube-system"] {
            let leases = collection("coordination.k8s.io/v1", "leases", Some(namespace));
            for name in names(&kube.list(&leases).await?) {
                // An API server's own lease is live: the one that answers here holds one.
                let living = namespace == "kube-node-lease" && params.living_nodes.contains(&name);
                if !name.starts_with("apiserver-") && !living {
                    deleted += u32::from(kube.delete(&leases, &name, None).await?);
                }
            }
        }
        Ok(deleted)
    }
}

async fn delete_pods_of(kube: &dyn Kube, node: &str) -> PortResult<u32> {
    let mut deleted = 0;
    for pod in kube.list(&collection("v1", "pods", None)).await? {
        if pod["spec"]["nodeName"].as_str() == Some(node) {
            let namespace = pod["metadata"]["namespace"].as_str();
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            deleted += u32::from(kube.delete(&collection("v1", "pods", namespace), name, Some(0)).await?);
        }
    }
    Ok(deleted)
}

fn collection(api_version: &str, plural: &str, namespace: Option<&str>) -> Collection {
    Collection { api_version: api_version.into(), plural: plural.into(), namespace: namespace.map(Into::into) }
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned)).collect()
}
