//! Pods at 443 of every worker, as a team's ingress controller would be, asked through the cluster's front.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::uses::{API_WITHIN, NAMESPACE, POD_WITHIN, SERVERS_WITHIN, core, hosts, is_ready, masters, within};
use super::{DemoError, web};
use crate::artifacts::WEB_IMAGE;
use crate::config::INGRESS_PORT;
use crate::plan::OWNER_LABEL;
use crate::ports::Collection;
use crate::steps::World;

/// Pods that answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arrived {
    /// When the last address answered.
    pub at: Timestamp,
    /// Load balancers and floating IPs that were asked.
    pub addresses: Vec<Ipv4Addr>,
    /// Nodes that the Kubernetes API showed as ready.
    pub nodes: usize,
}

/// Puts pods into a cluster that is being built, as soon as it takes them, by the Kubernetes API through the VPN; waits until
/// they answer at every public address of the front, and until every Node is ready.
///
/// # Errors
/// The cluster does not take them, or no pod answers.
pub async fn start_behind_front(world: &World) -> Result<Arrived, DemoError> {
    let master = within(SERVERS_WITHIN, "master", || async {
        let hosts = hosts(world).await?;
        Ok(masters(world, &hosts).into_iter().next())
    })
    .await?;
    let kube = within(API_WITHIN, "way to the API", || async { Ok(Some(world.kube(&master).await?)) }).await?;
    within(API_WITHIN, "ready Kubernetes API", || async { Ok(kube.ready().await?.then_some(())) }).await?;
    let [namespace, account, pods] = workload();
    for (collection, object) in [namespace, account, pods] {
        kube.apply(&collection, &object).await?;
    }
    let selector = format!("{OWNER_LABEL}=={}", world.cluster.name);
    let addresses = within(SERVERS_WITHIN, "address of the front", || async {
        let balancers = world.cloud.balancers(&selector).await?.into_iter().filter_map(|b| b.public_ipv4);
        let floating = world.cloud.floating_ips(&selector).await?.into_iter().map(|f| f.address);
        let all: Vec<Ipv4Addr> = balancers.chain(floating).collect();
        Ok((!all.is_empty()).then_some(all))
    })
    .await?;
    for address in &addresses {
        web::pod_answer(*address, INGRESS_PORT, POD_WITHIN).await?;
    }
    let nodes = within(POD_WITHIN, "Node of every worker that is ready", || async {
        let ready = kube.list(&core("nodes", None)).await?.iter().filter(|n| is_ready(n)).count();
        Ok((ready >= world.cluster.workers.len()).then_some(ready))
    })
    .await?;
    Ok(Arrived { at: world.clock.now(), addresses, nodes })
}

fn workload() -> [(Collection, Value); 3] {
    let collection = |plural: &str, api: &str| Collection {
        api_version: api.into(),
        plural: plural.into(),
        namespace: Some(NAMESPACE.into()),
    };
    let pods = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "ingress"},
        "spec": {
            "selector": {"matchLabels": {"app": "ingress"}},
            "template": {
                "metadata": {"labels": {"app": "ingress"}},
                "spec": {
                    // Its own account: the namespace's default one appears only once a controller made it.
                    "serviceAccountName": "ingress",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web", "image": WEB_IMAGE, "imagePullPolicy": "Never",
                        "ports": [{"containerPort": 8080, "hostPort": INGRESS_PORT}],
                    }],
                },
            },
        },
    });
    [
        (core("namespaces", None), json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})),
        (
            collection("serviceaccounts", "v1"),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ingress"}}),
        ),
        (collection("daemonsets", "apps/v1"), pods),
    ]
}
