//! What must hold before a run begins, and what ends one that is under way: what it has begun is undone then.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hk_dr::config::{AbortWhen, Consent, Window, load_runbook};
use hk_dr::drawing::{Course, Wanted, draw_plan};
use hk_dr::drill::{Attempt, Circumstances, Pulse, Vigil, evidence};
use hk_dr::engine::{Gate, Open, RunError};
use hk_dr::journal::{MemoryJournal, RunState, StepState};
use hk_dr::plan::{APPROVAL, Plan, PlanError, RunbookChoice, may_begin};
use hk_dr::ports::{ObjectStore, PutCondition};
use hk_dr::steps::{Approval, approve};
use tokio::sync::watch;

use super::abort::way_back;
use super::{MemoryWorld, before, cluster, draw, outcome, process, process_behind, runbook};

async fn refused(world: &MemoryWorld, choice: &RunbookChoice) -> String {
    let wanted = Wanted::Runbook(choice.clone());
    let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &wanted, &Course::default(), "p9").await;
    drawn.expect_err("no plan").to_string()
}

#[tokio::test]
async fn the_last_proven_snapshot_must_be_fresh() {
    let mut choice = runbook("volume-reattach", &["m2"]);
    choice.runbook.guards.proven_snapshot_hours = Some(26);
    let world = before(&Wanted::Runbook(choice.clone())).await;
    let says = refused(&world, &choice).await;
    assert_eq!(says, "provenSnapshotHours does not hold: the bucket holds no snapshot");
    world.add_snapshot();
    let says = refused(&world, &choice).await;
    assert!(says.contains("none of 1 snapshots is proven"), "{says}");
    world.add_proven_snapshot(30);
    let says = refused(&world, &choice).await;
    assert!(says.contains("the newest proven snapshot") && says.contains("is 30 h old"), "{says}");
    world.add_proven_snapshot(3);
    let plan = draw(&world, &Wanted::Runbook(choice)).await;
    assert!(plan.findings.iter().any(|f| f.contains("is 3 h old (allowed are 26 h)")), "{:?}", plan.findings);
}

/// Leaves evidence of a run in which no write was acknowledged for so long.
async fn ran_before(world: &MemoryWorld, plan: &Plan, run: &str, seconds: i64) {
    let journal = MemoryJournal::default();
    let began = world.world().clock.now();
    let attempts: Vec<Attempt> = [0, seconds]
        .map(|after| {
            let at = began + jiff::SignedDuration::from_secs(after);
            Attempt { name: format!("c{after}"), at, acknowledged_at: Some(at), through: None }
        })
        .into();
    let mut evidence = evidence(
        plan,
        &journal.events(),
        &Circumstances {
            cluster: &cluster(),
            started_by: "ann@desk".into(),
            git_commit: None,
            attempts: &attempts,
            survivors: None,
            previous: None,
            mark: None,
        },
    );
    evidence.run = run.into();
    let text = serde_json::to_vec(&evidence).expect("JSON");
    let key = format!("demo/runs/{run}/evidence.json");
    world.store.put(&key, text.into(), PutCondition::Any).await.expect("kept");
}

#[tokio::test]
async fn a_runbook_whose_last_runs_were_away_for_too_long_is_not_run_again() {
    let mut choice = runbook("masters-online-offline-online", &[]);
    choice.runbook.guards.maximum_outage_seconds = Some(60);
    let world = before(&Wanted::Runbook(choice.clone())).await;
    let plan = draw(&world, &Wanted::Runbook(choice.clone())).await;
    assert!(plan.findings.iter().any(|f| f.contains("was not measured yet (allowed are 60 s)")), "{:?}", plan.findings);
    ran_before(&world, &plan, "20261101t000000-000001", 45).await;
    let other = draw(&world, &Wanted::Runbook(runbook("volume-reattach", &["m2"]))).await;
    ran_before(&world, &other, "20261103t000000-000003", 900).await;
    let plan = draw(&world, &Wanted::Runbook(choice.clone())).await;
    assert!(plan.findings.iter().any(|f| f.contains("up to 45.0 s in the last 1 runs")), "{:?}", plan.findings);
    ran_before(&world, &plan, "20261102t000000-000002", 90).await;
    let says = refused(&world, &choice).await;
    assert!(says.starts_with("maximumOutageSeconds does not hold: the API was away for up to 90.0 s"), "{says}");
}

#[tokio::test]
async fn a_step_or_journal_of_another_version_is_refused_before_anything_is_touched() {
    let wanted = Wanted::Runbook(runbook("volume-reattach", &["m2"]));
    let world = before(&wanted).await;
    let was = outcome(&world).await;
    let plan = draw(&world, &wanted).await;
    let mut later = plan.clone();
    // The last step: everything before it is known, and is not begun all the same.
    later.steps.last_mut().expect("some").version += 1;
    let journal = MemoryJournal::default();
    let refused = process(&world, &later, journal.clone()).await.expect_err("it is refused");
    assert!(matches!(&refused, RunError::Unknown(_)), "{refused}");
    assert!(journal.events().is_empty(), "not even its beginning is recorded");
    assert_eq!(outcome(&world).await, was);

    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(3)).await;
    let mut events = journal.events();
    events[1].format += 1;
    let refused = RunState::replay(&plan, &events).expect_err("it is refused").to_string();
    assert!(refused.contains("this version reads") && refused.contains("written by hk-dr"), "{refused}");
}

fn window(from: &str, to: &str) -> Window {
    Window { time_zone: "Europe/Berlin".into(), days: Vec::new(), from: from.into(), to: to.into() }
}

#[tokio::test]
async fn a_run_begins_within_its_window_and_is_shown_outside_of_it() {
    let mut choice = runbook("volume-reattach", &["m2"]);
    // It is 13:00 in Berlin.
    choice.runbook.guards.windows = vec![window("22:00", "05:00")];
    let wanted = Wanted::Runbook(choice.clone());
    let world = before(&wanted).await;
    let was = outcome(&world).await;
    let plan = draw(&world, &wanted).await;
    assert!(
        plan.findings.iter().any(|f| f.contains("no window is open; the next one: 2026-11-23 21:00 UTC")),
        "{:?}",
        plan.findings
    );
    let clock = world.world().clock;
    let refused = may_begin(&plan, clock.now()).expect_err("not now");
    assert!(matches!(&refused, PlanError::Guard { hint, .. } if hint.contains("21:00 UTC")), "{refused}");

    // Also when it was agreed to within the window, and it is over by the first step.
    let journal = MemoryJournal::default();
    let gate = Vigil::over(Arc::new(Open), &plan, &[], Arc::clone(&clock), None, Box::new(|_| {}));
    let refused = process_behind(gate, &world, &plan, journal.clone()).await.expect_err("not now");
    assert!(matches!(&refused, RunError::Refused { .. }), "{refused}");
    assert_eq!(outcome(&world).await, was, "nothing was touched");

    choice.runbook.guards.windows.push(window("12:30", "14:00"));
    let plan = draw(&world, &Wanted::Runbook(choice)).await;
    may_begin(&plan, clock.now()).expect("a window is open");
    let gate = Vigil::over(Arc::new(Open), &plan, &[], clock, None, Box::new(|_| {}));
    process_behind(gate, &world, &plan, MemoryJournal::default()).await.expect("it ends");
}

async fn agree(world: &MemoryWorld, step: &str) {
    let approval = Approval { format: 1, step: step.into(), by: "ann@desk".into(), at: world.world().clock.now() };
    approve(&world.store, "demo", "p1", &approval).await.expect("said");
}

#[tokio::test]
async fn nothing_is_touched_before_a_person_has_agreed_and_a_schedules_agreement_counts() {
    for name in ["volume-reattach", "sandbox-restore"] {
        let mut choice = runbook(name, if name == "volume-reattach" { &["m2"] } else { &[] });
        choice.runbook.guards.approval = Consent::Required;
        let wanted = Wanted::Runbook(choice.clone());
        let world = before(&wanted).await;
        let was = outcome(&world).await;
        let plan = draw(&world, &wanted).await;
        assert_eq!(plan.steps[0].id, APPROVAL);
        assert!(plan.steps[1..].iter().all(|step| !step.needs.is_empty()), "a step would begin beside it");
        let journal = MemoryJournal::default();
        {
            let run = process(&world, &plan, journal.clone());
            tokio::pin!(run);
            let waited = tokio::time::timeout(Duration::from_millis(300), &mut run).await;
            assert!(waited.is_err(), "it does not go on by itself");
        }
        assert_eq!(outcome(&world).await, was, "nothing was touched");
        agree(&world, APPROVAL).await;
        process(&world, &plan, journal.continued()).await.expect("it goes on");

        let agreed = draw(&world, &Wanted::Runbook(RunbookChoice { approved: true, ..choice })).await;
        assert!(agreed.steps.iter().all(|step| step.id != APPROVAL), "nobody is asked twice");
    }
}

/// Stops m2 and waits for a person before it goes on. `recreated`: there is no way back by then.
fn stopping_midway(recreated: bool, abort: AbortWhen) -> RunbookChoice {
    let between = match recreated {
        true => "  - verb: volumes.detach\n  - verb: servers.recreate\n  - verb: volumes.attach\n",
        false => "",
    };
    let text = format!(
        "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: chosen\nonFailure: unwind\n\
         steps:\n  - verb: masters.stop\n{between}  - verb: manual\n    text: wait\n  - verb: masters.start\n  - verb: cluster.verify\n"
    );
    let mut runbook = load_runbook(&text, "x.yaml").unwrap_or_else(|e| panic!("{}", e.plain()));
    // Shorter than anybody may declare.
    runbook.abort_when = abort;
    RunbookChoice::new(runbook, vec!["m2".into()])
}

/// Waits until something is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to that");
}

fn waits(plan: &Plan, journal: &MemoryJournal) -> bool {
    let state = RunState::replay(plan, &journal.events()).expect("legal");
    matches!(state.step("manual/1"), Some(StepState::Started { .. }))
}

type Said = Arc<Mutex<Vec<String>>>;

/// A gate over an API whose acknowledged writes are counted by hand, and what was said.
fn watched(world: &MemoryWorld, plan: &Plan) -> (Arc<dyn Gate>, watch::Sender<u64>, Said) {
    let (writes, acknowledged) = watch::channel(0);
    let said = Said::default();
    let heard = Arc::clone(&said);
    let say = move |text: &str| heard.lock().expect("whole").push(text.to_owned());
    let gate =
        Vigil::over(Arc::new(Open), plan, &[], world.world().clock, Some(Pulse::of(acknowledged)), Box::new(say));
    (gate, writes, said)
}

#[tokio::test]
async fn a_run_whose_abort_condition_comes_about_is_ended_and_undone() {
    let silent = AbortWhen { outage_seconds: Some(1), ..AbortWhen::default() };
    let long = AbortWhen { run_seconds: Some(2), ..AbortWhen::default() };
    for (abort, says) in
        [(silent, "no API server has acknowledged a write for 1 s"), (long, "it takes longer than 2 s")]
    {
        let wanted = Wanted::Runbook(stopping_midway(false, abort));
        let world = before(&wanted).await;
        let was = outcome(&world).await;
        let plan = draw(&world, &wanted).await;
        assert!(plan.findings.iter().any(|f| f.starts_with("it is ended and undone if")), "{:?}", plan.findings);
        let (gate, writes, _) = watched(&world, &plan);
        let journal = MemoryJournal::default();
        let run = process_behind(gate, &world, &plan, journal.clone());
        let silence = async {
            until(|| waits(&plan, &journal) || journal.events().len() > 2 * plan.steps.len()).await;
            // From now on an API that served is silent.
            writes.send_replace(1);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = run => ended.expect_err("it is ended"),
            () = silence => unreachable!("it waits for ever"),
        };
        assert!(matches!(&ended, RunError::Ended(why) if why.message.contains(says)), "{ended}");
        let back = way_back(&world, &plan, &journal).await.expect("a way back");
        process(&world, &back, MemoryJournal::default()).await.expect("undone");
        let mut now = outcome(&world).await;
        // A write through each API server that was touched shows that it serves.
        now.objects.clone_from(&was.objects);
        assert_eq!(now, was, "after {says}");
    }
}

#[tokio::test]
async fn an_api_that_was_away_before_a_run_ends_none() {
    let abort = AbortWhen { outage_seconds: Some(1), ..AbortWhen::default() };
    let wanted = Wanted::Runbook(stopping_midway(false, abort));
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    let (gate, _writes, _) = watched(&world, &plan);
    let run = process_behind(gate, &world, &plan, MemoryJournal::default());
    tokio::pin!(run);
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut run).await.is_err(), "it waits for the person");
    agree(&world, "manual/1").await;
    run.await.expect("it ends");
}

#[tokio::test]
async fn past_the_point_of_no_return_a_run_goes_on_and_says_why() {
    let abort = AbortWhen { outage_seconds: Some(1), ..AbortWhen::default() };
    let wanted = Wanted::Runbook(stopping_midway(true, abort));
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    assert!(plan.findings.iter().any(|f| f.contains("on it goes forward only")), "{:?}", plan.findings);
    let (gate, writes, said) = watched(&world, &plan);
    let journal = MemoryJournal::default();
    let person = async {
        until(|| waits(&plan, &journal)).await;
        writes.send_replace(1);
        until(|| !said.lock().expect("whole").is_empty()).await;
        agree(&world, "manual/1").await;
    };
    let (ended, ()) = tokio::join!(process_behind(gate, &world, &plan, journal.clone()), person);
    ended.expect("it ends");
    assert!(said.lock().expect("whole")[0].contains("there is no way back any more"), "{said:?}");
}
