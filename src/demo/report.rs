//! What the demo found, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Check;
use super::compare::Comparison;

/// A part of the story and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    /// From the beginning of the demo.
    pub started_seconds: f64,
    pub seconds: f64,
}

/// Everything measured and checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Every check holds.
    pub ok: bool,
    pub phases: Vec<Phase>,
    /// From the beginning of the demo to its end, without tearing down.
    pub seconds: f64,
    /// From the beginning of the build until the first answer of a pod.
    pub build_pod_seconds: f64,
    /// From the beginning of the loss until the first acknowledged write.
    pub rto_seconds: f64,
    /// From the beginning of the loss until the first answer of a pod.
    pub rto_pod_seconds: f64,
    /// From the beginning of the rebuild until the first answer of a pod.
    pub rebuild_pod_seconds: f64,
    /// Age of the newest surviving canary at the loss. None: none survived.
    pub rpo_seconds: Option<f64>,
    pub objects: Comparison,
    pub checks: Vec<Check>,
    pub versions: BTreeMap<String, String>,
}

/// Columns of the timeline.
const BAR: usize = 40;

/// The report as text for a terminal; `colour` with ANSI colours.
pub fn render(report: &Report, colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut out = String::new();
    let versions: Vec<String> = report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let _ = writeln!(out, "\n{}  {}\n", paint("1", "Timeline"), versions.join(" · "));
    let width = report.phases.iter().map(|p| p.name.chars().count()).max().unwrap_or(0);
    for phase in &report.phases {
        let bar = bar(phase, report.seconds);
        let _ = writeln!(out, "  {:width$}  {:>6.1} s  {}", phase.name, phase.seconds, paint("36", &bar));
    }
    let _ = writeln!(out, "  {:width$}  {:>6.1} s", "all", report.seconds);

    let _ = writeln!(out, "\n{}\n", paint("1", "Measured"));
    let figure = |out: &mut String, seconds: Option<f64>, what: &str| {
        let value = seconds.map_or_else(|| "     –".to_owned(), |s| format!("{s:>6.1}"));
        let _ = writeln!(out, "  {value} s  {what}");
    };
    figure(&mut out, Some(report.build_pod_seconds), "build, from nothing to a pod's answer");
    figure(
        &mut out,
        Some(report.rebuild_pod_seconds),
        "rebuild, from nothing but Git, bucket and identity to the pod's answer",
    );
    figure(&mut out, Some(report.rto_seconds), "recovery time: from the loss to the first acknowledged API write");
    figure(&mut out, Some(report.rto_pod_seconds), "                from the loss to the pod's answer");
    figure(&mut out, report.rpo_seconds, "recovery point: age of the newest surviving canary at the loss");

    let _ = writeln!(out, "\n{}\n", paint("1", "Checked"));
    for check in &report.checks {
        let (mark, code) = if check.ok { ("✓", "32") } else { ("✗", "31;1") };
        let _ = writeln!(out, "  {} {}", paint(code, mark), check.name);
        let _ = writeln!(out, "    {}", paint("2", &check.detail));
    }
    if !report.objects.reasons.is_empty() {
        let _ = writeln!(out, "\n{}\n", paint("1", "Expected to change"));
        for (reason, count) in &report.objects.reasons {
            let _ = writeln!(out, "  {count:>6}  {reason}");
        }
    }
    for lost in &report.objects.lost_objects {
        let _ = writeln!(out, "  {} {lost}", paint("31;1", "lost"));
    }
    let failed: Vec<&str> = report.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
    let verdict = if report.ok {
        paint("32;1", &format!("ok: true — all {} checks hold", report.checks.len()))
    } else {
        paint(
            "31;1",
            &format!(
                "ok: false — {} of {} checks do not hold: {}",
                failed.len(),
                report.checks.len(),
                failed.join(", ")
            ),
        )
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}

/// Where a phase lies in the whole, at least one column wide.
fn bar(phase: &Phase, whole: f64) -> String {
    let column = |seconds: f64| -> usize {
        #[expect(clippy::cast_precision_loss, reason = "a few columns")]
        let position = (seconds / whole.max(f64::EPSILON) * BAR as f64).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the bar's width")]
        let position = position.clamp(0.0, 1e6) as usize;
        position.min(BAR)
    };
    let start = column(phase.started_seconds).min(BAR - 1);
    let end = column(phase.started_seconds + phase.seconds).max(start + 1);
    format!("{}{}", " ".repeat(start), "▇".repeat(end - start))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn report() -> Report {
        let phase = |name: &str, started_seconds, seconds| Phase { name: name.into(), started_seconds, seconds };
        Report {
            ok: true,
            phases: vec![phase("build", 0.0, 15.0), phase("rebuild", 15.0, 10.0), phase("prove", 25.0, 0.01)],
            seconds: 25.01,
            build_pod_seconds: 15.2,
            rto_seconds: 8.4,
            rto_pod_seconds: 10.9,
            rebuild_pod_seconds: 10.1,
            rpo_seconds: Some(2.3),
            objects: Comparison { compared: 3, equal: 2, expected: 1, ..Comparison::default() },
            checks: vec![Check::new("no object is lost", true, "3 in the snapshot")],
            versions: [("Kubernetes".to_owned(), "1.35.4".to_owned())].into(),
        }
    }

    #[test]
    fn bars_follow_one_another_and_stay_inside() {
        let report = report();
        let bars: Vec<String> = report.phases.iter().map(|p| bar(p, report.seconds)).collect();
        assert!(bars.iter().all(|b| b.chars().count() <= BAR && b.contains('▇')), "{bars:?}");
        assert_eq!(bars[1].find('▇'), Some(bars[0].chars().count()));
    }

    #[test]
    fn a_failed_check_is_named_in_the_verdict() {
        let mut report = report();
        assert!(render(&report, false).contains("ok: true — all 1 checks hold"));
        report.checks.push(Check::new("pod answers", false, "no route"));
        report.ok = false;
        report.rpo_seconds = None;
        let text = render(&report, false);
        assert!(text.contains("✗ pod answers") && text.contains("ok: false — 1 of 2 checks do not hold: pod answers"));
        assert!(!text.contains('\x1b'), "no colours where nobody asked for them");
    }

    #[test]
    fn machines_read_what_was_promised() {
        let value = serde_json::to_value(report()).unwrap();
        assert!(value["ok"].is_boolean() && value["rto_seconds"].is_f64() && value["rpo_seconds"].is_f64());
        assert!(value["phases"][0]["name"].is_string() && value["phases"][0]["seconds"].is_f64());
        for count in ["compared", "equal", "expected", "lost"] {
            assert!(value["objects"][count].is_u64(), "{count}");
        }
        assert!(value["checks"][0]["name"].is_string() && value["checks"][0]["ok"].is_boolean());
    }
}
