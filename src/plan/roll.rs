//! Machines that serve and are not as Git declares them: other files, other versions, certificates that end soon. They
//! are changed one after the other, each is looked at before the next, and the first that does not become healthy stops
//! the run.

use std::collections::BTreeMap;

use jiff::{Timestamp, ToSpan};

use super::build::{master_done, worker_done};
use super::draft::{Basis, Draft, volume_name};
use super::guards::serves_etcd;
use super::params::{
    ApiStart, ApiWrite, ControlPlaneStop, ControllersStart, ControllersStop, EtcdAgree, EtcdMount, EtcdStart,
    EtcdStartStep, EtcdStop, MachineHealthy, MasterConfigure, NodeDrain, NodeFresh, NodeReady, NodeUncordon, Params,
    SnapshotTake, WorkerConfigure, WorkerStart, WorkerStop,
};
use super::workers::DRAIN_SECONDS;
use super::{Plan, PlanError, Purpose, skew};
use crate::config::{MasterConfig, WorkerConfig};
use crate::distribution::server_name;
use crate::distribution::upstream::{EtcdState, Role};

/// The snapshot before versions change.
const SNAPSHOT: &str = "snapshot-before";

/// How long a changed machine may take to become healthy. An API server looks at its certificates' files once a minute at
/// least.
const HEALTHY_SECONDS: u32 = 90;

/// Why a machine must be changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Need {
    /// It was configured from something else.
    configuration: bool,
    /// Program, version that is there, version that is declared.
    versions: Vec<(String, String, String)>,
    /// Its first certificate ends then, which is soon.
    certificates: Option<Timestamp>,
    /// Its certificates are renewed because somebody wants it.
    wanted: bool,
}

impl Need {
    /// Whether its services must start anew with other files; new certificates alone are taken over by the API server
    /// and etcd as they run.
    fn restarts(&self) -> bool {
        self.configuration || !self.versions.is_empty()
    }

    fn reason(&self, full: &str) -> String {
        if !self.versions.is_empty() {
            let changes: Vec<String> =
                self.versions.iter().map(|(what, has, wanted)| format!("{what} {has} → {wanted}")).collect();
            return format!("{full} has other versions than Git declares: {}", changes.join(", "));
        }
        if self.configuration {
            return format!("{full} was configured from something else than Git now declares");
        }
        match self.certificates {
            Some(until) => format!("its first certificate ends {}", until.strftime("%Y-%m-%d %H:%M UTC")),
            None => "asked for".into(),
        }
    }
}

/// What is changed one after the other.
#[derive(Default)]
pub(super) struct Rolling<'a> {
    pub masters: Vec<(&'a MasterConfig, Need)>,
    pub workers: Vec<(&'a WorkerConfig, Need)>,
}

impl<'a> Rolling<'a> {
    /// Everything that a build has to change on machines that were configured before.
    pub fn due(basis: &Basis<'a>) -> Self {
        let masters = basis.cluster.masters.iter().filter_map(|master| {
            let need = need(basis, &server_name(basis.cluster, &master.name))?;
            let there = if need.restarts() { has_its_data(basis, master) } else { master_done(basis, master) };
            there.then_some((master, need))
        });
        let workers = basis.cluster.workers.iter().filter_map(|worker| {
            let full = server_name(basis.cluster, &worker.name);
            let need = need(basis, &full)?;
            let there = if need.restarts() {
                basis.inventory.server(&full).is_some_and(|s| !s.private.is_empty())
            } else {
                worker_done(basis, worker)
            };
            there.then_some((worker, need))
        });
        Self { masters: masters.collect(), workers: workers.collect() }
    }

    pub fn has_master(&self, name: &str) -> bool {
        self.masters.iter().any(|(m, _)| m.name == name)
    }

    pub fn has_worker(&self, name: &str) -> bool {
        self.workers.iter().any(|(w, _)| w.name == name)
    }

    /// Whether a machine of this role gets other files from the bucket.
    pub fn installs(&self, role: Role) -> bool {
        match role {
            Role::Master => self.masters.iter().any(|(_, need)| !need.versions.is_empty()),
            Role::Worker => self.workers.iter().any(|(_, need)| !need.versions.is_empty()),
            Role::Vpn => false,
        }
    }
}

/// etcd has a majority, and this master has its part of the data on its attached volume.
fn has_its_data(basis: &Basis<'_>, master: &MasterConfig) -> bool {
    let inventory = basis.inventory;
    let full = server_name(basis.cluster, &master.name);
    inventory.quorum
        && inventory.server(&full).is_some_and(|s| !s.private.is_empty())
        && inventory.probes.get(&full).is_some_and(|p| p.etcd_data)
        && inventory.volume(&volume_name(basis.cluster, &master.name)).is_some_and(|v| v.server.is_some())
}

/// None: it is as declared, or was never configured to the end, which is what a build mends otherwise.
fn need(basis: &Basis<'_>, full: &str) -> Option<Need> {
    let probe = basis.inventory.probes.get(full)?;
    let configuration = probe.config_digest.as_ref()? != basis.digests.get(full)?;
    let mut versions: Vec<(String, String, String)> = Vec::new();
    for (program, version) in probe.versions.iter().chain(&probe.stale) {
        let wanted = declared(basis, program);
        let listed = versions.iter().any(|(there, ..)| there == program);
        if version != wanted && !listed {
            versions.push((program.clone(), version.clone(), wanted.to_owned()));
        }
    }
    let certificates = probe.certificates_until.filter(|until| *until < renewal_horizon(basis));
    let need = Need { configuration, versions, certificates, wanted: false };
    (need != Need::default()).then_some(need)
}

/// The version of a program that Git declares.
pub(super) fn declared<'a>(basis: &Basis<'a>, program: &str) -> &'a str {
    if program.starts_with("etcd") { &basis.cluster.etcd.version } else { &basis.cluster.kubernetes.version }
}

/// What ends before this is renewed.
fn renewal_horizon(basis: &Basis<'_>) -> Timestamp {
    let days = i64::from(basis.cluster.certificates.renew_before_days);
    basis.now.checked_add((days * 24).hours()).unwrap_or(Timestamp::MAX)
}

/// Renews certificates of machines that serve: those that end soon, or all.
pub fn plan_certificates(basis: &Basis<'_>, all: bool) -> Result<Plan, PlanError> {
    let mut draft = Draft::bare(basis);
    let mut rolling = Rolling::due(basis);
    let other =
        |full: String| format!("{full} also differs from what Git declares and is left as it is: `hk-dr build`");
    let mut left = Vec::new();
    rolling.masters.retain(|(m, need)| {
        !need.restarts() || {
            left.push(other(draft.full(&m.name)));
            false
        }
    });
    rolling.workers.retain(|(w, need)| {
        !need.restarts() || {
            left.push(other(draft.full(&w.name)));
            false
        }
    });
    if all {
        let wanted = Need { wanted: true, ..Need::default() };
        for master in basis.cluster.masters.iter().filter(|m| master_done(basis, m)) {
            if !rolling.has_master(&master.name) {
                rolling.masters.push((master, wanted.clone()));
            }
        }
        for worker in basis.cluster.workers.iter().filter(|w| worker_done(basis, w)) {
            if !rolling.has_worker(&worker.name) {
                rolling.workers.push((worker, wanted.clone()));
            }
        }
        let masters = basis.cluster.masters.iter().filter(|m| !rolling.has_master(&m.name)).map(|m| &m.name);
        let workers = basis.cluster.workers.iter().filter(|w| !rolling.has_worker(&w.name)).map(|w| &w.name);
        left.extend(masters.chain(workers).map(|name| {
            format!("{} does not serve as declared and is left as it is: `hk-dr build`", draft.full(name))
        }));
    }
    left.sort();
    left.dedup();
    draft.findings.extend(left);
    roll_masters(&mut draft, &rolling)?;
    roll_workers(&mut draft, &rolling);
    Ok(draft.finish(Purpose::Certificates))
}

/// Masters that others can agree with before any is changed: not those that wait for their change to serve again. None:
/// all that are declared.
pub(super) fn without_waiting(basis: &Basis<'_>, rolling: &Rolling<'_>) -> Option<BTreeMap<String, String>> {
    let waits = |m: &MasterConfig| rolling.has_master(&m.name) && !serves_etcd(basis, m);
    if !basis.cluster.masters.iter().any(waits) {
        return None;
    }
    let others = basis.cluster.masters.iter().filter(|m| !waits(m));
    Some(others.map(|m| (m.name.clone(), server_name(basis.cluster, &m.name))).collect())
}

/// Adds the changes of masters, behind everything the plan has so far.
pub(super) fn roll_masters<'a>(draft: &mut Draft<'a>, rolling: &Rolling<'a>) -> Result<(), PlanError> {
    let basis = draft.basis;
    if rolling.masters.is_empty() {
        return Ok(());
    }
    let changes = rolling.masters.iter().flat_map(|(_, need)| &need.versions);
    let upgrade = skew::check(basis, changes.map(|(what, has, _)| (what.as_str(), has.as_str())))?;
    // Those that do not serve first: the majority that is there must not shrink while one is still missing.
    let mut order: Vec<&(&MasterConfig, Need)> = rolling.masters.iter().collect();
    order.sort_by_key(|(master, _)| serves_etcd(basis, master));
    let repaired = |m: &MasterConfig| draft.has(&format!("etcd/{}", server_name(basis.cluster, &m.name)));
    let mut serving: BTreeMap<String, String> = basis
        .cluster
        .masters
        .iter()
        .filter(|m| serves_etcd(basis, m) || repaired(m))
        .map(|m| (m.name.clone(), server_name(basis.cluster, &m.name)))
        .collect();
    keeps_majority(basis, &order, &serving)?;
    if basis.cluster.masters.len() == 1 && order.iter().any(|(_, need)| need.restarts()) {
        draft.findings.push("there is one master: its API is away while it starts anew".into());
    }
    let mut after = draft.ids();
    if let Some(upgrade) = upgrade {
        draft.findings.push(upgrade);
        let needs: Vec<&str> = after.iter().map(String::as_str).collect();
        let servers = serving.iter().filter(|(_, full)| basis.inventory.etcd_serving.contains(*full));
        let servers = servers.map(|(m, f)| (m.clone(), f.clone())).collect();
        let params = SnapshotTake { servers, verify: true, idle: false };
        let reason = "versions change: should all of this go wrong, `hk-dr rebuild` brings the cluster back from it";
        draft.add(SNAPSHOT, &params, &needs, "take a snapshot and read it back", reason, 3600);
        after = vec![SNAPSHOT.into()];
    }
    for (master, need) in order {
        serving.insert(master.name.clone(), draft.full(&master.name));
        let mut chain = Chain { after, reason: need.reason(&draft.full(&master.name)) };
        if need.restarts() {
            restart_master(draft, &mut chain, master, need, &serving);
        } else {
            renew_master(draft, &mut chain, master);
        }
        after = chain.after;
    }
    Ok(())
}

/// Whether a majority serves while each master in turn does not.
fn keeps_majority(
    basis: &Basis<'_>,
    order: &[&(&MasterConfig, Need)],
    serving: &BTreeMap<String, String>,
) -> Result<(), PlanError> {
    let members = basis.cluster.masters.len();
    let Some((master, _)) = order.iter().find(|(m, need)| need.restarts() && serving.contains_key(&m.name)) else {
        return Ok(());
    };
    // What is not served by now and is changed too comes first, and serves then.
    let later = order.iter().filter(|(m, _)| !serving.contains_key(&m.name)).count();
    if members == 1 || serving.len() + later - 1 > members / 2 {
        return Ok(());
    }
    Err(PlanError::Unbuildable {
        reason: format!(
            "{} must start anew, and etcd would have no majority meanwhile: of {members} members only {} serve",
            server_name(basis.cluster, &master.name),
            serving.len()
        ),
        hint: "nothing was touched; `hk-dr runbook run replace-master --server NAME` brings a lost master back first"
            .into(),
    })
}

/// Steps of one machine, one behind the other.
struct Chain {
    after: Vec<String>,
    reason: String,
}

impl Chain {
    fn add<P: Params>(&mut self, draft: &mut Draft<'_>, id: String, params: &P, title: String, deadline_seconds: u32) {
        let needs: Vec<&str> = self.after.iter().map(String::as_str).collect();
        draft.add(&id, params, &needs, title, &self.reason, deadline_seconds);
        self.after = vec![id];
    }
}

fn restart_master(
    draft: &mut Draft<'_>,
    chain: &mut Chain,
    master: &MasterConfig,
    need: &Need,
    serving: &BTreeMap<String, String>,
) {
    let full = draft.full(&master.name);
    let server = || full.clone();
    if !need.versions.is_empty() {
        // While the old ones still run: nothing is away while files travel.
        let id = format!("binaries/{full}");
        let needs: Vec<&str> = chain.after.iter().map(String::as_str).collect();
        draft.binaries(&id, &full, Role::Master, |_| true, &needs);
        chain.after = vec![id];
    }
    let title = format!("stop API server, controller manager and scheduler on {full}");
    chain.add(draft, format!("stop-control-plane/{full}"), &ControlPlaneStop { server: server() }, title, 120);
    let title = format!("stop etcd on {full} and unmount its volume");
    chain.add(draft, format!("stop-etcd/{full}"), &EtcdStop { server: server() }, title, 120);
    configure_master(draft, chain, master);
    let params = EtcdMount { server: server(), volume: volume_name(draft.basis.cluster, &master.name) };
    chain.add(draft, format!("mount/{full}"), &params, format!("mount etcd's volume on {full}"), 120);
    let params = EtcdStartStep { server: server() };
    chain.add(draft, format!("etcd/{full}"), &params, format!("start etcd on {full}"), 60);
    let title = "wait until all etcd members agree on the hash of all data".to_owned();
    chain.add(draft, format!("agree/{full}"), &EtcdAgree { servers: serving.clone() }, title, 180);
    let title = format!("start the API server on {full}");
    chain.add(draft, format!("api/{full}"), &ApiStart { server: server() }, title, 180);
    start_controllers(draft, chain, &full);
    check(draft, chain, &full, Role::Master);
}

/// etcd and the API server read certificates anew as they run; what has its own inside a kubeconfig starts anew.
fn renew_master(draft: &mut Draft<'_>, chain: &mut Chain, master: &MasterConfig) {
    let full = draft.full(&master.name);
    let title = format!("stop controller manager and scheduler on {full}");
    chain.add(draft, format!("stop-controllers/{full}"), &ControllersStop { server: full.clone() }, title, 120);
    configure_master(draft, chain, master);
    start_controllers(draft, chain, &full);
    check(draft, chain, &full, Role::Master);
}

fn configure_master(draft: &mut Draft<'_>, chain: &mut Chain, master: &MasterConfig) {
    let full = draft.full(&master.name);
    let params = MasterConfigure {
        server: full.clone(),
        master: master.name.clone(),
        volume: volume_name(draft.basis.cluster, &master.name),
        etcd: EtcdStart { incarnation: draft.basis.lineage.to_owned(), state: EtcdState::Existing },
    };
    let title = format!("write the files of {full}, with new certificates");
    chain.add(draft, format!("configure/{full}"), &params, title, 120);
}

fn start_controllers(draft: &mut Draft<'_>, chain: &mut Chain, full: &str) {
    let title = format!("start controller manager and scheduler on {full}");
    let params = ControllersStart { server: full.to_owned() };
    chain.add(draft, format!("controllers/{full}"), &params, title, 60);
}

/// The next machine is touched only behind this.
fn check(draft: &mut Draft<'_>, chain: &mut Chain, full: &str, role: Role) {
    let basis = draft.basis;
    let programs: &[&str] = match role {
        Role::Master => &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"],
        Role::Worker => &["kubelet", "kube-proxy"],
        Role::Vpn => &[],
    };
    let versions = programs.iter().map(|p| ((*p).to_owned(), declared(basis, p).to_owned())).collect();
    let params = MachineHealthy {
        server: full.to_owned(),
        master: role == Role::Master,
        versions,
        certificates_until: Some(renewal_horizon(basis)),
        within_seconds: HEALTHY_SECONDS,
        hint: "no other machine was touched after it; to go back, declare in Git what was there before and `hk-dr build`: \
               the versions before are kept on the machine"
            .into(),
    };
    let title = format!("look whether {full} is healthy");
    chain.add(draft, format!("healthy/{full}"), &params, title, 2 * HEALTHY_SECONDS);
    if role == Role::Master {
        let title = format!("write through {full} and read it back");
        chain.add(draft, format!("write/{full}"), &ApiWrite { server: full.to_owned() }, title, 120);
    }
}

/// Adds the changes of workers, behind everything the plan has so far: kubelets are never newer than the API.
pub(super) fn roll_workers<'a>(draft: &mut Draft<'a>, rolling: &Rolling<'a>) {
    let basis = draft.basis;
    let mut after = draft.ids();
    let asked = basis.cluster.masters.first().map(|m| draft.full(&m.name)).unwrap_or_default();
    for (worker, need) in &rolling.workers {
        let full = draft.full(&worker.name);
        let mut chain = Chain { after, reason: need.reason(&full) };
        // Between minor versions a kubelet does not take over running pods.
        let drain = need.versions.iter().any(|(what, has, wanted)| what == "kubelet" && !skew::same_minor(has, wanted));
        if drain {
            let params = NodeDrain { node: full.clone(), master_server: asked.clone(), within_seconds: DRAIN_SECONDS };
            let title = format!("keep new pods from {full} and evict its pods");
            chain.add(draft, format!("drain/{full}"), &params, title, DRAIN_SECONDS + 60);
        }
        if !need.versions.is_empty() {
            let id = format!("binaries/{full}");
            let needs: Vec<&str> = chain.after.iter().map(String::as_str).collect();
            draft.binaries(&id, &full, Role::Worker, |_| true, &needs);
            chain.after = vec![id];
        }
        let title = format!("stop kubelet and proxy on {full}; its pods go on");
        chain.add(draft, format!("stop-worker/{full}"), &WorkerStop { server: full.clone() }, title, 120);
        let params = WorkerConfigure { server: full.clone(), worker: worker.name.clone() };
        let title = format!("write the files of {full}, with new certificates");
        chain.add(draft, format!("configure/{full}"), &params, title, 300);
        let title = format!("start kubelet and proxy on {full}");
        chain.add(draft, format!("worker/{full}"), &WorkerStart { server: full.clone() }, title, 60);
        let params = NodeFresh { node: full.clone(), master_server: asked.clone() };
        chain.add(
            draft,
            format!("fresh/{full}"),
            &params,
            format!("wait until the kubelet of {full} reports again"),
            240,
        );
        let params = NodeReady { node: full.clone(), master_server: asked.clone(), labels: worker.labels.clone() };
        chain.add(draft, format!("node/{full}"), &params, format!("wait until node {full} is ready"), 240);
        check(draft, &mut chain, &full, Role::Worker);
        if drain {
            let params = NodeUncordon { node: full.clone(), master_server: asked.clone() };
            chain.add(draft, format!("uncordon/{full}"), &params, format!("let pods be scheduled on {full} again"), 60);
        }
        after = chain.after;
    }
}
