//! What differs between what Git declares and what was found: the reasons a build would have, and what no build mends.

use serde::Serialize;

use super::draft::{Basis, volume_name};
use super::front::{
    balancer_differences, carried, floating_ip_name, found_floating_ip, undeclared, unfit, wanted_balancers,
};
use super::perimeter::{differences, wanted_firewalls};
use super::vpn::way_out;
use super::{NAME_LABEL, OWNER_LABEL, ROLE_LABEL};
use crate::distribution::server_name;
use crate::distribution::upstream::{Role, VPN_UNITS};
use crate::ports::ServerStatus;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// What it is about: a server, a volume, the network.
    pub what: String,
    pub declared: String,
    pub found: String,
    /// What mends it.
    pub mend: String,
}

const BUILD: &str = "hk-dr build";
/// Label of volumes that are kept on purpose after their data was superseded.
pub const RETIRED_LABEL: &str = "hk-dr/retired";

/// Compares. Empty: everything is as declared.
pub fn drift(basis: &Basis<'_>) -> Vec<Drift> {
    let mut found = Comparison { basis, drifts: Vec::new() };
    found.foundation();
    found.front();
    found.servers();
    found.volumes();
    found.members();
    found.unknown();
    found.drifts
}

struct Comparison<'a> {
    basis: &'a Basis<'a>,
    drifts: Vec<Drift>,
}

impl Comparison<'_> {
    fn add(&mut self, what: impl Into<String>, declared: impl ToString, found: impl ToString, mend: impl Into<String>) {
        self.drifts.push(Drift {
            what: what.into(),
            declared: declared.to_string(),
            found: found.to_string(),
            mend: mend.into(),
        });
    }

    fn foundation(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        for foreign in &inventory.foreign {
            self.add("a name", "this cluster's", foreign, "rename or remove what is in the way");
        }
        match &inventory.network {
            None => self.add("network", &cluster.network.range, "it does not exist", BUILD),
            Some(network) => {
                if network.range != cluster.network.range {
                    let mend = "a network's range can't be changed: correct cluster.yaml";
                    self.add("network", &cluster.network.range, &network.range, mend);
                }
                if let Some(vpn) = cluster.vpn.as_ref().filter(|v| !network.routes.contains(&way_out(v))) {
                    let found: Vec<String> =
                        network.routes.iter().map(|r| format!("{} through {}", r.destination, r.gateway)).collect();
                    let found = if found.is_empty() { "no route".into() } else { found.join(", ") };
                    self.add("network's way out", format!("through {}", vpn.address), found, BUILD);
                }
                if !network.subnets.iter().any(|s| s.range == cluster.network.subnet) {
                    let subnets: Vec<&str> = network.subnets.iter().map(|s| s.range.as_str()).collect();
                    let mend = "add the subnet in the cloud, or correct cluster.yaml";
                    self.add("network's subnet", &cluster.network.subnet, subnets.join(", "), mend);
                }
            }
        }
        let wanted = wanted_firewalls(cluster);
        for wanted in &wanted {
            let found = inventory.firewalls.iter().find(|f| f.name == wanted.name);
            for difference in differences(wanted, found) {
                self.add(format!("firewall {}", wanted.name), format!("lets in {}", wanted.lets_in), difference, BUILD);
            }
        }
        for firewall in inventory.firewalls.iter().filter(|f| !wanted.iter().any(|w| w.name == f.name)) {
            let mend = "declare it in cluster.yaml, or delete it in the cloud";
            self.add(format!("firewall {}", firewall.name), "nothing", "a firewall with this cluster's label", mend);
        }
        if inventory.placement_group.is_none() {
            self.add("placement group", "one for the masters", "it does not exist", BUILD);
        }
        match &inventory.ssh_key {
            None => self.add("SSH key", "registered", "it is not", BUILD),
            Some(key) => {
                let words = |k: &str| k.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
                if !self.basis.ssh_public_key.is_empty() && words(&key.public_key) != words(self.basis.ssh_public_key) {
                    self.add(
                        "SSH key",
                        "the one in ssh.pub",
                        "another one",
                        "hk-dr resume, if a rotation was interrupted; otherwise delete it in the cloud, then hk-dr build",
                    );
                }
            }
        }
    }

    fn front(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let network = inventory.network.as_ref().map(|n| n.id);
        for (_, wanted) in wanted_balancers(cluster) {
            let what = format!("load balancer {}", wanted.name);
            let Some(found) = inventory.balancers.iter().find(|b| b.name == wanted.name) else {
                self.add(what, format!("one in {}", wanted.location), "it does not exist", BUILD);
                continue;
            };
            for difference in balancer_differences(&wanted, found, network) {
                self.add(&what, "as cluster.yaml says", difference, BUILD);
            }
            let fallback = cluster.fallback_locations.contains(&found.location);
            if (found.location != wanted.location && !fallback) || found.balancer_type != wanted.balancer_type {
                let declared = format!("{} in {}", wanted.balancer_type, wanted.location);
                let mend =
                    "correct cluster.yaml; or delete it in the cloud, then hk-dr build: its public address changes";
                self.add(&what, declared, format!("{} in {}", found.balancer_type, found.location), mend);
            }
        }
        for config in cluster.floating_ips() {
            let what = format!("floating IP {}", floating_ip_name(cluster, config));
            let Some(found) = found_floating_ip(cluster, inventory, config) else {
                self.add(what, format!("one in {}", config.location), "it does not exist", BUILD);
                continue;
            };
            let holder = found.server.and_then(|id| inventory.servers.iter().find(|s| s.id == id));
            if let Some(why) = unfit(cluster, inventory, holder) {
                self.add(&what, "at a worker that is well", why, BUILD);
            }
        }
        let carried = carried(cluster, inventory);
        for worker in &cluster.workers {
            let full = server_name(cluster, &worker.name);
            let Some(probe) = inventory.probes.get(&full).filter(|p| p.front_addresses != carried) else { continue };
            let words = |addresses: &std::collections::BTreeSet<std::net::Ipv4Addr>| {
                let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            };
            self.add(format!("floating IPs on {full}"), words(&carried), words(&probe.front_addresses), BUILD);
        }
        for (name, kind) in undeclared(self.basis) {
            let mend = "declare it in cluster.yaml, or delete it in the cloud";
            self.add(format!("{kind} {name}"), "nothing", format!("a {kind} with this cluster's label"), mend);
        }
    }

    fn servers(&mut self) {
        let cluster = self.basis.cluster;
        let masters = cluster.masters.iter().map(|m| (&m.name, &m.location, &m.server_type, m.address, Role::Master));
        let workers = cluster.workers.iter().map(|w| (&w.name, &w.location, &w.server_type, w.address, Role::Worker));
        let vpn = cluster.vpn.iter().map(|v| (&v.name, &v.location, &v.server_type, v.address, Role::Vpn));
        for (name, location, server_type, address, role) in masters.chain(workers).chain(vpn) {
            let full = server_name(cluster, name);
            let mend = if role == Role::Master {
                format!("hk-dr runbook run replace-master --server {name}")
            } else {
                BUILD.into()
            };
            let anew = match role {
                Role::Worker => "hk-dr build --replace-workers".to_owned(),
                Role::Vpn => format!("delete the server in the cloud, then {BUILD}"),
                Role::Master => mend.clone(),
            };
            let Some(server) = self.basis.inventory.server(&full) else {
                self.add(&full, format!("a server in {location}"), "it does not exist", mend);
                continue;
            };
            if server.location != *location && !cluster.fallback_locations.contains(&server.location) {
                self.add(&full, format!("in {location}"), format!("in {}", server.location), &anew);
            }
            if server.server_type != *server_type {
                self.add(&full, format!("type {server_type}"), format!("type {}", server.server_type), &anew);
            }
            if server.status != ServerStatus::Running {
                self.add(&full, "running", "switched off or changing", "switch it on, then hk-dr build");
                continue;
            }
            if !server.private.iter().any(|p| p.address == address) {
                let has: Vec<String> = server.private.iter().map(|p| p.address.to_string()).collect();
                let has = if has.is_empty() { "no private address".to_owned() } else { has.join(", ") };
                self.add(&full, format!("private address {address}"), has, BUILD);
            }
            let public = match role {
                Role::Master => cluster.network.public_ipv4.masters(),
                Role::Worker => cluster.network.public_ipv4.workers(),
                Role::Vpn => true,
            };
            if server.public_ipv4.is_some() != public {
                let words = |public| if public { "a public address" } else { "no public address" };
                self.add(&full, words(public), words(!public), format!("delete the server in the cloud, then {mend}"));
            }
            self.machine(&full, role, &mend);
        }
    }

    fn machine(&mut self, full: &str, role: Role, mend: &str) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let Some(probe) = inventory.probes.get(full) else {
            let why = inventory.silent.get(full).cloned().unwrap_or_else(|| "it was not asked".into());
            self.add(full, "answers", format!("silent: {why}"), mend);
            return;
        };
        match (&probe.config_digest, self.basis.digests.get(full)) {
            (None, _) => self.add(full, "configured", "never configured to the end", BUILD),
            (Some(has), Some(wanted)) if has != wanted => {
                self.add(full, "configured from cluster.yaml as it is", "configured from something else", BUILD);
            }
            _ => {}
        }
        let units: &[&str] = match role {
            Role::Master => &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"],
            Role::Worker => &["kubelet", "kube-proxy"],
            Role::Vpn => &VPN_UNITS,
        };
        let idle: Vec<&str> = units.iter().filter(|u| !probe.active_units.contains(**u)).copied().collect();
        if !idle.is_empty() {
            self.add(full, "all units run", format!("{} not", idle.join(", ")), BUILD);
        }
        for (program, version) in probe.versions.iter().chain(&probe.stale) {
            let wanted = if program == "etcd" { &cluster.etcd.version } else { &cluster.kubernetes.version };
            if version != wanted {
                self.add(full, format!("{program} {wanted}"), version, BUILD);
            }
        }
        if role == Role::Master && !inventory.api_ready.contains(full) {
            self.add(full, "API server ready", "it is not", BUILD);
        }
        if role == Role::Worker && !inventory.ready_nodes.contains(full) {
            self.add(full, "Node ready", "it is not", BUILD);
        }
    }

    fn volumes(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        for master in &cluster.masters {
            let (name, full) = (volume_name(cluster, &master.name), server_name(cluster, &master.name));
            let Some(volume) = inventory.volume(&name) else {
                let mend = format!("hk-dr runbook run replace-master --server {}", master.name);
                self.add(&name, format!("{} GB", master.etcd_volume_gb), "it does not exist", mend);
                continue;
            };
            let there = inventory.server(&full).map(|s| s.id);
            match volume.server {
                None => self.add(&name, format!("attached to {full}"), "attached to nothing", BUILD),
                Some(id) if there != Some(id) => {
                    let mend = format!("look at what uses it there, detach it, then {BUILD}");
                    self.add(&name, format!("attached to {full}"), format!("attached to server {id}"), mend);
                }
                Some(_) => {}
            }
            if volume.size_gb < master.etcd_volume_gb {
                let mend = "enlarge the volume in the cloud and its file system";
                self.add(&name, format!("{} GB", master.etcd_volume_gb), format!("{} GB", volume.size_gb), mend);
            }
        }
    }

    fn members(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        if !inventory.quorum {
            self.add("etcd", "serves", "no majority answers", "`hk-dr status` shows which members are left");
            return;
        }
        for master in &cluster.masters {
            if !inventory.members.iter().any(|m| m.name == master.name) {
                let mend = format!("hk-dr runbook run replace-master --server {}", master.name);
                self.add("etcd's members", format!("{} is one", master.name), "it is none", mend);
            }
        }
        for member in inventory.members.iter().filter(|m| !cluster.masters.iter().any(|c| c.name == m.name)) {
            let name = if member.name.is_empty() { "one that never started" } else { &member.name };
            let mend = "`hk-dr runbook run replace-master` for the master at its address, or remove it with etcdctl";
            self.add("etcd's members", "those of cluster.yaml", format!("{name} ({:x})", member.id), mend);
        }
    }

    /// What carries the cluster's label and is declared nowhere.
    fn unknown(&mut self) {
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let names = cluster.masters.iter().map(|m| &m.name).chain(cluster.workers.iter().map(|w| &w.name));
        let names = names.chain(cluster.vpn.iter().map(|v| &v.name));
        let names: Vec<String> = names.map(|n| server_name(cluster, n)).collect();
        for server in inventory.servers.iter().filter(|s| !names.contains(&s.name)) {
            let label = server.labels.get(NAME_LABEL).cloned().unwrap_or_default();
            let mend = match server.labels.get(ROLE_LABEL).map(String::as_str) {
                Some("worker") => "declare it in cluster.yaml, or hk-dr build --remove-workers",
                _ => "declare it in cluster.yaml, or delete it",
            };
            self.add(&server.name, "nothing", format!("a server with this cluster's label, named {label}"), mend);
        }
        let volumes: Vec<String> = cluster.masters.iter().map(|m| volume_name(cluster, &m.name)).collect();
        for volume in &inventory.volumes {
            // Kept on purpose until someone deletes it: no drift.
            if !volumes.contains(&volume.name) && !volume.labels.contains_key(RETIRED_LABEL) {
                let mend = "delete it if nobody needs its data";
                self.add(&volume.name, "nothing", format!("a volume with the label {OWNER_LABEL}"), mend);
            }
        }
    }
}
