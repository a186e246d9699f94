//! What must hold before a runbook's first step is planned, and before it is begun.

use jiff::Timestamp;
use jiff::civil::Time;

use super::draft::Basis;
use super::params::{ManualWait, Params};
use super::runbook::MANUAL_WITHIN_SECONDS;
use super::schedule::{weekly_begin, weekly_end};
use super::{Plan, PlanError, RunbookChoice, Step, plan_build};
use crate::config::{Consent, MasterConfig, Runbook, Window, time_zone};
use crate::distribution::server_name;

/// The step that waits for a person's word before anything is touched.
pub const APPROVAL: &str = "approval";

/// Whether a run may begin now, as far as its runbook's windows say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It has no windows.
    Always,
    /// One is open until then.
    Until(Timestamp),
    /// None is; the next opens then, if one does.
    ClosedUntil(Option<Timestamp>),
}

/// Looks at a runbook's windows.
pub fn opening(windows: &[Window], now: Timestamp) -> Opening {
    if windows.is_empty() {
        return Opening::Always;
    }
    let (mut end, mut next): (Option<Timestamp>, Option<Timestamp>) = (None, None);
    for window in windows {
        // One that was loaded has a time zone and times.
        let (Some(zone), Ok(from), Ok(to)) =
            (time_zone(&window.time_zone), window.from.parse::<Time>(), window.to.parse::<Time>())
        else {
            continue;
        };
        let local = zone.to_datetime(now);
        let instant = |at| zone.to_ambiguous_timestamp(at).compatible().ok();
        end = end.max(weekly_end(from, to, &window.days, local).and_then(instant));
        let begin = weekly_begin(from, &window.days, local).and_then(instant);
        next = next.into_iter().chain(begin).min();
    }
    end.map_or(Opening::ClosedUntil(next), Opening::Until)
}

/// Whether a run of this plan may begin now.
///
/// # Errors
/// `Guard`: its windows are closed.
pub fn may_begin(plan: &Plan, now: Timestamp) -> Result<(), PlanError> {
    let Some(run) = &plan.runbook else { return Ok(()) };
    let Opening::ClosedUntil(next) = opening(&run.runbook.guards.windows, now) else { return Ok(()) };
    Err(PlanError::Guard {
        guard: "windows".into(),
        reason: format!("runbook {} may not begin at {}", run.runbook.name, minute(now)),
        hint: match next {
            Some(next) => format!("its next window opens at {}; run it then", minute(next)),
            None => "none of its windows opens within a week; look at guards.windows".into(),
        },
    })
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// Adds to a finished plan what its runbook's guards and abort conditions say of the run itself.
pub(super) fn complete(plan: &mut Plan, basis: &Basis<'_>, choice: &RunbookChoice) {
    let (guards, abort) = (&choice.runbook.guards, &choice.runbook.abort_when);
    match opening(&guards.windows, basis.now) {
        Opening::Always => {}
        Opening::Until(end) => plan.findings.push(format!("its window is open until {}", minute(end))),
        Opening::ClosedUntil(next) => {
            let next = next.map_or("not within a week".to_owned(), minute);
            plan.findings.push(format!("it may not begin now: no window is open; the next one: {next}"));
        }
    }
    let ends: Vec<String> = [
        abort.outage_seconds.map(|s| format!("no write is acknowledged for {s} s")),
        abort.run_seconds.map(|s| format!("it takes longer than {s} s")),
        abort.window_ends.then(|| "its window ends".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !ends.is_empty() {
        let until = match super::point_of_no_return(plan) {
            Some(step) => format!("; from \"{}\" on it goes forward only", step.title),
            None => String::new(),
        };
        plan.findings.push(format!("it is ended and undone if {}{until}", ends.join(", or ")));
    }
    if guards.approval == Consent::Required {
        ask_first(plan, basis, choice);
    }
}

/// A plan that replaces another was agreed to with that one.
fn ask_first(plan: &mut Plan, basis: &Basis<'_>, choice: &RunbookChoice) {
    if choice.approved || basis.parent.is_some() {
        plan.findings.push("a person has agreed to this run".into());
        return;
    }
    if plan.steps.is_empty() {
        return;
    }
    let on = if choice.servers.is_empty() { String::new() } else { format!(" on {}", choice.servers.join(", ")) };
    let text = format!("agreement to runbook {}{on}", choice.runbook.name);
    for first in plan.steps.iter_mut().filter(|step| step.needs.is_empty()) {
        first.needs.push(APPROVAL.into());
    }
    let title = format!("wait for {text} (`hk-dr approve`)");
    let params = ManualWait { id: APPROVAL.into(), text };
    let step = Step {
        id: APPROVAL.into(),
        kind: ManualWait::KIND.into(),
        version: ManualWait::VERSION,
        params: serde_json::to_value(params).unwrap_or_default(),
        needs: Vec::new(),
        title,
        reason: "the runbook asks for it before anything is touched".into(),
        deadline_seconds: MANUAL_WITHIN_SECONDS,
        seen_absent: false,
    };
    plan.steps.insert(0, step);
}

/// The newest snapshot from which something rose, and what its age means. No finding: nobody asked.
fn proven(basis: &Basis<'_>, hours: Option<u32>) -> Result<Option<String>, String> {
    let Some(hours) = hours else { return Ok(None) };
    let Some(newest) = basis.inventory.snapshots.iter().filter(|s| s.proven).max_by_key(|s| s.taken_at) else {
        return Err(match basis.inventory.snapshots.len() {
            0 => "the bucket holds no snapshot".into(),
            n => format!("none of {n} snapshots is proven: nothing has risen from any of them yet"),
        });
    };
    let age = basis.now.duration_since(newest.taken_at).as_hours();
    let say = format!("the newest proven snapshot, {}, is {age} h old", newest.id);
    if age < i64::from(hours) { Ok(Some(format!("{say} (allowed are {hours} h)"))) } else { Err(say) }
}

/// The longest time without an acknowledged write in the last runs, beside what is allowed.
fn outage(basis: &Basis<'_>, seconds: Option<u32>) -> Result<Option<String>, String> {
    let Some(seconds) = seconds else { return Ok(None) };
    let Some(longest) = basis.outages.iter().copied().max_by(f64::total_cmp) else {
        return Ok(Some(format!("how long the API is away was not measured yet (allowed are {seconds} s)")));
    };
    let say = format!("the API was away for up to {longest:.1} s in the last {} runs", basis.outages.len());
    if longest <= f64::from(seconds) { Ok(Some(format!("{say} (allowed are {seconds} s)"))) } else { Err(say) }
}

/// Checks every guard of a runbook that acts on these masters. Returns what is worth knowing of those that hold.
pub(super) fn check(basis: &Basis<'_>, runbook: &Runbook, chosen: &[&MasterConfig]) -> Result<Vec<String>, PlanError> {
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
        let is_chosen = |master: &MasterConfig| chosen.iter().any(|c| c.name == master.name);
        let others = || basis.cluster.masters.iter().filter(|m| !is_chosen(m));
        let stay: Vec<&str> = others().filter(|m| serves_etcd(basis, m)).map(|m| m.name.as_str()).collect();
        let taken: Vec<&str> = chosen.iter().map(|m| m.name.as_str()).collect();
        let mut gone = vec![format!("the runbook takes {}", taken.join(", "))];
        gone.extend(others().filter(|m| !serves_etcd(basis, m)).filter_map(|m| not_serving(basis, m)));
        let members = basis.inventory.members.len().max(basis.cluster.masters.len());
        if stay.len() <= members / 2 {
            let reason = format!(
                "etcd has {members} members and would keep {} of them ({}), which is no majority: {}",
                stay.len(),
                if stay.is_empty() { "none".to_owned() } else { stay.join(", ") },
                gone.join("; ")
            );
            let hint = "replace one master at a time, when all others serve; where the majority is lost but the volumes \
                        exist, `hk-dr runbook run masters-from-volumes` brings it back, otherwise `hk-dr rebuild`";
            return refused("majorityStays", reason, hint);
        }
    }
    let mut findings = Vec::new();
    match proven(basis, guards.proven_snapshot_hours) {
        Ok(found) => findings.extend(found),
        Err(reason) => {
            let hint = "`hk-dr snapshot`, then `hk-dr snapshot verify --level boot` or `hk-dr runbook run sandbox-restore` proves it";
            return refused("provenSnapshotHours", reason, hint);
        }
    }
    match outage(basis, guards.maximum_outage_seconds) {
        Ok(found) => findings.extend(found),
        Err(reason) => {
            let hint = "`hk-dr report` shows which step took how long; mend that, or allow more in guards.maximumOutageSeconds";
            return refused("maximumOutageSeconds", reason, hint);
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
    Ok(findings)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Day;

    fn window(days: &[Day], from: &str, to: &str) -> Window {
        Window { time_zone: "Europe/Berlin".into(), days: days.to_vec(), from: from.into(), to: to.into() }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let nights = [window(&[Day::Sat], "22:00", "05:00")];
        // Saturday 23:00, Sunday 04:59 and 05:00, Friday 23:00 in Berlin's winter.
        assert_eq!(opening(&nights, at("2026-11-28T22:00:00Z")), Opening::Until(at("2026-11-29T04:00:00Z")));
        assert_eq!(opening(&nights, at("2026-11-29T03:59:00Z")), Opening::Until(at("2026-11-29T04:00:00Z")));
        let next = Opening::ClosedUntil(Some(at("2026-12-05T21:00:00Z")));
        assert_eq!(opening(&nights, at("2026-11-29T04:00:00Z")), next);
        let next = Opening::ClosedUntil(Some(at("2026-11-28T21:00:00Z")));
        assert_eq!(opening(&nights, at("2026-11-27T22:00:00Z")), next);
    }

    #[test]
    fn the_longest_of_several_open_windows_counts_and_the_wall_clock_rules_across_daylight_saving() {
        let both = [window(&[], "01:00", "04:00"), window(&[Day::Sun], "00:30", "03:30")];
        // 2026-10-25: at 03:00 summer time the clock goes back to 02:00. 01:30 in Berlin.
        assert_eq!(opening(&both, at("2026-10-24T23:30:00Z")), Opening::Until(at("2026-10-25T03:00:00Z")));
        assert_eq!(opening(&[], at("2026-10-24T23:30:00Z")), Opening::Always);
    }
}
