//! The evidence of a run: from its plan, its journal and its canaries, without looking at anything else.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Attempt;
use crate::config::Cluster;
use crate::journal::{Body, Event};
use crate::plan::{APPROVAL, Plan, works_on_copy};
use crate::steps::{Agreement, Mark};

mod copy;

pub use copy::{CopyEvidence, Kept};

/// Format of the document.
pub const EVIDENCE_FORMAT: u32 = 1;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything was done, nothing was lost, every target was met.
    Passed,
    /// A step failed, something was lost, or a target was missed.
    Failed,
    /// Everything was done, but something that had to be measured was not.
    Inconclusive,
}

/// What a run of a runbook did and how it was measured. Holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// 1
    pub format: u32,
    pub run: String,
    pub cluster: String,
    pub runbook: String,
    /// Masters that were chosen; empty: all.
    pub servers: Vec<String>,
    /// Who started it: user and machine.
    pub started_by: String,
    pub hk_dr_version: String,
    /// The commit of the Git directory.
    pub git_commit: Option<String>,
    /// Declared versions.
    pub versions: BTreeMap<String, String>,
    pub began: Option<String>,
    pub ended: Option<String>,
    pub verdict: Verdict,
    /// Why the verdict is what it is.
    pub reasons: Vec<String>,
    pub recovery: Recovery,
    pub recovery_point: RecoveryPoint,
    pub writes: Writes,
    pub comparison: Comparison,
    /// The snapshot that was taken before anything was stopped.
    pub snapshot: Option<String>,
    /// How often the run was taken up again after its process had died.
    pub resumed: u32,
    pub steps: Vec<StepEvidence>,
    /// Of a rehearsal on a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyEvidence>,
    /// The run before, and what its evidence was when this one was written.
    #[serde(default)]
    pub previous: Option<Link>,
}

/// Ties evidence to that of the run before: who changes or removes it would have to change all that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub run: String,
    /// Of its `evidence.json` as stored, in hexadecimal.
    pub sha256: String,
}

/// How long what was stopped was away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// When the first service was stopped; without a stop, when the run began.
    pub from: Option<String>,
    /// When a write through one of the masters acted on was acknowledged again.
    pub to: Option<String>,
    pub seconds: Option<f64>,
    pub target_seconds: Option<u32>,
}

/// What was lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryPoint {
    /// Canaries that the API acknowledged.
    pub acknowledged: usize,
    /// Those of them that were not there at the end. None: nobody could look.
    pub lost: Option<usize>,
    /// From the newest surviving canary of the time before the stop to the stop; 0 if none was lost.
    pub seconds: Option<f64>,
    pub target_seconds: Option<u32>,
}

/// Availability of the API for writes during the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Writes {
    pub attempted: usize,
    pub acknowledged: usize,
    pub percent: Option<f64>,
    pub target_percent: Option<u32>,
    /// Longest time without an acknowledged write.
    pub longest_gap_seconds: Option<f64>,
}

/// Whether the data is the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// `cluster/revision/hash` on which all members agreed before they were stopped.
    pub before: Option<String>,
    /// The same, before the first API server was started again.
    pub after: Option<String>,
    /// None: not compared, because the cluster went on meanwhile.
    pub equal: Option<bool>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepEvidence {
    pub id: String,
    pub title: String,
    pub attempts: u32,
    /// It was there already: nothing was done.
    pub found: bool,
    pub started: Option<String>,
    pub ended: Option<String>,
    pub seconds: Option<f64>,
    /// Why it failed last, if it did.
    pub error: Option<String>,
}

/// What the journal does not know.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    pub cluster: &'a Cluster,
    pub started_by: String,
    pub git_commit: Option<String>,
    pub attempts: &'a [Attempt],
    /// Canaries that are there at the end; none if nobody could look.
    pub survivors: Option<&'a BTreeSet<String>>,
    /// The run before, if there was one.
    pub previous: Option<Link>,
    /// The service's canary in production when a rehearsal on a copy began.
    pub mark: Option<Mark>,
}

/// Draws it up.
pub fn evidence(plan: &Plan, events: &[Event], around: &Circumstances<'_>) -> Evidence {
    let steps: Vec<StepEvidence> = plan.steps.iter().map(|s| step(&s.id, &s.title, events)).collect();
    let finished = events.iter().any(|e| matches!(e.body, Body::RunFinished));
    let targets = plan.runbook.as_ref().map(|r| r.runbook.targets.clone()).unwrap_or_default();
    let recovery = recovery(plan, events, around.attempts, targets.recovery_seconds);
    let stop = stop_time(plan, events);
    let recovery_point = match plan.runbook.as_ref().is_some_and(|r| works_on_copy(&r.runbook)) {
        true => copy::recovery_point(events, around.mark, targets.recovery_point_seconds),
        false => recovery_point(around, stop, targets.recovery_point_seconds),
    };
    let writes = writes(around.attempts, targets.writes_percent);
    let comparison = comparison(events);
    let mut evidence = Evidence {
        format: EVIDENCE_FORMAT,
        run: plan.id.clone(),
        cluster: plan.cluster.clone(),
        runbook: plan.runbook.as_ref().map(|r| r.runbook.name.clone()).unwrap_or_default(),
        servers: plan.runbook.as_ref().map(|r| r.servers.clone()).unwrap_or_default(),
        started_by: around.started_by.clone(),
        hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: around.git_commit.clone(),
        versions: [
            ("kubernetes".to_owned(), around.cluster.kubernetes.version.clone()),
            ("etcd".to_owned(), around.cluster.etcd.version.clone()),
        ]
        .into(),
        began: events.first().map(|e| e.at.to_string()),
        ended: events.last().map(|e| e.at.to_string()),
        verdict: Verdict::Passed,
        reasons: Vec::new(),
        recovery,
        recovery_point,
        writes,
        comparison,
        snapshot: output(events, "snapshot").and_then(|o| o.as_str().map(str::to_owned)),
        resumed: u32::try_from(events.iter().filter(|e| matches!(e.body, Body::RunResumed)).count())
            .unwrap_or(u32::MAX),
        steps,
        copy: copy::copy(plan, events, around.mark),
        previous: around.previous.clone(),
    };
    (evidence.verdict, evidence.reasons) = judge(&evidence, finished, plan.snapshot.as_deref());
    evidence
}

/// `restored`: the snapshot to which the cluster was to go back.
fn judge(evidence: &Evidence, finished: bool, restored: Option<&str>) -> (Verdict, Vec<String>) {
    let (mut failed, mut open, mut good) = (Vec::new(), Vec::new(), Vec::new());
    if finished {
        good.push(format!("all {} steps were done", evidence.steps.len()));
    } else {
        let broken = evidence.steps.iter().find_map(|s| s.error.as_ref().map(|e| format!("{}: {e}", s.title)));
        failed.push(format!("the run did not end; {}", broken.unwrap_or_else(|| "it was interrupted".into())));
    }
    match evidence.comparison.equal {
        Some(true) => good.push("etcd's data is the same, by hash, as before the stop".into()),
        Some(false) => failed.push("etcd's data is not what it was before the stop".into()),
        None => {}
    }
    if let Some(copy) = &evidence.copy {
        let (found, missing) = copy::findings(copy, &evidence.recovery_point, finished);
        good.extend(found);
        failed.extend(missing);
    }
    match (evidence.recovery_point.lost, evidence.recovery_point.acknowledged) {
        // Nothing was written into production for a rehearsal beside it.
        _ if evidence.copy.is_some() => {}
        (Some(0), 0) => open.push("no canary was acknowledged, so nothing shows what would have been lost".into()),
        (Some(0), n) => good.push(format!("none of {n} acknowledged canaries was lost")),
        (Some(lost), n) if restored.is_some() => {
            let to = restored.unwrap_or_default();
            good.push(format!("{lost} of {n} acknowledged canaries are gone, as was asked: they are later than {to}"));
        }
        (Some(lost), n) => {
            let seconds = evidence.recovery_point.seconds;
            let within = evidence.recovery_point.target_seconds.zip(seconds).is_some_and(|(t, s)| s <= f64::from(t));
            let say = format!("{lost} of {n} acknowledged canaries were lost ({})", shown(seconds));
            if within { good.push(say) } else { failed.push(say) }
        }
        (None, _) => open.push("nobody could look which canaries survived".into()),
    }
    if let Some(target) = evidence.recovery.target_seconds {
        match evidence.recovery.seconds {
            Some(s) if s <= f64::from(target) => {
                good.push(format!("serving again after {s:.1} s, allowed are {target} s"))
            }
            Some(s) => failed.push(format!("serving again after {s:.1} s, allowed were {target} s")),
            None if finished => open.push("when it served again was not measured".into()),
            None => {}
        }
    }
    if let Some(target) = evidence.writes.target_percent {
        match evidence.writes.percent {
            Some(p) if p >= f64::from(target) => {
                good.push(format!(
                    "{p:.1}% of {} writes succeeded, at least {target}% must",
                    evidence.writes.attempted
                ));
            }
            Some(p) => {
                failed.push(format!("{p:.1}% of {} writes succeeded, {target}% must", evidence.writes.attempted))
            }
            None => open.push("no write was tried meanwhile".into()),
        }
    }
    let verdict = match (failed.is_empty(), open.is_empty()) {
        (false, _) => Verdict::Failed,
        (true, false) => Verdict::Inconclusive,
        (true, true) => Verdict::Passed,
    };
    (verdict, failed.into_iter().chain(open).chain(good).collect())
}

fn shown(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "none from before the stop survived".into(), |s| format!("{s:.1} s"))
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

fn step(id: &str, title: &str, events: &[Event]) -> StepEvidence {
    let mut step = StepEvidence {
        id: id.to_owned(),
        title: title.to_owned(),
        attempts: 0,
        found: false,
        started: None,
        ended: None,
        seconds: None,
        error: None,
    };
    let mut began = None;
    for event in events.iter().filter(|e| e.body.step() == Some(id)) {
        match &event.body {
            Body::StepStarted { attempt, .. } => {
                step.attempts = *attempt;
                began.get_or_insert(event.at);
            }
            Body::StepFinished { found, .. } => {
                step.found = *found;
                step.error = None;
                step.ended = Some(event.at.to_string());
                step.seconds = began.map(|b| seconds(b, event.at));
            }
            Body::StepFailed { message, .. } => step.error = Some(message.clone()),
            _ => {}
        }
    }
    step.started = began.map(|b| b.to_string());
    step
}

fn output<'a>(events: &'a [Event], id: &str) -> Option<&'a serde_json::Value> {
    events.iter().find_map(|e| match &e.body {
        Body::StepFinished { step, output, .. } if step == id => Some(output),
        _ => None,
    })
}

/// When the first service was stopped.
fn stop_time(plan: &Plan, events: &[Event]) -> Option<Timestamp> {
    let stops: BTreeSet<&str> =
        plan.steps.iter().filter(|s| s.kind == "control_plane.stop").map(|s| s.id.as_str()).collect();
    events
        .iter()
        .find(|e| matches!(&e.body, Body::StepStarted { step, .. } if stops.contains(step.as_str())))
        .map(|e| e.at)
}

fn recovery(plan: &Plan, events: &[Event], attempts: &[Attempt], target_seconds: Option<u32>) -> Recovery {
    // How long a person took to agree is no part of it.
    let agreed = events.iter().find(|e| matches!(&e.body, Body::StepFinished { step, .. } if step == APPROVAL));
    let from = stop_time(plan, events).or_else(|| agreed.or(events.first()).map(|e| e.at));
    // Servers whose API server this plan starts.
    let acted_on: BTreeSet<&str> =
        plan.steps.iter().filter(|s| s.kind == "api.start").filter_map(|s| s.params["server"].as_str()).collect();
    let writes: BTreeSet<&str> = plan
        .steps
        .iter()
        .filter(|s| s.kind == "api.write" && s.params["server"].as_str().is_some_and(|n| acted_on.contains(n)))
        .map(|s| s.id.as_str())
        .collect();
    let written = events
        .iter()
        .find(|e| matches!(&e.body, Body::StepFinished { step, .. } if writes.contains(step.as_str())))
        .map(|e| e.at);
    // Where every API server was stopped, the first canary sent after that may have been acknowledged even earlier.
    let all_stopped = events
        .iter()
        .find(|e| matches!(&e.body, Body::StepStarted { step, .. } if step == "etcd-before"))
        .map(|e| e.at);
    let canary = all_stopped
        .and_then(|stopped| attempts.iter().filter(|a| a.at >= stopped).filter_map(|a| a.acknowledged_at).min());
    let to = written.into_iter().chain(canary.filter(|_| written.is_some())).min();
    Recovery {
        from: from.map(|t| t.to_string()),
        to: to.map(|t| t.to_string()),
        seconds: from.zip(to).map(|(from, to)| seconds(from, to)),
        target_seconds,
    }
}

fn recovery_point(around: &Circumstances<'_>, stop: Option<Timestamp>, target: Option<u32>) -> RecoveryPoint {
    let acknowledged: Vec<&Attempt> = around.attempts.iter().filter(|a| a.acknowledged_at.is_some()).collect();
    let mut point =
        RecoveryPoint { acknowledged: acknowledged.len(), target_seconds: target, ..RecoveryPoint::default() };
    let Some(survivors) = around.survivors else { return point };
    let lost = acknowledged.iter().filter(|a| !survivors.contains(&a.name)).count();
    point.lost = Some(lost);
    point.seconds = if lost == 0 {
        Some(0.0)
    } else {
        let there = acknowledged.iter().filter(|a| survivors.contains(&a.name)).filter_map(|a| a.acknowledged_at);
        stop.and_then(|stop| there.filter(|at| *at <= stop).max().map(|newest| seconds(newest, stop)))
    };
    point
}

fn writes(attempts: &[Attempt], target_percent: Option<u32>) -> Writes {
    let mut acknowledged: Vec<Timestamp> = attempts.iter().filter_map(|a| a.acknowledged_at).collect();
    acknowledged.sort_unstable();
    let gaps = acknowledged.windows(2).map(|pair| seconds(pair[0], pair[1]));
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let percent = (!attempts.is_empty()).then(|| number(acknowledged.len()) * 100.0 / number(attempts.len()));
    Writes {
        attempted: attempts.len(),
        acknowledged: acknowledged.len(),
        percent,
        target_percent,
        longest_gap_seconds: gaps.max_by(f64::total_cmp),
    }
}

fn comparison(events: &[Event]) -> Comparison {
    let read = |id: &str| output(events, id).and_then(|o| serde_json::from_value::<Agreement>(o.clone()).ok());
    let (before, after) = (read("etcd-before"), read("etcd-unchanged"));
    let say = |a: &Agreement| format!("{:x}/{}/{:08x}", a.cluster_id, a.revision, a.hash);
    Comparison {
        before: before.as_ref().map(say),
        after: after.as_ref().map(say),
        // etcd itself is another one where the data went elsewhere.
        equal: before.zip(after).map(|(before, after)| (before.revision, before.hash) == (after.revision, after.hash)),
    }
}

/// The JSON Schema of `evidence.json`.
pub fn evidence_schema() -> serde_json::Value {
    crate::config::schema_of::<Evidence>()
}

#[cfg(test)]
mod tests;
