use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::period::Period;
use super::timeline::timeline;
use crate::drill::{Evidence, Verdict};

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#cf222e;--open:#9a6700;--bar:#4c8dd6}
body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;border-bottom:2px solid var(--line);margin-top:1.8rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem}dd{margin:0}
.passed{color:var(--good)}.failed{color:var(--bad)}.inconclusive{color:var(--open)}
svg{width:100%;font:12px system-ui,sans-serif}svg text{fill:currentColor}
.step{fill:var(--bar)}rect.failed{fill:var(--bad)}rect.found{opacity:.4}.away{fill:var(--open);opacity:.15}.grid{stroke:var(--line)}
code{font-size:.9em;overflow-wrap:anywhere}
";

fn frame(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; meta name="viewport" content="width=device-width,initial-scale=1";
                title { (title) } style { (PreEscaped(STYLE)) } }
            body { (body) }
        }
    }
    .into_string()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Inconclusive => "inconclusive",
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "not measured".into(), |s| format!("{s:.1} s"))
}

fn target(value: Option<u32>) -> String {
    value.map_or_else(|| "no target".into(), |s| format!("target {s} s"))
}

/// The report of one run: everything is in this one file.
pub fn run_page(evidence: &Evidence, document: &[u8]) -> String {
    let title = format!("{} on {}: {}", evidence.runbook, evidence.cluster, word(evidence.verdict));
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".into());
    let (point, writes) = (&evidence.recovery_point, &evidence.writes);
    let body = html! {
        h1 { (evidence.runbook) " on " (evidence.cluster) ": " span class=(word(evidence.verdict)) { (word(evidence.verdict)) } }
        ul { @for reason in &evidence.reasons { li { (reason) } } }
        h2 { "Measured" }
        dl {
            dt { "Recovery time" } dd { (seconds(evidence.recovery.seconds)) ", " (target(evidence.recovery.target_seconds)) }
            dt { "Recovery point" } dd { (seconds(point.seconds)) ", " (target(point.target_seconds)) }
            dt { "Canaries" } dd { (point.acknowledged) " acknowledged, "
                @match point.lost { Some(lost) => { (lost) " lost" }, None => "nobody could look how many were lost" } }
            dt { "Writes" } dd { @match writes.percent { Some(p) => { (format!("{p:.1}% of {}", writes.attempted)) }, None => "none tried" }
                "; longest time without one " (seconds(writes.longest_gap_seconds)) }
            dt { "Comparison" } dd { @match evidence.comparison.equal {
                Some(true) => "etcd's data is the same, by hash, as before", Some(false) => "etcd's data is not the same as before",
                None => "not compared by hash: the cluster went on meanwhile" }
                @if let Some(hash) = &evidence.comparison.before { br; code { (hash) } } }
            dt { "Snapshot before" } dd { (text(&evidence.snapshot)) }
        }
        h2 { "Timeline" }
        (timeline(evidence))
        p { small { "Shaded: from the first stop to an acknowledged write. Pale bars were found done." } }
        h2 { "Steps" }
        table {
            tr { th { "Step" } th { "Took" } th { "Attempts" } th { "Began" } }
            @for step in &evidence.steps {
                tr { td { (step.title) @if let Some(error) = &step.error { br; span .failed { (error) } } }
                    td { (seconds(step.seconds)) @if step.found { " (was done already)" } }
                    td { (step.attempts) } td { (text(&step.started)) } }
            }
        }
        h2 { "Origin" }
        dl {
            dt { "Run" } dd { code { (evidence.run) } @if evidence.resumed > 0 { ", taken up again " (evidence.resumed) " times" } }
            dt { "Started by" } dd { (evidence.started_by) }
            dt { "Masters" } dd { @if evidence.servers.is_empty() { "all" } @else { (evidence.servers.join(", ")) } }
            dt { "Time" } dd { (text(&evidence.began)) " to " (text(&evidence.ended)) }
            dt { "hk-dr" } dd { (evidence.hk_dr_version) }
            @for (name, version) in &evidence.versions { dt { (name) } dd { (version) } }
            dt { "Git commit" } dd { code { (text(&evidence.git_commit)) } }
            dt { "Evidence" } dd { "SHA-256 " code { (super::digest(document)) } }
            dt { "Follows" } dd { @match &evidence.previous {
                Some(link) => { "run " code { (link.run) } ", SHA-256 " code { (link.sha256) } }, None => "no earlier evidence" } }
        }
        p { small { "Check it: " code { "hk-dr report verify " (evidence.run) } } }
    };
    frame(&title, &body)
}

/// The report over a period.
pub fn period_page(period: &Period) -> String {
    let day = |at: jiff::Timestamp| at.strftime("%Y-%m-%d").to_string();
    let body = html! {
        h1 { "Rehearsals of " (period.cluster) ", " (day(period.since)) " to " (day(period.until)) }
        p { (period.done) " drills done, " (period.planned_total) " planned: "
            span .passed { (period.passed) " passed" } ", " span .failed { (period.failed) " failed" } ", "
            span .inconclusive { (period.inconclusive) " inconclusive" } "." }
        @for problem in &period.broken { p .failed { "Chain of evidence: " (problem) } }
        h2 { "Recovery time" }
        @for (runbook, trend) in &period.trends {
            h3 { (runbook) }
            p { (trend.runs) " runs, " (target(trend.target_seconds)) ". "
                @match trend.change_per_month {
                    Some(change) => { "Trend: " (format!("{change:+.1}")) " s a month." },
                    None => "Too few for a trend." } }
            (bars(&trend.seconds, trend.target_seconds))
        }
        h2 { "Drills" }
        table {
            tr { th { "Run" } th { "Runbook" } th { "Verdict" } th { "Recovery time" } th { "Lost" } th { "Why" } }
            @for drill in &period.drills {
                tr { td { (drill.run) } td { (drill.runbook) } td class=(word(drill.verdict)) { (word(drill.verdict)) }
                    td { (seconds(drill.recovery_seconds)) } td { (seconds(drill.lost_seconds)) } td { (drill.reason) } }
            }
        }
        h2 { "Planned" }
        table {
            tr { th { "Schedule" } th { "Runbooks" } th { "Times" } }
            @for planned in &period.planned {
                tr { td { (planned.policy) "/" (planned.schedule) } td { (planned.runbooks.join(", ")) } td { (planned.times) } }
            }
        }
        h2 { "Backups never restored" }
        @if period.unproven.is_empty() && period.volumes_unproven.is_empty() { p .passed { "None." } }
        ul { @for id in &period.unproven { li { (id) } }
            @for id in &period.volumes_unproven { li { "volume: " (id) } } }
    };
    frame(&format!("Rehearsals of {}", period.cluster), &body)
}

/// A bar a measurement, and a line at the target.
fn bars(seconds: &[(jiff::Timestamp, f64)], target: Option<u32>) -> Markup {
    let top = seconds.iter().map(|(_, s)| *s).chain(target.map(f64::from)).fold(0.001, f64::max);
    let height = |value: f64| value / top * 90.0;
    html! {
        svg viewBox="0 0 1000 110" role="img" aria-label="Recovery time of each run" {
            @for (index, (at, value)) in (0u32..).zip(seconds) {
                @let over = target.is_some_and(|t| *value > f64::from(t));
                rect .step .failed[over] x=(index * 24) y=(format!("{:.1}", 100.0 - height(*value))) width="18"
                    height=(format!("{:.1}", height(*value))) { title { (at) ": " (format!("{value:.1} s")) } }
            }
            @if let Some(target) = target {
                @let y = format!("{:.1}", 100.0 - height(f64::from(target)));
                line .grid x1="0" x2="1000" y1=(y) y2=(y) {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::StepEvidence;

    #[test]
    fn a_report_is_one_file_that_loads_nothing_and_shows_every_step() {
        let mut evidence = crate::serve::sample("r1", "volume-reattach");
        evidence.began = Some("2026-06-01T00:00:00Z".into());
        evidence.ended = Some("2026-06-01T00:00:40Z".into());
        evidence.recovery.from = Some("2026-06-01T00:00:10Z".into());
        evidence.recovery.to = Some("2026-06-01T00:00:17.4Z".into());
        evidence.recovery.seconds = Some(7.4);
        evidence.steps.push(StepEvidence {
            id: "stop".into(),
            title: "stop <b>m1</b>".into(),
            attempts: 1,
            found: false,
            started: Some("2026-06-01T00:00:10Z".into()),
            ended: Some("2026-06-01T00:00:20Z".into()),
            seconds: Some(10.0),
            error: None,
        });
        let page = run_page(&evidence, b"document");
        assert!(page.contains("stop &lt;b&gt;m1&lt;/b&gt;") && !page.contains("<b>m1"), "{page}");
        // A quarter of the way, a quarter long.
        assert!(page.contains("x=\"497.5\"") && page.contains("width=\"167.5\""), "{page}");
        for part in ["7.4 s", "me@desk", &super::super::digest(b"document"), "0123456789abcdef"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for outside in ["http://", "https://", "src=", "<script", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
