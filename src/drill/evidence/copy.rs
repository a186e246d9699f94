//! What a rehearsal on a copy shows: what was compared, what it cost, and what became of the copy.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{RecoveryPoint, output, seconds};
use crate::journal::{Body, Event};
use crate::plan::{Plan, works_on_copy};
use crate::ports::{Compared, Served};
use crate::steps::Mark;

/// A copy of the cluster, made for the rehearsal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyEvidence {
    /// The snapshot it was made from.
    pub snapshot: Option<String>,
    pub snapshot_taken_at: Option<String>,
    /// Keys of the snapshot; none: they were not compared.
    pub keys: Option<u64>,
    /// Those that were exactly the same in the copy's etcd.
    pub keys_equal: Option<u64>,
    /// Those that had ended with their lease meanwhile.
    pub keys_ended_with_lease: Option<u64>,
    /// Objects found through the copy's API, Secrets decrypted.
    pub objects_served: Option<u64>,
    /// Keys that no API server serves as an object, by kind.
    pub not_served: BTreeMap<String, u64>,
    pub currency: Option<String>,
    /// What it was said to cost before: for each hour that is begun.
    pub cost_hour: Option<f64>,
    /// What it has cost by the end of the run: hours begun since its first server was ordered.
    pub cost: Option<f64>,
    pub after: Kept,
    /// When the service's canary was written that production had when the rehearsal began; none: it keeps none there.
    #[serde(default)]
    pub canary_in_production: Option<String>,
    /// When the one was written that the copy has. The recovery point is the time between them; without either it is the age
    /// of the snapshot.
    #[serde(default)]
    pub canary_in_copy: Option<String>,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It was deleted by this run.
    Discarded,
    /// It stays, as was asked.
    Kept,
    /// The run did not come to that.
    Open,
}

fn read<T: DeserializeOwned>(events: &[Event], step: &str) -> Option<T> {
    serde_json::from_value(output(events, step)?.clone()).ok()
}

/// When something of a step happened.
fn first(events: &[Event], is: impl Fn(&Body) -> bool) -> Option<Timestamp> {
    events.iter().find(|e| is(&e.body)).map(|e| e.at)
}

pub(super) fn copy(plan: &Plan, events: &[Event], mark: Option<Mark>) -> Option<CopyEvidence> {
    let run = plan.runbook.as_ref().filter(|r| works_on_copy(&r.runbook))?;
    let compared: Option<Compared> = read(events, "compare");
    let served: Option<Served> = read(events, "served");
    let ordered = first(events, |b| matches!(b, Body::StepStarted { step, .. } if step.starts_with("server/")));
    let deleted = first(events, |b| matches!(b, Body::StepFinished { step, .. } if step == "discard"));
    let until = deleted.or_else(|| events.last().map(|e| e.at));
    let hours = ordered.zip(until).map(|(from, to)| (seconds(from, to) / 3600.0).ceil().max(1.0));
    Some(CopyEvidence {
        snapshot: plan.snapshot.clone(),
        snapshot_taken_at: compared.as_ref().map(|c| c.taken_at.to_string()),
        keys: compared.as_ref().map(|c| c.keys),
        keys_equal: compared.as_ref().map(|c| c.equal),
        keys_ended_with_lease: compared.as_ref().map(|c| c.ended_with_lease),
        objects_served: served.as_ref().map(|s| s.objects),
        canary_in_production: kept(mark, events).map(|mark| mark.at.to_string()),
        canary_in_copy: served.as_ref().and_then(|s| s.canary).map(|at| at.to_string()),
        not_served: served.map(|s| s.not_served).unwrap_or_default(),
        currency: run.cost.as_ref().map(|c| c.currency.clone()),
        cost_hour: run.cost.as_ref().map(|c| c.hour),
        cost: run.cost.as_ref().zip(hours).map(|(cost, hours)| cost.hour * hours),
        after: match (deleted, run.keep) {
            (Some(_), _) => Kept::Discarded,
            (None, true) => Kept::Kept,
            (None, false) => Kept::Open,
        },
    })
}

/// Production's canary, if it was still written when the run began.
fn kept(mark: Option<Mark>, events: &[Event]) -> Option<Mark> {
    mark.zip(events.first()).filter(|(mark, first)| mark.is_kept(first.at)).map(|(mark, _)| mark)
}

/// What would have been lost: what is between the canary that the copy has and the one that production had. Where none is
/// kept, what is younger than the snapshot.
pub(super) fn recovery_point(events: &[Event], mark: Option<Mark>, target_seconds: Option<u32>) -> RecoveryPoint {
    let there = read::<Served>(events, "served").and_then(|served| served.canary);
    let by_canaries = kept(mark, events).zip(there).map(|(mark, there)| (there, mark.at));
    let taken = read::<Compared>(events, "compare").map(|c| c.taken_at);
    let lost = by_canaries.or_else(|| taken.zip(events.first().map(|e| e.at)));
    let lost = lost.map(|(from, to)| seconds(from, to).max(0.0));
    RecoveryPoint { seconds: lost, target_seconds, ..RecoveryPoint::default() }
}

/// What is good about it, and what is not.
pub(super) fn findings(copy: &CopyEvidence, point: &RecoveryPoint, finished: bool) -> (Vec<String>, Vec<String>) {
    let (mut good, mut failed) = (Vec::new(), Vec::new());
    if let (Some(keys), Some(equal), Some(ended)) = (copy.keys, copy.keys_equal, copy.keys_ended_with_lease) {
        good.push(match ended {
            0 => format!("{equal} of {keys} keys are exactly what was saved"),
            _ => format!("{equal} of {keys} keys are exactly what was saved, {ended} ended with their lease meanwhile"),
        });
    }
    if let Some(objects) = copy.objects_served {
        good.push(format!("{objects} objects are served, Secrets decrypted"));
    }
    let by = match copy.canary_in_production.is_some() && copy.canary_in_copy.is_some() {
        true => "by the service's canary",
        false => "by the snapshot's age: the service keeps no canary there",
    };
    match (point.seconds, point.target_seconds) {
        (Some(age), Some(target)) if age > f64::from(target) => {
            failed.push(format!("{age:.0} s would have been lost ({by}), allowed are {target} s"));
        }
        (Some(age), _) => good.push(format!("what is younger than {age:.0} s would have been lost ({by})")),
        (None, _) => {}
    }
    if let (Some(cost), Some(currency)) = (copy.cost, &copy.currency) {
        good.push(format!("it has cost {cost:.4} {currency}"));
    }
    if finished {
        good.push(match copy.after {
            Kept::Discarded => "the copy is deleted".into(),
            Kept::Kept => "the copy is kept and costs: `hk-dr runbook run discard-copy` deletes it".into(),
            Kept::Open => "there is no copy any more".into(),
        });
    }
    (good, failed)
}
