use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::error::Report;
use super::names::is_label;
use super::tree::Tree;

/// Where clients of the cluster arrive: those of the Kubernetes API inside the private network, those of what runs on it
/// from the world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrontConfig {
    /// A load balancer for the Kubernetes API at a private address, with no public interface. Its targets are the masters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<BalancerConfig>,
    /// How the world reaches the ingress controller on the workers: at TCP 443, through a load balancer, floating IPs or both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressConfig>,
}

/// A load balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalancerConfig {
    pub location: String,
    /// `lb11`, `lb21` or `lb31`.
    #[serde(rename = "type")]
    pub balancer_type: String,
    /// Pinned private address.
    pub address: Ipv4Addr,
}

/// The way in from the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressConfig {
    /// The TCP port of every worker at which the ingress controller takes connections (its host port or node port).
    #[serde(default = "default_port")]
    pub port: u16,
    /// Takes TCP 443 of its public address to that port of the workers, through the private network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<BalancerConfig>,
    /// Addresses that follow a healthy worker.
    #[serde(default, rename = "floatingIPs", skip_serializing_if = "Vec::is_empty")]
    pub floating_ips: Vec<FloatingIpConfig>,
}

/// An address that is routed to one worker at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FloatingIpConfig {
    /// Short name; the address is called `<cluster>-<name>` in the cloud, which chooses it.
    pub name: String,
    /// Where its traffic enters; it can be routed to any worker.
    pub location: String,
}

/// What the world is let in to.
pub const INGRESS_PORT: u16 = 443;
/// Types of load balancers.
const TYPES: [&str; 3] = ["lb11", "lb21", "lb31"];

fn default_port() -> u16 {
    INGRESS_PORT
}

impl FrontConfig {
    /// Path and configuration of every load balancer.
    pub fn balancers(&self) -> impl Iterator<Item = (&'static str, &BalancerConfig)> {
        let ingress = self.ingress.iter().filter_map(|i| i.load_balancer.as_ref());
        self.api.iter().map(|b| ("front.api", b)).chain(ingress.map(|b| ("front.ingress.loadBalancer", b)))
    }
}

impl Cluster {
    /// The private address of the API's load balancer.
    pub fn api_balancer(&self) -> Option<Ipv4Addr> {
        self.front.as_ref()?.api.as_ref().map(|b| b.address)
    }

    /// How the world gets in.
    pub fn ingress(&self) -> Option<&IngressConfig> {
        self.front.as_ref()?.ingress.as_ref()
    }

    /// Addresses that follow a healthy worker.
    pub fn floating_ips(&self) -> &[FloatingIpConfig] {
        self.ingress().map_or(&[], |ingress| &ingress.floating_ips)
    }
}

pub(super) fn check(cluster: &Cluster, tree: &Tree, report: &mut Report) {
    let Some(front) = &cluster.front else { return };
    let mut wrong = |path: &str, message: String, hint: &str| {
        report.add(tree.place(path), message, Some(hint.to_owned()));
    };
    if front.api.is_none() && front.ingress.is_none() {
        wrong("front", "front declares nothing".into(), "declare `api`, `ingress` or both, or leave `front` out");
    }
    for (path, balancer) in front.balancers() {
        if !TYPES.contains(&balancer.balancer_type.as_str()) {
            let message = format!("`{}` is no type of load balancer", balancer.balancer_type);
            wrong(&format!("{path}.type"), message, "one of lb11, lb21, lb31");
        }
    }
    let Some(ingress) = &front.ingress else { return };
    if ingress.load_balancer.is_none() && ingress.floating_ips.is_empty() {
        let hint = "declare `loadBalancer`, `floatingIPs` or both";
        wrong("front.ingress", "nothing takes the world's connections".into(), hint);
    }
    if cluster.workers.is_empty() {
        wrong("front.ingress", "there is no worker to take them".into(), "declare workers, or leave `ingress` out");
    }
    if ingress.port == 0 || RESERVED.contains(&ingress.port) {
        let message = format!("port {} of the workers is not an ingress controller's", ingress.port);
        wrong("front.ingress.port", message, "443, or a node port from 30000 to 32767");
    }
    if ingress.floating_ips.is_empty() {
        return;
    }
    if ingress.port != INGRESS_PORT {
        let message = format!("a floating IP takes connections to 443 as they are, not to {}", ingress.port);
        wrong("front.ingress.port", message, "let the ingress controller listen at 443 of its worker (a host port)");
    }
    if !cluster.network.public_ipv4.workers() {
        let message = "workers without a public address can't answer at a floating IP".to_owned();
        wrong(
            "front.ingress.floatingIPs",
            message,
            "write `publicIPv4: workers` below `network`, or use a loadBalancer",
        );
    }
    let mut seen = BTreeSet::new();
    for (index, address) in ingress.floating_ips.iter().enumerate() {
        let at = format!("front.ingress.floatingIPs.{index}.name");
        if !is_label(&address.name) {
            let message = format!("`{}` can't be a floating IP's name", address.name);
            wrong(&at, message, "lower-case letters, digits and dashes");
        }
        if !seen.insert(&address.name) {
            wrong(&at, format!("two floating IPs are called `{}`", address.name), "names are unique among them");
        }
    }
}

/// SSH, and what Kubernetes listens at on a worker.
const RESERVED: [u16; 5] = [22, 10249, 10250, 10256, 6443];

#[cfg(test)]
mod tests {
    use crate::config::{Pinned, load};

    const PRIVATE: &str = include_str!("../../examples/private/cluster.yaml");

    fn pinned() -> Pinned {
        let kubernetes = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
        let mut pinned: Pinned = kubernetes.iter().map(|n| ((*n).to_owned(), vec!["1.35.4".to_owned()])).collect();
        pinned.extend(["etcd", "etcdutl"].map(|n| (n.to_owned(), vec!["3.6.16".to_owned()])));
        pinned.insert("demo-images".into(), vec!["1".into()]);
        pinned
    }

    /// The example with another front.
    fn with(front: &str, public: &str) -> String {
        let (before, rest) = PRIVATE.split_once("front:\n").unwrap();
        let (_, after) = rest.split_once("fallbackLocations:").unwrap();
        let text = format!("{before}{front}fallbackLocations:{after}").replace("publicIPv4: workers", public);
        load(&text, "cluster.yaml", &pinned()).map_or_else(|e| e.plain(), |_| "accepted".into())
    }

    #[test]
    fn the_example_is_right_and_each_part_may_be_left_out() {
        load(PRIVATE, "cluster.yaml", &pinned()).unwrap();
        for front in [
            "",
            "front:\n  api: {location: fsn1, type: lb11, address: 10.0.0.5}\n",
            "front:\n  ingress:\n    floatingIPs: [{name: www, location: fsn1}]\n",
            "front:\n  ingress:\n    port: 30443\n    loadBalancer: {location: fsn1, type: lb21, address: 10.0.0.6}\n",
        ] {
            assert_eq!(with(front, "publicIPv4: workers"), "accepted", "{front}");
        }
    }

    #[test]
    fn mistakes_are_told_with_place_and_hint() {
        for (front, public, says) in [
            ("front: {}\n", "workers", "23:8: front declares nothing"),
            (
                "front:\n  api: {location: fsn1, type: cx23, address: 10.0.0.5}\n",
                "workers",
                "`cx23` is no type of load balancer",
            ),
            ("front:\n  api: {location: mars, type: lb11, address: 10.0.0.5}\n", "workers", "unknown location `mars`"),
            (
                "front:\n  api: {location: fsn1, type: lb11, address: 10.1.0.5}\n",
                "workers",
                "10.1.0.5 is not in the subnet",
            ),
            (
                "front:\n  api: {location: fsn1, type: lb11, address: 10.0.0.11}\n",
                "workers",
                "the address 10.0.0.11 is given twice",
            ),
            (
                "front:\n  api: {location: fsn1, type: lb11, addresses: 10.0.0.5}\n",
                "workers",
                "unknown field `addresses`",
            ),
            ("front:\n  ingress: {}\n", "workers", "nothing takes the world's connections"),
            (
                "front:\n  ingress:\n    port: 30443\n    floatingIPs: [{name: www, location: fsn1}]\n",
                "workers",
                "takes connections to 443 as they are, not to 30443",
            ),
            (
                "front:\n  ingress:\n    floatingIPs: [{name: www, location: fsn1}]\n",
                "none",
                "workers without a public address can't answer at a floating IP (write `publicIPv4: workers`",
            ),
            (
                "front:\n  ingress:\n    floatingIPs: [{name: www, location: fsn1}, {name: www, location: hel1}]\n",
                "workers",
                "two floating IPs are called `www`",
            ),
            (
                "front:\n  ingress:\n    floatingIPs: [{name: www, location: ash}]\n",
                "workers",
                "ash is in zone us-east, the network in eu-central",
            ),
            (
                "front:\n  ingress:\n    port: 10250\n    loadBalancer: {location: fsn1, type: lb11, address: 10.0.0.6}\n",
                "workers",
                "port 10250 of the workers is not an ingress controller's",
            ),
        ] {
            let found = with(front, &format!("publicIPv4: {public}"));
            assert!(found.contains(says), "{says} in\n{found}");
        }
    }
}
