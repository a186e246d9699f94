//! Where clients arrive: which load balancers and floating IPs there should be, and the steps to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::draft::{Basis, Draft};
use super::params::{
    BalancerDelete, BalancerProvide, FloatingIpAssign, FloatingIpDelete, FloatingIpProvide, FrontConfigure,
};
use super::perimeter::of_role;
use super::{Inventory, OWNER_LABEL};
use crate::config::{BalancerConfig, Cluster, FloatingIpConfig, INGRESS_PORT};
use crate::distribution::{API_PORT, server_name};
use crate::ports::{Balancer, BalancerService, BalancerTarget, FloatingIp, HealthCheck, Labels, Server, ServerStatus};

/// Steps of load balancers.
const API: &str = "balancer/api";
const INGRESS: &str = "balancer/ingress";

/// A load balancer as Git wants it, with the id of its step. Its labels are those of a new one.
pub(super) fn wanted_balancers(cluster: &Cluster) -> Vec<(&'static str, BalancerProvide)> {
    let Some(front) = &cluster.front else { return Vec::new() };
    let wanted =
        |name: &str, config: &BalancerConfig, public: bool, listen: u16, to: u16, role: &str| BalancerProvide {
            name: format!("{}-{name}", cluster.name),
            balancer_type: config.balancer_type.clone(),
            location: config.location.clone(),
            public,
            network: cluster.name.clone(),
            address: config.address,
            services: vec![service(listen, to)],
            target: BalancerTarget::Selector { selector: of_role(cluster, role), private: true },
            labels: Labels::new(),
        };
    let mut found = Vec::new();
    if let Some(api) = &front.api {
        found.push((API, wanted("api", api, false, API_PORT, API_PORT, "master")));
    }
    if let Some(ingress) = &front.ingress
        && let Some(config) = &ingress.load_balancer
    {
        found.push((INGRESS, wanted("ingress", config, true, INGRESS_PORT, ingress.port, "worker")));
    }
    found
}

/// Names of the load balancers that are declared.
pub fn balancer_names(cluster: &Cluster) -> Vec<String> {
    wanted_balancers(cluster).into_iter().map(|(_, wanted)| wanted.name).collect()
}

/// Full name and declared location of all that needs a place.
pub(super) fn arrivals(cluster: &Cluster) -> Vec<(String, &str)> {
    let balancers = cluster.front.iter().flat_map(|f| f.balancers()).map(|(_, config)| config.location.as_str());
    let floating = cluster.floating_ips().iter().map(|f| (floating_ip_name(cluster, f), f.location.as_str()));
    balancer_names(cluster).into_iter().zip(balancers).chain(floating).collect()
}

/// Full name and location of what exists.
pub(super) fn where_they_are(inventory: &Inventory) -> BTreeMap<&str, &str> {
    let balancers = inventory.balancers.iter().map(|b| (b.name.as_str(), b.location.as_str()));
    balancers.chain(inventory.floating_ips.iter().map(|f| (f.name.as_str(), f.location.as_str()))).collect()
}

/// One check decides: the kernel answers a connection, and a lost packet is sent again within the timeout. Three seconds are
/// the shortest interval there is.
fn service(listen_port: u16, destination_port: u16) -> BalancerService {
    BalancerService {
        protocol: "tcp".into(),
        listen_port,
        destination_port,
        proxy_protocol: false,
        check: HealthCheck { protocol: "tcp".into(), port: destination_port, interval: 3, timeout: 2, retries: 1 },
    }
}

/// How a load balancer differs from what is wanted, as sentences; empty if it does not. Its place and type are no matter here:
/// no build changes them. `network` is the id of the private network, where it is known.
pub fn balancer_differences(wanted: &BalancerProvide, found: &Balancer, network: Option<u64>) -> Vec<String> {
    let mut differences = Vec::new();
    let there = found.private.iter().any(|p| p.address == wanted.address && network.is_none_or(|id| id == p.network));
    if !there {
        differences.push(format!("it is not at {} in network {}", wanted.address, wanted.network));
    }
    if found.public_ipv4.is_some() != wanted.public {
        let has = if wanted.public { "it has no public address" } else { "it has a public address" };
        differences.push(has.into());
    }
    for service in &wanted.services {
        match found.services.iter().find(|s| s.listen_port == service.listen_port) {
            None => differences.push(format!("it takes nothing at {}", service.listen_port)),
            Some(other) if other != service => {
                let words = |s: &BalancerService| {
                    format!(
                        "{} to {}, checked at {} every {} s",
                        s.protocol, s.destination_port, s.check.port, s.check.interval
                    )
                };
                differences.push(format!("its service at {} is {}", service.listen_port, words(other)));
            }
            Some(_) => {}
        }
    }
    for service in found.services.iter().filter(|s| !wanted.services.iter().any(|w| w.listen_port == s.listen_port)) {
        differences.push(format!("it also takes connections at {}", service.listen_port));
    }
    if !found.targets.contains(&wanted.target) {
        differences.push(format!("{} is no target of it", target_in_words(&wanted.target)));
    }
    for target in found.targets.iter().filter(|t| **t != wanted.target) {
        differences.push(format!("it also has the target {}", target_in_words(target)));
    }
    differences
}

fn target_in_words(target: &BalancerTarget) -> String {
    let side = |private: &bool| if *private { "private" } else { "public" };
    match target {
        BalancerTarget::Selector { selector, private } => format!("{selector} ({})", side(private)),
        BalancerTarget::Server { id, private } => format!("server {id} ({})", side(private)),
        BalancerTarget::Address(address) => address.clone(),
    }
}

/// Full name of a floating IP.
pub fn floating_ip_name(cluster: &Cluster, config: &FloatingIpConfig) -> String {
    format!("{}-{}", cluster.name, config.name)
}

/// The floating IP that is declared as this, if it exists.
pub(super) fn found_floating_ip<'a>(
    cluster: &Cluster,
    inventory: &'a Inventory,
    config: &FloatingIpConfig,
) -> Option<&'a FloatingIp> {
    let name = floating_ip_name(cluster, config);
    inventory.floating_ips.iter().find(|f| f.name == name)
}

/// Addresses that every worker should have configured, as far as they exist.
pub(super) fn carried(cluster: &Cluster, inventory: &Inventory) -> BTreeSet<Ipv4Addr> {
    let found = cluster.floating_ips().iter().filter_map(|config| found_floating_ip(cluster, inventory, config));
    found.map(|f| f.address).collect()
}

/// Why this server should not have a floating IP; none: it may.
pub(super) fn unfit(cluster: &Cluster, inventory: &Inventory, server: Option<&Server>) -> Option<String> {
    let Some(server) = server else { return Some("no server of this cluster has it".into()) };
    if !cluster.workers.iter().any(|w| server_name(cluster, &w.name) == server.name) {
        return Some(format!("{} has it, which is no worker", server.name));
    }
    if server.status != ServerStatus::Running {
        return Some(format!("{} has it, which does not run", server.name));
    }
    (!inventory.ready_nodes.contains(&server.name)).then(|| format!("{} has it, whose Node is not ready", server.name))
}

impl Draft<'_> {
    /// Load balancers and floating IPs that are missing or differ. They need no server.
    pub fn front(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let network = inventory.network.as_ref().map(|n| n.id);
        for (step, mut wanted) in wanted_balancers(cluster) {
            let found = inventory.balancers.iter().find(|b| b.name == wanted.name);
            let differences =
                found.map_or_else(|| vec!["it does not exist".into()], |f| balancer_differences(&wanted, f, network));
            if differences.is_empty() || self.has(step) {
                continue;
            }
            wanted.location = self.locations.get(&wanted.name).cloned().unwrap_or(wanted.location);
            // It outlives rebuilds: it keeps the lineage it was made with.
            wanted.labels = found.map_or_else(|| self.labels(), |f| f.labels.clone());
            let (verb, what) = (if found.is_some() { "correct" } else { "create" }, where_it_listens(&wanted));
            let title = format!("{verb} load balancer {} ({what})", wanted.name);
            self.add(step, &wanted, &["network"], title, differences.join("; "), 180);
            if found.is_none() {
                self.seen_absent();
            }
        }
        for config in cluster.floating_ips() {
            let step = floating_step(config);
            if found_floating_ip(cluster, inventory, config).is_some() || self.has(&step) {
                continue;
            }
            let name = floating_ip_name(cluster, config);
            let location = self.locations.get(&name).cloned().unwrap_or_else(|| config.location.clone());
            let title = format!("create floating IP {name} in {location}");
            let params = FloatingIpProvide { name, location, labels: self.labels() };
            self.add(step, &params, &[], title, "it does not exist", 120);
            self.seen_absent();
        }
    }

    /// Floating IPs inside workers, and to one of them each. Comes after all steps of workers; `leaving` are those whose
    /// server goes.
    pub fn floating(&mut self, leaving: &[&str]) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        if cluster.floating_ips().is_empty() && inventory.probes.values().all(|p| p.front_addresses.is_empty()) {
            return;
        }
        let names: Vec<String> = cluster.floating_ips().iter().map(|c| floating_ip_name(cluster, c)).collect();
        let made: Vec<String> = cluster.floating_ips().iter().map(floating_step).collect();
        let carried = carried(cluster, inventory);
        for worker in &cluster.workers {
            let full = self.full(&worker.name);
            let has = inventory.probes.get(&full).is_some_and(|p| p.front_addresses == carried);
            if has && !self.has(&format!("server/{full}")) && !made.iter().any(|step| self.has(step)) {
                continue;
            }
            let ready = format!("ready/{full}");
            let needs: Vec<&str> = made.iter().map(String::as_str).chain([ready.as_str()]).collect();
            let params = FrontConfigure { server: full.clone(), floating_ips: names.clone() };
            let title = format!("configure {} on {full}", some_or_none(&names));
            let reason = "only an address that its worker has configured can be answered at";
            self.add(format!("front/{full}"), &params, &needs, title, reason, 60);
        }
        for (index, config) in cluster.floating_ips().iter().enumerate() {
            self.assign(index, config, leaving);
        }
    }

    fn assign(&mut self, index: usize, config: &FloatingIpConfig, leaving: &[&str]) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let found = found_floating_ip(cluster, inventory, config);
        let holder = found.and_then(|f| f.server).and_then(|id| inventory.servers.iter().find(|s| s.id == id));
        let goes = |name: &str| leaving.contains(&name);
        let reason = match holder {
            Some(server) if goes(&server.name) => format!("{} has it, which goes", server.name),
            _ => match unfit(cluster, inventory, holder) {
                None => return,
                Some(why) => why,
            },
        };
        let workers: Vec<String> = cluster.workers.iter().map(|w| self.full(&w.name)).collect();
        let well = |full: &&String| !goes(full) && unfit(cluster, inventory, inventory.server(full)).is_none();
        let mut candidates: Vec<&String> = workers.iter().filter(well).collect();
        if candidates.is_empty() {
            candidates = workers.iter().filter(|full| self.has(&format!("node/{full}"))).collect();
        }
        let name = floating_ip_name(cluster, config);
        let Some(server) = candidates.get(index % candidates.len().max(1)).map(|s| (*s).clone()) else {
            self.findings.push(format!("{name} can go to no worker now ({reason}): none is ready, and none is made"));
            return;
        };
        // Whoever watches over it may have been quicker.
        let fine = workers.iter().filter(|w| holder.is_none_or(|h| h.name != **w)).cloned().collect();
        let needs = [format!("front/{server}"), format!("node/{server}"), floating_step(config)];
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let params = FloatingIpAssign { name: name.clone(), server: server.clone(), fine };
        self.add(format!("assign/{name}"), &params, &needs, format!("route {name} to {server}"), reason, 60);
        if found.is_none() {
            self.seen_absent();
        }
    }

    /// Deletes the cluster's load balancers and floating IPs.
    pub fn no_front(&mut self, owned: impl Fn(&Labels) -> bool, needs: &[&str], reason: &str) {
        for balancer in self.basis.inventory.balancers.iter().filter(|b| owned(&b.labels)) {
            let params = BalancerDelete { id: balancer.id, name: balancer.name.clone() };
            let title = format!("delete load balancer {}{}", balancer.name, lost(balancer.public_ipv4));
            self.add(format!("no-balancer/{}", balancer.name), &params, &[], title, reason, 120);
        }
        for floating in self.basis.inventory.floating_ips.iter().filter(|f| owned(&f.labels)) {
            let params = FloatingIpDelete { id: floating.id, name: floating.name.clone() };
            let title = format!("delete floating IP {}{}", floating.name, lost(Some(floating.address)));
            self.add(format!("no-floating-ip/{}", floating.name), &params, needs, title, reason, 120);
        }
    }
}

/// What the world knows may be in its name servers.
fn lost(address: Option<Ipv4Addr>) -> String {
    address.map_or_else(String::new, |a| format!(": its address {a} is lost for good"))
}

fn some_or_none(names: &[String]) -> String {
    if names.is_empty() { "no floating IP any more".into() } else { names.join(", ") }
}

fn floating_step(config: &FloatingIpConfig) -> String {
    format!("floating/{}", config.name)
}

fn where_it_listens(wanted: &BalancerProvide) -> String {
    let ports: Vec<String> = wanted.services.iter().map(|s| s.listen_port.to_string()).collect();
    let side = if wanted.public { "of the world" } else { "of the private network only" };
    format!("{} at {}, {side}", ports.join(", "), wanted.address)
}

/// Load balancers and floating IPs with the cluster's label that Git declares nowhere.
pub(super) fn undeclared(basis: &Basis<'_>) -> Vec<(String, &'static str)> {
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let wanted = balancer_names(cluster);
    let names: Vec<String> = cluster.floating_ips().iter().map(|c| floating_ip_name(cluster, c)).collect();
    let balancers = inventory.balancers.iter().filter(|b| !wanted.contains(&b.name));
    let floating = inventory.floating_ips.iter().filter(|f| !names.contains(&f.name));
    let owned = |labels: &Labels| labels.get(OWNER_LABEL).is_some_and(|owner| *owner == cluster.name);
    balancers
        .filter(|b| owned(&b.labels))
        .map(|b| (b.name.clone(), "load balancer"))
        .chain(floating.filter(|f| owned(&f.labels)).map(|f| (f.name.clone(), "floating IP")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        crate::config::parse(include_str!("../../examples/private/cluster.yaml"), "cluster.yaml").unwrap()
    }

    fn as_found(wanted: &BalancerProvide) -> Balancer {
        Balancer {
            id: 7,
            name: wanted.name.clone(),
            location: wanted.location.clone(),
            balancer_type: wanted.balancer_type.clone(),
            public_ipv4: wanted.public.then_some([203, 0, 113, 9].into()),
            private: vec![crate::ports::PrivateAddress { network: 1, address: wanted.address }],
            services: wanted.services.clone(),
            targets: vec![wanted.target.clone()],
            labels: Labels::new(),
        }
    }

    #[test]
    fn the_api_is_private_and_the_ingress_is_not() {
        let wanted = wanted_balancers(&cluster());
        let [(_, api), (_, ingress)] = &wanted[..] else { panic!("{wanted:?}") };
        assert!(!api.public && ingress.public);
        assert_eq!((api.services[0].listen_port, ingress.services[0].listen_port), (6443, 443));
        for (balancer, role) in [(api, "master"), (ingress, "worker")] {
            let selector = format!("hk-dr/cluster==private,hk-dr/role=={role}");
            assert_eq!(balancer.target, BalancerTarget::Selector { selector, private: true });
        }
    }

    #[test]
    fn what_was_changed_by_hand_is_named() {
        let wanted = wanted_balancers(&cluster()).remove(0).1;
        assert_eq!(balancer_differences(&wanted, &as_found(&wanted), Some(1)), Vec::<String>::new());
        assert_eq!(balancer_differences(&wanted, &as_found(&wanted), Some(2)).len(), 1);
        let mut changed = as_found(&wanted);
        changed.services[0].check.interval = 15;
        changed.services.push(BalancerService { listen_port: 80, ..changed.services[0].clone() });
        changed.targets = vec![BalancerTarget::Address("192.0.2.7".into())];
        changed.public_ipv4 = Some([203, 0, 113, 9].into());
        assert_eq!(
            balancer_differences(&wanted, &changed, Some(1)),
            [
                "it has a public address",
                "its service at 6443 is tcp to 6443, checked at 6443 every 15 s",
                "it also takes connections at 80",
                "hk-dr/cluster==private,hk-dr/role==master (private) is no target of it",
                "it also has the target 192.0.2.7",
            ]
        );
    }
}
