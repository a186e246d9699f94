//! What stands between the world and the servers: which firewalls there should be, and the steps to them.

use std::collections::BTreeSet;

use super::draft::{Draft, OWNER_LABEL, ROLE_LABEL};
use super::params::{FirewallDelete, FirewallProvide};
use crate::config::{Cluster, INGRESS_PORT};
use crate::distribution::API_PORT;
use crate::ports::{Firewall, FirewallRule, Labels};

/// Everywhere, in both families.
const WORLD: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A firewall as Git wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedFirewall {
    /// Id of its step.
    pub step: &'static str,
    pub name: String,
    pub selector: String,
    pub rules: Vec<FirewallRule>,
    /// For people.
    pub lets_in: String,
}

/// The firewalls that Git wants: one over all servers that lets in nothing (or management, where there is no VPN), and one for
/// each role that the world may talk to.
pub(super) fn wanted_firewalls(cluster: &Cluster) -> Vec<WantedFirewall> {
    let Some(config) = &cluster.firewall else { return Vec::new() };
    let all = format!("{OWNER_LABEL}=={}", cluster.name);
    let management = |port: u16, what: &str| inward("tcp", port, config.management.clone(), what);
    let rules = match config.management.is_empty() {
        true => Vec::new(),
        false => vec![management(22, "SSH"), management(API_PORT, "Kubernetes API")],
    };
    let lets_in = match rules.is_empty() {
        true => "nothing".to_owned(),
        false => format!("SSH and the Kubernetes API from {}", config.management.join(", ")),
    };
    let mut wanted = Vec::new();
    if let Some(vpn) = &cluster.vpn {
        wanted.push(WantedFirewall {
            step: VPN,
            name: format!("{}-vpn", cluster.name),
            selector: of_role(cluster, "vpn"),
            rules: vec![inward("udp", vpn.port, WORLD.map(String::from).into(), "WireGuard")],
            lets_in: format!("WireGuard on UDP port {}", vpn.port),
        });
    }
    // Any worker may have a floating IP at any moment: a move is one call, and no rule is changed for it.
    if !cluster.floating_ips().is_empty() {
        wanted.push(WantedFirewall {
            step: INGRESS,
            name: format!("{}-ingress", cluster.name),
            selector: of_role(cluster, "worker"),
            rules: vec![inward("tcp", INGRESS_PORT, WORLD.map(String::from).into(), "ingress")],
            lets_in: format!("TCP {INGRESS_PORT}"),
        });
    }
    wanted.push(WantedFirewall { step: ALL, name: cluster.name.clone(), selector: all, rules, lets_in });
    wanted
}

/// Step of the firewall over all servers.
pub(super) const ALL: &str = "firewall";
const VPN: &str = "firewall-vpn";
const INGRESS: &str = "firewall-ingress";
/// Servers come behind firewalls that are there.
pub(super) const STEPS: [&str; 3] = [ALL, VPN, INGRESS];

/// Selects the cluster's servers of a role.
pub(super) fn of_role(cluster: &Cluster, role: &str) -> String {
    format!("{OWNER_LABEL}=={},{ROLE_LABEL}=={role}", cluster.name)
}

/// TCP ports that Git opens to someone at public addresses of servers of this role.
pub fn open_at(cluster: &Cluster, role: &str) -> BTreeSet<u16> {
    let (all, own) = (format!("{OWNER_LABEL}=={}", cluster.name), of_role(cluster, role));
    let wanted = wanted_firewalls(cluster).into_iter().filter(|w| w.selector == all || w.selector == own);
    let rules = wanted.flat_map(|w| w.rules);
    rules.filter(|r| r.protocol == "tcp").filter_map(|r| r.port?.parse().ok()).collect()
}

fn inward(protocol: &str, port: u16, networks: Vec<String>, what: &str) -> FirewallRule {
    FirewallRule {
        direction: "in".into(),
        protocol: protocol.into(),
        port: Some(port.to_string()),
        networks,
        description: what.into(),
    }
}

/// Whether two sets of rules let the same pass, whatever their order and descriptions.
pub fn same_rules(a: &[FirewallRule], b: &[FirewallRule]) -> bool {
    let sorted = |rules: &[FirewallRule]| {
        let mut rules: Vec<FirewallRule> = rules.to_vec();
        for rule in &mut rules {
            rule.description.clear();
            rule.networks.sort();
            rule.networks.dedup();
        }
        rules.sort();
        rules.dedup();
        rules
    };
    sorted(a) == sorted(b)
}

/// How a firewall differs from what is wanted, as sentences; empty if it does not.
pub(super) fn differences(wanted: &WantedFirewall, found: Option<&Firewall>) -> Vec<String> {
    let Some(found) = found else { return vec!["it does not exist".into()] };
    let mut differences = Vec::new();
    if !same_rules(&wanted.rules, &found.rules) {
        let extra = found
            .rules
            .iter()
            .filter(|r| !wanted.rules.iter().any(|w| same_rules(std::slice::from_ref(w), std::slice::from_ref(*r))));
        let extra: Vec<String> = extra.map(in_words).collect();
        differences.push(match extra.is_empty() {
            true => "it lacks a rule".into(),
            false => format!("it also lets pass {}", extra.join("; ")),
        });
    }
    if !found.selectors.contains(&wanted.selector) {
        differences.push(format!("it is not applied to {}", wanted.selector));
    }
    differences
}

fn in_words(rule: &FirewallRule) -> String {
    let port = rule.port.as_ref().map_or(String::new(), |p| format!(" {p}"));
    let way = if rule.direction == "in" { "from" } else { "to" };
    format!("{}{port} {way} {}", rule.protocol, rule.networks.join(", "))
}

impl Draft<'_> {
    /// Firewalls that are missing or differ, of those whose steps are chosen.
    pub fn firewalls(&mut self, choose: impl Fn(&str) -> bool, needs: &[&str]) {
        for wanted in wanted_firewalls(self.basis.cluster).into_iter().filter(|w| choose(w.step)) {
            let found = self.basis.inventory.firewalls.iter().find(|f| f.name == wanted.name);
            let differences = differences(&wanted, found);
            if differences.is_empty() || self.has(wanted.step) {
                continue;
            }
            // A firewall outlives rebuilds: it keeps the lineage it was made with.
            let labels = found.map_or_else(|| self.labels(), |f| f.labels.clone());
            let verb = if found.is_some() { "correct" } else { "create" };
            let title = format!("{verb} firewall {} ({} in)", wanted.name, wanted.lets_in);
            let params = FirewallProvide { name: wanted.name, selector: wanted.selector, rules: wanted.rules, labels };
            self.add(wanted.step, &params, needs, title, differences.join("; "), 120);
            if found.is_none() {
                self.seen_absent();
            }
        }
    }

    /// Deletes the cluster's firewalls.
    pub fn no_firewalls(&mut self, owned: impl Fn(&Labels) -> bool, needs: &[&str], reason: &str) {
        for firewall in self.basis.inventory.firewalls.iter().filter(|f| owned(&f.labels)) {
            let params = FirewallDelete { id: firewall.id, name: firewall.name.clone() };
            let title = format!("delete firewall {}", firewall.name);
            self.add(format!("no-firewall/{}", firewall.name), &params, needs, title, reason, 120);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::tests_support::demo;

    fn found(wanted: &WantedFirewall) -> Firewall {
        Firewall {
            id: 1,
            name: wanted.name.clone(),
            rules: wanted.rules.clone(),
            selectors: vec![wanted.selector.clone()],
            servers: Vec::new(),
            labels: Labels::new(),
        }
    }

    #[test]
    fn nothing_is_let_in_that_was_not_declared() {
        let mut cluster = demo();
        assert!(wanted_firewalls(&cluster).is_empty());
        cluster.firewall = Some(crate::config::FirewallConfig::default());
        assert_eq!(wanted_firewalls(&cluster)[0].rules, []);
        cluster.firewall = Some(crate::config::FirewallConfig { management: vec!["198.51.100.7/32".into()] });
        let wanted = &wanted_firewalls(&cluster)[0];
        assert!(wanted.rules.iter().all(|r| r.networks == ["198.51.100.7/32"]) && wanted.rules.len() == 2);
    }

    #[test]
    fn only_workers_are_open_at_443_and_only_for_floating_ips() {
        let text = include_str!("../../examples/private/cluster.yaml");
        let mut cluster = crate::config::parse(text, "cluster.yaml").unwrap();
        assert_eq!(open_at(&cluster, "worker"), BTreeSet::from([443]));
        assert!(open_at(&cluster, "master").is_empty() && open_at(&cluster, "vpn").is_empty());
        cluster.front.as_mut().unwrap().ingress.as_mut().unwrap().floating_ips.clear();
        assert!(open_at(&cluster, "worker").is_empty(), "a load balancer comes through the private network");
    }

    #[test]
    fn a_rule_by_hand_is_a_difference_and_order_is_none() {
        let mut cluster = demo();
        cluster.firewall =
            Some(crate::config::FirewallConfig { management: vec!["1.2.3.4/32".into(), "9.9.9.9/32".into()] });
        let wanted = wanted_firewalls(&cluster).remove(0);
        let mut firewall = found(&wanted);
        firewall.rules.reverse();
        firewall.rules[0].networks.reverse();
        firewall.rules[1].description = "renamed".into();
        assert_eq!(differences(&wanted, Some(&firewall)), Vec::<String>::new());
        firewall.rules.push(inward("tcp", 8080, WORLD.map(String::from).to_vec(), "by hand"));
        assert_eq!(differences(&wanted, Some(&firewall)), ["it also lets pass tcp 8080 from 0.0.0.0/0, ::/0"]);
        firewall.rules.clear();
        firewall.selectors.clear();
        assert_eq!(differences(&wanted, Some(&firewall)).len(), 2);
        assert_eq!(differences(&wanted, None), ["it does not exist"]);
    }
}
