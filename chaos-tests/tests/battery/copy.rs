//! Rehearsals on a copy: production is not touched, whatever happens, and nothing of the copy stays that nobody asked for.

use hk_dr::drawing::{Course, Wanted, draw_plan};
use hk_dr::engine::RunError;
use hk_dr::journal::MemoryJournal;
use hk_dr::plan::{COPY_LABEL, Plan, RunbookChoice, may_go_elsewhere};
use hk_dr::ports::{Cloud, ErrorCode, Perimeter, PortError, ServerSpec};

use super::abort::way_back;
use super::{MemoryWorld, battery, battery_of, before, draw, outcome, private_cluster, process, runbook};

/// Everything of production's that the cloud shows, and all that was asked to change of it.
async fn production(world: &MemoryWorld) -> String {
    let (cloud, production) = (&world.cloud, "!hk-dr/copy-of");
    let calls: Vec<_> = cloud.calls().into_iter().filter(|c| !c.name.starts_with("demo-copy")).collect();
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {calls:?}",
        cloud.servers(production).await.expect("listed"),
        cloud.volumes(production).await.expect("listed"),
        cloud.firewalls(production).await.expect("listed"),
        cloud.network_by_name("demo").await.expect("asked"),
        cloud.placement_group_by_name("demo-masters").await.expect("asked"),
        cloud.ssh_key_by_name("demo").await.expect("asked"),
        outcome_of_production(world).await,
    )
}

async fn outcome_of_production(world: &MemoryWorld) -> String {
    let mut outcome = outcome(world).await;
    outcome.servers.retain(|name, _| !name.starts_with("demo-copy"));
    outcome.volumes.retain(|name, _| !name.starts_with("demo-copy"));
    outcome.perimeter.retain(|rule| !rule.starts_with("demo-copy"));
    // In memory one API answers for all; a copy's own ends with its masters.
    outcome.objects.retain(|name| !name.starts_with("hk-dr-write-demo-copy"));
    format!("{outcome:?}")
}

/// Names of what there is of a copy.
async fn copies(world: &MemoryWorld) -> Vec<String> {
    let cloud = &world.cloud;
    let servers = cloud.servers(COPY_LABEL).await.expect("listed").into_iter().map(|s| s.name);
    let volumes = cloud.volumes(COPY_LABEL).await.expect("listed").into_iter().map(|v| v.name);
    let firewalls = cloud.firewalls(COPY_LABEL).await.expect("listed").into_iter().map(|f| f.name);
    let network = cloud.network_by_name("demo-copy").await.expect("asked").map(|n| n.name);
    let group = cloud.placement_group_by_name("demo-copy-masters").await.expect("asked").map(|g| g.name);
    servers.chain(volumes).chain(firewalls).chain(network).chain(group).collect()
}

async fn untouched(choice: RunbookChoice, servers: usize) {
    let wanted = Wanted::Runbook(choice);
    let world = before(&wanted).await;
    let was = production(&world).await;
    let plan = draw(&world, &wanted).await;
    assert_eq!(plan.steps.iter().filter(|s| s.kind == "server.create").count(), servers);
    let costs = plan.runbook.as_ref().and_then(|r| r.cost.clone()).expect("a price").hour;
    // A server for 0.01, its address for 0.001, and for a master 10 GB at 0.073 a month of 730 hours.
    let expected = 0.011 * f64::from(u32::try_from(servers).expect("few"));
    let volumes = plan.steps.iter().filter(|s| s.kind == "volume.provide").count();
    let volumes = 0.001 * f64::from(u32::try_from(volumes).expect("few"));
    assert!((costs - expected - volumes).abs() < 1e-9, "{costs}");
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(production(&world).await, was, "production was touched");
    assert_eq!(copies(&world).await, Vec::<String>::new());
    battery(wanted).await;
}

#[tokio::test]
async fn a_sandbox_survives_death_after_every_event_and_production_is_untouched() {
    untouched(runbook("sandbox-restore", &[]), 1).await;
}

#[tokio::test]
async fn a_whole_rebuild_beside_production_survives_death_after_every_event_and_touches_nothing_of_it() {
    untouched(runbook("rebuild-from-git", &[]), 4).await;
}

#[tokio::test]
async fn a_private_cluster_is_rehearsed_at_public_addresses() {
    let world = MemoryWorld::new(&private_cluster(), false);
    let build = draw(&world, &Wanted::Build).await;
    process(&world, &build, MemoryJournal::default()).await.expect("built");
    world.add_snapshot();
    let plan = draw(&world, &Wanted::Runbook(runbook("rebuild-from-git", &[]))).await;
    assert!(plan.steps.iter().all(|s| !s.id.contains("private-copy-vpn")), "a copy needs no VPN");
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert!(world.cloud.servers(COPY_LABEL).await.expect("listed").is_empty());
    battery_of(&private_cluster(), Wanted::Runbook(runbook("sandbox-restore", &[]))).await;
}

/// A rehearsal that fails; then its way back.
async fn fails_and_is_cleaned_up(world: &MemoryWorld, wanted: &Wanted, says: &str) {
    let was = outcome_of_production(world).await;
    let plan = draw(world, wanted).await;
    let journal = MemoryJournal::default();
    let failed = process(world, &plan, journal.clone()).await.expect_err("it fails");
    assert!(matches!(&failed, RunError::Step { .. }) && failed.to_string().contains(says), "{failed}");
    let back = way_back(world, &plan, &journal).await.expect("a way back");
    process(world, &back, MemoryJournal::default()).await.expect("cleaned up");
    assert_eq!(copies(world).await, Vec::<String>::new(), "after {says}");
    assert_eq!(outcome_of_production(world).await, was, "production is as it was");
    assert!(draw(world, &Wanted::Build).await.steps.is_empty(), "production is healthy");
}

#[tokio::test]
async fn a_rehearsal_that_fails_leaves_production_healthy_and_cleans_up_after_itself() {
    for name in ["sandbox-restore", "rebuild-from-git"] {
        let wanted = Wanted::Runbook(runbook(name, &[]));
        let world = before(&wanted).await;
        let full = PortError::new(ErrorCode::NoCapacity, "no room");
        for call in ["create_network", "create_server", "create_volume", "attach_network"] {
            world.cloud.fail_next(call, full.clone());
            fails_and_is_cleaned_up(&world, &wanted, "no room").await;
        }
        world.spoil_restores();
        fails_and_is_cleaned_up(&world, &wanted, "1 of 7 keys are not what snapshot").await;
        // The API of data that is not what was saved never began to serve.
    }
}

/// Goes on with further plans while locations have no capacity, as the command does. The plans, and why there is no further.
async fn with_further_plans(world: &MemoryWorld, wanted: &Wanted) -> (Vec<Plan>, Option<String>) {
    let (mut plans, mut course): (Vec<Plan>, _) = (Vec::new(), Course::default());
    loop {
        let id = format!("p{}", plans.len() + 1);
        let plan = match draw_plan(&world.world(), "ssh-ed25519 AAAA", wanted, &course, &id).await {
            Ok(plan) => plan,
            Err(error) => return (plans, Some(error.to_string())),
        };
        plans.push(plan.clone());
        match process(world, &plan, MemoryJournal::default()).await {
            Ok(()) => return (plans, None),
            Err(RunError::Step { step, source, .. }) if source.code == ErrorCode::NoCapacity => {
                course.unavailable.insert(may_go_elsewhere(&plan, &step).expect("a copy may").to_owned());
                (course.lineage, course.parent) = (Some(plan.lineage), Some(plan.id));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_copy_that_finds_no_room_is_planned_again_elsewhere_in_the_declared_order() {
    for (name, full, servers) in [
        ("sandbox-restore", &["nbg1"][..], vec![("demo-copy-m1", "hel1")]),
        ("sandbox-restore", &["nbg1", "hel1"], vec![("demo-copy-m1", "fsn1")]),
        (
            "rebuild-from-git",
            &["hel1"],
            vec![
                ("demo-copy-m1", "fsn1"),
                ("demo-copy-m2", "nbg1"),
                ("demo-copy-m3", "nbg1"),
                ("demo-copy-w1", "nbg1"),
            ],
        ),
    ] {
        let wanted = Wanted::Runbook(runbook(name, &[]));
        let world = before(&wanted).await;
        let was = production(&world).await;
        for location in full {
            world.cloud.set_capacity(location, false);
        }
        let (plans, refused) = with_further_plans(&world, &wanted).await;
        assert_eq!((plans.len(), refused), (full.len() + 1, None), "{name}");
        let last = plans.last().expect("some");
        let of = |field: &str| {
            last.steps
                .iter()
                .filter(|s| s.kind == "server.create")
                .map(move |s| s.params[field].clone())
                .collect::<Vec<_>>()
        };
        let placed: Vec<_> = of("name").into_iter().zip(of("location")).collect();
        let expected: Vec<_> = servers.iter().map(|(name, location)| ((*name).into(), (*location).into())).collect();
        assert_eq!(placed, expected);
        assert!(last.findings.iter().any(|f| f.ends_with("has no capacity")), "{:?}", last.findings);
        if name == "rebuild-from-git" {
            assert_eq!(last.steps[0].id, "discard-before", "what the first plan made goes first: {:?}", last.findings);
        }
        assert_eq!(copies(&world).await, Vec::<String>::new());
        assert_eq!(production(&world).await, was, "production was touched");
    }
    let wanted = Wanted::Runbook(runbook("sandbox-restore", &[]));
    let world = before(&wanted).await;
    for location in ["fsn1", "nbg1", "hel1"] {
        world.cloud.set_capacity(location, false);
    }
    let (plans, refused) = with_further_plans(&world, &wanted).await;
    assert_eq!(plans.len(), 3, "every location was tried");
    assert!(refused.expect("nowhere is left").contains("no location has capacity for m1"));
}

#[tokio::test]
async fn a_copy_that_is_given_up_after_any_event_leaves_nothing() {
    let wanted = Wanted::Runbook(runbook("sandbox-restore", &[]));
    let world = before(&wanted).await;
    let was = outcome_of_production(&world).await;
    let journal = MemoryJournal::default();
    process(&world, &draw(&world, &wanted).await, journal.clone()).await.expect("it ends");
    for event in 0..journal.events().len() as u64 - 1 {
        let plan = draw(&world, &wanted).await;
        let journal = MemoryJournal::default();
        let _ = process(&world, &plan, journal.stopping_after(event)).await;
        let back = way_back(&world, &plan, &journal).await.expect("a way back");
        process(&world, &back, MemoryJournal::default()).await.expect("cleaned up");
        assert_eq!(copies(&world).await, Vec::<String>::new(), "after event {event}");
        assert_eq!(outcome_of_production(&world).await, was, "after event {event}");
    }
}

#[tokio::test]
async fn a_copy_is_kept_for_a_look_and_deleted_by_the_next_rehearsal_or_on_request() {
    let kept = Wanted::Runbook(RunbookChoice { keep: true, ..runbook("sandbox-restore", &[]) });
    let world = before(&kept).await;
    let was = outcome_of_production(&world).await;
    let run = |plan: Plan| {
        let world = world.clone();
        async move { process(&world, &plan, MemoryJournal::default()).await.expect("it ends") }
    };
    run(draw(&world, &kept).await).await;
    let found = copies(&world).await;
    assert_eq!(
        found,
        ["demo-copy-m1", "demo-copy-m1-etcd", "demo-copy", "demo-copy-closed", "demo-copy", "demo-copy-masters"]
    );
    let old = world.cloud.server_by_name("demo-copy-m1").await.expect("asked").expect("kept").id;

    let again = draw(&world, &kept).await;
    assert_eq!(again.steps[0].id, "discard-before", "{:?}", again.findings);
    run(again).await;
    assert_ne!(world.cloud.server_by_name("demo-copy-m1").await.expect("asked").expect("kept").id, old);

    run(draw(&world, &Wanted::Runbook(runbook("discard-copy", &[]))).await).await;
    assert_eq!(copies(&world).await, Vec::<String>::new());
    assert_eq!(outcome_of_production(&world).await, was);
}

#[tokio::test]
async fn what_only_has_a_copys_name_is_somebody_elses() {
    let wanted = Wanted::Runbook(runbook("sandbox-restore", &[]));
    let world = before(&wanted).await;
    let server = ServerSpec {
        name: "demo-copy-m1".into(),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "nbg1".into(),
        ssh_keys: Vec::new(),
        placement_group: None,
        // A cluster that a team calls demo-copy.
        labels: [("hk-dr/cluster".to_owned(), "demo-copy".to_owned())].into(),
        public_ipv4: true,
        start: true,
        user_data: String::new(),
    };
    world.cloud.create_server(&server).await.expect("theirs");
    let refused = draw_plan(&world.world(), "ssh-ed25519 AAAA", &wanted, &Course::default(), "p1").await.unwrap_err();
    assert!(refused.to_string().contains("demo-copy-m1"), "{refused}");
    let discard = draw(&world, &Wanted::Runbook(runbook("discard-copy", &[]))).await;
    process(&world, &discard, MemoryJournal::default()).await.expect("it ends");
    assert!(world.cloud.server_by_name("demo-copy-m1").await.expect("asked").is_some(), "theirs stays");
}
