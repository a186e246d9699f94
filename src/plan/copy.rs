//! Rehearsals on a copy: a snapshot restored onto servers, volumes and a network of its own, by the very plan of a rebuild,
//! compared with what it was made from, and deleted again. Nothing of production is named in any of its steps.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{Basis, Draft, LINEAGE_LABEL, OWNER_LABEL};
use super::params::{
    ApiWrite, CopyCompare, CopyDiscard, CopyServed, FirewallProvide, ManualWait, Params, ServerCreate, VolumeProvide,
};
use super::runbook::{MANUAL_WITHIN_SECONDS, run_of};
use super::{CopyCost, Inventory, Plan, PlanError, Purpose, RebuildChoice, RunbookChoice, Step, guards, plan_rebuild};
use crate::config::{Cluster, CopyScope, PublicIpv4, Runbook, Verb};
use crate::distribution::server_name;
use crate::ports::{FirewallRule, Labels, Prices};

/// Label with the cluster that something is a copy of. Only what carries it is ever deleted with a copy.
pub const COPY_LABEL: &str = "hk-dr/copy-of";
/// Hours of a month, for what is priced by the month.
const MONTH_HOURS: f64 = 730.0;

/// Whether a runbook works on a copy, so that nothing of it touches production.
pub fn works_on_copy(runbook: &Runbook) -> bool {
    runbook.steps.iter().any(|s| matches!(s.verb, Verb::CopyRestore | Verb::CopyDiscard))
}

/// How much of the cluster a runbook copies; none: it makes no copy.
fn scope(runbook: &Runbook) -> Option<CopyScope> {
    runbook.steps.iter().find(|s| s.verb == Verb::CopyRestore).map(|s| s.scope)
}

/// The name of a cluster's copy: there is one at a time.
pub fn copy_name(cluster: &Cluster) -> String {
    format!("{}-copy", cluster.name)
}

/// The copy as Git would declare it. It has no VPN, no firewall of the cluster's and nothing else that clients come in by.
///
/// # Errors
/// The location that was named is none of the cluster's.
pub fn copied(cluster: &Cluster, runbook: &Runbook, location: Option<&str>) -> Result<Cluster, PlanError> {
    let mut copy = cluster.clone();
    copy.name = copy_name(cluster);
    (copy.vpn, copy.firewall, copy.front) = (None, None, None);
    copy.network.public_ipv4 = PublicIpv4::All;
    let declared = cluster.masters.iter().map(|m| &m.location).chain(cluster.workers.iter().map(|w| &w.location));
    let known: BTreeSet<&String> = declared.chain(&cluster.fallback_locations).collect();
    if let Some(wanted) = location.filter(|l| !known.iter().any(|k| *k == l)) {
        let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
        return Err(PlanError::Unbuildable {
            reason: format!("{wanted} is no location of cluster {}", cluster.name),
            hint: format!("nothing was touched; its locations are: {}", known.join(", ")),
        });
    }
    let whole = scope(runbook) == Some(CopyScope::Whole);
    if !whole {
        copy.masters.truncate(1);
        copy.workers.clear();
    }
    let elsewhere = || {
        let here = &copy.masters.first()?.location;
        cluster.fallback_locations.iter().find(|l| *l != here).cloned()
    };
    // What is rebuilt from Git goes where Git says; a sandbox shows that another location will do.
    let to = location.map(str::to_owned).or_else(|| if whole { None } else { elsewhere() });
    if !whole && let Some(here) = copy.masters.first().map(|m| m.location.clone()) {
        // Where it stands itself comes last of all that have capacity.
        copy.fallback_locations.sort_by_key(|l| *l == here);
    }
    if let Some(to) = to {
        copy.masters.iter_mut().for_each(|m| m.location.clone_from(&to));
        copy.workers.iter_mut().for_each(|w| w.location.clone_from(&to));
    }
    Ok(copy)
}

/// What is known of production while its copy is planned.
#[derive(Debug, Clone, Copy)]
pub struct BesideProduction<'a> {
    pub cluster: &'a Cluster,
    /// The name of its SSH key, if it is registered: a cloud takes a key once.
    pub ssh_key: Option<&'a str>,
    pub prices: Option<&'a Prices>,
}

/// Plans a copy; `basis` speaks of the copy's cluster and of what is left of an earlier one.
///
/// # Errors
/// As [`plan_rebuild`].
pub fn plan_copy(
    basis: &Basis<'_>,
    choice: &RunbookChoice,
    production: &BesideProduction<'_>,
) -> Result<Plan, PlanError> {
    let (runbook, inventory) = (&choice.runbook, basis.inventory);
    if !inventory.foreign.is_empty() && scope(runbook).is_some() {
        return Err(PlanError::Foreign(inventory.foreign.clone()));
    }
    let nothing = Inventory {
        servers: Vec::new(),
        volumes: Vec::new(),
        network: None,
        placement_group: None,
        ssh_key: None,
        firewalls: Vec::new(),
        balancers: Vec::new(),
        floating_ips: Vec::new(),
        ..inventory.clone()
    };
    let fresh = Basis { inventory: &nothing, ..basis.clone() };
    let plan = match scope(runbook) {
        None => Draft::bare(&fresh).finish(Purpose::Runbook),
        Some(_) => plan_rebuild(&fresh, &RebuildChoice { snapshot: choice.snapshot.clone(), even_if_alive: true })?,
    };
    let mut copy = Growing { basis, production, plan };
    if scope(runbook).is_some() {
        copy.stand_apart();
    }
    for step in &runbook.steps {
        match step.verb {
            Verb::CopyCompare => copy.compare(),
            Verb::ClusterVerify => copy.verify(),
            Verb::Manual => copy.by_hand(step.text.as_deref().unwrap_or_default().trim()),
            Verb::CopyDiscard if !choice.keep => copy.discard(),
            _ => {}
        }
    }
    if *inventory != nothing && scope(runbook).is_some() {
        copy.discard_what_is_left();
    }
    let mut plan = copy.finish(choice);
    guards::complete(&mut plan, basis, choice);
    Ok(plan)
}

struct Growing<'a> {
    basis: &'a Basis<'a>,
    production: &'a BesideProduction<'a>,
    plan: Plan,
}

fn step<P: Params>(id: &str, params: &P, needs: Vec<String>, title: String, reason: &str, deadline: u32) -> Step {
    Step {
        id: id.to_owned(),
        kind: P::KIND.into(),
        version: P::VERSION,
        params: serde_json::to_value(params).unwrap_or_default(),
        needs,
        title,
        reason: reason.to_owned(),
        deadline_seconds: deadline,
        seen_absent: false,
    }
}

impl Growing<'_> {
    fn ids(&self, choose: impl Fn(&Step) -> bool) -> Vec<String> {
        self.plan.steps.iter().filter(|s| choose(s)).map(|s| s.id.clone()).collect()
    }

    /// Adds a step before all that are chosen.
    fn before(&mut self, step: Step, choose: impl Fn(&Step) -> bool) {
        for later in self.plan.steps.iter_mut().filter(|s| choose(s)) {
            later.needs.push(step.id.clone());
        }
        self.plan.steps.push(step);
    }

    /// Behind a firewall that lets in SSH alone, and out nothing once all is installed: pods and controllers of a copy hold
    /// the credentials of production, for the cloud and for whatever else they talk to.
    fn stand_apart(&mut self) {
        let (name, of) = (self.basis.cluster.name.clone(), &self.production.cluster.name);
        if let Some(key) = self.production.ssh_key {
            self.plan.steps.retain(|s| s.id != "ssh-key");
            for step in &mut self.plan.steps {
                step.needs.retain(|n| n != "ssh-key");
                if step.kind == ServerCreate::KIND {
                    step.params["ssh_key"] = key.into();
                }
            }
        }
        let labels = Labels::from([
            (OWNER_LABEL.into(), name.clone()),
            (LINEAGE_LABEL.into(), self.basis.lineage.into()),
            (COPY_LABEL.into(), of.clone()),
        ]);
        let selector = format!("{OWNER_LABEL}=={name},{COPY_LABEL}=={of}");
        let ssh = rule("in", "tcp", Some("22"), &["0.0.0.0/0", "::/0"], "SSH");
        let params = FirewallProvide {
            name: name.clone(),
            selector: selector.clone(),
            rules: vec![ssh],
            labels: labels.clone(),
        };
        let title = format!("create firewall {name} (SSH in)");
        self.before(step("firewall", &params, Vec::new(), title, "nobody is to take it for the cluster", 120), |s| {
            s.kind == ServerCreate::KIND
        });
        let installed = self.ids(|s| matches!(s.kind.as_str(), "binaries.install" | "worker.configure"));
        let own = rule("out", "icmp", None, &[&self.basis.cluster.network.range], "nothing else leaves");
        let closed = format!("{name}-closed");
        let params = FirewallProvide { name: closed.clone(), selector, rules: vec![own], labels };
        let title = format!("create firewall {closed} (nothing out)");
        let reason = "controllers and pods of a copy hold production's credentials";
        self.before(step("firewall-closed", &params, installed, title, reason, 120), |s| {
            matches!(s.kind.as_str(), "controllers.start" | "worker.start")
        });
    }

    /// Every key before an API server runs, then every object through it before anything is cleaned.
    fn compare(&mut self) {
        let Some(snapshot) = self.plan.snapshot.clone() else { return };
        let masters = &self.basis.cluster.masters;
        let full = |name: &str| server_name(self.basis.cluster, name);
        let servers: BTreeMap<String, String> = masters.iter().map(|m| (m.name.clone(), full(&m.name))).collect();
        let Some(server) = masters.first().map(|m| full(&m.name)) else { return };
        let params = CopyCompare { servers, snapshot: snapshot.clone() };
        let title = format!("compare every key with snapshot {snapshot}");
        let reason = "what came back must be exactly what was saved";
        self.before(step("compare", &params, vec!["etcd-agree".into()], title, reason, 1800), |s| {
            s.kind == "api.start"
        });
        let title = format!("find every object of the snapshot through {server}'s API, Secrets decrypted");
        let needs = vec![format!("api/{server}")];
        let params = CopyServed { server, snapshot };
        self.before(step("served", &params, needs, title, "data that can't be read is lost", 1800), |s| {
            matches!(s.kind.as_str(), "cluster.clean" | "controllers.start")
        });
    }

    fn verify(&mut self) {
        for master in &self.basis.cluster.masters {
            let server = server_name(self.basis.cluster, &master.name);
            let needs = vec![format!("api/{server}"), format!("controllers/{server}")];
            let title = format!("write through {server} and read it back");
            let reason = "only an acknowledged write shows that the copy lives";
            let id = format!("write/{server}");
            self.plan.steps.push(step(&id, &ApiWrite { server }, needs, title, reason, 120));
        }
    }

    fn by_hand(&mut self, text: &str) {
        let number = self.ids(|s| s.kind == ManualWait::KIND).len() + 1;
        let id = format!("manual/{number}");
        let params = ManualWait { id: id.clone(), text: text.to_owned() };
        let reason = "the runbook leaves it to a person; `hk-dr approve` says that it is done";
        let needs = self.ids(|_| true);
        self.plan.steps.push(step(&id, &params, needs, format!("by hand: {text}"), reason, MANUAL_WITHIN_SECONDS));
    }

    fn discarding(&self) -> CopyDiscard {
        CopyDiscard { copy: self.basis.cluster.name.clone(), of: self.production.cluster.name.clone() }
    }

    fn discard(&mut self) {
        let params = self.discarding();
        let title = format!("delete the copy {} with its servers, volumes and network", params.copy);
        let needs = self.ids(|_| true);
        self.plan.steps.push(step("discard", &params, needs, title, "it has shown what it was made for", 600));
    }

    fn discard_what_is_left(&mut self) {
        let params = self.discarding();
        let title = format!("delete what is left of an earlier copy {}", params.copy);
        let why = match self.basis.parent {
            Some(parent) => format!("run {parent} had begun it, and found no capacity for all of it"),
            None => "it was kept for a look, or its run was given up".to_owned(),
        };
        self.plan.findings.push(format!("{} exists: {why}", params.copy));
        let discard = step("discard-before", &params, Vec::new(), title, "there is one copy at a time", 600);
        self.before(discard, |s| s.needs.is_empty());
    }

    fn finish(mut self, choice: &RunbookChoice) -> Plan {
        let (copy, of) = (self.basis.cluster.name.clone(), self.production.cluster.name.clone());
        let cost = cost(&self.plan, self.production.prices);
        let findings = &mut self.plan.findings;
        findings.retain(|f| !f.starts_with("no server of its former life"));
        findings.insert(0, choice.runbook.summary.trim().to_owned());
        if scope(&choice.runbook).is_some() {
            findings.push(format!(
                "{copy} has servers, volumes, names and a network of its own, and nothing leaves it once its controllers run; \
                 {of} is not touched"
            ));
            findings.push(match &cost {
                Some(cost) => format!("it costs {:.4} {} for each hour that is begun", cost.hour, cost.currency),
                None => "what it costs is not known: the cloud told no prices".into(),
            });
            if choice.keep {
                findings.push(format!(
                    "{copy} is kept and costs until it is deleted: `hk-dr runbook run discard-copy`, or the next rehearsal"
                ));
            }
        }
        let mut plan = self.plan;
        plan.steps = in_order(plan.steps);
        (plan.cluster, plan.purpose) = (of, Purpose::Runbook);
        plan.runbook = Some(run_of(choice));
        if let Some(run) = &mut plan.runbook {
            run.cost = cost;
        }
        plan
    }
}

fn rule(direction: &str, protocol: &str, port: Option<&str>, networks: &[&str], description: &str) -> FirewallRule {
    FirewallRule {
        direction: direction.into(),
        protocol: protocol.into(),
        port: port.map(str::to_owned),
        networks: networks.iter().map(|n| (*n).to_owned()).collect(),
        description: description.into(),
    }
}

/// What all servers, addresses and volumes of a plan cost for an hour, tax included; none if a price is missing.
fn cost(plan: &Plan, prices: Option<&Prices>) -> Option<CopyCost> {
    let prices = prices?;
    let mut hour = 0.0;
    for step in &plan.steps {
        if let Ok(server) = serde_json::from_value::<ServerCreate>(step.params.clone()) {
            hour += prices.server_hour(&server.server_type, &server.location)?;
            if server.public_ipv4 {
                hour += prices.ipv4_hour(&server.location)?;
            }
        } else if let Ok(volume) = serde_json::from_value::<VolumeProvide>(step.params.clone()) {
            hour += prices.volume_gb_month * f64::from(volume.size_gb) / MONTH_HOURS;
        }
    }
    Some(CopyCost { currency: prices.currency.clone(), hour })
}

/// Each step behind all it needs, otherwise in the order they had.
fn in_order(mut steps: Vec<Step>) -> Vec<Step> {
    let ids: BTreeSet<String> = steps.iter().map(|s| s.id.clone()).collect();
    let mut placed: BTreeSet<String> = BTreeSet::new();
    let mut ordered = Vec::with_capacity(steps.len());
    // A circle would be left as it is, and the engine would say who waits for whom.
    while let Some(at) = steps.iter().position(|s| s.needs.iter().all(|n| placed.contains(n) || !ids.contains(n))) {
        let next = steps.remove(at);
        placed.insert(next.id.clone());
        ordered.push(next);
    }
    ordered.append(&mut steps);
    ordered
}
