use super::draft::{Basis, Draft};
use super::params::{BackupsDelete, NetworkDelete, PlacementGroupDelete, ServerFence, SshKeyDelete, VolumeDelete};
use super::{OWNER_LABEL, Plan, Purpose};
use crate::ports::Labels;

/// What a person wants gone beside servers, network, firewalls, placement group and SSH key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DestroyChoice {
    /// Volumes with etcd's data too.
    pub volumes: bool,
    /// Everything of the cluster in the bucket too: snapshots, logs, keys, evidence.
    pub backups: bool,
}

/// Deletes what carries the cluster's ownership label, and nothing else.
pub fn plan_destroy(basis: &Basis<'_>, choice: DestroyChoice) -> Plan {
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let owned = |labels: &Labels| labels.get(OWNER_LABEL).is_some_and(|owner| *owner == cluster.name);
    let mut draft = Draft::bare(basis);
    let reason = "it is to be destroyed";
    for server in inventory.servers.iter().filter(|s| owned(&s.labels)) {
        let params = ServerFence { id: server.id, name: server.name.clone() };
        let title = format!("delete server {} (id {}) in {}", server.name, server.id, server.location);
        draft.add(format!("fence/{}", server.name), &params, &[], title, reason, 180);
    }
    let servers = draft.ids();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let volumes: Vec<_> = inventory.volumes.iter().filter(|v| owned(&v.labels)).collect();
    for volume in volumes.iter().filter(|_| choice.volumes) {
        let params = VolumeDelete { id: volume.id, name: volume.name.clone() };
        let title =
            format!("delete volume {} ({} GB in {}) with its data", volume.name, volume.size_gb, volume.location);
        draft.add(format!("volume/{}", volume.name), &params, &servers, title, "asked for twice", 180);
    }
    draft.no_firewalls(owned, &servers, reason);
    draft.no_front(owned, &servers, reason);
    if let Some(network) = inventory.network.as_ref().filter(|n| owned(&n.labels)) {
        let params = NetworkDelete { id: network.id, name: network.name.clone() };
        let title = format!("delete network {} ({})", network.name, network.range);
        let balancers = inventory.balancers.iter().map(|b| format!("no-balancer/{}", b.name));
        let users: Vec<String> = servers.iter().map(|s| (*s).to_owned()).chain(balancers).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        draft.add("network", &params, &users, title, reason, 120);
    }
    if let Some(group) = inventory.placement_group.as_ref().filter(|g| owned(&g.labels)) {
        let params = PlacementGroupDelete { id: group.id, name: group.name.clone() };
        let title = format!("delete placement group {}", group.name);
        draft.add("placement-group", &params, &servers, title, reason, 120);
    }
    if let Some(key) = inventory.ssh_key.as_ref().filter(|k| owned(&k.labels)) {
        let params = SshKeyDelete { id: key.id, name: key.name.clone() };
        draft.add("ssh-key", &params, &servers, format!("delete SSH key {}", key.name), reason, 120);
    }
    if choice.backups && (inventory.secrets_kept || !inventory.snapshots.is_empty() || !inventory.mirrored.is_empty()) {
        let params = BackupsDelete { prefix: format!("{}/", cluster.name) };
        let title = format!(
            "delete everything below {}/ in the bucket: {} snapshots, the cluster's keys, evidence",
            cluster.name,
            inventory.snapshots.len()
        );
        let before = draft.ids();
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        draft.add("backups", &params, &before, title, "asked for twice; nothing can bring the cluster back then", 1800);
    }
    if !choice.volumes && !volumes.is_empty() {
        let names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
        draft.findings.push(format!(
            "kept: {} volumes ({}); they cost until they are deleted",
            names.len(),
            names.join(", ")
        ));
    }
    if !choice.backups {
        let newest = inventory.snapshots.first().map_or("none".to_owned(), |s| s.id.clone());
        draft
            .findings
            .push(format!("kept: everything in the bucket, {} snapshots (newest {newest})", inventory.snapshots.len()));
    }
    for foreign in &inventory.foreign {
        draft.findings.push(format!("not touched: {foreign}"));
    }
    draft.finish(Purpose::Destroy)
}
