//! From a runbook's verbs to concrete steps on servers.

use std::collections::BTreeMap;

use super::draft::{Basis, Draft, volume_name};
use super::params::{
    ApiWrite, ControlPlaneStop, EtcdAgree, EtcdMount, EtcdStart, EtcdStartStep, EtcdStop, EtcdUnchanged, ManualWait,
    NodeFresh, ServerFence, ServerPowerOff, ServerPowerOn, SnapshotTake, VolumeAttach, VolumeDetach,
};
use super::who::Who;
use super::{Plan, PlanError, Purpose, RunbookRun, evacuate, guards, replace, restore, rotate};
use crate::config::{Acts, MasterConfig, Runbook, RunbookStep, Verb};
use crate::distribution::upstream::{EtcdState, Role};
use crate::ports::{Server, Volume};

/// The step in which all members agreed on a hash before they were stopped.
pub(super) const HASH_BEFORE: &str = "etcd-before";
/// The step that compares with it.
pub(super) const UNCHANGED: &str = "etcd-unchanged";

/// How long a run waits for a person: a week.
pub(super) const MANUAL_WITHIN_SECONDS: u32 = 7 * 24 * 3600;

/// What a person chose about a runbook.
#[derive(Debug, Clone)]
pub struct RunbookChoice {
    pub runbook: Runbook,
    /// Short names of masters.
    pub servers: Vec<String>,
    /// For masters.restore: a snapshot's id; none: the newest.
    pub snapshot: Option<String>,
    /// For masters.move: where to; none: each to the next of the cluster's locations.
    pub location: Option<String>,
    /// For copies: leave it for a look.
    pub keep: bool,
    /// For key rotations: the public part of the key that servers know, beside which there is a new one.
    pub ssh_before: Option<String>,
    /// A person has agreed to this run already.
    pub approved: bool,
}

impl RunbookChoice {
    /// A runbook on these masters, without further choices.
    pub fn new(runbook: Runbook, servers: Vec<String>) -> Self {
        Self { runbook, servers, snapshot: None, location: None, keep: false, ssh_before: None, approved: false }
    }
}

/// A runbook being expanded.
pub(super) struct Expansion<'a> {
    pub draft: Draft<'a>,
    pub masters: Vec<&'a MasterConfig>,
    /// What each master's next step must wait for.
    pub after: BTreeMap<&'a str, Vec<String>>,
    pub reason: String,
    recreated: bool,
}

/// Expands a runbook. Its guards are checked first.
pub fn plan_runbook(basis: &Basis<'_>, choice: &RunbookChoice) -> Result<Plan, PlanError> {
    let mut plan = match evacuate::leaving(basis, choice)? {
        None => expand(basis, choice)?,
        Some((unavailable, inner)) => expand(&Basis { unavailable: &unavailable, ..basis.clone() }, &inner)?,
    };
    plan.runbook = Some(run_of(choice));
    guards::complete(&mut plan, basis, choice);
    Ok(plan)
}

pub(super) fn run_of(choice: &RunbookChoice) -> RunbookRun {
    let RunbookChoice { runbook, servers, snapshot, location, keep, ssh_before: _, approved: _ } = choice.clone();
    RunbookRun { runbook, servers, snapshot, location, keep, cost: None }
}

fn expand(basis: &Basis<'_>, choice: &RunbookChoice) -> Result<Plan, PlanError> {
    let runbook = &choice.runbook;
    if choice.keep {
        return Err(PlanError::Unbuildable {
            reason: format!("runbook {} makes no copy that could be kept", runbook.name),
            hint: "nothing was touched; leave --keep out".into(),
        });
    }
    let masters = chosen(basis, choice)?;
    let found = guards::check(basis, runbook, &masters)?;
    // Servers stay where they are, and where volumes are whose data is to be kept.
    let leaves = evacuate::evacuates(runbook);
    let mut stay = match restore::moved(basis, runbook, choice, &masters)? {
        Some(moved) => moved,
        None => replace::stay(basis, runbook, &masters),
    };
    if leaves {
        stay.retain(|_, place| choice.location.as_deref() != Some(*place));
    }
    let restores = runbook.steps.iter().any(|s| s.verb == Verb::MastersRestore);
    if choice.snapshot.is_some() && !restores {
        return Err(PlanError::Unbuildable {
            reason: format!("runbook {} restores nothing", runbook.name),
            hint: "nothing was touched; leave --snapshot and --at out".into(),
        });
    }
    let mut draft = Draft::new(basis, &stay)?;
    draft.findings.push(runbook.summary.clone());
    draft.findings.extend(found);
    let makes_servers = runbook
        .steps
        .iter()
        .any(|s| matches!(s.verb, Verb::ServersRecreate | Verb::MastersReplace | Verb::MastersMove))
        || leaves;
    draft.in_place = !makes_servers;
    if makes_servers {
        draft.foundation();
    }
    if makes_servers || restores {
        draft.artifacts(&[Role::Master]);
    }
    // Nothing is stopped before everything that a new server needs is where it can fetch it.
    let first = draft.ids();
    let mut expansion = Expansion {
        draft,
        after: masters.iter().map(|m| (m.name.as_str(), first.clone())).collect(),
        masters,
        reason: format!("runbook {}", runbook.name),
        recreated: false,
    };
    for step in &runbook.steps {
        expansion.verb(step, choice)?;
    }
    let asked = expansion.masters.first().map(|m| expansion.draft.full(&m.name)).unwrap_or_default();
    expansion.draft.settle(&asked);
    Ok(expansion.draft.finish(Purpose::Runbook))
}

fn chosen<'a>(basis: &Basis<'a>, choice: &RunbookChoice) -> Result<Vec<&'a MasterConfig>, PlanError> {
    let cluster = basis.cluster;
    let known: Vec<&str> = cluster.masters.iter().map(|m| m.name.as_str()).collect();
    let refused = |reason: String, hint: String| Err(PlanError::Unbuildable { reason, hint });
    match (choice.runbook.masters, choice.servers.as_slice()) {
        (Acts::All, []) => Ok(cluster.masters.iter().collect()),
        (Acts::All, _) => refused(
            format!("runbook {} acts on every master", choice.runbook.name),
            "nothing was touched; leave --server out".into(),
        ),
        // A location may have workers only.
        (Acts::Chosen, []) if evacuate::evacuates(&choice.runbook) => Ok(Vec::new()),
        (Acts::Chosen, []) => refused(
            format!("runbook {} acts on masters that you choose, and none is chosen", choice.runbook.name),
            format!("nothing was touched; add --server NAME, one of: {}", known.join(", ")),
        ),
        (Acts::Chosen, names) => {
            if let Some(unknown) = names.iter().find(|n| !known.contains(&n.as_str())) {
                return refused(
                    format!("cluster.yaml has no master {unknown}"),
                    format!("nothing was touched; its masters are: {}", known.join(", ")),
                );
            }
            Ok(cluster.masters.iter().filter(|m| names.contains(&m.name)).collect())
        }
    }
}

/// The key that is to go.
fn rotated(choice: &RunbookChoice) -> Result<&str, PlanError> {
    choice.ssh_before.as_deref().ok_or_else(|| PlanError::Unbuildable {
        reason: format!("runbook {} rotates the SSH key, and there is no new one", choice.runbook.name),
        hint: format!("nothing was touched; a person runs it: `hk-dr runbook run {}`", choice.runbook.name),
    })
}

impl<'a> Expansion<'a> {
    fn verb(&mut self, step: &RunbookStep, choice: &RunbookChoice) -> Result<(), PlanError> {
        match step.verb {
            Verb::SnapshotTake => self.snapshot(step.verify),
            Verb::MastersStop => self.stop(),
            Verb::ServersPowerOff => self.power_off()?,
            Verb::VolumesDetach => self.detach()?,
            Verb::ServersRecreate => self.recreate()?,
            Verb::VolumesAttach => self.attach()?,
            Verb::ServersPowerOn => self.power_on()?,
            Verb::MastersStart => self.start(),
            Verb::MastersReplace => replace::replace(self, step.fresh_volume)?,
            Verb::LocationEvacuate => evacuate::evacuate(self, choice.location.as_deref().unwrap_or_default())?,
            Verb::MastersMove => restore::move_elsewhere(self)?,
            Verb::MastersRestore => restore::restore_in_place(self, choice.snapshot.as_deref())?,
            Verb::Manual => self.by_hand(step.text.as_deref().unwrap_or_default().trim()),
            Verb::ClusterVerify => self.verify(step.nodes),
            Verb::SshKeyAuthorize => {
                let now = self.draft.basis.ssh_public_key;
                rotated(choice)?;
                let needs = self.all_after();
                let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
                let ids = rotate::authorize(&mut self.draft, now, &needs)?;
                self.then(&ids);
            }
            Verb::SshKeyRevoke => {
                let now = self.draft.basis.ssh_public_key;
                let needs = self.all_after();
                let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
                let ids = rotate::revoke(&mut self.draft, rotated(choice)?, now, &needs);
                self.then(&ids);
            }
            // They have a plan of their own.
            Verb::CopyRestore | Verb::CopyCompare | Verb::CopyDiscard => {
                return Err(PlanError::Unbuildable {
                    reason: format!("{} can't be done beside steps on production", step.verb.name()),
                    hint: "nothing was touched; `hk-dr runbook validate` shows where".into(),
                });
            }
        }
        Ok(())
    }

    /// What every master's next step must wait for.
    fn then(&mut self, ids: &[String]) {
        for after in self.after.values_mut() {
            *after = ids.to_vec();
        }
    }

    /// Adds a step of one master behind that master's last one.
    pub fn chain<P: super::params::Params>(
        &mut self,
        master: &'a MasterConfig,
        id: String,
        params: &P,
        title: String,
        reason: &str,
        deadline_seconds: u32,
    ) {
        let needs = self.after.remove(master.name.as_str()).unwrap_or_default();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        self.draft.add(&id, params, &needs, title, reason, deadline_seconds);
        self.after.insert(&master.name, vec![id]);
    }

    /// Adds a step behind the last one of every master, before the next one of every master.
    pub fn join<P: super::params::Params>(
        &mut self,
        id: &str,
        params: &P,
        title: impl Into<String>,
        reason: &str,
        deadline_seconds: u32,
    ) {
        let needs = self.all_after();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        self.draft.add(id, params, &needs, title, reason, deadline_seconds);
        for after in self.after.values_mut() {
            *after = vec![id.to_owned()];
        }
    }

    fn by_hand(&mut self, text: &str) {
        let number = (1..).find(|n| !self.draft.has(&format!("manual/{n}"))).unwrap_or_default();
        let id = format!("manual/{number}");
        let params = ManualWait { id: id.clone(), text: text.to_owned() };
        let reason = "the runbook leaves it to a person; `hk-dr approve` says that it is done";
        self.join(&id, &params, format!("by hand: {text}"), reason, MANUAL_WITHIN_SECONDS);
    }

    pub fn everyone(&self) -> BTreeMap<String, String> {
        let masters = &self.draft.basis.cluster.masters;
        masters.iter().map(|m| (m.name.clone(), self.draft.full(&m.name))).collect()
    }

    pub fn all_after(&self) -> Vec<String> {
        self.after.values().flatten().cloned().collect()
    }

    fn snapshot(&mut self, verify: bool) {
        let servers: BTreeMap<String, String> = self
            .everyone()
            .into_iter()
            .filter(|(_, full)| self.draft.basis.inventory.etcd_serving.contains(full))
            .collect();
        let title = if verify { "take a snapshot and read it back" } else { "take a snapshot" };
        let reason = "should all of this go wrong, `hk-dr rebuild` brings the cluster back from it";
        self.join("snapshot", &SnapshotTake { servers, verify, idle: false }, title, reason, 3600);
    }

    /// API servers of all, then etcd of all, so that nothing writes when the hash is noted.
    fn stop(&mut self) {
        for master in self.masters.clone() {
            self.stop_control_plane(master);
        }
        if self.masters.len() == self.draft.basis.cluster.masters.len() {
            let title = "note the hash of all data, on which every member agrees";
            let servers = self.everyone();
            self.join(HASH_BEFORE, &EtcdAgree { servers }, title, "what comes back must be exactly this", 180);
        }
        for master in self.masters.clone() {
            self.stop_etcd(master);
        }
    }

    pub fn stop_control_plane(&mut self, master: &'a MasterConfig) {
        let server = self.draft.full(&master.name);
        let title = format!("stop API server, controller manager and scheduler on {server}");
        let id = format!("stop-control-plane/{server}");
        let reason = "what writes stops before what stores";
        self.chain(master, id, &ControlPlaneStop { server }, title, reason, 120);
    }

    pub fn stop_etcd(&mut self, master: &'a MasterConfig) {
        let server = self.draft.full(&master.name);
        let title = format!("stop etcd on {server} and unmount its volume");
        let id = format!("stop-etcd/{server}");
        let reason = "everything is written out before the volume goes";
        self.chain(master, id, &EtcdStop { server }, title, reason, 120);
    }

    fn power_off(&mut self) -> Result<(), PlanError> {
        for master in self.masters.clone() {
            let server = self.existing_server(master)?;
            let params = ServerPowerOff { id: server.id, name: server.name.clone() };
            let title = format!("cut the power of {}", params.name);
            let reason = self.reason.clone();
            self.chain(master, format!("power-off/{}", server.name), &params, title, &reason, 120);
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<(), PlanError> {
        for master in self.masters.clone() {
            let volume = self.existing_volume(master)?;
            self.detach_one(master, volume);
        }
        Ok(())
    }

    pub fn detach_one(&mut self, master: &'a MasterConfig, volume: &Volume) {
        let params = VolumeDetach { id: volume.id, name: volume.name.clone() };
        let title = format!("detach volume {}", volume.name);
        let reason = "etcd's data stays on it, whatever happens to the server";
        self.chain(master, format!("detach/{}", volume.name), &params, title, reason, 120);
    }

    fn recreate(&mut self) -> Result<(), PlanError> {
        for master in self.masters.clone() {
            let server = self.existing_server(master)?;
            let reason = self.reason.clone();
            self.fence(master, server, &reason);
            self.create(master, &reason);
        }
        self.recreated = true;
        Ok(())
    }

    pub fn fence(&mut self, master: &'a MasterConfig, server: &Server, reason: &str) {
        let params = ServerFence { id: server.id, name: server.name.clone() };
        let title = format!("delete the old server {} (id {})", server.name, server.id);
        self.chain(master, format!("fence/{}", server.name), &params, title, reason, 180);
    }

    pub fn create(&mut self, master: &'a MasterConfig, reason: &str) {
        let after = self.after.remove(master.name.as_str()).unwrap_or_default();
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        self.draft.server(Who::Master(master), reason, &after);
        self.after.insert(&master.name, vec![format!("server/{}", self.draft.full(&master.name))]);
    }

    fn attach(&mut self) -> Result<(), PlanError> {
        for master in self.masters.clone() {
            let volume = self.existing_volume(master)?;
            self.attach_one(master, volume);
        }
        Ok(())
    }

    pub fn attach_one(&mut self, master: &'a MasterConfig, volume: &Volume) {
        let server = self.draft.full(&master.name);
        let title = format!("attach volume {} to {server}", volume.name);
        let params = VolumeAttach { id: volume.id, name: volume.name.clone(), server };
        let reason = "it holds this master's etcd data";
        self.chain(master, format!("volume/{}", volume.name), &params, title, reason, 180);
    }

    fn power_on(&mut self) -> Result<(), PlanError> {
        for master in self.masters.clone() {
            let server = self.existing_server(master)?;
            let params = ServerPowerOn { id: server.id, name: server.name.clone() };
            let title = format!("switch {} on", server.name);
            let reason = self.reason.clone();
            self.chain(master, format!("server/{}", server.name), &params, title, &reason, 180);
        }
        Ok(())
    }

    fn start(&mut self) {
        let etcd = EtcdStart { incarnation: self.draft.basis.lineage.to_owned(), state: EtcdState::Existing };
        let reason = self.reason.clone();
        for master in self.masters.clone() {
            if self.recreated {
                self.draft.master(master, &etcd, &reason, |_, _| None);
            } else {
                self.start_in_place(master, &reason);
            }
        }
        if self.draft.has(HASH_BEFORE) {
            let servers = self.everyone();
            let etcds: Vec<String> = servers.values().map(|full| format!("etcd/{full}")).collect();
            let needs: Vec<&str> = etcds.iter().map(String::as_str).chain([HASH_BEFORE]).collect();
            let title = "wait until all etcd members have exactly the data from before";
            let params = EtcdUnchanged { servers, since: HASH_BEFORE.into(), same_cluster: true };
            self.draft.add(UNCHANGED, &params, &needs, title, "the API must not serve anything else", 180);
        }
        self.serve(&reason);
    }

    /// Everything behind etcd's start, for the masters acted on.
    pub fn serve(&mut self, reason: &str) {
        self.draft.control_plane(&self.masters, reason, |_, _| {});
        self.after_serving();
    }

    /// What comes next waits until the masters acted on serve.
    pub fn after_serving(&mut self) {
        for master in &self.masters {
            let full = self.draft.full(&master.name);
            self.after.insert(&master.name, vec![format!("api/{full}"), format!("controllers/{full}")]);
        }
    }

    fn start_in_place(&mut self, master: &'a MasterConfig, reason: &str) {
        let full = self.draft.full(&master.name);
        let volume = volume_name(self.draft.basis.cluster, &master.name);
        let after = self.after.remove(master.name.as_str()).unwrap_or_default();
        self.draft.ready(&full, reason);
        let (ready, attached) = (format!("ready/{full}"), format!("volume/{volume}"));
        let needs: Vec<&str> = after.iter().map(String::as_str).chain([ready.as_str(), &attached]).collect();
        let mount = format!("mount/{full}");
        let params = EtcdMount { server: full.clone(), volume };
        self.draft.add(&mount, &params, &needs, format!("mount etcd's volume on {full}"), reason, 120);
        let params = EtcdStartStep { server: full.clone() };
        let title = format!("start etcd on {full}");
        self.draft.add(format!("etcd/{full}"), &params, &[&mount], title, reason, 60);
    }

    /// A write through every API server that is to serve: the first one says when the API is back.
    fn verify(&mut self, nodes: bool) {
        let (basis, mut writes) = (self.draft.basis, Vec::new());
        for master in &basis.cluster.masters {
            let full = self.draft.full(&master.name);
            let acted_on = self.masters.iter().any(|m| m.name == master.name);
            if !acted_on && !basis.inventory.api_ready.contains(&full) {
                continue;
            }
            let api = format!("api/{full}");
            let needs = if self.draft.has(&api) { vec![api] } else { self.all_after() };
            let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            let id = format!("write/{full}");
            let title = format!("write through {full} and read it back");
            let reason = "only an acknowledged write shows that the API is back";
            self.draft.add(&id, &ApiWrite { server: full.clone() }, &needs, title, reason, 120);
            writes.push(id);
        }
        let Some(asked) = self.masters.first().map(|m| self.draft.full(&m.name)).filter(|_| nodes) else { return };
        let needs = [writes, self.all_after()].concat();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        for worker in &basis.cluster.workers {
            let node = self.draft.full(&worker.name);
            if basis.inventory.server(&node).is_none() {
                self.draft.findings.push(format!("{node} does not exist: `hk-dr build` makes it afterwards"));
                continue;
            }
            // A worker that is made anew is waited for already.
            if self.draft.has(&format!("node/{node}")) {
                continue;
            }
            let title = format!("wait until the kubelet of {node} reports again");
            let params = NodeFresh { node: node.clone(), master_server: asked.clone() };
            let reason = "that its Node is ready may be from before";
            self.draft.add(format!("node/{node}"), &params, &needs, title, reason, 240);
        }
    }

    pub fn existing_server(&self, master: &MasterConfig) -> Result<&'a Server, PlanError> {
        let full = self.draft.full(&master.name);
        self.draft.basis.inventory.server(&full).ok_or_else(|| PlanError::Unbuildable {
            reason: format!("server {full} does not exist"),
            hint: format!("nothing was touched; `hk-dr runbook run replace-master --server {}`", master.name),
        })
    }

    pub fn existing_volume(&self, master: &MasterConfig) -> Result<&'a Volume, PlanError> {
        let name = volume_name(self.draft.basis.cluster, &master.name);
        self.draft.basis.inventory.volume(&name).ok_or_else(|| PlanError::Unbuildable {
            reason: format!("volume {name} does not exist"),
            hint: "nothing was touched; `hk-dr status` shows what there is".into(),
        })
    }
}
