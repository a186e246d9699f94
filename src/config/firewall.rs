use super::error::Report;
use super::tree::Tree;
use super::{Cluster, Range};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Default-deny in front of all public addresses of the cluster's servers. What is declared elsewhere (`vpn`, `front`) opens
/// exactly the port it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirewallConfig {
    /// Networks (such as `198.51.100.7/32`) from which SSH and the Kubernetes API are reached at public addresses. With a VPN
    /// nobody needs them: leave it out.
    #[serde(default)]
    pub management: Vec<String>,
}

pub(super) fn check(cluster: &Cluster, tree: &Tree, report: &mut Report) {
    let Some(firewall) = &cluster.firewall else { return };
    for (index, network) in firewall.management.iter().enumerate() {
        let at = tree.place(&format!("firewall.management.{index}"));
        match network.parse::<Range>() {
            Err(hint) => report.add(at, format!("`{network}` is not a range"), Some(hint)),
            Ok(range) if range.bits() == 0 => {
                let hint = "name the networks that people work from, or declare a VPN and leave `management` out";
                report.add(at, "SSH and the Kubernetes API would be open to the whole world", Some(hint.into()));
            }
            Ok(_) => {}
        }
    }
    if firewall.management.is_empty() && cluster.vpn.is_none() {
        let hint = "declare `vpn`, or the networks of `firewall.management` from which people work";
        let message = "nobody could reach the servers behind this firewall, hk-dr neither";
        report.add(tree.place("firewall"), message, Some(hint.into()));
    }
}
