//! Names and addresses that everything agrees on: certificates, /etc/hosts, kubeconfigs, steps.

use std::net::Ipv4Addr;

use crate::config::{Cluster, MasterConfig, Range, VpnConfig, WorkerConfig};

/// The one name of the Kubernetes API inside the cluster; resolves to every master.
pub fn api_name(cluster: &Cluster) -> String {
    format!("api.{}.internal", cluster.name)
}

/// A server's name in the cloud, its host name, and its Node's name. A cloud controller finds the server of a Node by
/// this equality, so the three must not differ.
pub fn server_name(cluster: &Cluster, name: &str) -> String {
    format!("{}-{name}", cluster.name)
}

/// `https://<address>:2379` is for etcd's clients, `:2380` for its peers.
pub const ETCD_CLIENT_PORT: u16 = 2379;
/// See [`ETCD_CLIENT_PORT`].
pub const ETCD_PEER_PORT: u16 = 2380;
/// The Kubernetes API, on every address of a master.
pub const API_PORT: u16 = 6443;

/// etcd's `--initial-cluster`: every member's name and peer URL, in declared order.
pub fn initial_cluster(masters: &[MasterConfig]) -> String {
    let members: Vec<_> = masters.iter().map(|m| (m.name.clone(), m.address)).collect();
    initial_cluster_of(&members)
}

/// See [`initial_cluster`]; for members by name and address.
pub fn initial_cluster_of(members: &[(String, Ipv4Addr)]) -> String {
    let members: Vec<_> =
        members.iter().map(|(name, address)| format!("{name}=https://{address}:{ETCD_PEER_PORT}")).collect();
    members.join(",")
}

/// The first address of the service range, which Kubernetes gives to its own API. `None` if the range is malformed.
pub fn api_service_address(service_range: &str) -> Option<Ipv4Addr> {
    let (base, _) = service_range.split_once('/')?;
    let base: Ipv4Addr = base.parse().ok()?;
    u32::from(base).checked_add(1).map(Ipv4Addr::from)
}

/// The /24 of a worker's pods. It follows from the worker's pinned address (its offset in the subnet), not from its
/// place in the list: taking another worker out of the list must not renumber this one's pods. `None` if the pod range
/// is malformed or too small for the offset; validation of cluster.yaml excludes both.
pub fn pod_subnet(cluster: &Cluster, worker: &WorkerConfig) -> Option<String> {
    let (subnet_base, _) = cluster.network.subnet.split_once('/')?;
    let (pod_base, pod_bits) = cluster.kubernetes.pod_range.split_once('/')?;
    let subnet_base: Ipv4Addr = subnet_base.parse().ok()?;
    let pod_base: Ipv4Addr = pod_base.parse().ok()?;
    let pod_bits: u32 = pod_bits.parse().ok()?;
    let offset = u32::from(worker.address).checked_sub(u32::from(subnet_base))?;
    if pod_bits > 24 || offset >= 1 << (24 - pod_bits) {
        return None;
    }
    let base = u32::from(pod_base).checked_add(offset << 8)?;
    Some(format!("{}/24", Ipv4Addr::from(base)))
}

/// The VPN host's address inside the tunnel. `None` if the range is malformed.
pub fn vpn_host_address(vpn: &VpnConfig) -> Option<Ipv4Addr> {
    vpn.range.parse::<Range>().ok()?.nth(1)
}

/// The address of one of hk-dr's own keys inside the tunnel. `None` if the range is malformed or too small.
pub fn vpn_slot_address(vpn: &VpnConfig, slot: u32) -> Option<Ipv4Addr> {
    vpn.range.parse::<Range>().ok()?.nth(16 + slot)
}

/// The address by which hk-dr reaches a server: with a VPN the pinned private one, whatever else it has. `None` if it is not
/// declared.
pub fn reached_at(cluster: &Cluster, server: &str) -> Option<Ipv4Addr> {
    let vpn = cluster.vpn.as_ref()?;
    let masters = cluster.masters.iter().map(|m| (&m.name, m.address));
    let workers = cluster.workers.iter().map(|w| (&w.name, w.address));
    let mut all = masters.chain(workers).chain([(&vpn.name, vpn.address)]);
    all.find(|(name, _)| server_name(cluster, name) == server).map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::tests_support::demo;

    #[test]
    fn a_workers_pod_range_follows_from_its_address() {
        let cluster = demo();
        assert_eq!(pod_subnet(&cluster, &cluster.workers[0]).unwrap(), "10.244.21.0/24");
    }

    #[test]
    fn a_pod_range_too_small_for_the_worker_is_refused() {
        let mut cluster = demo();
        cluster.kubernetes.pod_range = "10.244.0.0/20".into();
        assert_eq!(pod_subnet(&cluster, &cluster.workers[0]), None);
    }

    #[test]
    fn the_api_has_the_first_service_address() {
        assert_eq!(api_service_address("10.96.0.0/16"), Some(Ipv4Addr::new(10, 96, 0, 1)));
    }
}
