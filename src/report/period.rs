use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::drill::{Evidence, Verdict};

/// Shortest time between the first and the last measurement of a trend.
const TREND_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Drills that a schedule planned in the period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    pub policy: String,
    pub schedule: String,
    /// Names of the runbooks that it takes in turn.
    pub runbooks: Vec<String>,
    pub times: usize,
}

/// What was rehearsed in a period, and what was not.
#[derive(Debug, Clone, Serialize)]
pub struct Period {
    pub cluster: String,
    pub since: Timestamp,
    pub until: Timestamp,
    pub planned: Vec<Planned>,
    pub planned_total: usize,
    pub done: usize,
    pub passed: usize,
    pub failed: usize,
    pub inconclusive: usize,
    /// By runbook.
    pub trends: BTreeMap<String, RunbookTrend>,
    /// Snapshots that were never restored, newest first.
    pub unproven: Vec<String>,
    pub proven: Vec<String>,
    /// Backups of volumes that were never restored, newest first.
    pub volumes_unproven: Vec<String>,
    pub volumes_proven: Vec<String>,
    /// What is wrong with the chain of evidence.
    pub broken: Vec<String>,
    /// Newest first.
    pub drills: Vec<Drill>,
}

/// One drill, in a line.
#[derive(Debug, Clone, Serialize)]
pub struct Drill {
    pub run: String,
    pub runbook: String,
    pub ended: Option<Timestamp>,
    pub verdict: Verdict,
    pub recovery_seconds: Option<f64>,
    pub lost_seconds: Option<f64>,
    pub reason: String,
}

/// How a runbook's recovery time goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunbookTrend {
    pub runs: usize,
    /// Oldest first, with the time each ended.
    pub seconds: Vec<(Timestamp, f64)>,
    /// Seconds a month by least squares; none with less than three measurements, or within a week.
    pub change_per_month: Option<f64>,
    pub target_seconds: Option<u32>,
}

/// Draws it up. `snapshots`, `volumes`: names of backups, newest first, and whether each was restored with success.
pub fn period(
    cluster: &str,
    span: (Timestamp, Timestamp),
    evidence: &[Evidence],
    planned: Vec<Planned>,
    snapshots: &[(String, bool)],
    volumes: &[(String, bool)],
    broken: Vec<String>,
) -> Period {
    let ended = |e: &Evidence| e.ended.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
    let within: Vec<&Evidence> =
        evidence.iter().filter(|e| ended(e).is_some_and(|at| at >= span.0 && at < span.1)).collect();
    let count = |verdict: Verdict| within.iter().filter(|e| e.verdict == verdict).count();
    let mut trends: BTreeMap<String, RunbookTrend> = BTreeMap::new();
    for one in &within {
        let trend = trends.entry(one.runbook.clone()).or_insert(RunbookTrend {
            runs: 0,
            seconds: Vec::new(),
            change_per_month: None,
            target_seconds: None,
        });
        trend.runs += 1;
        trend.seconds.extend(ended(one).zip(one.recovery.seconds));
        trend.target_seconds = one.recovery.target_seconds.or(trend.target_seconds);
    }
    for trend in trends.values_mut() {
        trend.seconds.sort_by_key(|(at, _)| *at);
        trend.change_per_month = slope(&trend.seconds);
    }
    let names = |of: &[(String, bool)], proven: bool| -> Vec<String> {
        of.iter().filter(|(_, p)| *p == proven).map(|(id, _)| id.clone()).collect()
    };
    let drill = |e: &&Evidence| Drill {
        run: e.run.clone(),
        runbook: e.runbook.clone(),
        ended: ended(e),
        verdict: e.verdict,
        recovery_seconds: e.recovery.seconds,
        lost_seconds: e.recovery_point.seconds,
        reason: e.reasons.first().cloned().unwrap_or_default(),
    };
    Period {
        cluster: cluster.to_owned(),
        since: span.0,
        until: span.1,
        planned_total: planned.iter().map(|p| p.times).sum(),
        planned,
        done: within.len(),
        passed: count(Verdict::Passed),
        failed: count(Verdict::Failed),
        inconclusive: count(Verdict::Inconclusive),
        trends,
        unproven: names(snapshots, false),
        proven: names(snapshots, true),
        volumes_unproven: names(volumes, false),
        volumes_proven: names(volumes, true),
        broken,
        drills: within.iter().rev().map(drill).collect(),
    }
}

/// Seconds a month of thirty days, by least squares. A few days say nothing about a month.
fn slope(points: &[(Timestamp, f64)]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    if points.len() < 3 || last.0.duration_since(first.0) < TREND_AFTER {
        return None;
    }
    let month = |at: Timestamp| at.duration_since(points[0].0).as_secs_f64() / (30.0 * 86_400.0);
    let count = f64::from(u32::try_from(points.len()).ok()?);
    let mean_x = points.iter().map(|(at, _)| month(*at)).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, s)| s).sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for (at, seconds) in points {
        let x = month(*at) - mean_x;
        above += x * (seconds - mean_y);
        below += x * x;
    }
    (below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::sample;

    fn drill(run: &str, ended: &str, seconds: f64, verdict: Verdict) -> Evidence {
        let mut evidence = sample(run, "volume-reattach");
        evidence.ended = Some(ended.to_owned());
        evidence.recovery.seconds = Some(seconds);
        evidence.verdict = verdict;
        evidence
    }

    #[test]
    fn drills_of_the_period_are_counted_and_their_trend_is_told() {
        let all = [
            drill("a", "2026-03-31T00:00:00Z", 99.0, Verdict::Failed),
            drill("b", "2026-04-01T00:00:00Z", 10.0, Verdict::Passed),
            drill("c", "2026-05-01T00:00:00Z", 12.0, Verdict::Failed),
            drill("d", "2026-05-31T00:00:00Z", 14.0, Verdict::Passed),
        ];
        let planned = vec![Planned { policy: "p".into(), schedule: "s".into(), runbooks: vec![], times: 5 }];
        let span = ("2026-04-01T00:00:00Z".parse().unwrap(), "2026-07-01T00:00:00Z".parse().unwrap());
        let snapshots = [("new".to_owned(), false), ("old".to_owned(), true)];
        let found = period("demo", span, &all, planned, &snapshots, &[("shop".to_owned(), false)], Vec::new());
        assert_eq!((&found.volumes_unproven[..], found.volumes_proven.len()), (&["shop".to_owned()][..], 0));
        assert_eq!((found.planned_total, found.done, found.passed, found.failed), (5, 3, 2, 1));
        let change = found.trends["volume-reattach"].change_per_month.unwrap();
        assert!((change - 2.0).abs() < 0.01, "{change}");
        let hours = |h: i64, seconds: f64| (span.0 + jiff::SignedDuration::from_hours(h), seconds);
        assert_eq!(slope(&[hours(0, 8.0), hours(1, 10.0), hours(2, 7.0)]), None, "an afternoon is no trend");
        assert_eq!((found.unproven, found.proven), (vec!["new".to_owned()], vec!["old".to_owned()]));
        assert_eq!(found.drills[0].run, "d");
    }
}
