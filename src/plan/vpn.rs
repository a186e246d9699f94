//! The VPN host, and the way out of servers without a public address.

use super::draft::Draft;
use super::params::{RouteProvide, VpnConfigure};
use super::perimeter;
use super::who::Who;
use crate::config::VpnConfig;
use crate::distribution::server_name;
use crate::distribution::upstream::VPN_UNITS;
use crate::ports::Route;

/// Step that makes the network's way out.
pub(super) const WAY_OUT: &str = "route";

impl Draft<'_> {
    /// The VPN host from nothing, or what is missing of it. `after` are steps that must be done before it may exist.
    pub fn vpn(&mut self, reason: &str, after: &[&str], create: bool) {
        let Some(vpn) = &self.basis.cluster.vpn else { return };
        let full = self.full(&vpn.name);
        self.way_out(vpn);
        if create {
            let mut after = after.to_vec();
            // Its first boot brings the keys.
            after.push("secrets");
            self.server(Who::Vpn(vpn), reason, &after);
        }
        self.ready(&full, reason);
        let title = format!("configure {full} with {} peers", vpn.peers.len());
        let params = VpnConfigure { server: full.clone() };
        self.add(format!("configure/{full}"), &params, &[&format!("ready/{full}"), "secrets"], title, reason, 120);
    }

    fn way_out(&mut self, vpn: &VpnConfig) {
        let (cluster, network) = (self.basis.cluster, self.basis.inventory.network.as_ref());
        let route = way_out(vpn);
        let there = network.is_some_and(|n| n.routes.contains(&route));
        // A network that is made now is made with it.
        if there || self.has(WAY_OUT) || self.has("network") {
            return;
        }
        let params =
            RouteProvide { network: cluster.name.clone(), destination: route.destination, gateway: vpn.address };
        let title = format!("route what leaves network {} through {}", cluster.name, self.full(&vpn.name));
        self.add(WAY_OUT, &params, &["network"], title, "servers without a public address need a way out", 120);
    }

    /// In which order firewalls and servers come. New servers come behind a firewall that is there; where servers are reached at
    /// public addresses until now, the way through the VPN must be there before that is closed.
    pub fn perimeter(&mut self) {
        let cluster = self.basis.cluster;
        let inventory = self.basis.inventory;
        let vpn = cluster.vpn.as_ref().map(|v| server_name(cluster, &v.name));
        let moving = vpn.is_some_and(|vpn| inventory.server(&vpn).is_none())
            && inventory.servers.iter().any(|s| s.public_ipv4.is_some());
        self.closing_last = moving;
        self.firewalls(|step| !(moving && step == perimeter::ALL), &[]);
    }

    /// The firewall that had to wait for the VPN.
    pub fn close(&mut self) {
        if !self.closing_last {
            return;
        }
        let ready = self.basis.cluster.vpn.as_ref().map(|v| format!("configure/{}", self.full(&v.name)));
        let needs: Vec<&str> = ready.iter().map(String::as_str).collect();
        self.firewalls(|step| step == perimeter::ALL, &needs);
    }
}

/// The route that takes servers' traffic out.
pub(super) fn way_out(vpn: &VpnConfig) -> Route {
    Route { destination: "0.0.0.0/0".into(), gateway: vpn.address }
}

/// Whether servers can't be looked at because the way to them is lost: nothing may be concluded from their silence then.
pub(super) fn cut_off(basis: &super::Basis<'_>) -> bool {
    let Some(vpn) = &basis.cluster.vpn else { return false };
    let full = server_name(basis.cluster, &vpn.name);
    let others = basis.inventory.servers.iter().any(|s| s.name != full);
    others && !basis.inventory.servers.iter().any(|s| basis.inventory.probes.contains_key(&s.name))
}

/// Whether the VPN host is as declared.
pub(super) fn vpn_done(basis: &super::Basis<'_>, vpn: &VpnConfig) -> bool {
    let full = server_name(basis.cluster, &vpn.name);
    super::build::configured(basis, &full, &VPN_UNITS)
        && basis.inventory.network.as_ref().is_some_and(|n| n.routes.contains(&way_out(vpn)))
}
