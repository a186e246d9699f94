//! What a restored cluster still says of its former life, and what is done about it before anything can act on it: objects
//! in, ordered edits out. Docs: RUNBOOKS.md, "Kubernetes after a restore".

mod gitops;
#[cfg(test)]
mod tests;
mod webhooks;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ports::Collection;

pub use gitops::{SUSPEND_LABEL, SUSPENDED, acts, resumed};
pub use webhooks::{Backend, RELAXED, backends, put_back, relaxed};

/// Label keys by which a volume, or a Node, says where it is.
const PLACE_KEYS: [&str; 4] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "csi.hetzner.cloud/location",
];
/// k3s keeps the hash of each node's password, and refuses a new server under an old name.
const NODE_PASSWORD: &str = ".node-password.k3s";
const BOOTSTRAP_TOKEN: &str = "bootstrap.kubernetes.io/token";

/// The collections that are looked at, by plural: API version, and a namespace where one is enough.
pub const LOOKED_AT: [(&str, &str, Option<&str>); 15] = [
    ("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", None),
    ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", None),
    ("apps/v1", "deployments", None),
    ("apps/v1", "statefulsets", None),
    ("apps/v1", "replicasets", None),
    ("v1", "nodes", None),
    ("v1", "pods", None),
    ("storage.k8s.io/v1", "volumeattachments", None),
    ("coordination.k8s.io/v1", "leases", None),
    ("discovery.k8s.io/v1", "endpointslices", None),
    ("v1", "endpoints", None),
    ("v1", "secrets", Some("kube-system")),
    ("v1", "namespaces", None),
    ("v1", "persistentvolumes", None),
    ("apiregistration.k8s.io/v1", "apiservices", None),
];

/// Objects of the restored cluster, by plural.
pub type Found = BTreeMap<String, Vec<Value>>;

/// What is known of the servers that there are now.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Nodes whose kubelets run: their objects stay, with what is theirs.
    pub living: BTreeSet<String>,
    /// Nodes that will come back under the same name: their objects go, their pods stay theirs.
    pub returning: BTreeSet<String>,
    /// The cloud's ids of living Nodes' servers.
    pub server_ids: BTreeMap<String, u64>,
    /// Where workers are, or will be.
    pub locations: BTreeSet<String>,
    pub now: Option<Timestamp>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    pub at: Collection,
    pub name: String,
    pub act: Act,
    /// In a few words, for the journal.
    pub why: String,
}

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Grace period in seconds.
    Delete { grace: Option<u32> },
    /// A merge patch.
    Patch(Value),
    /// What a patch may not change: deleted, and made anew like this.
    Recreate(Value),
}

/// What is to be done, in this order, and what a person should know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aftermath {
    pub edits: Vec<Edit>,
    pub findings: Vec<String>,
    /// Nodes whose kubelets run and that the restored state does not know.
    pub unregistered: Vec<String>,
}

/// Decides. Webhooks first, because they may refuse everything that follows; then what would undo it, because it runs on
/// servers that live and is served already; Nodes before what is theirs; leases before the pods that held them, attachments
/// behind the pods that used them; Secrets that would keep a server from registering last.
pub fn decide(found: &Found, known: &Known) -> Aftermath {
    let mut decision =
        Deciding { found, known, out: Aftermath::default(), gone: BTreeSet::new(), suspended: BTreeSet::new() };
    decision.webhooks();
    decision.gitops();
    decision.nodes();
    let pods = decision.pods();
    // Who held a lease is known only as long as its pod is there: a run that dies in between must find the same again.
    decision.leases();
    decision.out.edits.extend(pods);
    decision.attachments();
    decision.endpoint_slices();
    decision.endpoints();
    decision.secrets();
    decision.namespaces();
    decision.volumes();
    decision.out
}

struct Deciding<'a> {
    found: &'a Found,
    known: &'a Known,
    out: Aftermath,
    /// Pods that go: namespace and name.
    gone: BTreeSet<(String, String)>,
    /// Pods of what is suspended: they go wherever they are.
    suspended: BTreeSet<(String, String)>,
}

impl<'a> Deciding<'a> {
    fn all(&self, plural: &str) -> &'a [Value] {
        self.found.get(plural).map_or(&[], Vec::as_slice)
    }

    fn edit(&mut self, plural: &str, object: &Value, act: Act, why: impl Into<String>) {
        let Some((version, _, _)) = LOOKED_AT.iter().find(|(_, known, _)| *known == plural) else { return };
        let namespace = text(object, "/metadata/namespace").map(str::to_owned);
        let at = Collection { api_version: (*version).to_owned(), plural: plural.to_owned(), namespace };
        self.out.edits.push(Edit { at, name: name(object).to_owned(), act, why: why.into() });
    }

    /// Neither lives nor comes back.
    fn is_dead(&self, node: &str) -> bool {
        !self.known.living.contains(node) && !self.known.returning.contains(node)
    }

    fn webhooks(&mut self) {
        for plural in webhooks::PLURALS {
            for object in self.all(plural) {
                if let Some((patch, names)) = relaxed(object) {
                    let why = format!("{names} fails closed, and its backend does not run yet: put back later");
                    self.edit(plural, object, Act::Patch(patch), why);
                }
            }
        }
    }

    fn nodes(&mut self) {
        for node in self.all("nodes") {
            let name = name(node);
            if !self.known.living.contains(name) {
                let why = if self.known.returning.contains(name) { "it registers anew" } else { "its server is gone" };
                self.edit("nodes", node, Act::Delete { grace: Some(0) }, why);
                continue;
            }
            let said = text(node, "/spec/providerID").and_then(|id| id.rsplit('/').next()?.parse::<u64>().ok());
            if let (Some(said), Some(is)) = (said, self.known.server_ids.get(name))
                && said != *is
            {
                let why = format!("it names server {said}, and runs on {is}: a cloud controller would delete it");
                self.edit("nodes", node, Act::Recreate(without_provider(node)), why);
            }
        }
        let there: BTreeSet<&str> = self.all("nodes").iter().map(name).collect();
        self.out.unregistered =
            self.known.living.iter().filter(|node| !there.contains(node.as_str())).cloned().collect();
    }

    /// Those that go, as edits that are not decided yet.
    fn pods(&mut self) -> Vec<Edit> {
        let before = self.out.edits.len();
        for pod in self.all("pods") {
            let id = (namespace(pod).to_owned(), name(pod).to_owned());
            let why = match text(pod, "/spec/nodeName").filter(|node| self.is_dead(node)) {
                Some(node) => format!("it was on {node}, which is gone"),
                None if self.suspended.contains(&id) => "its controller is suspended".to_owned(),
                None => continue,
            };
            self.gone.insert(id);
            self.edit("pods", pod, Act::Delete { grace: Some(0) }, why);
        }
        self.out.edits.split_off(before)
    }

    fn attachments(&mut self) {
        for attachment in self.all("volumeattachments") {
            let node = text(attachment, "/spec/nodeName").unwrap_or_default();
            if self.known.living.contains(node) {
                continue;
            }
            // The attacher that would take its finalizer off does not run yet, and the server it speaks of is gone.
            let why = format!("{node} has nothing attached any more");
            if attachment.pointer("/metadata/finalizers").is_some_and(|f| f.as_array().is_some_and(|f| !f.is_empty())) {
                let patch = json!({"metadata": {"finalizers": null}});
                self.edit("volumeattachments", attachment, Act::Patch(patch), why.clone());
            }
            self.edit("volumeattachments", attachment, Act::Delete { grace: None }, why);
        }
    }

    /// Those of nodes, and of leaders that died: a successor would wait for their end.
    fn leases(&mut self) {
        for lease in self.all("leases") {
            let (namespace, name) = (namespace(lease), name(lease));
            let holder = text(lease, "/spec/holderIdentity").unwrap_or_default();
            let who = holder.split('_').next().unwrap_or_default();
            let why = match namespace {
                "kube-node-lease" if !self.known.living.contains(name) => "its node does not live".to_owned(),
                "kube-node-lease" => continue,
                // An API server's own lease is live: the one that answers here holds one.
                "kube-system" if name.starts_with("apiserver-") => continue,
                // Controllers are stopped when this is decided: no leader of theirs lives.
                "kube-system" => format!("{who} holds it no more"),
                _ if self.gone.contains(&(namespace.to_owned(), who.to_owned())) => format!("pod {who} is gone"),
                _ if self.known.living.is_empty() && !holder.is_empty() => {
                    format!("{who} ran on a server that is gone")
                }
                _ => continue,
            };
            self.edit("leases", lease, Act::Delete { grace: None }, why);
        }
    }

    fn endpoint_slices(&mut self) {
        for slice in self.all("endpointslices") {
            let Some(endpoints) = slice["endpoints"].as_array() else { continue };
            let stay: Vec<&Value> =
                endpoints.iter().filter(|e| !text(e, "/nodeName").is_some_and(|node| self.is_dead(node))).collect();
            if stay.len() < endpoints.len() {
                let why = format!("{} of its endpoints are on servers that are gone", endpoints.len() - stay.len());
                self.edit("endpointslices", slice, Act::Patch(json!({"endpoints": stay})), why);
            }
        }
    }

    fn endpoints(&mut self) {
        for endpoints in self.all("endpoints") {
            let Some(subsets) = endpoints["subsets"].as_array() else { continue };
            let dead = |address: &Value| text(address, "/nodeName").is_some_and(|node| self.is_dead(node));
            let mut stay = subsets.clone();
            let mut taken = 0;
            for subset in &mut stay {
                for list in ["addresses", "notReadyAddresses"] {
                    if let Some(addresses) = subset.get_mut(list).and_then(Value::as_array_mut) {
                        let before = addresses.len();
                        addresses.retain(|address| !dead(address));
                        taken += before - addresses.len();
                    }
                }
            }
            let empty = |subset: &Value, list: &str| subset[list].as_array().is_none_or(Vec::is_empty);
            stay.retain(|subset| !(empty(subset, "addresses") && empty(subset, "notReadyAddresses")));
            if taken > 0 {
                let why = format!("{taken} of its addresses are on servers that are gone");
                self.edit("endpoints", endpoints, Act::Patch(json!({"subsets": stay})), why);
            }
        }
    }

    fn secrets(&mut self) {
        let mut valid = Vec::new();
        for secret in self.all("secrets") {
            if let Some(node) = name(secret).strip_suffix(NODE_PASSWORD) {
                if !self.known.living.contains(node) {
                    let why = format!("it would refuse a new server that is called {node}");
                    self.edit("secrets", secret, Act::Delete { grace: None }, why);
                }
            } else if secret["type"] == BOOTSTRAP_TOKEN {
                if self.known.now.zip(expiration(secret)).is_some_and(|(now, end)| end <= now) {
                    let why = "this way in has expired, and nothing has cleaned it up yet";
                    self.edit("secrets", secret, Act::Delete { grace: None }, why);
                } else {
                    valid.push(name(secret).to_owned());
                }
            }
        }
        if !valid.is_empty() {
            let tokens = valid.join(", ");
            self.out.findings.push(format!(
                "bootstrap tokens are valid again that may have been revoked since: {tokens}; delete those that nobody needs"
            ));
        }
    }

    /// Their deletion goes on when the controllers start; nothing can take it back.
    fn namespaces(&mut self) {
        let ending: Vec<&Value> =
            self.all("namespaces").iter().filter(|n| n.pointer("/metadata/deletionTimestamp").is_some()).collect();
        let away: Vec<&str> =
            self.all("apiservices").iter().filter(|s| s["spec"]["service"].is_object()).map(name).collect();
        for namespace in ending {
            let mut finding = format!(
                "namespace {} was being deleted at that time, and its deletion goes on: what it held is in earlier \
                 snapshots (hk-dr restore-object)",
                name(namespace)
            );
            if !away.is_empty() {
                finding += &format!("; it waits until these APIs answer: {}", away.join(", "));
            }
            self.out.findings.push(finding);
        }
    }

    fn volumes(&mut self) {
        for volume in self.all("persistentvolumes") {
            let places = places(volume);
            if places.is_empty() || self.known.locations.is_empty() {
                continue;
            }
            if places.iter().all(|place| !is_in(place, &self.known.locations)) {
                let claim = match (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name")) {
                    (Some(namespace), Some(claim)) => format!(", claimed as {namespace}/{claim},"),
                    _ => String::new(),
                };
                let places = places.into_iter().collect::<Vec<_>>().join(" or ");
                self.out.findings.push(format!(
                    "persistent volume {}{claim} can be used only in {places}, where no worker is: copy its data, or put \
                     a worker there",
                    name(volume)
                ));
            }
        }
    }
}

/// `fsn1` is meant by `fsn1`, and by the zone `fsn1-dc14`.
fn is_in(place: &str, locations: &BTreeSet<String>) -> bool {
    locations
        .iter()
        .any(|location| place == location || place.strip_prefix(location.as_str()).is_some_and(|r| r.starts_with('-')))
}

/// The places a volume is bound to, by its node affinity; none: it says nothing of places that are known here.
fn places(volume: &Value) -> BTreeSet<&str> {
    let terms = volume.pointer("/spec/nodeAffinity/required/nodeSelectorTerms").and_then(Value::as_array);
    let expressions = terms.into_iter().flatten().filter_map(|term| term["matchExpressions"].as_array()).flatten();
    expressions
        .filter(|e| e["operator"] == "In" && e["key"].as_str().is_some_and(|key| PLACE_KEYS.contains(&key)))
        .filter_map(|e| e["values"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// A Node to be made anew: everything that was set on it, and nothing that the API server or a cloud controller fills in.
fn without_provider(node: &Value) -> Value {
    let mut spec = node["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("providerID");
    }
    let mut metadata = json!({"name": name(node)});
    for field in ["labels", "annotations"] {
        if let Some(value) = node["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})
}

/// When a bootstrap token ends; none: never, or it is not said in a way that can be read.
fn expiration(secret: &Value) -> Option<Timestamp> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text(secret, "/data/expiration")?).ok()?;
    String::from_utf8(bytes).ok()?.trim().parse().ok()
}

fn text<'v>(object: &'v Value, pointer: &str) -> Option<&'v str> {
    object.pointer(pointer).and_then(Value::as_str)
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name").unwrap_or_default()
}

fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace").unwrap_or_default()
}
