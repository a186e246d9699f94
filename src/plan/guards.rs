//! What must hold before a runbook's first step is planned.

use super::draft::Basis;
use super::{PlanError, plan_build};
use crate::config::{MasterConfig, Runbook};
use crate::distribution::server_name;

/// Checks every guard of a runbook that acts on these masters.
pub(super) fn check(basis: &Basis<'_>, runbook: &Runbook, chosen: &[&MasterConfig]) -> Result<(), PlanError> {
    let refused = |guard: &str, reason: String, hint: &str| {
        Err(PlanError::Guard { guard: guard.to_owned(), reason, hint: hint.to_owned() })
    };
    let guards = &runbook.guards;
    if guards.all_masters_serve {
        let silent: Vec<String> = basis.cluster.masters.iter().filter_map(|m| not_serving(basis, m)).collect();
        if !silent.is_empty() {
            let hint =
                "`hk-dr status` shows more; `hk-dr runbook run replace-master --server NAME` brings a lost master back";
            return refused("allMastersServe", silent.join("; "), hint);
        }
    }
    if guards.majority_stays {
        let others = basis.cluster.masters.iter().filter(|m| !chosen.iter().any(|c| c.name == m.name));
        let stay: Vec<&str> = others.filter(|m| serves_etcd(basis, m)).map(|m| m.name.as_str()).collect();
        let members = basis.inventory.members.len().max(basis.cluster.masters.len());
        if stay.len() <= members / 2 {
            let reason = format!(
                "etcd has {members} members and would keep {} of them ({}), which is no majority",
                stay.len(),
                if stay.is_empty() { "none".to_owned() } else { stay.join(", ") }
            );
            let hint = "replace one master at a time, when all others serve; where the majority is lost but the volumes \
                        exist, `hk-dr runbook run masters-from-volumes` brings it back, otherwise `hk-dr rebuild`";
            return refused("majorityStays", reason, hint);
        }
    }
    if guards.drift_free {
        let build = plan_build(basis)?;
        if let Some(first) = build.steps.first() {
            let reason = format!(
                "a build would find {} steps to do, the first: {} because {}",
                build.steps.len(),
                first.title,
                first.reason
            );
            return refused("driftFree", reason, "look at `hk-dr plan`, then `hk-dr build`, and run this again");
        }
    }
    Ok(())
}

/// Whether this master's member answers reads that need a majority.
pub(super) fn serves_etcd(basis: &Basis<'_>, master: &MasterConfig) -> bool {
    basis.inventory.etcd_serving.contains(&server_name(basis.cluster, &master.name))
}

fn not_serving(basis: &Basis<'_>, master: &MasterConfig) -> Option<String> {
    let (inventory, full) = (basis.inventory, server_name(basis.cluster, &master.name));
    if inventory.server(&full).is_none() {
        return Some(format!("{full} does not exist"));
    }
    if let Some(why) = inventory.silent.get(&full) {
        return Some(format!("{full} did not answer: {why}"));
    }
    if !inventory.etcd_serving.contains(&full) {
        return Some(format!("{full}: its etcd member does not serve"));
    }
    (!inventory.api_ready.contains(&full)).then(|| format!("{full}: its API server is not ready"))
}
