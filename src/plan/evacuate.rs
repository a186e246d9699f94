//! Leaving a location: its masters are replaced by new members elsewhere, its workers made anew elsewhere, one after the
//! other, while the rest of the cluster serves.

use std::collections::BTreeSet;

use super::draft::Basis;
use super::runbook::Expansion;
use super::workers::{WorkersChoice, leave_and_return};
use super::{PlanError, RunbookChoice, replace};
use crate::config::{Runbook, Verb, WorkerConfig};
use crate::distribution::server_name;
use crate::distribution::upstream::Role;

/// Whether a runbook leaves a location.
pub(super) fn evacuates(runbook: &Runbook) -> bool {
    runbook.steps.iter().any(|s| s.verb == Verb::LocationEvacuate)
}

/// For a runbook that leaves a location: what is not available then, and the choice with the masters that are there.
pub(super) fn leaving(
    basis: &Basis<'_>,
    choice: &RunbookChoice,
) -> Result<Option<(BTreeSet<String>, RunbookChoice)>, PlanError> {
    if !evacuates(&choice.runbook) {
        return Ok(None);
    }
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    let Some(from) = &choice.location else {
        let places: BTreeSet<&str> = inventory.servers.iter().map(|s| s.location.as_str()).collect();
        return Err(PlanError::Unbuildable {
            reason: format!("runbook {} leaves a location, and none is named", choice.runbook.name),
            hint: format!(
                "nothing was touched; add --from LOCATION, one of: {}",
                places.into_iter().collect::<Vec<_>>().join(", ")
            ),
        });
    };
    let is_there = |name: &str, declared: &str| match inventory.server(&server_name(cluster, name)) {
        Some(server) => server.location == *from,
        None => declared == from,
    };
    let mut inner = choice.clone();
    inner.servers = cluster.masters.iter().filter(|m| is_there(&m.name, &m.location)).map(|m| m.name.clone()).collect();
    for step in inner.runbook.steps.iter_mut().filter(|s| s.verb == Verb::LocationEvacuate) {
        // Volumes don't move: the new member takes its data from the others.
        step.fresh_volume = true;
    }
    if inner.servers.is_empty() && !cluster.workers.iter().any(|w| is_there(&w.name, &w.location)) {
        return Err(PlanError::Unbuildable {
            reason: format!("no server of the cluster is in {from}"),
            hint: "nothing was touched; `hk-dr status` shows where they are".into(),
        });
    }
    let mut unavailable = basis.unavailable.clone();
    unavailable.insert(from.clone());
    Ok(Some((unavailable, inner)))
}

/// Adds the way of every server of that location to another one.
pub(super) fn evacuate(expansion: &mut Expansion<'_>, from: &str) -> Result<(), PlanError> {
    let basis = expansion.draft.basis;
    let (cluster, inventory) = (basis.cluster, basis.inventory);
    if !expansion.masters.is_empty() {
        replace::replace(expansion, true)?;
    }
    let stays = cluster.masters.iter().filter(|m| !expansion.masters.iter().any(|c| c.name == m.name));
    let asked = stays.map(|m| server_name(cluster, &m.name)).find(|full| inventory.api_ready.contains(full));
    let asked = asked.ok_or_else(|| PlanError::Unbuildable {
        reason: format!("no master outside of {from} has an API server that is ready"),
        hint: "nothing was touched; `hk-dr rebuild` brings the cluster back elsewhere from a snapshot".into(),
    })?;
    let workers: Vec<(&WorkerConfig, String)> = cluster
        .workers
        .iter()
        .filter(|w| inventory.server(&server_name(cluster, &w.name)).is_some_and(|s| s.location == from))
        .map(|w| (w, format!("{from} is left")))
        .collect();
    expansion.draft.artifacts(&[Role::Worker]);
    leave_and_return(&mut expansion.draft, &workers, &WorkersChoice::default(), &asked);
    let last = workers.iter().map(|(w, _)| format!("node/{}", server_name(cluster, &w.name)));
    expansion.after.insert("workers", last.collect());
    Ok(())
}
