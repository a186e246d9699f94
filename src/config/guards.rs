//! What must hold before a runbook begins, and what ends one that is under way.

use jiff::civil::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cron::time_zone;
use super::error::Report;
use super::policy::Day;
use super::runbook::{Acts, OnFailure, Runbook, Verb};
use super::tree::Tree;

/// What must hold before a run begins. If it does not, nothing is touched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guards {
    /// Every master serves: its etcd member answers reads that need a majority, and its API server is ready.
    #[serde(default)]
    pub all_masters_serve: bool,
    /// etcd keeps a majority of the masters that are not acted on.
    #[serde(default)]
    pub majority_stays: bool,
    /// A build would find nothing to do.
    #[serde(default)]
    pub drift_free: bool,
    /// When it may begin: within any of these; none: at any time. A run that was interrupted is continued whenever that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Oldest that the newest proven snapshot may be, in hours: one from which something rose (`hk-dr snapshot verify --level
    /// boot`, a rehearsal on a copy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_snapshot_hours: Option<u32>,
    /// Longest that the API may have been away in the last runs of this runbook, in seconds. One that was never run passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_outage_seconds: Option<u32>,
    /// `required`: before anything is touched the run waits, durably, for `hk-dr approve`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub approval: Consent,
}

/// Whether a person must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Consent {
    /// Whoever starts it agrees by that.
    #[default]
    None,
    /// `hk-dr approve`, from any machine; for a schedule its own `approval: required`.
    Required,
}

/// A time, every week, in which runs may begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// IANA time zone, such as `Europe/Berlin`.
    pub time_zone: String,
    /// Days on which it begins; none: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// Beginning, as `22:00`.
    pub from: String,
    /// End, as `05:00`. Not after the beginning: on the next day.
    pub to: String,
}

/// What ends a run that is under way, before its first step without a way back: what was begun is undone then.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortWhen {
    /// No API server has acknowledged a write for so many seconds, after one had during this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_seconds: Option<u32>,
    /// It is not done so many seconds after its first step that is not a person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_seconds: Option<u32>,
    /// Its window (`guards.windows`) is over.
    #[serde(default)]
    pub window_ends: bool,
}

impl AbortWhen {
    /// Nothing ends a run.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_default(consent: &Consent) -> bool {
    *consent == Consent::default()
}

/// Shortest and longest times that can be asked for, in seconds: canaries are written four times a second and may take 2.5 s.
const OUTAGE_SECONDS: std::ops::RangeInclusive<u32> = 5..=86_400;
const RUN_SECONDS: std::ops::RangeInclusive<u32> = 10..=604_800;
/// Three months: an older proof is none.
const PROVEN_HOURS: std::ops::RangeInclusive<u32> = 1..=2208;

pub(super) fn check(runbook: &Runbook, tree: &Tree, report: &mut Report) {
    let mut wrong = |path: &str, message: String, hint: &str| {
        report.add(tree.place(path), message, Some(hint.to_owned()));
    };
    let (guards, abort) = (&runbook.guards, &runbook.abort_when);
    let copies = runbook.steps.iter().any(|s| s.verb == Verb::CopyRestore);
    if runbook.masters == Acts::All && guards.majority_stays {
        let message = "no majority stays when every master is acted on".to_owned();
        wrong("guards.majorityStays", message, "take it out, or write `masters: chosen`");
    }
    let of_production = Guards { windows: Vec::new(), approval: Consent::default(), ..guards.clone() };
    if copies && of_production != Guards::default() {
        let message = "a copy is made whatever state production is in".to_owned();
        wrong("guards", message, "take all of them out but `windows` and `approval`");
    }
    for (index, window) in guards.windows.iter().enumerate() {
        let at = |field: &str| format!("guards.windows.{index}.{field}");
        if time_zone(&window.time_zone).is_none() {
            let message = format!("`{}` is no IANA time zone", window.time_zone);
            wrong(&at("timeZone"), message, "such as `Europe/Berlin` or `UTC`");
        }
        for (field, text) in [("from", &window.from), ("to", &window.to)] {
            if !is_time(text) {
                wrong(&at(field), format!("`{text}` is no time of day"), "hours and minutes in quotes, as \"22:00\"");
            }
        }
    }
    for (path, value, range) in [
        ("guards.provenSnapshotHours", guards.proven_snapshot_hours, PROVEN_HOURS),
        ("guards.maximumOutageSeconds", guards.maximum_outage_seconds, 1..=86_400),
        ("abortWhen.outageSeconds", abort.outage_seconds, OUTAGE_SECONDS),
        ("abortWhen.runSeconds", abort.run_seconds, RUN_SECONDS),
    ] {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            let hint = format!("a number from {} to {}", range.start(), range.end());
            wrong(path, format!("{value} is out of range"), &hint);
        }
    }
    if copies && abort.outage_seconds.is_some() {
        let message = "nothing of production is stopped by a copy, and nothing is written into it".to_owned();
        wrong("abortWhen.outageSeconds", message, "take it out; `runSeconds` ends a rehearsal that takes too long");
    }
    if abort.window_ends && guards.windows.is_empty() {
        let message = "there is no window that could end".to_owned();
        wrong("abortWhen.windowEnds", message, "declare `guards.windows`, or take it out");
    }
    if !abort.is_empty() && runbook.on_failure != OnFailure::Unwind {
        let message = "a run that is ended midway would leave things as they are then".to_owned();
        wrong("abortWhen", message, "write `onFailure: unwind`, so that the state before comes back");
    }
}

/// Hours and minutes, and nothing else that would pass as a time.
fn is_time(text: &str) -> bool {
    text.len() == 5 && text.parse::<Time>().is_ok()
}

#[cfg(test)]
mod tests {
    use crate::config::load_runbook;

    fn with(lines: &str) -> String {
        let text = format!(
            "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: all\n{lines}steps:\n  - verb: cluster.verify\n"
        );
        load_runbook(&text, "x.yaml").map_or_else(|e| e.plain(), |_| "accepted".into())
    }

    const WINDOW: &str =
        "guards:\n  windows:\n    - {timeZone: Europe/Berlin, days: [sat], from: \"22:00\", to: \"05:00\"}\n";

    #[test]
    fn guards_and_abort_conditions_that_can_hold_are_accepted() {
        let rest = "  provenSnapshotHours: 26\n  maximumOutageSeconds: 60\n  approval: required\nonFailure: unwind\n\
                    abortWhen:\n  outageSeconds: 90\n  runSeconds: 900\n  windowEnds: true\n";
        assert_eq!(with(&format!("{WINDOW}{rest}")), "accepted");
    }

    #[test]
    fn what_can_not_hold_is_refused_with_its_place_and_what_to_write() {
        for (lines, says) in [
            ("guards:\n  windows:\n    - {timeZone: Europe/Berln, from: \"22:00\", to: \"05:00\"}\n", "x.yaml:8:"),
            (
                "guards:\n  windows:\n    - {timeZone: UTC, from: \"22\", to: \"05:00\"}\n",
                "`22` is no time of day (hours and",
            ),
            ("guards:\n  provenSnapshotHours: 0\n", "x.yaml:7:24: 0 is out of range (a number from 1 to 2208)"),
            ("guards:\n  approval: maybe\n", "guards.approval can't be `maybe`"),
            ("guards:\n  window: []\n", "did you mean `windows`?"),
            ("onFailure: unwind\nabortWhen:\n  outageSeconds: 1\n", "1 is out of range (a number from 5 to 86400)"),
            ("onFailure: unwind\nabortWhen:\n  windowEnds: true\n", "there is no window that could end"),
            ("abortWhen:\n  runSeconds: 60\n", "(write `onFailure: unwind`, so that the state before comes back)"),
        ] {
            let found = with(lines);
            assert!(found.contains(says), "{lines}{found}");
        }
    }

    #[test]
    fn a_copy_may_have_a_window_and_an_approval_and_no_guard_of_production() {
        let copy = |lines: &str| {
            let text = format!(
                "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: all\n{lines}onFailure: unwind\nsteps:\n  - verb: copy.restore\n"
            );
            load_runbook(&text, "x.yaml").map_or_else(|e| e.plain(), |_| "accepted".into())
        };
        assert_eq!(copy(&format!("{WINDOW}  approval: required\n")), "accepted");
        assert!(copy("guards:\n  provenSnapshotHours: 5\n").contains("whatever state production is in"));
        assert!(copy("abortWhen:\n  outageSeconds: 60\n").contains("nothing of production is stopped by a copy"));
    }
}
