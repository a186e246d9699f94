//! Replacing masters: whatever is left of one, and without a case of its own for the first.

use std::collections::BTreeMap;

use super::PlanError;
use super::draft::{Basis, volume_name};
use super::guards::serves_etcd;
use super::params::{EtcdStart, MemberAdd, MemberRemove, VolumeRetire};
use super::runbook::Expansion;
use crate::config::{MasterConfig, Runbook};
use crate::distribution::upstream::EtcdState;
use crate::distribution::{ETCD_PEER_PORT, server_name};
use crate::ports::{Member, Volume};

/// Where servers stay: those that exist, and those whose volume is to be attached again.
pub(super) fn stay<'a>(
    basis: &Basis<'a>,
    runbook: &Runbook,
    masters: &[&'a MasterConfig],
) -> BTreeMap<&'a str, &'a str> {
    let inventory = basis.inventory;
    let fresh = runbook.steps.iter().any(|s| s.fresh_volume);
    let mut stay: BTreeMap<&str, &str> = inventory
        .servers
        .iter()
        .filter_map(|s| Some((s.labels.get(super::NAME_LABEL)?.as_str(), s.location.as_str())))
        .collect();
    for master in masters {
        match volume_to_keep(basis, master, fresh) {
            Some(volume) => drop(stay.insert(&master.name, &volume.location)),
            // A new volume can be anywhere: the server goes where Git declares it.
            None => drop(stay.remove(master.name.as_str())),
        }
    }
    stay
}

/// The volume whose data the master comes back with. It must still be a member's: data of a member that was removed is
/// of no use.
fn volume_to_keep<'a>(basis: &Basis<'a>, master: &MasterConfig, fresh: bool) -> Option<&'a Volume> {
    let inventory = basis.inventory;
    let is_member = inventory.members.is_empty() || member_of(basis, master).is_some_and(|m| !m.name.is_empty());
    inventory.volume(&volume_name(basis.cluster, &master.name)).filter(|_| !fresh && is_member)
}

/// The member at this master's address, whatever it is called: one that has never started has no name yet.
fn member_of<'a>(basis: &Basis<'a>, master: &MasterConfig) -> Option<&'a Member> {
    let url = peer_url(master);
    basis.inventory.members.iter().find(|m| m.name == master.name || m.peer_urls.contains(&url))
}

fn peer_url(master: &MasterConfig) -> String {
    format!("https://{}:{ETCD_PEER_PORT}", master.address)
}

/// Adds the replacement of each chosen master.
pub(super) fn replace(expansion: &mut Expansion<'_>, fresh: bool) -> Result<(), PlanError> {
    let basis = expansion.draft.basis;
    let all_kept = expansion.masters.iter().all(|m| volume_to_keep(basis, m, fresh).is_some());
    if expansion.masters.len() > 1 && !all_kept {
        return Err(PlanError::Unbuildable {
            reason: "several masters can be replaced at once only if the volume of each of them still exists".into(),
            hint:
                "nothing was touched; replace them one after the other while the majority lives, or bring the cluster \
                   back from a snapshot with `hk-dr rebuild`"
                    .into(),
        });
    }
    let others: Vec<&MasterConfig> = basis
        .cluster
        .masters
        .iter()
        .filter(|m| serves_etcd(basis, m) && !expansion.masters.iter().any(|c| c.name == m.name))
        .collect();
    expansion.draft.agreeing = Some(
        others
            .iter()
            .chain(&expansion.masters)
            .map(|m| (m.name.clone(), server_name(basis.cluster, &m.name)))
            .collect(),
    );
    for master in expansion.masters.clone() {
        replace_one(expansion, master, &others, fresh)?;
    }
    let reason = expansion.reason.clone();
    expansion.serve(&reason);
    Ok(())
}

fn replace_one<'a>(
    expansion: &mut Expansion<'a>,
    master: &'a MasterConfig,
    others: &[&MasterConfig],
    fresh: bool,
) -> Result<(), PlanError> {
    let basis = expansion.draft.basis;
    let (inventory, full) = (basis.inventory, expansion.draft.full(&master.name));
    let name = volume_name(basis.cluster, &master.name);
    let (server, there) = (inventory.server(&full), inventory.volume(&name));
    let keep = volume_to_keep(basis, master, fresh);
    let state = match (server, inventory.probes.get(&full), inventory.silent.get(&full)) {
        (None, ..) => format!("{full} does not exist"),
        (Some(_), Some(_), _) => format!("{full} answers and is replaced on request"),
        (Some(_), None, Some(why)) => format!("{full} does not answer ({why})"),
        (Some(_), None, None) => format!("{full} does not answer"),
    };
    let how = match keep {
        Some(volume) => format!("volume {name} in {} is attached to its successor", volume.location),
        None => {
            format!("its etcd member is replaced by a new one with an empty volume in {}", location(expansion, master))
        }
    };
    expansion.draft.findings.push(format!("{state}; {how}"));

    if inventory.probes.contains_key(&full) {
        expansion.stop_control_plane(master);
        expansion.stop_etcd(master);
    }
    if let Some(volume) = there.filter(|v| v.server.is_some()) {
        expansion.detach_one(master, volume);
    }
    if let Some(server) = server {
        expansion.fence(master, server, &state);
    }
    let through: BTreeMap<String, String> =
        others.iter().map(|m| (m.name.clone(), expansion.draft.full(&m.name))).collect();
    if keep.is_none() {
        if through.is_empty() {
            return Err(PlanError::Unbuildable {
                reason: format!("no other etcd member serves, and nothing of {full}'s data is left"),
                hint: "nothing was touched; `hk-dr rebuild` brings the cluster back from a snapshot".into(),
            });
        }
        if let Some(member) = member_of(basis, master) {
            let params = MemberRemove { id: member.id, name: master.name.clone(), through: through.clone() };
            let title = format!("remove etcd's member {} ({:x})", master.name, member.id);
            let reason = "its data does not come back; the others keep the majority";
            expansion.chain(master, format!("member-remove/{}", master.name), &params, title, reason, 120);
        }
        if let Some(volume) = there {
            retire(expansion, master, volume);
        }
    }
    expansion.create(master, &state);
    if let Some(volume) = keep {
        expansion.attach_one(master, volume);
    }
    let etcd = EtcdStart { incarnation: basis.lineage.to_owned(), state: EtcdState::Existing };
    expansion.draft.master(master, &etcd, &state, |draft, needs| {
        if keep.is_some() {
            return None;
        }
        let id = format!("member-add/{}", master.name);
        let params = MemberAdd { name: master.name.clone(), peer_url: peer_url(master), through };
        let title = format!("add {} to etcd's members", master.name);
        let reason = "it takes all data from the others when it starts";
        draft.add(&id, &params, needs, title, reason, 120);
        Some(id)
    });
    Ok(())
}

fn location(expansion: &Expansion<'_>, master: &MasterConfig) -> String {
    expansion.draft.locations.get(&master.name).cloned().unwrap_or_else(|| master.location.clone())
}

/// Data that does not come back is kept under another name all the same.
fn retire<'a>(expansion: &mut Expansion<'a>, master: &'a MasterConfig, volume: &Volume) {
    let run = expansion.draft.basis.plan_id;
    let labels = super::restore::retired_labels(expansion.draft.basis, volume, run);
    let new_name = format!("{}-before-{run}", volume.name);
    let title = format!("keep the old volume {} as {new_name}", volume.name);
    let params = VolumeRetire { id: volume.id, name: volume.name.clone(), new_name, labels };
    let reason = "old data is kept until the new is proven";
    expansion.chain(master, format!("retire/{}", volume.name), &params, title, reason, 120);
}
