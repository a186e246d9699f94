use super::*;
use crate::config::{load_runbook, parse};
use crate::journal::JOURNAL_FORMAT;
use crate::plan::{Purpose, RunbookRun, Step};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn step_of(id: &str, kind: &str) -> Step {
    Step {
        id: id.into(),
        kind: kind.into(),
        version: 1,
        params: serde_json::json!({"server": "demo-m1"}),
        needs: Vec::new(),
        title: id.into(),
        reason: String::new(),
        deadline_seconds: 1,
        seen_absent: false,
    }
}

fn plan() -> Plan {
    let text = include_str!("../../../runbooks/masters-online-offline-online.yaml");
    Plan {
        format: 1,
        id: "r1".into(),
        cluster: "demo".into(),
        purpose: Purpose::Runbook,
        snapshot: None,
        runbook: Some(RunbookRun {
            runbook: load_runbook(text, "r.yaml").unwrap(),
            servers: Vec::new(),
            snapshot: None,
            location: None,
            keep: false,
            cost: None,
        }),
        lineage: "l".into(),
        parent: None,
        created_at: at(0),
        inputs_digest: String::new(),
        steps: vec![step_of("stop", "control_plane.stop"), step_of("api", "api.start"), step_of("write", "api.write")],
        findings: Vec::new(),
    }
}

/// Each step takes a second; `write` is done at this second.
fn events(written: i64) -> Vec<Event> {
    let bodies = [
        (0, Body::RunStarted { run: "r1".into(), plan: "r1".into() }),
        (10, Body::StepStarted { step: "stop".into(), attempt: 1 }),
        (11, Body::StepFinished { step: "stop".into(), found: false, output: serde_json::json!(null) }),
        (12, Body::StepStarted { step: "api".into(), attempt: 1 }),
        (13, Body::StepFinished { step: "api".into(), found: false, output: serde_json::json!(null) }),
        (13, Body::StepStarted { step: "write".into(), attempt: 1 }),
        (written, Body::StepFinished { step: "write".into(), found: false, output: serde_json::json!(null) }),
        (written, Body::RunFinished),
    ];
    let event =
        |(seq, (second, body))| Event { seq, at: at(second), format: JOURNAL_FORMAT, binary_version: "0".into(), body };
    (0..).zip(bodies).map(event).collect()
}

fn canary(number: i64, acknowledged: bool) -> Attempt {
    Attempt {
        name: format!("c{number}"),
        at: at(number),
        acknowledged_at: acknowledged.then(|| at(number)),
        through: None,
    }
}

fn judged(events: &[Event], attempts: &[Attempt], survivors: &[&str]) -> Evidence {
    let cluster = parse(include_str!("../../../examples/demo/cluster.yaml"), "cluster.yaml").unwrap();
    let survivors = survivors.iter().map(|s| (*s).to_owned()).collect();
    let around = Circumstances {
        cluster: &cluster,
        started_by: "me".into(),
        git_commit: None,
        attempts,
        survivors: Some(&survivors),
        previous: None,
        mark: None,
    };
    evidence(&plan(), events, &around)
}

#[test]
fn the_time_counts_from_the_first_stop_to_the_first_write() {
    let found = judged(&events(17), &[canary(8, true), canary(14, false), canary(18, true)], &["c8", "c18"]);
    assert_eq!(found.recovery.seconds, Some(7.0));
    assert_eq!(found.writes.longest_gap_seconds, Some(10.0));
    assert_eq!((found.recovery_point.lost, found.recovery_point.seconds), (Some(0), Some(0.0)));
    assert_eq!(found.verdict, Verdict::Passed, "{:?}", found.reasons);
}

#[test]
fn a_missed_target_a_lost_canary_and_a_broken_run_each_fail() {
    let late = judged(&events(140), &[canary(8, true)], &["c8"]);
    assert_eq!(late.verdict, Verdict::Failed, "{:?}", late.reasons);
    let lost = judged(&events(17), &[canary(5, true), canary(8, true)], &["c5"]);
    assert_eq!((lost.verdict, lost.recovery_point.seconds), (Verdict::Failed, Some(5.0)));
    let broken = judged(&events(17)[..5], &[canary(5, true)], &["c5"]);
    assert_eq!(broken.verdict, Verdict::Failed);
    assert!(broken.reasons[0].contains("did not end"), "{:?}", broken.reasons);
}

/// A rehearsal on a copy that began at second 0, from a snapshot that was an hour old.
fn rehearsed(in_copy: Option<i64>, in_production: Option<i64>, target: u32) -> Evidence {
    let text = include_str!("../../../runbooks/sandbox-restore.yaml");
    let mut plan = plan();
    plan.steps = vec![step_of("compare", "copy.compare"), step_of("served", "copy.served")];
    if let Some(run) = &mut plan.runbook {
        run.runbook = load_runbook(text, "r.yaml").unwrap();
        run.runbook.targets.recovery_point_seconds = Some(target);
        run.runbook.targets.recovery_seconds = None;
    }
    let compared = serde_json::json!({"taken_at": at(-3600), "revision": 1, "keys": 2, "equal": 2,
        "ended_with_lease": 0, "differing": []});
    let served = serde_json::json!({"objects": 2, "not_served": {}, "canary": in_copy.map(at)});
    let bodies = [
        Body::RunStarted { run: "r1".into(), plan: "r1".into() },
        Body::StepStarted { step: "compare".into(), attempt: 1 },
        Body::StepFinished { step: "compare".into(), found: false, output: compared },
        Body::StepStarted { step: "served".into(), attempt: 1 },
        Body::StepFinished { step: "served".into(), found: false, output: served },
        Body::RunFinished,
    ];
    let event = |(seq, body)| Event { seq, at: at(0), format: JOURNAL_FORMAT, binary_version: "0".into(), body };
    let cluster = parse(include_str!("../../../examples/demo/cluster.yaml"), "cluster.yaml").unwrap();
    let around = Circumstances {
        cluster: &cluster,
        started_by: "me".into(),
        git_commit: None,
        attempts: &[],
        survivors: None,
        previous: None,
        mark: in_production.map(|second| Mark { at: at(second), every_seconds: 60 }),
    };
    evidence(&plan, &(0..).zip(bodies).map(event).collect::<Vec<_>>(), &around)
}

#[test]
fn the_time_that_a_person_takes_to_agree_does_not_count() {
    let mut plan = plan();
    plan.steps = vec![step_of(APPROVAL, "manual.wait"), step_of("api", "api.start"), step_of("write", "api.write")];
    let done = |step: &str| Body::StepFinished { step: step.into(), found: false, output: serde_json::json!(null) };
    let bodies = [
        (0, Body::RunStarted { run: "r1".into(), plan: "r1".into() }),
        (0, Body::StepStarted { step: APPROVAL.into(), attempt: 1 }),
        (7200, done(APPROVAL)),
        (7201, done("api")),
        (7205, done("write")),
    ];
    let event =
        |(seq, (second, body))| Event { seq, at: at(second), format: JOURNAL_FORMAT, binary_version: "0".into(), body };
    let events: Vec<Event> = (0..).zip(bodies).map(event).collect();
    assert_eq!(recovery(&plan, &events, &[], None).seconds, Some(5.0));
}

#[test]
fn what_a_copy_lost_is_told_by_the_canary_that_the_service_keeps() {
    // The log went along: the copy has much that is younger than its snapshot.
    let found = rehearsed(Some(-95), Some(-30), 90);
    assert_eq!((found.recovery_point.seconds, found.verdict), (Some(65.0), Verdict::Passed), "{:?}", found.reasons);
    let copy = found.copy.unwrap();
    assert_eq!(
        (copy.canary_in_copy, copy.canary_in_production),
        (Some(at(-95).to_string()), Some(at(-30).to_string()))
    );
    let found = rehearsed(Some(-195), Some(-30), 90);
    assert_eq!(found.verdict, Verdict::Failed);
    assert!(found.reasons[0].contains("165 s would have been lost (by the service's canary)"), "{:?}", found.reasons);
}

#[test]
fn a_canary_that_nobody_writes_any_more_does_not_hide_what_a_copy_lost() {
    for (in_copy, in_production) in [(Some(-900), Some(-900)), (None, Some(-30)), (Some(-95), None)] {
        let found = rehearsed(in_copy, in_production, 90);
        assert_eq!((found.recovery_point.seconds, found.verdict), (Some(3600.0), Verdict::Failed));
        assert!(found.reasons[0].contains("by the snapshot's age"), "{:?}", found.reasons);
    }
}

#[test]
fn without_a_canary_nothing_is_shown() {
    assert_eq!(judged(&events(17), &[], &[]).verdict, Verdict::Inconclusive);
}

#[test]
fn the_published_schemas_are_those_of_the_code() {
    for (text, schema) in [
        (include_str!("../../../docs/evidence.schema.json"), evidence_schema()),
        (include_str!("../../../docs/runbook.schema.json"), crate::config::runbook_schema()),
    ] {
        let published: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(published, schema, "write it anew: hk-dr schema evidence|runbook > docs/…");
    }
}
