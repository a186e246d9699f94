use std::collections::BTreeMap;

use super::draft::{Basis, Draft, volume_name};
use super::params::{EtcdStart, SecretsKeep};
use super::roll::{self, Rolling};
use super::vpn::{cut_off, vpn_done};
use super::who::Who;
use super::{Plan, PlanError, Purpose, WorkersChoice, workers};
use crate::config::{MasterConfig, VpnConfig, WorkerConfig};
use crate::distribution::upstream::{EtcdState, Role};
use crate::ports::ServerStatus;

/// What is missing between what Git declares and what was observed. Refuses to found an empty cluster where data of this
/// cluster exists: that is what `rebuild` is for.
pub fn plan_build(basis: &Basis<'_>) -> Result<Plan, PlanError> {
    plan_build_with(basis, &WorkersChoice::default())
}

/// The same, and workers that leave or are made anew, as a person agreed to.
pub fn plan_build_with(basis: &Basis<'_>, choice: &WorkersChoice) -> Result<Plan, PlanError> {
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let names: Vec<String> =
        cluster.masters.iter().map(|m| crate::distribution::server_name(cluster, &m.name)).collect();
    // Servers stay where they are, and come back where their volume is: volumes don't move.
    let volumes = cluster.masters.iter().filter_map(|m| {
        let volume = inventory.volume(&volume_name(cluster, &m.name))?;
        Some((m.name.as_str(), volume.location.as_str()))
    });
    let servers =
        inventory.servers.iter().filter_map(|s| Some((s.labels.get(super::NAME_LABEL)?.as_str(), s.location.as_str())));
    let mut stay: BTreeMap<&str, &str> = volumes.chain(servers).collect();
    let replaced = workers::to_replace(cluster, inventory, choice)?;
    // One that is made anew goes where Git declares it.
    stay.retain(|name, _| !replaced.iter().any(|(worker, _)| worker.name == **name));
    if let Some((name, location)) = stay.iter().find(|(name, location)| {
        let full = crate::distribution::server_name(cluster, name);
        basis.unavailable.contains(**location) && inventory.server(&full).is_none()
    }) {
        return Err(PlanError::Unbuildable {
            reason: format!("{location} has no capacity for {name}, whose volume with etcd's data is there"),
            hint: format!(
                "the volume was left untouched; wait for capacity and run again, or give its data up and let the other \
                 members fill a new one elsewhere: `hk-dr runbook run replace-master --server {name} --fresh-volume`"
            ),
        });
    }
    let mut draft = Draft::new(basis, &stay)?;
    if let Some(vpn) = cluster.vpn.as_ref().filter(|v| cut_off(basis) && !vpn_done(basis, v)) {
        draft.findings.push(format!("{ONLY_THE_WAY_IN}: no server answers without {}", draft.full(&vpn.name)));
        draft.foundation();
        way_in(&mut draft, vpn);
        return Ok(draft.finish(Purpose::Build));
    }
    let state = etcd_state(basis, &names)?;

    if !inventory.secrets_kept {
        let params = SecretsKeep { from_snapshot: None };
        let title = "make the cluster's CAs and keys and keep them, encrypted, in the bucket";
        draft.add("secrets", &params, &[], title, "the bucket keeps none", 120);
    }
    draft.foundation();
    // What serves or could is changed in turn; what is missing or half made is made, all at once.
    let mut rolling = Rolling::due(basis);
    let anew = |name: &str| replaced.iter().any(|(worker, _)| worker.name == name);
    rolling.workers.retain(|(w, _)| !anew(&w.name));
    let masters: Vec<&MasterConfig> =
        cluster.masters.iter().filter(|m| !rolling.has_master(&m.name) && !master_done(basis, m)).collect();
    let workers: Vec<&WorkerConfig> = cluster
        .workers
        .iter()
        .filter(|w| !rolling.has_worker(&w.name) && !anew(&w.name) && !worker_done(basis, w))
        .collect();
    let mut roles = Vec::new();
    roles.extend((!masters.is_empty() || rolling.installs(Role::Master)).then_some(Role::Master));
    let new_workers = !workers.is_empty() || !replaced.is_empty() || rolling.installs(Role::Worker);
    roles.extend(new_workers.then_some(Role::Worker));
    draft.artifacts(&roles);
    if let Some(vpn) = cluster.vpn.as_ref().filter(|v| !vpn_done(basis, v)) {
        way_in(&mut draft, vpn);
    }
    for master in &masters {
        ensure_server(&mut draft, Who::Master(master), &master.name);
    }
    for worker in &workers {
        ensure_server(&mut draft, Who::Worker(worker), &worker.name);
    }
    let etcd = EtcdStart { incarnation: basis.lineage.to_owned(), state };
    for master in &masters {
        let reason = reason(basis, &draft.full(&master.name));
        draft.master(master, &etcd, &reason, |_, _| None);
    }
    if !masters.is_empty() {
        draft.agreeing = roll::without_waiting(basis, &rolling);
        draft.control_plane(&masters, "it is not ready", |_, _| {});
    }
    roll::roll_masters(&mut draft, &rolling)?;
    let asked = masters.first().or(cluster.masters.first().as_ref()).map(|m| draft.full(&m.name)).unwrap_or_default();
    for worker in &workers {
        let reason = reason(basis, &draft.full(&worker.name));
        draft.worker(worker, &reason, &asked);
    }
    roll::roll_workers(&mut draft, &rolling);
    workers::leave_and_return(&mut draft, &replaced, choice, &asked);
    Ok(draft.finish(Purpose::Build))
}

/// Begins the finding of a plan that brings only the VPN host back; what else is missing is seen through it.
pub const ONLY_THE_WAY_IN: &str = "only the way in is made now, the rest is looked at through it";

fn way_in(draft: &mut Draft<'_>, vpn: &VpnConfig) {
    let (basis, full) = (draft.basis, draft.full(&vpn.name));
    let server = basis.inventory.server(&full);
    let create = server.is_none_or(|s| s.private.is_empty() || s.status != ServerStatus::Running);
    draft.vpn(&reason(basis, &full), &[], create);
    draft.close();
}

fn ensure_server(draft: &mut Draft<'_>, who: Who<'_>, name: &str) {
    let full = draft.full(name);
    let complete = draft.basis.inventory.server(&full).is_some_and(|s| !s.private.is_empty());
    if !complete {
        let reason = match draft.basis.inventory.server(&full) {
            None => "it does not exist",
            Some(_) => "it is not attached to the network",
        };
        draft.server(who, reason, &[]);
    }
}

fn reason(basis: &Basis<'_>, full: &str) -> String {
    let inventory = basis.inventory;
    match (inventory.server(full), inventory.silent.get(full), inventory.probes.get(full)) {
        (None, ..) => format!("{full} does not exist"),
        (_, Some(why), _) => format!("{full} did not answer: {why}"),
        (_, _, Some(probe)) if probe.config_digest.is_none() => format!("{full} is not configured"),
        (_, _, Some(probe)) if probe.config_digest.as_ref() != basis.digests.get(full) => {
            format!("{full} was configured from something else than Git now declares")
        }
        _ => format!("{full} is not ready"),
    }
}

pub(super) fn configured(basis: &Basis<'_>, full: &str, units: &[&str]) -> bool {
    let Some(probe) = basis.inventory.probes.get(full) else { return false };
    basis.inventory.server(full).is_some_and(|s| !s.private.is_empty())
        && probe.config_digest.is_some()
        && probe.config_digest.as_ref() == basis.digests.get(full)
        && units.iter().all(|u| probe.active_units.contains(*u))
}

pub(super) fn master_done(basis: &Basis<'_>, master: &MasterConfig) -> bool {
    let full = crate::distribution::server_name(basis.cluster, &master.name);
    let units = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
    configured(basis, &full, &units)
        && basis.inventory.api_ready.contains(&full)
        && has_its_volume(basis, &full, &volume_name(basis.cluster, &master.name))
}

/// Whether the volume is attached, and to this server.
pub(super) fn has_its_volume(basis: &Basis<'_>, full: &str, volume: &str) -> bool {
    let server = basis.inventory.server(full).map(|s| s.id);
    server.is_some() && basis.inventory.volume(volume).is_some_and(|v| v.server == server)
}

pub(super) fn worker_done(basis: &Basis<'_>, worker: &WorkerConfig) -> bool {
    let full = crate::distribution::server_name(basis.cluster, &worker.name);
    configured(basis, &full, &["kubelet", "kube-proxy"]) && basis.inventory.ready_nodes.contains(&full)
}

/// Whether etcd founds a cluster or continues one; an error where either would lose data.
fn etcd_state(basis: &Basis<'_>, masters: &[String]) -> Result<EtcdState, PlanError> {
    let inventory = basis.inventory;
    let exists = masters.iter().any(|m| inventory.server(m).is_some());
    if !exists && let Some(newest) = inventory.snapshots.first() {
        let left =
            basis.cluster.masters.iter().filter(|m| inventory.volume(&volume_name(basis.cluster, &m.name)).is_some());
        let left: Vec<String> = left.map(|m| m.name.clone()).collect();
        return Err(PlanError::DataExists {
            reason: format!(
                "no master of this cluster exists, but the bucket has {} of its snapshots (newest {})",
                inventory.snapshots.len(),
                newest.id
            ),
            volumes: left,
        });
    }
    let volumes: Vec<&str> = basis
        .cluster
        .masters
        .iter()
        .filter_map(|m| inventory.volume(&volume_name(basis.cluster, &m.name)))
        .filter(|v| v.server.is_none())
        .map(|v| v.name.as_str())
        .collect();
    let with_data: Vec<&String> =
        masters.iter().filter(|m| inventory.probes.get(*m).is_some_and(|p| p.etcd_data)).collect();
    if inventory.quorum {
        return match masters
            .iter()
            .find(|m| !with_data.contains(m) && !volume_of(basis, m, &volumes) && !unmounted(basis, m))
        {
            Some(without) => Err(PlanError::Unbuildable {
                reason: format!("etcd has a majority, but {without} has neither data nor a volume with it"),
                hint: format!(
                    "nothing was touched; `hk-dr runbook run replace-master --server {}` lets a new member join",
                    short_name(basis, without)
                ),
            }),
            None => Ok(EtcdState::Existing),
        };
    }
    if with_data.len() == masters.len() {
        return Ok(EtcdState::Existing);
    }
    if with_data.is_empty() && volumes.is_empty() {
        return Ok(EtcdState::New);
    }
    Err(PlanError::Unbuildable {
        reason: format!(
            "etcd has no majority, and only a part of the masters is known to have its data (with data: {with_data:?}, \
             unattached volumes: {volumes:?})"
        ),
        hint: "nothing was touched; continue an interrupted build with `hk-dr resume`; bring lost servers back with their \
               volumes by `hk-dr runbook run masters-from-volumes --server NAME …`, or the cluster from a snapshot by \
               `hk-dr rebuild`"
            .into(),
    })
}

fn short_name(basis: &Basis<'_>, full: &str) -> String {
    let mut masters = basis.cluster.masters.iter();
    masters
        .find(|m| crate::distribution::server_name(basis.cluster, &m.name) == full)
        .map_or_else(|| full.to_owned(), |m| m.name.clone())
}

/// Its volume is attached to its server and no more than unmounted: the member that the others know has started on it.
fn unmounted(basis: &Basis<'_>, full: &str) -> bool {
    let name = short_name(basis, full);
    let server = basis.inventory.server(full).map(|s| s.id);
    server.is_some()
        && basis.inventory.volume(&volume_name(basis.cluster, &name)).is_some_and(|v| v.server == server)
        && basis.inventory.members.iter().any(|m| m.name == name)
}

fn volume_of(basis: &Basis<'_>, full: &str, unattached: &[&str]) -> bool {
    basis
        .cluster
        .masters
        .iter()
        .filter(|m| crate::distribution::server_name(basis.cluster, &m.name) == full)
        .any(|m| unattached.contains(&volume_name(basis.cluster, &m.name).as_str()))
}
