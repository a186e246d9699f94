//! From what is wanted to a plan: looks at the world, gathers what the planner needs to know, and asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::distribution::server_name;
use crate::distribution::upstream::{Role, config_digest, needed, vpn_digest};
use crate::drill::{Evidence, Verdict};
use crate::observe::{Depth, observe};
use crate::plan::{
    AbortChoice, Basis, BesideProduction, DestroyChoice, Drift, Inventory, LINEAGE_LABEL, Plan, PlanError, Purpose,
    RebuildChoice, RunbookChoice, WorkersChoice, copied, drift, plan_abort, plan_build, plan_build_with,
    plan_certificates, plan_copy, plan_destroy, plan_rebuild, plan_runbook, plan_ssh_rotation, works_on_copy,
};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};
use crate::steps::World;

/// Pieces of evidence that are read in search of a runbook's last runs, their size, and runs that count.
const EVIDENCE_LOOKED_AT: usize = 100;
const EVIDENCE_BYTES_MAX: u64 = 8 << 20;
const OUTAGES_MAX: usize = 5;

/// What is wanted.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one exists for each run of the program; a box would only cost readers")]
pub enum Wanted {
    Build,
    /// Build, and drain, delete or make anew the workers of this choice.
    Workers(WorkersChoice),
    /// Renew certificates: those that end soon, or all.
    Certificates {
        all: bool,
    },
    /// Put another SSH key (the world's own) in the place of this one.
    SshRotation {
        before: String,
    },
    Rebuild(RebuildChoice),
    Runbook(RunbookChoice),
    Destroy(DestroyChoice),
    /// Give a run up and undo what can be undone.
    Abort(Box<AbortChoice>),
}

/// The circumstances of a plan that outlive a re-planning.
#[derive(Debug, Clone, Default)]
pub struct Course {
    /// Set after the first plan.
    pub lineage: Option<String>,
    pub parent: Option<String>,
    pub unavailable: BTreeSet<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Observes and plans. Touches nothing.
pub async fn draw_plan(
    world: &World,
    ssh_public_key: &str,
    wanted: &Wanted,
    course: &Course,
    plan_id: &str,
) -> Result<Plan, DrawError> {
    if let Wanted::Destroy(choice) = wanted {
        return draw_destruction(world, *choice, plan_id).await;
    }
    if let Wanted::Runbook(choice) = wanted
        && works_on_copy(&choice.runbook)
    {
        return draw_copy(world, ssh_public_key, choice, course, plan_id).await;
    }
    // A rebuild that is under way makes every machine anew: a look at them would only wait for those that boot. A build
    // must know which masters have data, however often it is planned.
    let depth = match wanted {
        Wanted::Rebuild(_) if course.parent.is_some() => Depth::Cloud,
        _ => Depth::Machines,
    };
    let inventory = observe(world, depth).await?;
    let pins = pins(world, &inventory).await?;
    let digests = if inventory.secrets_kept { digests(world).await? } else { BTreeMap::new() };
    let servers = inventory.servers.iter().map(|s| &s.labels);
    // Where no server is left, volumes still tell which life their data is of.
    let kept = inventory.volumes.iter().map(|v| &v.labels).filter(|l| !l.contains_key("hk-dr/retired"));
    let existing = servers.chain(kept).find_map(|labels| labels.get(LINEAGE_LABEL).cloned());
    let lineage = match (&course.lineage, wanted) {
        (Some(lineage), _) => lineage.clone(),
        // A build or a runbook continues the life that its servers are of.
        (
            None,
            Wanted::Build
            | Wanted::Workers(_)
            | Wanted::Certificates { .. }
            | Wanted::SshRotation { .. }
            | Wanted::Runbook(_)
            | Wanted::Abort(_),
        ) => existing.unwrap_or_else(|| plan_id.to_owned()),
        (None, Wanted::Rebuild(_) | Wanted::Destroy(_)) => plan_id.to_owned(),
    };
    let outages = match wanted {
        Wanted::Runbook(choice) if choice.runbook.guards.maximum_outage_seconds.is_some() => {
            measured_outages(world.store.as_ref(), &world.cluster.name, &choice.runbook.name).await?
        }
        _ => Vec::new(),
    };
    let basis = Basis {
        cluster: &world.cluster,
        inventory: &inventory,
        pins: &pins,
        ssh_public_key,
        digests: &digests,
        plan_id,
        parent: course.parent.as_deref(),
        lineage: &lineage,
        now: world.clock.now(),
        unavailable: &course.unavailable,
        copy_of: None,
        outages: &outages,
    };
    Ok(match wanted {
        Wanted::Build => plan_build(&basis)?,
        Wanted::Workers(choice) => plan_build_with(&basis, choice)?,
        Wanted::Certificates { all } => plan_certificates(&basis, *all)?,
        Wanted::SshRotation { before } => plan_ssh_rotation(&basis, before, ssh_public_key)?,
        Wanted::Rebuild(choice) => plan_rebuild(&basis, choice)?,
        Wanted::Runbook(choice) => plan_runbook(&basis, choice)?,
        Wanted::Abort(choice) => plan_abort(&basis, choice)?,
        Wanted::Destroy(choice) => plan_destroy(&basis, *choice),
    })
}

/// Needs neither machines nor binaries: what is to go may be broken in any way.
async fn draw_destruction(world: &World, choice: DestroyChoice, plan_id: &str) -> Result<Plan, DrawError> {
    let inventory = observe(world, Depth::Cloud).await?;
    Ok(with_bare_basis(world, &inventory, "", &BTreeMap::new(), plan_id, |basis| plan_destroy(basis, choice)))
}

/// Looks at everything and compares it with what Git declares. Touches nothing.
///
/// # Errors
/// As [`observe`].
pub async fn look_for_drift(world: &World, ssh_public_key: &str) -> PortResult<(Inventory, Vec<Drift>)> {
    let inventory = observe(world, Depth::Machines).await?;
    let digests = if inventory.secrets_kept { digests(world).await? } else { BTreeMap::new() };
    let drifts = with_bare_basis(world, &inventory, ssh_public_key, &digests, "", drift);
    Ok((inventory, drifts))
}

/// For decisions that create nothing.
fn with_bare_basis<T>(
    world: &World,
    inventory: &Inventory,
    ssh_public_key: &str,
    digests: &BTreeMap<String, String>,
    plan_id: &str,
    decide: impl FnOnce(&Basis<'_>) -> T,
) -> T {
    decide(&Basis {
        cluster: &world.cluster,
        inventory,
        pins: &BTreeMap::new(),
        ssh_public_key,
        digests,
        plan_id,
        parent: None,
        lineage: plan_id,
        now: world.clock.now(),
        unavailable: &BTreeSet::new(),
        copy_of: None,
        outages: &[],
    })
}

/// The world in which a plan is executed: for one that works on a copy, the copy's.
///
/// # Errors
/// `Invalid` if `cluster.yaml` does not have any more what the plan was drawn from.
pub fn world_of(plan: &Plan, world: &World) -> PortResult<World> {
    let copying = plan.runbook.as_ref().filter(|r| plan.purpose == Purpose::Runbook && works_on_copy(&r.runbook));
    let Some((run, snapshot)) = copying.zip(plan.snapshot.as_ref()) else { return Ok(world.clone()) };
    let cluster = copied(&world.cluster, &run.runbook, run.location.as_deref())
        .map_err(|e| PortError::new(ErrorCode::Invalid, e.to_string()))?;
    Ok(world.copy(cluster, snapshot))
}

/// A copy's plan. Of production nothing is looked at but its snapshots, its binaries and its SSH key.
async fn draw_copy(
    world: &World,
    ssh_public_key: &str,
    choice: &RunbookChoice,
    course: &Course,
    plan_id: &str,
) -> Result<Plan, DrawError> {
    let cluster = copied(&world.cluster, &choice.runbook, choice.location.as_deref())?;
    let snapshots = match world.backups.snapshots().await {
        Err(error) if error.code == ErrorCode::NotFound => Vec::new(),
        other => other?,
    };
    let restored = choice.snapshot.clone().or_else(|| snapshots.first().map(|s| s.id.clone()));
    if let Some(wanted) = choice.snapshot.as_ref().filter(|id| !snapshots.iter().any(|s| s.id == **id)) {
        let available = snapshots.iter().map(|s| s.id.clone()).collect();
        return Err(PlanError::NoSnapshot { wanted: wanted.clone(), available }.into());
    }
    let copy = match &restored {
        Some(snapshot) => world.copy(cluster, snapshot),
        None => World { vault: Arc::clone(&world.vault), ..world.copy(cluster, "") },
    };
    let inventory = observe(&copy, Depth::Cloud).await?;
    let pins = pins(&copy, &inventory).await?;
    let key = world.cloud.ssh_key_by_name(&world.cluster.name).await?.filter(|k| world.owns(&k.labels));
    // A rehearsal does not fail for want of a price list.
    let prices = world.cloud.prices().await.ok();
    let basis = Basis {
        cluster: &copy.cluster,
        inventory: &inventory,
        pins: &pins,
        ssh_public_key,
        digests: &BTreeMap::new(),
        plan_id,
        parent: course.parent.as_deref(),
        lineage: plan_id,
        now: world.clock.now(),
        unavailable: &course.unavailable,
        copy_of: Some(&world.cluster.name),
        outages: &[],
    };
    let production = BesideProduction {
        cluster: &world.cluster,
        ssh_key: key.as_ref().map(|k| k.name.as_str()),
        prices: prices.as_ref(),
    };
    Ok(plan_copy(&basis, choice, &production)?)
}

/// The longest times without an acknowledged write in the last runs of a runbook that ended, in seconds, newest first. What
/// can't be read as evidence was not measured.
async fn measured_outages(store: &dyn ObjectStore, cluster: &str, runbook: &str) -> PortResult<Vec<f64>> {
    let prefix = format!("{cluster}/runs/");
    let objects = store.list(&prefix).await?;
    // Runs are named by the time at which they were planned.
    let mut keys: Vec<String> =
        objects.into_iter().map(|object| object.key).filter(|key| key.ends_with("/evidence.json")).collect();
    keys.sort_unstable();
    let mut outages = Vec::new();
    for key in keys.into_iter().rev().take(EVIDENCE_LOOKED_AT) {
        let Ok(document) = store.get(&key, EVIDENCE_BYTES_MAX).await else { continue };
        let Ok(evidence) = serde_json::from_slice::<Evidence>(&document) else { continue };
        if evidence.runbook == runbook && evidence.verdict != Verdict::Inconclusive {
            outages.extend(evidence.writes.longest_gap_seconds);
        }
        if outages.len() == OUTAGES_MAX {
            break;
        }
    }
    Ok(outages)
}

/// Version and digest of everything servers install: a digest the bucket has, else the one of the local file.
async fn pins(world: &World, inventory: &Inventory) -> PortResult<BTreeMap<String, (String, String)>> {
    let mut pins = BTreeMap::new();
    for item in [Role::Master, Role::Worker].into_iter().flat_map(|role| needed(&world.cluster, role)) {
        let (version, digests) = world.artifacts.pinned(&item.name, item.version.as_deref())?;
        let digest = match digests.into_iter().find(|d| inventory.mirrored.contains(d)) {
            Some(digest) => digest,
            None => world.artifacts.fetch(&item.name, &version).await?.1,
        };
        pins.insert(item.name, (version, digest));
    }
    Ok(pins)
}

async fn digests(world: &World) -> PortResult<BTreeMap<String, String>> {
    let (cluster, secrets) = (&world.cluster, world.secrets().await?);
    let masters = cluster.masters.iter().map(|m| (&m.name, Role::Master));
    let workers = cluster.workers.iter().map(|w| (&w.name, Role::Worker));
    let mut digests: BTreeMap<String, String> = masters
        .chain(workers)
        .map(|(name, role)| (server_name(cluster, name), config_digest(cluster, &secrets, role, name)))
        .collect();
    if let Some(vpn) = &cluster.vpn {
        let digest = vpn_digest(cluster, vpn, &secrets).map_err(|e| {
            PortError::new(ErrorCode::Invalid, e.to_string())
                .hint("this cluster was founded by an hk-dr that knew no VPN; nothing was touched")
        })?;
        digests.insert(server_name(cluster, &vpn.name), digest);
    }
    Ok(digests)
}
