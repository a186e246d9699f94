//! Masters elsewhere, masters back in time, a person's part, and the way back from each event of a run.

use std::collections::BTreeSet;

use hk_dr::config::load_runbook;
use hk_dr::drawing::{Course, Wanted, draw_plan};
use hk_dr::journal::{MemoryJournal, RunState, StepState};
use hk_dr::plan::{AbortChoice, Plan, RunbookChoice};
use hk_dr::ports::{Cloud, Volume};
use hk_dr::steps::{Approval, approve};

use super::{MemoryWorld, Outcome, battery, before, before_of, cluster, draw, kept, outcome, process, runbook};

pub(super) async fn run_undisturbed(choice: &RunbookChoice) -> MemoryWorld {
    let wanted = Wanted::Runbook(choice.clone());
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    world
}

async fn volumes(world: &MemoryWorld) -> Vec<Volume> {
    world.cloud.volumes("").await.expect("listed")
}

#[tokio::test]
async fn masters_taken_elsewhere_survive_death_after_every_event_and_leave_their_volumes() {
    let choice = runbook("masters-to-other-location", &[]);
    kept(&choice).await;
    let world = run_undisturbed(&choice).await;
    let servers = world.cloud.servers("").await.expect("listed");
    for (name, location) in [("demo-m1", "nbg1"), ("demo-m2", "hel1"), ("demo-m3", "fsn1")] {
        let server = servers.iter().find(|s| s.name == name).expect("a master");
        assert_eq!(server.location, location, "{name} was in the location before this one");
        let old = format!("{name}-etcd-before-p1");
        let volumes = volumes(&world).await;
        let old = volumes.iter().find(|v| v.name == old).expect("the old volume is kept");
        assert!(old.labels.contains_key("hk-dr/retired") && old.labels.contains_key("hk-dr/keep-until"), "{old:?}");
    }
    assert_eq!(world.nodes().len(), 1, "workers stay");
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn only_a_snapshot_that_everybody_waits_for_is_read_at_once() {
    let wanted = Wanted::Runbook(runbook("masters-to-other-location", &[]));
    let plan = draw(&before(&wanted).await, &wanted).await;
    let of = |id: &str| &plan.steps.iter().find(|step| step.id == id).expect("a snapshot").params;
    assert_eq!(of("snapshot")["idle"], false, "the API serves");
    assert_eq!(of("snapshot-last")["idle"], true, "the API is away until the masters are back");
}

#[tokio::test]
async fn masters_go_to_the_location_that_is_named_if_the_cluster_may_be_there() {
    let named = |to: &str| RunbookChoice { location: Some(to.into()), ..runbook("masters-to-other-location", &[]) };
    let world = run_undisturbed(&named("hel1")).await;
    let servers = world.cloud.servers("").await.expect("listed");
    assert!(servers.iter().filter(|s| s.name.contains("-m")).all(|s| s.location == "hel1"), "{servers:?}");
    let wanted = Wanted::Runbook(named("sin"));
    let world = before(&wanted).await;
    let refused = draw_plan(&world.world(), "ssh-ed25519 AAAA", &wanted, &Course::default(), "p1").await.unwrap_err();
    assert!(refused.to_string().contains("m1 can't go to sin"), "{refused}");
}

#[tokio::test]
async fn a_location_that_is_left_survives_death_after_every_event() {
    let choice = RunbookChoice { location: Some("nbg1".into()), ..runbook("location-evacuate", &[]) };
    kept(&choice).await;
    let world = run_undisturbed(&choice).await;
    let servers = world.cloud.servers("").await.expect("listed");
    assert!(servers.iter().all(|s| s.location != "nbg1"), "{servers:?}");
    assert_eq!(servers.len(), 4);
    battery(Wanted::Runbook(choice)).await;

    let nowhere = Wanted::Runbook(runbook("location-evacuate", &[]));
    let refused = draw_plan(&world.world(), "ssh-ed25519 AAAA", &nowhere, &Course::default(), "p1").await.unwrap_err();
    assert!(refused.to_string().contains("none is named"), "{refused}");
}

#[tokio::test]
async fn a_cluster_taken_back_in_time_survives_death_after_every_event_and_keeps_what_was() {
    let choice = runbook("restore-to-time", &[]);
    kept(&choice).await;
    let world = run_undisturbed(&choice).await;
    let machines = world.machines().await;
    let masters = || machines.iter().filter(|(name, _)| name.contains("-m"));
    assert!(masters().all(|(_, m)| m.data.as_ref().is_some_and(|d| d.starts_with("p1 with token"))), "{machines:?}");
    assert_eq!(volumes(&world).await.iter().filter(|v| v.name.ends_with("-etcd-before-p1")).count(), 3);
    assert_eq!(world.nodes().len(), 1, "the living worker's Node stays");
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn a_run_waits_for_a_person_and_survives_death_meanwhile() {
    let text = "apiVersion: hk-dr/v1\nkind: Runbook\nname: x\nsummary: y\nmasters: chosen\nsteps:\n\
                - verb: masters.stop\n- verb: manual\n  text: look at the rack\n- verb: masters.start\n- verb: cluster.verify\n";
    let wanted = Wanted::Runbook(RunbookChoice::new(load_runbook(text, "x.yaml").expect("right"), vec!["m2".into()]));
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    let journal = MemoryJournal::default();
    {
        let run = process(&world, &plan, journal.clone());
        tokio::pin!(run);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(300), &mut run).await;
        assert!(waited.is_err(), "it does not go on by itself");
    }
    let state = RunState::replay(&plan, &journal.events()).expect("legal");
    assert!(matches!(state.step("manual/1"), Some(StepState::Started { .. })), "{:?}", state.step("manual/1"));
    let approval =
        Approval { format: 1, step: "manual/1".into(), by: "ann@desk".into(), at: world.world().clock.now() };
    approve(&world.store, "demo", "p1", &approval).await.expect("said");
    assert!(approve(&world.store, "demo", "p1", &approval).await.is_err(), "it is said once");
    process(&world, &plan, journal.continued()).await.expect("it goes on");
    let state = RunState::replay(&plan, &journal.events()).expect("legal");
    assert_eq!(state.output("manual/1"), Some(&"ann@desk".into()));
}

pub(super) async fn way_back(world: &MemoryWorld, plan: &Plan, journal: &MemoryJournal) -> Result<Plan, String> {
    let state = RunState::replay(plan, &journal.events()).expect("legal");
    let begun: BTreeSet<String> = state
        .steps()
        .filter(|(_, s)| !matches!(s, StepState::Waiting | StepState::Finished { found: true, .. }))
        .map(|(id, _)| id.to_owned())
        .collect();
    let wanted = Wanted::Abort(Box::new(AbortChoice { plan: plan.clone(), begun }));
    let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &wanted, &Course::default(), "back").await;
    drawn.map_err(|e| e.to_string())
}

/// Volumes that were made by the aborted run are kept beside; everything else is as before.
fn as_before(mut now: Outcome) -> Outcome {
    now.volumes.retain(|name, _| !name.contains("-aborted-"));
    now
}

/// Stops a run after each event and goes back; the way back itself dies once as well.
async fn go_back_from_everywhere(choice: RunbookChoice) {
    let wanted = Wanted::Runbook(choice);
    let alone = before(&wanted).await;
    let expected = outcome(&alone).await;
    let plan = draw(&alone, &wanted).await;
    let journal = MemoryJournal::default();
    process(&alone, &plan, journal.clone()).await.expect("it ends");
    for first in 0..journal.events().len() as u64 - 1 {
        let world = before(&wanted).await;
        let plan = draw(&world, &wanted).await;
        let journal = MemoryJournal::default();
        let _ = process(&world, &plan, journal.stopping_after(first)).await;
        let back = way_back(&world, &plan, &journal).await.unwrap_or_else(|e| panic!("after event {first}: {e}"));
        let returned = MemoryJournal::default();
        let _ = process(&world, &back, returned.stopping_after(1 + first % 23)).await;
        process(&world, &back, returned.continued())
            .await
            .unwrap_or_else(|e| panic!("back from event {first}: {e}\n{:?}", back.steps));
        assert_eq!(as_before(outcome(&world).await), expected, "back from event {first}");
        let machines = world.machines().await;
        assert!(machines.values().all(|m| m.torn == 0 && m.overwritten == 0), "back from event {first}: {machines:?}");
        let again = draw(&world, &Wanted::Build).await;
        assert!(again.steps.is_empty(), "back from event {first}, a build has something to do: {:?}", again.steps);
    }
}

#[tokio::test]
async fn masters_that_were_taken_offline_come_back_from_every_event_of_a_run_that_is_given_up() {
    go_back_from_everywhere(runbook("masters-online-offline-online", &[])).await;
}

#[tokio::test]
async fn a_restore_that_is_given_up_at_any_event_returns_to_the_state_before() {
    go_back_from_everywhere(runbook("restore-to-time", &[])).await;
}

/// Every runbook that comes with hk-dr: no volume that was there before is deleted or written over, and one whose data is
/// superseded says since when and until when it is kept.
#[tokio::test]
async fn old_data_is_kept_by_every_runbook() {
    // A key rotation touches no data, and waits for a person.
    let shipped = hk_dr::config::SHIPPED.iter().map(|(name, _)| *name).filter(|name| *name != "key-rotation");
    let mut choices: Vec<RunbookChoice> = shipped
        .map(|name| match name {
            "volume-reattach" | "replace-master" => runbook(name, &["m2"]),
            "masters-from-volumes" => runbook(name, &["m1", "m2", "m3"]),
            "location-evacuate" => RunbookChoice { location: Some("nbg1".into()), ..runbook(name, &[]) },
            _ => runbook(name, &[]),
        })
        .collect();
    choices.push(RunbookChoice { keep: true, ..runbook("rebuild-from-git", &[]) });
    for choice in choices {
        let name = choice.runbook.name.clone();
        let wanted = Wanted::Runbook(choice);
        let world = before(&wanted).await;
        let old = volumes(&world).await;
        let plan = draw(&world, &wanted).await;
        process(&world, &plan, MemoryJournal::default()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let now = volumes(&world).await;
        for volume in &old {
            let kept = now.iter().find(|v| v.id == volume.id).unwrap_or_else(|| panic!("{name} lost {volume:?}"));
            let retired = kept.name != volume.name;
            for label in ["hk-dr/retired", "hk-dr/keep-until"] {
                assert_eq!(kept.labels.contains_key(label), retired, "{name}: {kept:?}");
            }
        }
        let machines = world.machines().await;
        assert!(machines.values().all(|m| m.torn == 0 && m.overwritten == 0), "{name}: {machines:?}");
    }
}

#[tokio::test]
async fn what_has_no_way_back_is_named_and_nothing_is_touched() {
    let wanted = Wanted::Runbook(runbook("masters-recreate", &[]));
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    let fence = plan.steps.iter().find(|s| s.kind == "server.fence").expect("a server is deleted").id.clone();
    let journal = MemoryJournal::default();
    process(&world, &plan, journal.clone()).await.expect("it ends");
    let at = journal.events().iter().find(|e| e.body.step() == Some(&fence)).expect("it began").seq;

    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(at + 1)).await;
    let calls = world.cloud.calls().len();
    let refused = way_back(&world, &plan, &journal).await.unwrap_err();
    assert!(refused.contains("no way back any more: delete the old server"), "{refused}");
    assert_eq!(world.cloud.calls().len(), calls);

    // A build that is given up says what it leaves.
    let world = before(&Wanted::Build).await;
    let plan = draw(&world, &Wanted::Build).await;
    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(25)).await;
    let back = way_back(&world, &plan, &journal).await.expect("a plan");
    assert!(back.steps.is_empty() && back.findings.iter().any(|f| f.starts_with("stays: create network")), "{back:?}");
}

#[tokio::test]
async fn a_worker_that_was_to_leave_takes_pods_again_and_keys_stay_when_a_run_is_given_up() {
    let mut cluster = cluster();
    cluster.workers[0].location = "ash".into();
    let wanted = Wanted::Runbook(RunbookChoice { location: Some("ash".into()), ..runbook("location-evacuate", &[]) });
    let world = before_of(&cluster, &wanted).await;
    let plan = draw(&world, &wanted).await;
    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(2)).await;
    let back = way_back(&world, &plan, &journal).await.expect("a way back");
    assert_eq!(back.steps.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["uncordon/demo-w1"]);
    process(&world, &back, MemoryJournal::default()).await.expect("it ends");

    let choice = RunbookChoice { ssh_before: Some("ssh-ed25519 AAAA".into()), ..runbook("key-rotation", &[]) };
    let wanted = Wanted::Runbook(choice);
    let drawn = draw_plan(&world.world(), "ssh-ed25519 BBBB", &wanted, &Course::default(), "p2").await;
    let plan = drawn.expect("a plan");
    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(6)).await;
    let back = way_back(&world, &plan, &journal).await.expect("a way back");
    assert!(back.steps.is_empty(), "{:?}", back.steps);
    assert!(back.findings.iter().any(|f| f.contains("goes on with the same new one")), "{:?}", back.findings);
}

/// The reason to leave may be that nothing there answers any more.
#[tokio::test]
async fn a_location_that_does_not_answer_is_left_all_the_same() {
    let wanted = Wanted::Runbook(RunbookChoice { location: Some("nbg1".into()), ..runbook("location-evacuate", &[]) });
    let world = before(&wanted).await;
    let there = world.cloud.servers("").await.expect("listed").into_iter().filter(|s| s.location == "nbg1");
    let gone: Vec<_> = there.collect();
    assert!(!gone.is_empty(), "the demo has a server there");
    for server in &gone {
        world.cloud.power_off(server.id).await.expect("off");
    }
    let plan = draw(&world, &wanted).await;
    let drained = plan.steps.iter().any(|s| s.kind == "node.drain");
    assert!(!drained, "who does not answer can't be drained");
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let servers = world.cloud.servers("").await.expect("listed");
    assert!(servers.len() == 4 && servers.iter().all(|s| s.location != "nbg1"), "{servers:?}");
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty(), "a build has nothing to do");
}
