//! Workers that leave, and workers that are made anew: drained, deleted, and replaced one after the other.

use super::draft::{Draft, ROLE_LABEL};
use super::params::{NodeDelete, NodeDrain, ServerFence};
use super::who::Who;
use super::{Inventory, NAME_LABEL, PlanError};
use crate::config::{Cluster, WorkerConfig};
use crate::distribution::server_name;
use crate::ports::Server;

/// How long pods may take to leave a worker, unless something else is said.
pub const DRAIN_SECONDS: u32 = 300;

/// What a build may destroy: workers hold data on their own disks, so nothing of it happens unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkersChoice {
    /// Drain and delete workers that are declared nowhere.
    pub remove: bool,
    /// Make workers anew that have another type or location than declared.
    pub replace_changed: bool,
    /// Make these anew, by short name.
    pub replace: Vec<String>,
    /// How long pods may take to leave.
    pub drain_seconds: u32,
}

impl Default for WorkersChoice {
    fn default() -> Self {
        Self { remove: false, replace_changed: false, replace: Vec::new(), drain_seconds: DRAIN_SECONDS }
    }
}

/// Workers of this cluster that Git declares nowhere.
pub(super) fn undeclared<'a>(cluster: &Cluster, inventory: &'a Inventory) -> Vec<&'a Server> {
    let declared = |name: &str| cluster.workers.iter().any(|w| server_name(cluster, &w.name) == name);
    let is_worker = |s: &Server| s.labels.get(ROLE_LABEL).is_some_and(|role| role == "worker");
    inventory.servers.iter().filter(|s| is_worker(s) && !declared(&s.name)).collect()
}

/// Why this worker can't become what Git declares without being made anew.
pub(super) fn changed(cluster: &Cluster, inventory: &Inventory, worker: &WorkerConfig) -> Option<String> {
    let server = inventory.server(&server_name(cluster, &worker.name))?;
    // One that went to a fallback location stays there.
    if server.location != worker.location && !cluster.fallback_locations.contains(&server.location) {
        return Some(format!("it is in {}, declared is {}", server.location, worker.location));
    }
    (server.server_type != worker.server_type)
        .then(|| format!("its type is {}, declared is {}", server.server_type, worker.server_type))
}

/// Workers that are made anew, with the reason.
pub(super) fn to_replace<'a>(
    cluster: &'a Cluster,
    inventory: &Inventory,
    choice: &WorkersChoice,
) -> Result<Vec<(&'a WorkerConfig, String)>, PlanError> {
    if let Some(unknown) = choice.replace.iter().find(|name| !cluster.workers.iter().any(|w| w.name == **name)) {
        let known: Vec<&str> = cluster.workers.iter().map(|w| w.name.as_str()).collect();
        return Err(PlanError::Unbuildable {
            reason: format!("cluster.yaml has no worker {unknown}"),
            hint: format!("nothing was touched; its workers are: {}", known.join(", ")),
        });
    }
    let replaced = cluster.workers.iter().filter_map(|worker| {
        inventory.server(&server_name(cluster, &worker.name))?;
        if choice.replace.contains(&worker.name) {
            return Some((worker, "asked for".to_owned()));
        }
        changed(cluster, inventory, worker).filter(|_| choice.replace_changed).map(|why| (worker, why))
    });
    Ok(replaced.collect())
}

/// Says what is left as it is, and adds the steps of what was agreed to: one worker after the other, behind everything
/// the plan has so far.
pub(super) fn leave_and_return(
    draft: &mut Draft<'_>,
    replaced: &[(&WorkerConfig, String)],
    choice: &WorkersChoice,
    asked: &str,
) {
    let (cluster, inventory) = (draft.basis.cluster, draft.basis.inventory);
    for worker in &cluster.workers {
        if let Some(why) = changed(cluster, inventory, worker)
            && !replaced.iter().any(|(w, _)| w.name == worker.name)
        {
            let full = server_name(cluster, &worker.name);
            draft.findings.push(format!(
                "{full} stays as it is: {why}; `hk-dr build --replace-workers` drains it and makes it anew"
            ));
        }
    }
    let mut after = draft.ids();
    for (worker, why) in replaced {
        let full = draft.full(&worker.name);
        let Some(server) = inventory.server(&full) else { continue };
        after = leave(draft, server, why, choice, asked, after);
        let needs: Vec<&str> = after.iter().map(String::as_str).collect();
        draft.server(Who::Worker(worker), why, &needs);
        draft.worker(worker, why, asked);
        after = vec![format!("node/{full}")];
    }
    for server in undeclared(cluster, inventory) {
        let name = server.labels.get(NAME_LABEL).cloned().unwrap_or_else(|| server.name.clone());
        if choice.remove {
            after = leave(draft, server, "Git declares it no more", choice, asked, after);
        } else {
            draft.findings.push(format!(
                "{} ({}, {}) is declared nowhere and stays: `hk-dr build --remove-workers` drains and deletes it, or declare \
                 a worker {name} again",
                server.name, server.server_type, server.location
            ));
        }
    }
    // Whoever goes gives its addresses up.
    let going = inventory.servers.iter().map(|s| s.name.clone());
    let going: Vec<String> = going.filter(|full| draft.has(&format!("fence/{full}"))).collect();
    draft.floating(&going.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Drains a worker, deletes its server, then its Node: a kubelet that still ran would register it again.
fn leave(
    draft: &mut Draft<'_>,
    server: &Server,
    reason: &str,
    choice: &WorkersChoice,
    asked: &str,
    mut after: Vec<String>,
) -> Vec<String> {
    let full = &server.name;
    let node = |what: &str| format!("{what}/{full}");
    let mut add = |draft: &mut Draft<'_>, id: String, how: &mut dyn FnMut(&mut Draft<'_>, &str, &[&str])| {
        let needs: Vec<&str> = after.iter().map(String::as_str).collect();
        how(draft, &id, &needs);
        after = vec![id];
    };
    if draft.basis.inventory.probes.contains_key(full) {
        let params =
            NodeDrain { node: full.clone(), master_server: asked.to_owned(), within_seconds: choice.drain_seconds };
        let title = format!("keep new pods from {full} and evict its pods, within {} s", choice.drain_seconds);
        add(draft, node("drain"), &mut |d, id, needs| {
            d.add(id, &params, needs, &title, reason, choice.drain_seconds + 60);
        });
    } else {
        draft.findings.push(format!("{full} does not answer: its pods can't be evicted, they are lost with it"));
    }
    let params = ServerFence { id: server.id, name: full.clone() };
    let title = format!("delete server {full} (id {}) with all that is on its disk", server.id);
    add(draft, node("fence"), &mut |d, id, needs| d.add(id, &params, needs, &title, reason, 180));
    let params = NodeDelete { node: full.clone(), master_server: asked.to_owned() };
    let title = format!("delete the Node object of {full}");
    add(draft, node("node-delete"), &mut |d, id, needs| d.add(id, &params, needs, &title, reason, 120));
    after
}
