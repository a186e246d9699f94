use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::config::{Policy, load_policy};

pub(super) fn policy(schedule: &str, rest: &str) -> Policy {
    let text = format!(
        "apiVersion: hk-dr/v1\nkind: Policy\nname: p\nsummary: s\ntimeZone: Europe/Berlin\n{rest}\
         schedules:\n  - {{name: a, {schedule}}}\n"
    );
    load_policy(&text, "p.yaml").unwrap_or_else(|e| panic!("{}", e.plain()))
}

pub(super) fn timing(policy: &Policy) -> Timing {
    Timing::of("demo", policy, &policy.schedules[0]).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const SNAPSHOT: &str = "action: snapshot.take, cron: \"0 * * * *\"";

#[test]
fn a_start_is_moved_by_the_same_for_a_cluster_and_by_another_for_the_next() {
    let policy = policy(&format!("{SNAPSHOT}, jitterSeconds: 3600"), "");
    let of = |cluster: &str| Timing::of(cluster, &policy, &policy.schedules[0]).unwrap().jitter;
    assert_eq!(of("demo"), of("demo"));
    assert!((0..20).any(|n| of(&format!("c{n}")) != of("demo")));
    assert!((0..200).all(|n| of(&format!("c{n}")) <= SignedDuration::from_hours(1)));
}

#[test]
fn missed_runs_are_made_up_for_as_declared() {
    let (begin, now) = (at("2026-06-01T00:30:00Z"), at("2026-06-01T05:10:00Z"));
    let decided = |missed: &str| {
        let policy = policy(&format!("{SNAPSHOT}, missed: {missed}"), "");
        let timing = timing(&policy);
        let (mut book, mut begun) = (Book::new(begin), Vec::new());
        while let Some(decision) = book.decide(&timing, now, "me") {
            begun.extend(decision.begin.iter().map(|c| c.at.strftime("%H").to_string()));
            book = decision.book.conclude(Outcome::Succeeded, "", now);
        }
        (begun, book.past.iter().filter(|p| p.outcome == Outcome::Skipped).count(), book.decided)
    };
    assert_eq!(
        decided("each"),
        (["01", "02", "03", "04", "05"].map(String::from).to_vec(), 0, at("2026-06-01T05:00:00Z"))
    );
    assert_eq!(decided("once"), (vec!["05".into()], 4, at("2026-06-01T05:00:00Z")));
    assert_eq!(decided("skip"), (vec!["05".into()], 4, at("2026-06-01T05:00:00Z")));
}

#[test]
fn what_was_skipped_does_not_come_in_a_row() {
    let policy = policy("action: runbook.run, runbooks: [x], cron: \"*/2 * * * *\", missed: skip", "");
    let (timing, mut book) = (timing(&policy), Book::new(at("2026-06-01T10:00:00Z")));
    let now = at("2026-06-01T10:20:30Z");
    let mut begun = Vec::new();
    while let Some(decision) = book.decide(&timing, now, "me") {
        begun.extend(decision.begin.iter().map(|c| c.at));
        book = decision.book.conclude(Outcome::Succeeded, "", now);
    }
    assert_eq!(begun, [at("2026-06-01T10:20:00Z")]);
    assert_eq!(book.past.iter().filter(|p| p.outcome == Outcome::Skipped).count(), 9);
}

#[test]
fn a_blackout_holds_back_and_what_it_held_is_missed() {
    let rest = "blackouts:\n  - {name: office, from: \"07:00\", to: \"20:00\", days: [mon, tue, wed, thu, fri]}\n";
    let drill = "action: runbook.run, runbooks: [x], cron: \"0 12 * * *\", lateMinutes: 30, missed";
    let (monday, evening) = (at("2026-06-01T10:30:00Z"), at("2026-06-01T18:00:00Z"));
    for (missed, runs) in [("once", true), ("skip", false)] {
        let policy = policy(&format!("{drill}: {missed}"), rest);
        let timing = timing(&policy);
        let book = Book::new(at("2026-06-01T00:00:00Z"));
        assert_eq!(timing.held(monday).map(|h| h.until), Some(evening));
        assert_eq!(book.decide(&timing, monday, "me"), None);
        assert_eq!(book.decide(&timing, evening, "me").unwrap().begin.is_some(), runs, "{missed}");
    }
    // Saturday's is not held, and a snapshot never is.
    let policy = policy(&format!("{drill}: skip"), rest);
    assert_eq!(timing(&policy).held(at("2026-06-06T10:30:00Z")), None);
}

#[test]
fn one_over_midnight_holds_on_the_next_morning_too() {
    let rest = "blackouts:\n  - {name: night, from: \"22:00\", to: \"06:00\", days: [fri], actions: [snapshot.take]}\n";
    let policy = policy(SNAPSHOT, rest);
    let held = |text: &str| timing(&policy).held(at(text)).is_some();
    assert!(held("2026-06-05T21:00:00Z") && held("2026-06-06T03:00:00Z"));
    assert!(!held("2026-06-06T05:00:00Z") && !held("2026-06-06T21:00:00Z"));
}

#[test]
fn a_run_that_needs_a_person_waits_for_one_and_not_for_ever() {
    let policy = policy("action: runbook.run, runbooks: [x], cron: \"0 4 * * *\", approval: required", "");
    let timing = timing(&policy);
    let book = Book::new(at("2026-06-01T00:00:00Z"));
    let (early, late) = (at("2026-06-01T02:10:00Z"), at("2026-06-01T04:00:00Z"));
    let asked = book.decide(&timing, early, "me").unwrap();
    assert_eq!((asked.begin, asked.ask), (None, Some(at("2026-06-01T02:00:00Z"))));
    assert_eq!(asked.book.decide(&timing, early, "me"), None, "it is asked for once");
    let begun = asked.book.approve("eve").unwrap().decide(&timing, early, "me").unwrap();
    assert!(begun.begin.is_some());
    let skipped = asked.book.decide(&timing, late, "me").unwrap();
    assert!(skipped.begin.is_none() && skipped.skipped[0].note.contains("nobody approved"));
    assert_eq!(skipped.book.approve("eve"), None, "too late");
}

#[test]
fn a_rotation_takes_every_combination_in_turn() {
    let policy = policy("action: runbook.run, runbooks: [a, b], servers: [m1, m2, m3], cron: \"0 4 * * *\"", "");
    let all: std::collections::BTreeSet<String> =
        (0..6).map(|n| format!("{:?}", Turn::of(&policy.schedules[0], n))).collect();
    assert_eq!(all.len(), 6);
    assert_eq!(Turn::of(&policy.schedules[0], 1).runbook.as_deref(), Some("b"));
}

#[test]
fn every_location_has_its_turn_with_every_runbook() {
    let policy = policy("action: runbook.run, runbooks: [a, b], locations: [x, y, z], cron: \"0 4 * * *\"", "");
    let turns: Vec<String> = (0..7)
        .map(|n| Turn::of(&policy.schedules[0], n))
        .map(|turn| turn.runbook.unwrap_or_default() + &turn.location.unwrap_or_default())
        .collect();
    assert_eq!(turns, ["ax", "bx", "ay", "by", "az", "bz", "ax"]);
}
