//! Giving a run up: what it did is undone where that can be, and what can't be undone is said before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{Basis, Draft, volume_name};
use super::drift::RETIRED_LABEL;
use super::params::{
    ApiWrite, ControlPlaneStop, CopyDiscard, EtcdAgree, EtcdMount, EtcdStart, EtcdStartStep, EtcdStop, MachineReady,
    MasterConfigure, NodeDrain, NodeUncordon, Params, ServerPowerOn, SshKeyAuthorize, VolumeAttach, VolumeRetire,
};
use super::{Plan, PlanError, Purpose, Reversal, copy_name, reversal_in, works_on_copy};
use crate::config::MasterConfig;
use crate::distribution::upstream::EtcdState;
use crate::ports::ServerStatus;

/// A run that is to be given up.
#[derive(Debug, Clone)]
pub struct AbortChoice {
    pub plan: Plan,
    /// Steps whose effect began; not those that found it there.
    pub begun: BTreeSet<String>,
}

/// The way back. Empty: nothing that was done has to be undone.
///
/// # Errors
/// Something that has no way back was begun, with what and why.
pub fn plan_abort(basis: &Basis<'_>, choice: &AbortChoice) -> Result<Plan, PlanError> {
    let aborted = &choice.plan;
    let begun: Vec<_> = aborted.steps.iter().filter(|s| choice.begun.contains(&s.id)).collect();
    let mut draft = Draft::bare(basis);
    if aborted.runbook.as_ref().is_some_and(|r| works_on_copy(&r.runbook)) {
        let (copy, of) = (copy_name(basis.cluster), basis.cluster.name.clone());
        draft.findings.push(format!("run {} worked on {copy} alone; {of} was not touched", aborted.id));
        let title = format!("delete the copy {copy} with its servers, volumes and network");
        let reason = format!("run {} is given up", aborted.id);
        draft.add("discard", &CopyDiscard { copy, of }, &[], title, reason, 600);
        return Ok(draft.finish(Purpose::Abort));
    }
    if aborted.purpose != Purpose::Runbook {
        for step in begun.iter().filter(|s| s.kind.ends_with(".create") || s.kind == "volume.provide") {
            draft.findings.push(format!("stays: {} (`hk-dr build` uses it, `hk-dr destroy` deletes it)", step.title));
        }
        for step in begun.iter().filter(|s| matches!(reversal_in(aborted, s), Reversal::Never(_))) {
            draft.findings.push(format!("can't be undone: {}", step.title));
        }
        return Ok(draft.finish(Purpose::Abort));
    }
    let final_ones: Vec<String> = begun
        .iter()
        .filter_map(|s| match reversal_in(aborted, s) {
            Reversal::Never(why) => Some(format!("{} ({why})", s.title)),
            _ => None,
        })
        .collect();
    if !final_ones.is_empty() {
        return Err(PlanError::Unbuildable {
            reason: format!("run {} has no way back any more: {}", aborted.id, final_ones.join("; ")),
            hint: format!(
                "nothing was touched; `hk-dr resume {id}` goes forward; `hk-dr abort {id} --abandon` leaves everything as \
                 it is, and then `hk-dr status` says what is missing",
                id = aborted.id
            ),
        });
    }
    if begun.iter().any(|s| s.kind == SshKeyAuthorize::KIND) {
        let name = aborted.runbook.as_ref().map(|r| r.runbook.name.as_str()).unwrap_or_default();
        draft.findings.push(format!(
            "no key is taken off a server: secrets.yaml.age has both, and `hk-dr runbook run {name}` goes on with the same new one"
        ));
    }
    // Nobody else lets pods be scheduled there again.
    for step in begun.iter().filter(|s| s.kind == NodeDrain::KIND) {
        if let Ok(NodeDrain { node, master_server, .. }) = serde_json::from_value(step.params.clone()) {
            let title = format!("let pods be scheduled on {node} again");
            let reason = format!("as before run {}", aborted.id);
            draft.add(format!("uncordon/{node}"), &NodeUncordon { node, master_server }, &[], title, reason, 120);
        }
    }
    let touched = |master: &MasterConfig| {
        let (full, volume) = (draft_name(basis, master), volume_name(basis.cluster, &master.name));
        begun.iter().any(|s| {
            !matches!(reversal_in(aborted, s), Reversal::Nothing)
                && !s.kind.starts_with("ssh_key.")
                && [&s.params["server"], &s.params["name"]].iter().any(|v| **v == full || **v == volume)
        })
    };
    let masters: Vec<&MasterConfig> = basis.cluster.masters.iter().filter(|m| touched(m)).collect();
    if masters.is_empty() {
        return Ok(draft.finish(Purpose::Abort));
    }
    let names: Vec<&str> = masters.iter().map(|m| m.name.as_str()).collect();
    draft.findings.push(format!("{} go back to how they were before run {}", names.join(", "), aborted.id));
    let mut back = Way { basis, aborted, begun: &choice.begun, draft };
    // Nothing of the new life may run when the old one starts.
    let stopped: Vec<String> = masters.iter().flat_map(|m| back.stop_new(m)).collect();
    for master in &masters {
        back.start_old(master, &stopped)?;
    }
    back.serve(&masters);
    Ok(back.draft.finish(Purpose::Abort))
}

fn draft_name(basis: &Basis<'_>, master: &MasterConfig) -> String {
    crate::distribution::server_name(basis.cluster, &master.name)
}

struct Way<'a> {
    basis: &'a Basis<'a>,
    aborted: &'a Plan,
    begun: &'a BTreeSet<String>,
    draft: Draft<'a>,
}

impl Way<'_> {
    /// The step that put a master's old volume aside, if it began.
    fn retirement(&self, master: &MasterConfig) -> Option<VolumeRetire> {
        let id = format!("retire/{}", volume_name(self.basis.cluster, &master.name));
        let step = self.aborted.steps.iter().find(|s| s.id == id && self.begun.contains(&s.id))?;
        serde_json::from_value(step.params.clone()).ok()
    }

    /// Where the run made a new volume, what runs on it stops and the volume goes aside.
    fn stop_new(&mut self, master: &MasterConfig) -> Vec<String> {
        let (server, name) = (draft_name(self.basis, master), volume_name(self.basis.cluster, &master.name));
        let Some(retired) = self.retirement(master) else { return Vec::new() };
        let reason = "it runs on data that is not to stay";
        let mut last = Vec::new();
        if self.basis.inventory.probes.contains_key(&server) {
            let (control, etcd) = (format!("stop-control-plane/{server}"), format!("stop-etcd/{server}"));
            let title = format!("stop API server, controller manager and scheduler on {server}");
            self.draft.add(&control, &ControlPlaneStop { server: server.clone() }, &[], title, reason, 120);
            let title = format!("stop etcd on {server} and unmount its volume");
            self.draft.add(&etcd, &EtcdStop { server: server.clone() }, &[&control], title, reason, 120);
            last.push(etcd);
        }
        if let Some(new) = self.basis.inventory.volume(&name).filter(|v| v.id != retired.id) {
            let mut labels = new.labels.clone();
            labels.insert(RETIRED_LABEL.into(), self.basis.plan_id.to_owned());
            let new_name = format!("{name}-aborted-{}", self.basis.plan_id);
            let title = format!("keep the new volume {name} as {new_name}");
            let params = VolumeRetire { id: new.id, name: name.clone(), new_name, labels };
            let needs: Vec<&str> = last.iter().map(String::as_str).collect();
            let id = format!("aside/{name}");
            self.draft.add(&id, &params, &needs, title, "nothing is deleted that may have to be looked at", 120);
            last = vec![id];
        }
        last
    }

    /// The master as it was: its volume under its name, attached, mounted, etcd started.
    fn start_old(&mut self, master: &MasterConfig, stopped: &[String]) -> Result<(), PlanError> {
        let (basis, reason) = (self.basis, format!("as before run {}", self.aborted.id));
        let (full, name) = (draft_name(basis, master), volume_name(basis.cluster, &master.name));
        let missing = |what: &str| {
            PlanError::Unbuildable {
            reason: format!("{what} does not exist any more"),
            hint: "nothing was touched; `hk-dr status` shows what there is, `hk-dr rebuild` brings the cluster back from a \
                   snapshot"
                .into(),
        }
        };
        let server = basis.inventory.server(&full).ok_or_else(|| missing(&format!("server {full}")))?;
        let mut after: Vec<String> = stopped.to_vec();
        let old = match self.retirement(master) {
            None => basis.inventory.volume(&name).map(|v| v.id),
            Some(retired) => {
                let there = basis.inventory.volumes.iter().find(|v| v.id == retired.id);
                if let Some(there) = there.filter(|v| v.name == retired.new_name) {
                    let mut labels = there.labels.clone();
                    labels.retain(|key, _| key != RETIRED_LABEL && key != "hk-dr/keep-until");
                    let title = format!("give the old volume its name {name} again");
                    let params =
                        VolumeRetire { id: retired.id, name: there.name.clone(), new_name: name.clone(), labels };
                    let needs: Vec<&str> = after.iter().map(String::as_str).collect();
                    let id = format!("return/{name}");
                    self.draft.add(&id, &params, &needs, title, &reason, 120);
                    after = vec![id];
                }
                there.map(|v| v.id)
            }
        };
        let id = old.ok_or_else(|| missing(&format!("volume {name}")))?;
        let need = |after: &[String]| after.to_vec();
        let needs = need(&after);
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let volume_id = format!("volume/{name}");
        let params = VolumeAttach { id, name: name.clone(), server: full.clone() };
        self.draft.add(&volume_id, &params, &needs, format!("attach volume {name} to {full}"), &reason, 180);
        let server_id = format!("server/{full}");
        if server.status != ServerStatus::Running {
            let params = ServerPowerOn { id: server.id, name: full.clone() };
            self.draft.add(&server_id, &params, &[&volume_id], format!("switch {full} on"), &reason, 180);
        }
        let ready = format!("ready/{full}");
        let title = format!("wait until {full} answers with its pinned host key");
        let params = MachineReady { server: full.clone() };
        self.draft.add(&ready, &params, &[&server_id, &volume_id], title, &reason, 300);
        let mut before_mount = vec![ready];
        // Its files name the volume that was new.
        if self.begun.contains(&format!("configure/{full}")) {
            let id = format!("configure/{full}");
            let etcd = EtcdStart { incarnation: basis.lineage.to_owned(), state: EtcdState::Existing };
            let params =
                MasterConfigure { server: full.clone(), master: master.name.clone(), volume: name.clone(), etcd };
            self.draft.add(&id, &params, &[&before_mount[0]], format!("configure {full}"), &reason, 120);
            before_mount.push(id);
        }
        let needs: Vec<&str> = before_mount.iter().map(String::as_str).collect();
        let mount = format!("mount/{full}");
        let params = EtcdMount { server: full.clone(), volume: name };
        self.draft.add(&mount, &params, &needs, format!("mount etcd's volume on {full}"), &reason, 120);
        let params = EtcdStartStep { server: full.clone() };
        let title = format!("start etcd on {full}");
        self.draft.add(format!("etcd/{full}"), &params, &[&mount], title, &reason, 60);
        Ok(())
    }

    fn serve(&mut self, masters: &[&MasterConfig]) {
        let cluster = self.basis.cluster;
        let servers: BTreeMap<String, String> =
            cluster.masters.iter().map(|m| (m.name.clone(), draft_name(self.basis, m))).collect();
        let etcds: Vec<String> = servers.values().map(|full| format!("etcd/{full}")).collect();
        let needs: Vec<&str> = etcds.iter().map(String::as_str).collect();
        let title = "wait until all etcd members agree on the hash of all data";
        let params = EtcdAgree { servers };
        self.draft.add("etcd-agree", &params, &needs, title, "the API must not serve before", 180);
        let reason = format!("as before run {}", self.aborted.id);
        self.draft.control_plane(masters, &reason, |_, _| {});
        for master in masters {
            let server = draft_name(self.basis, master);
            let (id, api) = (format!("write/{server}"), format!("api/{server}"));
            let title = format!("write through {server} and read it back");
            let reason = "only an acknowledged write shows that the API is back";
            self.draft.add(id, &ApiWrite { server }, &[&api], title, reason, 120);
        }
    }
}
