use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::view::{ClusterView, ScheduleView, View, ended, seconds};
use crate::drill::Verdict;
use crate::plan::schedule::Outcome;

/// Rows of a list that are shown.
const ROWS: usize = 12;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#cf222e;--open:#9a6700}
body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:1.2rem auto;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:2px solid var(--line)}h3{font-size:1rem;margin-bottom:.2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.18rem .7rem .18rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem}.tile{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .9rem;min-width:9rem}
.tile b{display:block;font-size:1.45rem}.tile small{opacity:.75}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.open{color:var(--open)}
footer{margin-top:2rem;opacity:.7}form{display:inline}
@media(prefers-color-scheme:dark){:root{--good:#3fb950;--bad:#f85149;--open:#d29922}}
";

// Without it the page is the same and is fetched anew each half minute.
const SCRIPT: &str = "
setInterval(async()=>{const away=document.getElementById('away');try{const r=await fetch('/live');
if(r.status==401){location.reload();return}if(!r.ok)throw r.status;document.getElementById('live').innerHTML=await r.text();
document.body.dataset.live='yes';away.hidden=true}catch(e){away.hidden=false}},2000);
";

/// Who looks.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub signed_in: bool,
    pub can_sign_in: bool,
}

/// The whole page.
pub fn page(view: &View, seen: Seen) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                noscript { meta http-equiv="refresh" content="30"; }
                title { "hk-dr" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "hk-dr" }
                p #away .bad hidden { "The service does not answer: what is shown is old." }
                main #live { (live(view, seen)) }
                @if seen.can_sign_in && !seen.signed_in { (sign_in_form()) }
                footer { "hk-dr " (view.hk_dr_version) " · " (view.holder) " · " a href="/metrics" { "metrics" } " · "
                    a href="/api/status" { "JSON" } }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// What those see who may not read.
pub fn sign_in_page() -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { "hk-dr" } style { (PreEscaped(STYLE)) } }
            body { h1 { "hk-dr" } (sign_in_form()) }
        }
    }
}

fn sign_in_form() -> Markup {
    html! {
        form method="post" action="/sign-in" {
            label { "Token " input type="password" name="token" autocomplete="current-password"; }
            " " button { "Sign in" }
        }
    }
}

/// The part that changes.
pub fn live(view: &View, seen: Seen) -> Markup {
    html! {
        p { "As of " (time(view.at)) }
        @for cluster in &view.clusters { (one(cluster, view.at, seen)) }
    }
}

fn one(cluster: &ClusterView, now: Timestamp, seen: Seen) -> Markup {
    let targets = &cluster.targets;
    let hours = |hours: Option<u32>| hours.map(|h| f64::from(h) * 3600.0);
    let recovery = cluster.drills.iter().find_map(|d| d.recovery.seconds);
    html! {
        section {
            h2 { (cluster.name) }
            @if let Some(trouble) = &cluster.trouble {
                p .bad { "The bucket can't be read: " (trouble)
                    @if let Some(at) = cluster.observed_at { " What follows is from " (time(at)) "." } }
            }
            div .tiles {
                (tile("Recovery point now", cluster.recovery_point(now), targets.recovery_point_seconds.map(f64::from), "would be lost"))
                (tile("Recovery time", recovery, targets.recovery_seconds.map(f64::from), "in the newest drill"))
                (tile("Newest snapshot", cluster.snapshot_age(now), hours(targets.snapshot_age_hours), "old"))
                (tile("Newest proven", cluster.proven_age(now), hours(targets.proven_age_hours), "old"))
                (tile("Last drill passed", cluster.drill_age(now), targets.drill_age_days.map(|d| f64::from(d) * 86_400.0), "ago"))
            }
            @if let Some(problem) = cluster.log.as_ref().and_then(|log| log.problem.as_ref()) {
                p .bad { "The log is not shipped: " (problem) }
            }
            @for run in &cluster.running {
                h3 { "Running: " (run.what) " (" (run.id) ")" }
                ol { @for (title, state) in &run.steps {
                    li .good[*state == "done"] .bad[*state == "failed"] .open[*state == "running"] { (title) " – " (state) }
                } }
            }
            h3 { "Calendar" }
            (calendar(cluster, now, seen))
            h3 { "Snapshots" }
            table {
                tr { th { "Snapshot" } th { "Age" } th { "Revision" } th { "Stored" } th { "Proof" } }
                @for snapshot in cluster.snapshots.iter().take(ROWS) {
                    tr {
                        td { (snapshot.id) } td { (span(seconds(snapshot.taken_at, now))) } td { (snapshot.revision) }
                        td { (indicatif::HumanBytes(snapshot.stored_bytes)) }
                        td .good[snapshot.proven] .open[!snapshot.proven] { (snapshot.proof) }
                    }
                }
            }
            @if cluster.snapshots.is_empty() { p .bad { "There is no snapshot." } }
            @if let Some(log) = &cluster.log {
                p { "Log: everything before " (time(log.covered_at)) " is in the bucket"
                    @if log.open_gaps > 0 { span .bad { "; " (log.open_gaps) " gaps that no snapshot closes" } }
                    "." }
            }
            (volumes(cluster, now))
            h3 { "Evidence" }
            table {
                tr { th { "Run" } th { "Runbook" } th { "Ended" } th { "Recovery time" } th { "Lost" } th { "Verdict" } }
                @for drill in cluster.drills.iter().take(ROWS) {
                    tr {
                        td { a href={ "/evidence/" (cluster.name) "/" (drill.run) } { (drill.run) } } td { (drill.runbook) }
                        td { @if let Some(at) = ended(drill) { (time(at)) } }
                        td { @if let Some(s) = drill.recovery.seconds { (span(s)) } @else { "not measured" } }
                        td { @if let Some(s) = drill.recovery_point.seconds { (span(s)) } @else { "not measured" } }
                        td { (verdict(drill.verdict)) " "
                            @if drill.verdict != Verdict::Passed { (drill.reasons.first().map_or("", String::as_str)) } }
                    }
                }
            }
            @if cluster.drills.is_empty() { p .open { "No drill yet: nothing shows how long a recovery takes." } }
        }
    }
}

/// Each declared volume against its targets, and the newest backups.
fn volumes(cluster: &ClusterView, now: Timestamp) -> Markup {
    let hours = |hours: Option<u32>| hours.map(|h| f64::from(h) * 3600.0);
    let (age, proven) = (hours(cluster.targets.volume_age_hours), hours(cluster.targets.volume_proven_age_hours));
    html! {
        @if !cluster.declared_volumes.is_empty() || !cluster.volume_backups.is_empty() {
            h3 { "Volumes" }
            div .tiles {
                @for volume in &cluster.declared_volumes {
                    (tile(&format!("{volume}: newest backup"), cluster.volume_age(volume, now), age, "old"))
                    (tile(&format!("{volume}: newest proven"), cluster.volume_proven_age(volume, now), proven, "old"))
                }
            }
            table {
                tr { th { "Backup" } th { "Age" } th { "Files" } th { "Size" } th { "Proof" } }
                @for backup in cluster.volume_backups.iter().take(ROWS) {
                    tr {
                        td { (backup.id) } td { (span(seconds(backup.taken_at, now))) } td { (backup.files) }
                        td { (indicatif::HumanBytes(backup.bytes)) }
                        td .good[backup.proven] .bad[backup.bad] .open[!backup.proven && !backup.bad] { (backup.proof) }
                    }
                }
            }
            @for volume in cluster.declared_volumes.iter().filter(|v| cluster.volume_age(v, now).is_none()) {
                p .bad { "There is no backup of volume " (volume) "." }
            }
        }
    }
}

fn verdict(verdict: Verdict) -> Markup {
    match verdict {
        Verdict::Passed => html! { span .good { "passed" } },
        Verdict::Failed => html! { span .bad { "failed" } },
        Verdict::Inconclusive => html! { span .open { "inconclusive" } },
    }
}

fn tile(name: &str, value: Option<f64>, target: Option<f64>, what: &str) -> Markup {
    let met = value.zip(target).map(|(value, target)| value <= target);
    html! {
        div .tile {
            (name)
            b .good[met == Some(true)] .bad[met == Some(false) || (value.is_none() && target.is_some())] {
                @match value { Some(value) => (span(value)), None => "not known" }
            }
            // Without a value, "would be lost" beside it could be read as the opposite.
            small {
                @if value.is_some() { (what) ", " }
                @match target { Some(target) => { "at most " (span(target)) }, None => "no target" }
            }
        }
    }
}

fn calendar(cluster: &ClusterView, now: Timestamp, seen: Seen) -> Markup {
    html! {
        table {
            tr { th { "Schedule" } th { "Does" } th { "Next" } th { "Now" } th { "Last" } }
            @for schedule in &cluster.schedules {
                tr {
                    td { (schedule.policy) "/" (schedule.name) br; small { (schedule.cron) " " (schedule.time_zone) } }
                    td { (schedule.action) }
                    td { @for at in &schedule.next { (time(*at)) br; } }
                    td { (state(&cluster.name, schedule, now, seen)) }
                    td { (last(schedule)) }
                }
            }
        }
    }
}

fn state(cluster: &str, schedule: &ScheduleView, now: Timestamp, seen: Seen) -> Markup {
    let book = schedule.book.as_ref();
    let asked = book.and_then(|b| b.asked.as_ref()).filter(|asked| asked.approved_by.is_none());
    html! {
        @if let Some(current) = book.and_then(|b| b.current.as_ref()) {
            span .open { "running for " (span(seconds(current.began, now))) }
            @if current.attempt > 1 { " (attempt " (current.attempt) ")" }
        } @else if asked.is_some() {
            span .open { "waits for approval" }
            @if seen.signed_in {
                form method="post" action="/approve" {
                    input type="hidden" name="cluster" value=(cluster);
                    input type="hidden" name="policy" value=(schedule.policy);
                    input type="hidden" name="schedule" value=(schedule.name);
                    " " button { "Approve" }
                }
            }
        } @else if let Some(blackout) = &schedule.held_by { "held: " (blackout) }
        @else { "–" }
    }
}

fn last(schedule: &ScheduleView) -> Markup {
    let past = schedule.book.as_ref().and_then(|book| book.past.last());
    html! {
        @match past {
            None => "never",
            Some(past) => {
                @match past.outcome {
                    Outcome::Succeeded => span .good { "succeeded" },
                    Outcome::Failed => span .bad { "failed" },
                    Outcome::Skipped => span .open { "skipped" },
                }
                " " (time(past.ended)) br; small { (past.note) }
            }
        }
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A time span as people say it.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}
