//! What acts on a whole cluster by what it believes it should be: GitOps controllers, and autoscalers that buy and delete
//! servers. A restored state is older than what they remember and than what Git has, so they stand still until everything
//! else is done. How many of each there were stands in an annotation on the workload itself, so that it is known whoever
//! continues, and from wherever.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Act, Deciding, name, namespace, text};

/// Workloads that may be stopped, by plural, with their kind as owners are called. Replica sets go with their deployment.
const WORKLOADS: [(&str, &str); 2] = [("deployments", "Deployment"), ("statefulsets", "StatefulSet")];
/// How many replicas a suspended workload had.
pub const SUSPENDED: &str = "hk-dr/suspended-replicas";
/// Label by which a team has more of its own controllers suspended: `true`.
pub const SUSPEND_LABEL: &str = "hk-dr/suspend-in-recovery";

/// Which tool a workload is a controller of; none: it goes on.
pub fn acts(workload: &Value) -> Option<&'static str> {
    let labels = &workload["metadata"]["labels"];
    let label = |key: &str| labels[key].as_str().unwrap_or_default();
    if label(SUSPEND_LABEL) == "true" {
        return Some("a controller of this team's");
    }
    let part_of = label("app.kubernetes.io/part-of");
    let names = ["app.kubernetes.io/name", "app.kubernetes.io/component", "k8s-app", "app"].map(label);
    if part_of == "flux" || images(workload).any(|image| image.contains("/fluxcd/")) {
        return Some("Flux");
    }
    let of_argo = part_of.starts_with("argocd") || names.iter().any(|n| n.starts_with("argocd-"));
    if of_argo && names.iter().any(|n| n.ends_with("controller") || n.ends_with("image-updater")) {
        return Some("Argo CD");
    }
    let scales = names.iter().any(|n| *n == "cluster-autoscaler" || n.ends_with("-cluster-autoscaler"));
    scales.then_some("the cluster autoscaler")
}

fn images(workload: &Value) -> impl Iterator<Item = &str> {
    let containers = workload.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    containers.into_iter().flatten().filter_map(|container| container["image"].as_str())
}

/// One is the default.
fn replicas(workload: &Value) -> u64 {
    workload["spec"]["replicas"].as_u64().unwrap_or(1)
}

/// How many a suspended workload had. Whoever changed the note by hand gets one.
fn noted(workload: &Value) -> Option<u64> {
    let noted = workload["metadata"]["annotations"][SUSPENDED].as_str()?;
    Some(noted.parse().unwrap_or(1))
}

/// With the version that was read: somebody else's change in between makes it fail instead of getting lost.
fn patch(workload: &Value, note: Value, replicas: u64) -> Value {
    let mut metadata = json!({"annotations": {SUSPENDED: note}});
    if let Some(version) = workload["metadata"].get("resourceVersion") {
        metadata["resourceVersion"] = version.clone();
    }
    json!({"metadata": metadata, "spec": {"replicas": replicas}})
}

/// The patch that lets a suspended workload run as before. None: it is not suspended.
pub fn resumed(workload: &Value) -> Option<Value> {
    let before = noted(workload)?;
    // Somebody who started it meanwhile knows how many there must be.
    let now = replicas(workload);
    Some(patch(workload, Value::Null, if now == 0 { before } else { now }))
}

/// The owner that made this object: kind and name.
fn controller(object: &Value) -> Option<(&str, &str)> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    Some((text(owner, "/kind")?, text(owner, "/name")?))
}

impl Deciding<'_> {
    /// Stops them, with what would start their pods again: nothing else reacts yet, so their pods are deleted by hand.
    pub(super) fn gitops(&mut self) {
        // What is suspended owns replica sets and pods: namespace, kind and name.
        let mut stopped: BTreeSet<(String, String, String)> = BTreeSet::new();
        for (plural, kind) in WORKLOADS {
            for workload in self.all(plural) {
                let Some(tool) = acts(workload) else { continue };
                let now = replicas(workload);
                if now == 0 && noted(workload).is_none() {
                    continue;
                }
                stopped.insert((namespace(workload).to_owned(), kind.to_owned(), name(workload).to_owned()));
                if now > 0 {
                    let why = format!("{tool} would act on a state that is not complete yet: put back at the end");
                    self.edit(plural, workload, Act::Patch(patch(workload, json!(now.to_string()), 0)), why);
                }
            }
        }
        let is_owned = |object: &Value, stopped: &BTreeSet<(String, String, String)>| {
            controller(object).is_some_and(|(kind, owner)| {
                stopped.contains(&(namespace(object).to_owned(), kind.to_owned(), owner.to_owned()))
            })
        };
        let sets: Vec<&Value> = self.all("replicasets").iter().filter(|set| is_owned(set, &stopped)).collect();
        for set in sets {
            stopped.insert((namespace(set).to_owned(), "ReplicaSet".to_owned(), name(set).to_owned()));
            if replicas(set) > 0 {
                let patch = json!({"spec": {"replicas": 0}});
                self.edit("replicasets", set, Act::Patch(patch), "its deployment is suspended");
            }
        }
        let pods = self.all("pods").iter().filter(|pod| is_owned(pod, &stopped));
        self.suspended = pods.map(|pod| (namespace(pod).to_owned(), name(pod).to_owned())).collect();
    }
}
