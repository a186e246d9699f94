use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Report;
use super::guards::{AbortWhen, Guards};
use super::names::is_label;
use super::tree::Tree;

/// `runbooks/NAME.yaml`: a rehearsal or recovery as an ordered list of verbs. The planner expands each verb into steps on
/// servers; there are no loops, conditions or templates here, because choices belong to the planner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runbook {
    /// `hk-dr/v1`
    pub api_version: String,
    /// `Runbook`
    pub kind: String,
    /// The file's name without `.yaml`.
    pub name: String,
    /// What happens, in one or two sentences.
    pub summary: String,
    /// The masters it acts on: `all`, or those `chosen` with --server when it is run.
    pub masters: Acts,
    #[serde(default)]
    pub guards: Guards,
    #[serde(default)]
    pub targets: Targets,
    /// What becomes of a run in which a step fails for good.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What ends a run that is under way; needs `onFailure: unwind`.
    #[serde(default, skip_serializing_if = "AbortWhen::is_empty")]
    pub abort_when: AbortWhen,
    /// What is done, in this order.
    pub steps: Vec<RunbookStep>,
}

/// Which masters a runbook acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Acts {
    /// Every master.
    All,
    /// Those named with --server.
    Chosen,
}

/// What becomes of a run in which a step fails for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// It stops there: `hk-dr resume` goes forward, `hk-dr abort` goes back.
    #[default]
    Stop,
    /// What was done is undone, and the state before is checked.
    Unwind,
}

/// What the run is measured against. Missing one makes the verdict `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Targets {
    /// From the first stop of a service until a write is acknowledged again, in seconds.
    #[serde(default)]
    pub recovery_seconds: Option<u32>,
    /// Acknowledged writes of the time before that may be missing afterwards, in seconds before the stop.
    #[serde(default)]
    pub recovery_point_seconds: Option<u32>,
    /// Share of canary writes during the run that must be acknowledged, in percent.
    #[serde(default)]
    pub writes_percent: Option<u32>,
}

/// One verb with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunbookStep {
    /// What is done.
    pub verb: Verb,
    /// snapshot.take: read it back before anything else happens.
    #[serde(default)]
    pub verify: bool,
    /// masters.replace: make a new, empty volume even where the old one could be attached again.
    #[serde(default)]
    pub fresh_volume: bool,
    /// cluster.verify: wait until the workers' Nodes are ready as well.
    #[serde(default)]
    pub nodes: bool,
    /// copy.restore: how much of the cluster is copied.
    #[serde(default)]
    pub scope: CopyScope,
    /// manual: what a person has to do.
    #[serde(default)]
    pub text: Option<String>,
}

/// How much of a cluster a copy has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CopyScope {
    /// The first master alone, in another location: all data, at the price of one server.
    #[default]
    FirstMaster,
    /// Every master and every worker, where Git declares them.
    Whole,
}

/// What a step does to each master the runbook acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verb {
    /// Take a snapshot into the bucket.
    #[serde(rename = "snapshot.take")]
    SnapshotTake,
    /// Stop the control plane, note the hash of all data, stop etcd and unmount its volume.
    #[serde(rename = "masters.stop")]
    MastersStop,
    /// Cut the servers' power through the cloud.
    #[serde(rename = "servers.powerOff")]
    ServersPowerOff,
    /// Detach etcd's volumes.
    #[serde(rename = "volumes.detach")]
    VolumesDetach,
    /// Delete the servers and create them anew under the same names and private addresses.
    #[serde(rename = "servers.recreate")]
    ServersRecreate,
    /// Attach etcd's volumes to the servers of the same name.
    #[serde(rename = "volumes.attach")]
    VolumesAttach,
    /// Switch the servers on and wait until they answer.
    #[serde(rename = "servers.powerOn")]
    ServersPowerOn,
    /// Start etcd, compare its data with what was noted, start the control plane.
    #[serde(rename = "masters.start")]
    MastersStart,
    /// Replace masters that are lost or to be replaced, whatever is left of them.
    #[serde(rename = "masters.replace")]
    MastersReplace,
    /// Take all masters to another location: the last state goes with them as a snapshot, old volumes are kept.
    #[serde(rename = "masters.move")]
    MastersMove,
    /// Take all masters, in their places, back to a snapshot or a point in time, on new volumes; old volumes are kept.
    #[serde(rename = "masters.restore")]
    MastersRestore,
    /// Leave a location: masters there are replaced by new members elsewhere, workers made anew elsewhere.
    #[serde(rename = "location.evacuate")]
    LocationEvacuate,
    /// Restore a snapshot beside production, onto servers, volumes and a network of its own.
    #[serde(rename = "copy.restore")]
    CopyRestore,
    /// Compare every key of the copy with the snapshot, and find every object through its API.
    #[serde(rename = "copy.compare")]
    CopyCompare,
    /// Delete the copy with all that is its.
    #[serde(rename = "copy.discard")]
    CopyDiscard,
    /// Let a new SSH key log in to every server, and try it.
    #[serde(rename = "sshKey.authorize")]
    SshKeyAuthorize,
    /// Take the old SSH key off every server, and prove that it is refused.
    #[serde(rename = "sshKey.revoke")]
    SshKeyRevoke,
    /// Wait until a person has done something and says so with `hk-dr approve`.
    #[serde(rename = "manual")]
    Manual,
    /// Write through every API server and read it back.
    #[serde(rename = "cluster.verify")]
    ClusterVerify,
}

impl Verb {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::SnapshotTake => "snapshot.take",
            Self::MastersStop => "masters.stop",
            Self::ServersPowerOff => "servers.powerOff",
            Self::VolumesDetach => "volumes.detach",
            Self::ServersRecreate => "servers.recreate",
            Self::VolumesAttach => "volumes.attach",
            Self::ServersPowerOn => "servers.powerOn",
            Self::MastersStart => "masters.start",
            Self::MastersReplace => "masters.replace",
            Self::MastersMove => "masters.move",
            Self::MastersRestore => "masters.restore",
            Self::LocationEvacuate => "location.evacuate",
            Self::CopyRestore => "copy.restore",
            Self::CopyCompare => "copy.compare",
            Self::CopyDiscard => "copy.discard",
            Self::SshKeyAuthorize => "sshKey.authorize",
            Self::SshKeyRevoke => "sshKey.revoke",
            Self::Manual => "manual",
            Self::ClusterVerify => "cluster.verify",
        }
    }
}

/// Where the masters stand after the verbs so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    running: bool,
    powered: bool,
    attached: bool,
    snapshot: bool,
    /// A copy stands; nothing else is acted on then.
    copy: bool,
    /// A new SSH key works.
    new_key: bool,
}

pub(super) fn check(runbook: &Runbook, tree: &Tree, report: &mut Report) {
    let mut wrong = |path: &str, message: String, hint: &str| {
        report.add(tree.place(path), message, Some(hint.to_owned()));
    };
    if runbook.api_version != "hk-dr/v1" {
        let message = format!("apiVersion `{}` is not known to this hk-dr", runbook.api_version);
        wrong("apiVersion", message, "write `hk-dr/v1`");
    }
    if runbook.kind != "Runbook" {
        wrong("kind", format!("kind `{}` is not a runbook", runbook.kind), "write `Runbook`");
    }
    if !is_label(&runbook.name) {
        let message = format!("`{}` can't be a runbook's name", runbook.name);
        wrong("name", message, "lower-case letters, digits and dashes, beginning with a letter");
    }
    if runbook.steps.is_empty() {
        wrong("steps", "a runbook without steps does nothing".into(), "`hk-dr runbook show NAME` shows examples");
    }
    if runbook.targets.writes_percent.is_some_and(|p| p > 100) {
        wrong("targets.writesPercent", "more than all writes can't succeed".into(), "a number from 0 to 100");
    }
    let mut now =
        Standing { running: true, powered: true, attached: true, snapshot: false, copy: false, new_key: false };
    for (index, step) in runbook.steps.iter().enumerate() {
        let at = |field: &str| format!("steps.{index}.{field}");
        for (given, field, verb) in [
            (step.verify, "verify", Verb::SnapshotTake),
            (step.fresh_volume, "freshVolume", Verb::MastersReplace),
            (step.nodes, "nodes", Verb::ClusterVerify),
            (step.scope != CopyScope::default(), "scope", Verb::CopyRestore),
        ] {
            if given && step.verb != verb {
                let message = format!("`{}` takes no `{field}`", step.verb.name());
                wrong(&at(field), message, &format!("it belongs to `{}`", verb.name()));
            }
        }
        match (step.verb, step.text.as_deref().map(str::trim)) {
            (Verb::Manual, None | Some("")) => {
                let message = "`manual` says nothing of what has to be done".to_owned();
                wrong(&at("verb"), message, "add `text:` with what a person has to do before the run goes on");
            }
            (Verb::Manual, Some(_)) | (_, None) => {}
            (verb, Some(_)) => {
                wrong(&at("text"), format!("`{}` takes no `text`", verb.name()), "it belongs to `manual`");
            }
        }
        if let Err((message, hint)) = follow(&mut now, runbook.masters, step.verb) {
            wrong(&at("verb"), format!("`{}`: {message}", step.verb.name()), hint);
        }
    }
    if !runbook.steps.is_empty() && !now.running {
        let message = "the masters are stopped when this runbook ends".to_owned();
        wrong("steps", message, "bring them back: volumes.attach, servers.powerOn, masters.start");
    }
}

/// Whether a verb can follow what came before; where it leads.
fn follow(now: &mut Standing, acts: Acts, verb: Verb) -> Result<(), (&'static str, &'static str)> {
    let need = |holds: bool, message, hint| if holds { Ok(()) } else { Err((message, hint)) };
    let with_copy = matches!(verb, Verb::CopyCompare | Verb::CopyDiscard | Verb::ClusterVerify | Verb::Manual);
    need(!now.copy || with_copy, "it would act on production beside a copy", "give it a runbook of its own")?;
    match verb {
        Verb::CopyRestore => {
            need(acts == Acts::All, "it acts on no chosen master", "write `masters: all`")?;
            need(now.running && !now.snapshot, "a copy is made before anything else", "put it first")?;
            now.copy = true;
        }
        Verb::SshKeyAuthorize => {
            need(now.running && now.powered, "every server must answer", "put it where the masters run")?;
            need(acts == Acts::All, "it acts on every server", "write `masters: all`")?;
            now.new_key = true;
        }
        Verb::SshKeyRevoke => {
            need(now.new_key, "nobody could log in any more", "put `sshKey.authorize` before it")?;
            need(now.running && now.powered, "every server must answer", "put it where the masters run")?;
        }
        Verb::CopyCompare => need(now.copy, "there is no copy", "put `copy.restore` before it")?,
        Verb::CopyDiscard => now.copy = true,
        Verb::SnapshotTake => {
            need(now.running, "a snapshot can't be taken of stopped masters", "move it before masters.stop")?;
            now.snapshot = true;
        }
        Verb::MastersStop => {
            need(now.running, "the masters are stopped already", "take it out")?;
            let safe = now.snapshot || acts == Acts::Chosen;
            need(safe, "every master would stop without a fresh snapshot", "put `snapshot.take` before it")?;
            now.running = false;
        }
        Verb::ServersPowerOff => {
            need(!now.running, "the masters still run", "put `masters.stop` before it")?;
            need(now.powered, "the servers are off already", "take it out")?;
            now.powered = false;
        }
        Verb::VolumesDetach => {
            need(!now.running, "the masters still use them", "put `masters.stop` before it")?;
            need(now.attached, "the volumes are detached already", "take it out")?;
            now.attached = false;
        }
        Verb::ServersRecreate => {
            need(!now.running, "the masters still run", "put `masters.stop` before it")?;
            need(!now.attached, "etcd's volumes are still attached", "put `volumes.detach` before it")?;
            now.powered = true;
        }
        Verb::VolumesAttach => {
            need(!now.attached, "the volumes are attached", "put `volumes.detach` before it")?;
            now.attached = true;
        }
        Verb::ServersPowerOn => {
            need(!now.powered, "the servers are on", "put `servers.powerOff` before it")?;
            now.powered = true;
        }
        Verb::MastersStart => {
            need(!now.running, "the masters run", "put `masters.stop` before it")?;
            need(now.powered, "the servers are off", "put `servers.powerOn` before it")?;
            need(now.attached, "etcd's volumes are not attached", "put `volumes.attach` before it")?;
            now.running = true;
        }
        Verb::MastersReplace => {
            need(now.running && now.attached, "it brings masters back by itself", "use it alone")?;
            need(acts == Acts::Chosen, "masters are replaced one at a time", "write `masters: chosen`")?;
        }
        Verb::MastersMove | Verb::MastersRestore => {
            need(now.running && now.attached, "it stops and starts the masters by itself", "use it alone")?;
            need(acts == Acts::All, "it acts on every master", "write `masters: all`")?;
            let safe = now.snapshot || verb == Verb::MastersRestore;
            need(safe, "every master would stop without a fresh snapshot", "put `snapshot.take` before it")?;
        }
        Verb::LocationEvacuate => {
            need(now.running && now.attached, "it replaces servers by itself", "use it alone")?;
            let hint = "write `masters: chosen`: they follow from the location";
            need(acts == Acts::Chosen, "it acts on the masters of one location", hint)?;
        }
        Verb::Manual => {}
        Verb::ClusterVerify => need(now.running, "the masters are stopped", "put `masters.start` before it")?,
    }
    Ok(())
}

/// Runbooks that come with hk-dr: name and text. One of the same name in the Git directory goes before.
pub const SHIPPED: [(&str, &str); 12] = [
    ("discard-copy", include_str!("../../runbooks/discard-copy.yaml")),
    ("key-rotation", include_str!("../../runbooks/key-rotation.yaml")),
    ("location-evacuate", include_str!("../../runbooks/location-evacuate.yaml")),
    ("masters-from-volumes", include_str!("../../runbooks/masters-from-volumes.yaml")),
    ("masters-online-offline-online", include_str!("../../runbooks/masters-online-offline-online.yaml")),
    ("masters-recreate", include_str!("../../runbooks/masters-recreate.yaml")),
    ("masters-to-other-location", include_str!("../../runbooks/masters-to-other-location.yaml")),
    ("rebuild-from-git", include_str!("../../runbooks/rebuild-from-git.yaml")),
    ("replace-master", include_str!("../../runbooks/replace-master.yaml")),
    ("restore-to-time", include_str!("../../runbooks/restore-to-time.yaml")),
    ("sandbox-restore", include_str!("../../runbooks/sandbox-restore.yaml")),
    ("volume-reattach", include_str!("../../runbooks/volume-reattach.yaml")),
];

#[cfg(test)]
mod tests {
    use crate::config::load_runbook;

    const FILE: &str = "runbooks/x.yaml";

    fn errors(text: &str) -> String {
        load_runbook(text, FILE).map_or_else(|e| e.plain(), |_| "accepted".into())
    }

    fn with_steps(masters: &str, verbs: &[&str]) -> String {
        let steps: String = verbs.iter().map(|v| format!("  - verb: {v}\n")).collect();
        errors(&format!(
            "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: {masters}\nsteps:\n{steps}"
        ))
    }

    #[test]
    fn the_shipped_ones_are_right_and_named_as_their_files() {
        for (name, text) in super::SHIPPED {
            assert_eq!(load_runbook(text, name).unwrap_or_else(|e| panic!("{}", e.plain())).name, name);
        }
    }

    #[test]
    fn an_unknown_verb_is_named_with_its_place_and_the_likely_one() {
        assert_eq!(
            with_steps("all", &["snapshot.tkae"]),
            "runbooks/x.yaml:7:11: steps[0].verb can't be `snapshot.tkae` (did you mean `snapshot.take`?)"
        );
        assert!(
            with_steps("some", &["cluster.verify"]).contains("masters can't be `some` (it is one of: all, chosen)")
        );
    }

    #[test]
    fn verbs_that_can_not_follow_one_another_are_refused_with_what_is_missing() {
        for (masters, verbs, says) in [
            ("all", &["masters.stop", "masters.start"][..], "without a fresh snapshot"),
            ("all", &["snapshot.take", "volumes.detach"], "the masters still use them (put `masters.stop` before it)"),
            ("all", &["snapshot.take", "masters.stop"], "the masters are stopped when this runbook ends"),
            ("chosen", &["masters.stop", "servers.powerOff", "masters.start"], "the servers are off"),
            ("chosen", &["masters.stop", "servers.recreate", "masters.start"], "still attached"),
            ("all", &["masters.replace"], "one at a time"),
            ("all", &["masters.move"], "without a fresh snapshot"),
            ("chosen", &["masters.restore"], "it acts on every master (write `masters: all`)"),
            ("all", &["manual"], "`manual` says nothing of what has to be done"),
        ] {
            let found = with_steps(masters, verbs);
            assert!(found.contains(says), "{verbs:?}: {found}");
        }
        assert_eq!(with_steps("chosen", &["masters.stop", "masters.start", "cluster.verify"]), "accepted");
    }

    #[test]
    fn a_parameter_belongs_to_its_verb() {
        let text = "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: all\nsteps:\n  - verb: cluster.verify\n    verify: true\n";
        let found = errors(text);
        assert!(found.contains("8:13: `cluster.verify` takes no `verify` (it belongs to `snapshot.take`)"), "{found}");
    }
}
