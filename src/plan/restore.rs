//! All masters from a snapshot: in their places from one of another time, or in other places from one of this moment.
//! Old volumes are kept under other names either way.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::draft::{Basis, volume_name};
use super::drift::RETIRED_LABEL;
use super::params::{
    EtcdAgree, EtcdRestoreStep, EtcdRestoreTaken, EtcdStart, EtcdUnchanged, SnapshotTake, VolumeRetire,
};
use super::rebuild::{bump, choose};
use super::runbook::{Expansion, HASH_BEFORE, UNCHANGED};
use super::{NAME_LABEL, PlanError, RunbookChoice};
use crate::config::{MasterConfig, Runbook, Verb};
use crate::distribution::upstream::EtcdState;
use crate::ports::{EtcdRestore, Labels, Server, Volume};

/// The step that takes the snapshot of the very last state before masters go elsewhere.
const LAST_SNAPSHOT: &str = "snapshot-last";
/// Label with the day from which a retired volume may be deleted. Nothing deletes it by itself.
const KEEP_UNTIL_LABEL: &str = "hk-dr/keep-until";
const KEEP_DAYS: i64 = 14;

/// Where servers are when masters go elsewhere: all to the location that was named, or each to the next of the cluster's
/// locations, so that they are as spread as before. None if this runbook moves nobody.
pub(super) fn moved<'a>(
    basis: &Basis<'a>,
    runbook: &Runbook,
    choice: &'a RunbookChoice,
    masters: &[&'a MasterConfig],
) -> Result<Option<BTreeMap<&'a str, &'a str>>, PlanError> {
    if !runbook.steps.iter().any(|s| s.verb == Verb::MastersMove) {
        return match &choice.location {
            None => Ok(None),
            Some(_) if super::evacuate::evacuates(runbook) => Ok(None),
            Some(_) => Err(PlanError::Unbuildable {
                reason: format!("runbook {} takes masters nowhere", runbook.name),
                hint: "nothing was touched; leave --to out".into(),
            }),
        };
    }
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let known = &cluster.fallback_locations;
    let mut places: BTreeMap<&str, &str> = inventory
        .servers
        .iter()
        .filter_map(|s| Some((s.labels.get(NAME_LABEL)?.as_str(), s.location.as_str())))
        .collect();
    for master in masters {
        let here = places.get(master.name.as_str()).copied().unwrap_or(master.location.as_str());
        let there = match &choice.location {
            Some(named) => known.iter().find(|l| *l == named),
            None => {
                let at = known.iter().position(|l| l == here);
                known.iter().cycle().skip(at.map_or(0, |at| at + 1)).take(known.len()).find(|l| *l != here)
            }
        };
        let Some(there) = there.filter(|l| !basis.unavailable.contains(*l)) else {
            return Err(PlanError::Unbuildable {
                reason: format!(
                    "{} can't go to {}: fallbackLocations has {}",
                    master.name,
                    choice.location.as_deref().unwrap_or("another location"),
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                ),
                hint: "nothing was touched; add the location to fallbackLocations in cluster.yaml, or name one of them"
                    .into(),
            });
        };
        places.insert(&master.name, there);
    }
    Ok(Some(places))
}

/// Adds the way of every master to another location.
pub(super) fn move_elsewhere(expansion: &mut Expansion<'_>) -> Result<(), PlanError> {
    let masters = expansion.masters.clone();
    for master in &masters {
        let (server, volume) = (expansion.existing_server(master)?, expansion.existing_volume(master)?);
        let there = expansion.draft.locations.get(&master.name).cloned().unwrap_or_default();
        let from = &server.location;
        let finding = format!("{} goes from {from} to {there}; volume {} stays and is kept", server.name, volume.name);
        expansion.draft.findings.push(finding);
    }
    for master in &masters {
        expansion.stop_control_plane(master);
    }
    let servers = expansion.everyone();
    let title = "note the hash of all data, on which every member agrees";
    let params = EtcdAgree { servers: servers.clone() };
    expansion.join(HASH_BEFORE, &params, title, "what comes back elsewhere must be exactly this", 180);
    let title = "take a snapshot of the very last state";
    let params = SnapshotTake { servers: servers.clone(), verify: false, idle: true };
    expansion.join(
        LAST_SNAPSHOT,
        &params,
        title,
        "volumes don't move between locations: the data goes as a snapshot",
        3600,
    );
    let run = expansion.draft.basis.plan_id.to_owned();
    for master in &masters {
        expansion.stop_etcd(master);
        let (server, volume) = (expansion.existing_server(master)?, expansion.existing_volume(master)?);
        let reason = expansion.reason.clone();
        expansion.fence(master, server, &reason);
        let fence = format!("fence/{}", server.name);
        retire(expansion, master, volume, &[&fence]);
        expansion.create(master, &reason);
    }
    // The same revision goes on: all API servers had stopped, so nobody saw a later one, and the hash is compared.
    restore_each(expansion, &run, "", 0, |server, restore| {
        Filling::Taken(EtcdRestoreTaken { server, since: LAST_SNAPSHOT.into(), restore })
    });
    let etcds: Vec<String> = servers.values().map(|full| format!("etcd/{full}")).collect();
    let needs: Vec<&str> = etcds.iter().map(String::as_str).chain([HASH_BEFORE]).collect();
    let params = EtcdUnchanged { servers, since: HASH_BEFORE.into(), same_cluster: false };
    let title = "wait until all etcd members have exactly the data from before";
    expansion.draft.add(UNCHANGED, &params, &needs, title, "the API must not serve anything else", 180);
    let reason = expansion.reason.clone();
    expansion.serve(&reason);
    Ok(())
}

/// Adds the return of every master, in its place, to the chosen snapshot.
pub(super) fn restore_in_place(expansion: &mut Expansion<'_>, wanted: Option<&str>) -> Result<(), PlanError> {
    let basis = expansion.draft.basis;
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let snapshot = choose(&inventory.snapshots, wanted)?;
    let masters = expansion.masters.clone();
    for master in &masters {
        let server = expansion.existing_server(master)?;
        expansion.existing_volume(master)?;
        if !inventory.probes.contains_key(&server.name) {
            let why = inventory.silent.get(&server.name).cloned().unwrap_or_else(|| "it was not asked".into());
            return Err(PlanError::Unbuildable {
                reason: format!(
                    "{} does not answer ({why}), and a restore in place needs every master's server",
                    server.name
                ),
                hint:
                    "nothing was touched; replace it first (`hk-dr runbook run replace-master`), or bring the cluster \
                       back on new servers with `hk-dr rebuild`"
                        .into(),
            });
        }
    }
    expansion.draft.snapshot = Some(snapshot.id.clone());
    let finding = format!(
        "everything goes back to snapshot {} (revision {}, taken {}); what was written since is then only on the old \
         volumes, which are kept, and in the snapshots",
        snapshot.id, snapshot.revision, snapshot.taken_at
    );
    expansion.draft.findings.insert(0, finding);
    for master in &masters {
        expansion.stop_control_plane(master);
    }
    // No member of the old life runs when the new one begins.
    let stopped = expansion.all_after();
    for master in &masters {
        expansion.after.insert(&master.name, stopped.clone());
        expansion.stop_etcd(master);
    }
    let stopped = expansion.all_after();
    for master in &masters {
        expansion.after.insert(&master.name, stopped.clone());
        let volume = expansion.existing_volume(master)?;
        if volume.server.is_some() {
            expansion.detach_one(master, volume);
        }
        let needs = expansion.after.get(master.name.as_str()).cloned().unwrap_or_default();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        retire(expansion, master, volume, &needs);
    }
    let (run, bump_revision) = (basis.plan_id.to_owned(), bump(&inventory.snapshots, snapshot));
    let (id, digest) = (snapshot.id.clone(), snapshot.sha256.clone());
    restore_each(expansion, &run, &digest, bump_revision, |server, restore| {
        Filling::Chosen(EtcdRestoreStep { server, snapshot: id.clone(), restore })
    });
    let living: Vec<&Server> =
        cluster.workers.iter().filter_map(|w| inventory.server(&expansion.draft.full(&w.name))).collect();
    let reason = format!("the cluster goes back to {}", snapshot.id);
    expansion.draft.control_plane(&masters, &reason, |draft, first| draft.clean(first, Vec::new(), &living));
    expansion.after_serving();
    Ok(())
}

enum Filling {
    Chosen(EtcdRestoreStep),
    Taken(EtcdRestoreTaken),
}

/// From an empty volume to a started etcd, on every master.
fn restore_each(
    expansion: &mut Expansion<'_>,
    run: &str,
    snapshot_sha256: &str,
    bump_revision: u64,
    fill: impl Fn(String, EtcdRestore) -> Filling,
) {
    let cluster = expansion.draft.basis.cluster;
    let etcd = EtcdStart { incarnation: run.to_owned(), state: EtcdState::Existing };
    let reason = expansion.reason.clone();
    for master in expansion.masters.clone() {
        let full = expansion.draft.full(&master.name);
        let restore = EtcdRestore {
            id: run.to_owned(),
            member: master.name.clone(),
            members: cluster.masters.iter().map(|m| (m.name.clone(), m.address)).collect(),
            incarnation: run.to_owned(),
            bump_revision,
            snapshot_sha256: snapshot_sha256.to_owned(),
        };
        expansion.draft.master(master, &etcd, &reason, |draft, needs| {
            let id = format!("restore/{full}");
            let mut needs = needs.to_vec();
            needs.push(LAST_SNAPSHOT);
            match fill(full.clone(), restore) {
                Filling::Chosen(params) => {
                    let title = format!("restore etcd's data on {full}, revision bumped by {bump_revision}");
                    draft.add(&id, &params, &needs, title, "its volume is empty", 1800);
                }
                Filling::Taken(params) => {
                    let title = format!("restore etcd's last state on {full}");
                    draft.add(&id, &params, &needs, title, "its volume is empty", 1800);
                }
            }
            Some(id)
        });
    }
}

/// Labels of a volume whose data is superseded: since which run, and until when nobody should delete it.
pub(super) fn retired_labels(basis: &Basis<'_>, volume: &Volume, run: &str) -> Labels {
    let mut labels = volume.labels.clone();
    labels.insert(RETIRED_LABEL.into(), run.to_owned());
    let until = basis.now.checked_add(SignedDuration::from_hours(24 * KEEP_DAYS)).unwrap_or(basis.now);
    labels.insert(KEEP_UNTIL_LABEL.into(), until.strftime("%Y-%m-%d").to_string());
    labels
}

/// Gives the old volume another name; it is no part of the master's own chain.
fn retire(expansion: &mut Expansion<'_>, master: &MasterConfig, volume: &Volume, needs: &[&str]) {
    let basis = expansion.draft.basis;
    let labels = retired_labels(basis, volume, basis.plan_id);
    let new_name = format!("{}-before-{}", volume.name, basis.plan_id);
    let title = format!("keep the old volume {} as {new_name}", volume.name);
    let params = VolumeRetire { id: volume.id, name: volume.name.clone(), new_name, labels };
    let id = format!("retire/{}", volume_name(basis.cluster, &master.name));
    expansion.draft.add(id, &params, needs, title, "old data is kept until the new is proven", 120);
}
