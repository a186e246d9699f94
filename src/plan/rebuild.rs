use std::collections::BTreeMap;

use super::draft::{Basis, Draft, LINEAGE_LABEL, volume_name};
use super::params::{EtcdRestoreStep, EtcdStart, SecretsKeep, ServerFence, VolumeRetire};
use super::who::Who;
use super::{Plan, PlanError, Purpose};
use crate::distribution::upstream::{EtcdState, Role};
use crate::ports::{EtcdRestore, SnapshotInfo};

/// Revisions that are certainly more than were written between the newest snapshot and the loss.
const BUMP_REVISIONS_MIN: u64 = 1_000_000_000;

/// What a person chose about a rebuild.
#[derive(Debug, Clone, Default)]
pub struct RebuildChoice {
    /// A snapshot's id; none: the newest.
    pub snapshot: Option<String>,
    /// Replace a cluster that still answers.
    pub even_if_alive: bool,
}

/// Brings the cluster back from a snapshot: what is left of its former life is fenced and kept aside, everything else is
/// made anew.
pub fn plan_rebuild(basis: &Basis<'_>, choice: &RebuildChoice) -> Result<Plan, PlanError> {
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let snapshot = choose(&inventory.snapshots, choice.snapshot.as_deref())?;
    if inventory.quorum && !choice.even_if_alive && !basis.inventory.servers.iter().all(|s| is_new(basis, &s.labels)) {
        return Err(PlanError::Alive { reason: "its etcd has a majority and serves".into() });
    }
    let stay: BTreeMap<&str, &str> = inventory
        .servers
        .iter()
        .filter(|s| is_new(basis, &s.labels))
        .filter_map(|s| Some((s.labels.get(super::NAME_LABEL)?.as_str(), s.location.as_str())))
        .collect();
    let mut draft = Draft::new(basis, &stay)?;
    draft.findings.insert(
        0,
        format!("restoring snapshot {} (revision {}, taken {})", snapshot.id, snapshot.revision, snapshot.taken_at),
    );

    draft.snapshot = Some(snapshot.id.clone());
    let old: Vec<_> = inventory.servers.iter().filter(|s| !is_new(basis, &s.labels)).collect();
    let left = match old.len() {
        0 => "no server of its former life is left".to_owned(),
        n => format!("{n} servers of its former life are left: they are deleted before anything new starts"),
    };
    draft.findings.push(left);
    for server in &old {
        let params = ServerFence { id: server.id, name: server.name.clone() };
        let title = format!("delete the old server {} (id {})", server.name, server.id);
        draft.add(format!("fence/{}", server.name), &params, &[], title, "it must not act beside its successor", 180);
    }
    let fences: Vec<String> = old.iter().map(|s| format!("fence/{}", s.name)).collect();
    let fences: Vec<&str> = fences.iter().map(String::as_str).collect();
    for master in &cluster.masters {
        let name = volume_name(cluster, &master.name);
        let Some(volume) = inventory.volume(&name).filter(|v| !is_new(basis, &v.labels)) else { continue };
        let labels = super::restore::retired_labels(basis, volume, basis.lineage);
        let new_name = format!("{name}-before-{}", basis.lineage);
        let params = VolumeRetire { id: volume.id, name: name.clone(), new_name: new_name.clone(), labels };
        let title = format!("keep the old volume {name} as {new_name}");
        draft.add(format!("retire/{name}"), &params, &fences, title, "old data is kept until the new is proven", 120);
    }

    let params = SecretsKeep { from_snapshot: Some(snapshot.id.clone()) };
    let title = "take the cluster's CAs and keys from the snapshot's recovery set";
    draft.add("secrets", &params, &[], title, "tokens, Secrets and certificates stay valid", 120);
    draft.foundation();
    draft.artifacts(&[Role::Master, Role::Worker]);
    draft.vpn("it is lost", &fences, true);
    draft.close();
    for master in &cluster.masters {
        draft.server(Who::Master(master), "it is lost", &fences);
    }
    for worker in &cluster.workers {
        draft.server(Who::Worker(worker), "it is lost", &fences);
    }

    let bump_revision = bump(&inventory.snapshots, snapshot);
    let etcd = EtcdStart { incarnation: basis.lineage.to_owned(), state: EtcdState::Existing };
    for master in &cluster.masters {
        let full = draft.full(&master.name);
        let restore = EtcdRestore {
            id: basis.lineage.to_owned(),
            member: master.name.clone(),
            members: cluster.masters.iter().map(|m| (m.name.clone(), m.address)).collect(),
            incarnation: basis.lineage.to_owned(),
            bump_revision,
            snapshot_sha256: snapshot.sha256.clone(),
        };
        let params = EtcdRestoreStep { server: full.clone(), snapshot: snapshot.id.clone(), restore };
        draft.master(master, &etcd, "the cluster is brought back", |draft, needs| {
            let id = format!("restore/{full}");
            let title = format!("restore etcd's data on {full}, revision bumped by {bump_revision}");
            let mut needs = needs.to_vec();
            needs.push("secrets");
            draft.add(&id, &params, &needs, title, "its volume is empty", 1800);
            Some(id)
        });
    }
    let masters: Vec<_> = cluster.masters.iter().collect();
    let returning = cluster.workers.iter().map(|w| draft.full(&w.name)).collect();
    draft.control_plane(&masters, "the cluster is brought back", |draft, first| draft.clean(first, returning, &[]));
    let asked = cluster.masters.first().map(|m| draft.full(&m.name)).unwrap_or_default();
    for worker in &cluster.workers {
        draft.worker(worker, "the cluster is brought back", &asked);
    }
    let old: Vec<&str> = old.iter().map(|s| s.name.as_str()).collect();
    draft.floating(&old);
    draft.settle(&asked);
    Ok(draft.finish(Purpose::Rebuild))
}

fn is_new(basis: &Basis<'_>, labels: &crate::ports::Labels) -> bool {
    labels.get(LINEAGE_LABEL).is_some_and(|l| l == basis.lineage)
}

pub(super) fn choose<'a>(snapshots: &'a [SnapshotInfo], wanted: Option<&str>) -> Result<&'a SnapshotInfo, PlanError> {
    let found = match wanted {
        None => snapshots.first(),
        Some(id) => snapshots.iter().find(|s| s.id == id),
    };
    found.ok_or_else(|| PlanError::NoSnapshot {
        wanted: wanted.unwrap_or("at all").to_owned(),
        available: snapshots.iter().map(|s| s.id.clone()).collect(),
    })
}

/// What to add to the snapshot's revision, so that no watcher ever sees a revision twice: at least what newer snapshots
/// show was written after it, and a margin for what was written after those.
pub(super) fn bump(all: &[SnapshotInfo], chosen: &SnapshotInfo) -> u64 {
    let highest = all.iter().map(|s| s.revision).max().unwrap_or(chosen.revision);
    u64::try_from(highest - chosen.revision).unwrap_or(0) + BUMP_REVISIONS_MIN
}
