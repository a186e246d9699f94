//! What changes in the life of a cluster that serves: certificates, versions, workers. Each is done machine by machine, and
//! each is stopped after every journal event.

use chaos_tests::memory::FIRST_KEY;
use hk_dr::plan::WorkersChoice;
use hk_dr::ports::Labels;
use hk_dr::steps::{Approval, approve};

use super::*;

/// A cluster that was built as `then` and is declared as `now`.
async fn built(then: &Cluster, now: &Cluster) -> MemoryWorld {
    let world = MemoryWorld::new(then, false);
    let plan = draw(&world, &Wanted::Build).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("the cluster is built");
    world.count_away();
    world.declared(now)
}

fn kinds(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.kind.as_str()).collect()
}

/// The steps of one machine come behind the last one of the machine before.
fn one_after_the_other(plan: &Plan, first_kind: &str, machines: &[&str]) {
    for pair in machines.windows(2) {
        let position = |machine: &str, kind: &str| {
            plan.steps.iter().position(|s| s.kind == kind && s.id.ends_with(machine)).expect("the step is there")
        };
        let (last, next) = (position(pair[0], "machine.healthy"), position(pair[1], first_kind));
        assert!(last < next, "{} begins before {} is healthy", pair[1], pair[0]);
        assert!(!plan.steps[next].needs.is_empty(), "it waits for nothing");
    }
}

/// Stopped after every event and resumed, it ends as it does undisturbed.
async fn survives(then: &Cluster, now: &Cluster, wanted: &Wanted, prepare: impl Fn(&MemoryWorld)) {
    let draw = async |world: &MemoryWorld, wanted: &Wanted| {
        // A rotation is to the key that is at hand now.
        let rotates = match wanted {
            Wanted::SshRotation { .. } => true,
            Wanted::Runbook(choice) => choice.ssh_before.is_some(),
            _ => false,
        };
        let key = if rotates { SECOND_KEY } else { FIRST_KEY };
        draw_plan(&world.world(), key, wanted, &Course::default(), "p1").await.expect("a plan")
    };
    let alone = built(then, now).await;
    prepare(&alone);
    let plan = draw(&alone, wanted).await;
    let journal = MemoryJournal::default();
    process(&alone, &plan, journal.clone()).await.expect("an undisturbed run ends");
    let (events, expected, created) = (journal.events().len() as u64, outcome(&alone).await, alone.cloud.creations());
    // All at once: each spends most of its time waiting.
    let deaths = (0..events).map(|first| {
        let (expected, created, prepare) = (&expected, &created, &prepare);
        async move {
            let world = built(then, now).await;
            prepare(&world);
            let plan = draw(&world, wanted).await;
            let journal = MemoryJournal::default();
            let _ = process(&world, &plan, journal.stopping_after(first)).await;
            let _ = process(&world, &plan, journal.stopping_after(first + 1 + first % 5)).await;
            process(&world, &plan, journal.continued()).await.unwrap_or_else(|e| panic!("resumed after {first}: {e}"));
            assert_eq!(outcome(&world).await, *expected, "stopped after event {first}");
            assert_eq!(world.cloud.creations(), *created, "made twice after event {first}");
            assert!(world.away_most() <= 1, "{} masters were away at once", world.away_most());
        }
    });
    futures::future::join_all(deaths).await;
    println!("{events} events, each survived");
}

/// After a death at any event, a new build instead of a resumption mends what was left.
async fn a_build_mends_it(then: &Cluster, now: &Cluster) {
    let undisturbed = built(then, now).await;
    let plan = draw(&undisturbed, &Wanted::Build).await;
    let journal = MemoryJournal::default();
    process(&undisturbed, &plan, journal.clone()).await.expect("it ends");
    let expected = outcome(&undisturbed).await;
    let deaths = (0..journal.events().len() as u64).map(|event| {
        let expected = &expected;
        async move {
            let world = built(then, now).await;
            let plan = draw(&world, &Wanted::Build).await;
            let _ = process(&world, &plan, MemoryJournal::default().stopping_after(event)).await;
            let again = draw(&world, &Wanted::Build).await;
            process(&world, &again, MemoryJournal::default())
                .await
                .unwrap_or_else(|e| panic!("a build after a death at event {event}: {e}"));
            assert_eq!(outcome(&world).await, *expected, "a build after a death at event {event}");
            let last = draw(&world, &Wanted::Build).await;
            assert!(last.steps.is_empty(), "after a death at event {event} a third build still has {:?}", kinds(&last));
        }
    });
    futures::future::join_all(deaths).await;
}

const SECOND_KEY: &str = "ssh-ed25519 BBBB";

#[tokio::test]
async fn an_ssh_key_is_taken_away_only_when_the_new_one_works_everywhere() {
    let world = built(&cluster(), &cluster()).await;
    let wanted = Wanted::SshRotation { before: FIRST_KEY.into() };
    let draw = || async { draw_plan(&world.world(), SECOND_KEY, &wanted, &Course::default(), "p1").await };
    let plan = draw().await.expect("a plan");
    let last_in = plan.steps.iter().rposition(|s| s.kind == "ssh_key.authorize").expect("keys are added");
    let first_out = plan.steps.iter().position(|s| s.kind == "ssh_key.revoke").expect("keys are removed");
    assert!(last_in < first_out);
    for server in ["demo-m1", "demo-m2", "demo-m3", "demo-w1"] {
        assert!(plan.steps[first_out].needs.contains(&format!("authorize/{server}")), "{:?}", plan.steps[first_out]);
    }
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let machines = world.machines().await;
    assert!(machines.values().all(|m| m.first_key_revoked && m.authorized.contains(SECOND_KEY)), "{machines:?}");
    let key = world.cloud.ssh_key_by_name("demo").await.expect("asked").expect("registered");
    assert_eq!(key.public_key, SECOND_KEY);

    // One that is away would keep the old key.
    let servers = world.cloud.servers("").await.expect("listed");
    world.cloud.power_off(servers[0].id).await.expect("off");
    assert!(draw().await.expect_err("no plan").to_string().contains("would keep the old key"));
    survives(&cluster(), &cluster(), &wanted, |_| ()).await;
}

#[tokio::test]
async fn a_key_rotation_waits_for_git_before_the_old_key_goes_and_survives_death_after_every_event() {
    let choice = RunbookChoice { ssh_before: Some(FIRST_KEY.into()), ..runbook("key-rotation", &[]) };
    let wanted = Wanted::Runbook(choice);
    let world = built(&cluster(), &cluster()).await;
    let plan = draw_plan(&world.world(), SECOND_KEY, &wanted, &Course::default(), "p1").await.expect("a plan");
    let step = |id: &str| plan.steps.iter().find(|s| s.id == id).unwrap_or_else(|| panic!("no step {id}"));
    for server in ["demo-m1", "demo-m2", "demo-m3", "demo-w1"] {
        assert!(step("manual/1").needs.contains(&format!("authorize/{server}")), "{:?}", step("manual/1"));
        assert!(step(&format!("revoke/{server}")).needs.contains(&"manual/1".to_owned()));
    }
    let said = |world: &MemoryWorld| {
        let at = world.world().clock.now();
        let approval = Approval { format: 1, step: "manual/1".into(), by: "ann@desk".into(), at };
        let store = world.store.clone();
        async move { approve(&store, "demo", "p1", &approval).await.expect("said") }
    };
    said(&world).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let machines = world.machines().await;
    assert!(machines.values().all(|m| m.first_key_revoked && m.authorized.contains(SECOND_KEY)), "{machines:?}");
    // Said before it is asked, so that no death waits for a person.
    survives(&cluster(), &cluster(), &wanted, |world| futures::executor::block_on(said(world))).await;
}

fn short_lived() -> Cluster {
    let mut cluster = cluster();
    (cluster.certificates.valid_days, cluster.certificates.renew_before_days) = (20, 2);
    cluster
}

#[tokio::test]
async fn certificates_that_end_soon_are_renewed_by_a_build_machine_by_machine() {
    let (then, now) = (short_lived(), cluster());
    let same = built(&then, &then).await;
    assert!(draw(&same, &Wanted::Build).await.steps.is_empty(), "20 days hold longer than the 2 that are asked for");

    let world = built(&then, &now).await;
    let plan = draw(&world, &Wanted::Build).await;
    assert!(plan.steps.iter().all(|s| s.reason.contains("its first certificate ends 2026-12-13")), "{:?}", plan.steps);
    one_after_the_other(&plan, "controllers.stop", &["demo-m1", "demo-m2", "demo-m3"]);
    for restarted in ["etcd.stop", "control_plane.stop", "snapshot.take"] {
        assert!(!kinds(&plan).contains(&restarted), "new certificates alone need no {restarted}");
    }
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let machines = world.machines().await;
    assert!(machines.values().all(|m| m.certificate_days == 365), "{machines:?}");
    assert_eq!(world.away_most(), 0, "an API server was away");
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty(), "a second build has something to do");

    survives(&then, &now, &Wanted::Build, |_| ()).await;
    a_build_mends_it(&then, &now).await;
}

#[tokio::test]
async fn all_certificates_are_renewed_on_request_and_only_of_what_is_as_declared() {
    let mut other = cluster();
    other.workers[0].labels.insert("example.com/tier".into(), "web".into());
    let world = built(&cluster(), &other).await;
    let due = draw(&world, &Wanted::Certificates { all: false }).await;
    assert!(due.steps.is_empty(), "nothing ends soon: {:?}", due.steps);
    let all = draw(&world, &Wanted::Certificates { all: true }).await;
    one_after_the_other(&all, "controllers.stop", &["demo-m1", "demo-m2", "demo-m3"]);
    // Writing its files would hide that it has to be built.
    assert!(!all.steps.iter().any(|s| s.id.ends_with("demo-w1")), "{:?}", kinds(&all));
    assert!(all.findings.iter().any(|f| f.contains("demo-w1") && f.contains("hk-dr build")), "{:?}", all.findings);
    survives(&cluster(), &cluster(), &Wanted::Certificates { all: true }, |_| ()).await;
}

fn newer() -> Cluster {
    let mut cluster = cluster();
    cluster.kubernetes.version = "1.35.5".into();
    cluster.etcd.version = "3.6.17".into();
    cluster
}

#[tokio::test]
async fn an_upgrade_goes_master_by_master_behind_a_snapshot() {
    let (then, now) = (cluster(), newer());
    let world = built(&then, &now).await;
    let plan = draw(&world, &Wanted::Build).await;
    let first = plan.steps.iter().position(|s| s.kind == "snapshot.take").expect("a snapshot");
    let stop = plan.steps.iter().position(|s| s.kind == "control_plane.stop").expect("a stop");
    assert!(first < stop);
    one_after_the_other(&plan, "control_plane.stop", &["demo-m1", "demo-m2", "demo-m3"]);
    let worker = plan.steps.iter().position(|s| s.id == "stop-worker/demo-w1").expect("the worker");
    assert!(plan.steps.iter().rposition(|s| s.kind == "api.write").expect("checks") < worker);
    assert!(plan.findings.iter().any(|f| f.contains("Kubernetes 1.35.4 → 1.35.5") && f.contains("way back")));
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(world.taken().len(), 1);
    assert_eq!(world.away_most(), 1, "one API server at a time");
    for (name, machine) in world.machines().await {
        let wanted = if name.contains("-m") { ("kube-apiserver", "1.35.5") } else { ("kubelet", "1.35.5") };
        assert_eq!(machine.running.get(wanted.0).map(String::as_str), Some(wanted.1), "{name}");
        assert!(machine.torn == 0 && machine.overwritten == 0);
    }
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty(), "a second build has something to do");
    survives(&then, &now, &Wanted::Build, |_| ()).await;
    a_build_mends_it(&then, &now).await;
}

#[tokio::test]
async fn an_upgrade_whose_first_master_does_not_become_healthy_stops_there_and_goes_back() {
    let broken = ["kube-apiserver-1.35.5", "kube-scheduler-1.35.5", "etcd-3.6.17"];
    futures::future::join_all(broken.map(stops_and_goes_back)).await;
}

async fn stops_and_goes_back(broken: &str) {
    let world = built(&cluster(), &newer()).await;
    world.break_version(broken);
    let mut plan = draw(&world, &Wanted::Build).await;
    for step in &mut plan.steps {
        // Nobody has to wait minutes here.
        match step.kind.as_str() {
            "machine.healthy" => step.params["within_seconds"] = 2.into(),
            "api.start" | "etcd.agree" => step.deadline_seconds = 1,
            _ => {}
        }
    }
    let stopped = process(&world, &plan, MemoryJournal::default()).await.expect_err("it stops").to_string();
    assert!(stopped.contains("demo-m1"), "{broken}: {stopped}");
    let machines = world.machines().await;
    for untouched in ["demo-m2", "demo-m3"] {
        let runs = machines[untouched].running.get("kube-apiserver").map(String::as_str);
        assert_eq!(runs, Some("1.35.4"), "{broken}: {untouched} was touched");
    }
    // The way back: the version before in Git, and a build.
    let back = world.declared(&cluster());
    let plan = draw(&back, &Wanted::Build).await;
    assert!(!plan.steps.iter().any(|s| s.id.ends_with("demo-m2") && s.kind.ends_with("stop")), "{:?}", kinds(&plan));
    process(&back, &plan, MemoryJournal::default()).await.unwrap_or_else(|e| panic!("{broken}, going back: {e}"));
    for (name, machine) in back.machines().await {
        let program = if name.contains("-m") { "kube-apiserver" } else { "kubelet" };
        assert_eq!(machine.running.get(program).map(String::as_str), Some("1.35.4"), "{broken}: {name}");
    }
    assert!(draw(&back, &Wanted::Build).await.steps.is_empty(), "{broken}: something is left to do");
}

#[tokio::test]
async fn a_version_that_must_not_follow_is_refused_before_anything_is_touched() {
    let mut far = cluster();
    far.kubernetes.version = "1.37.0".into();
    let world = built(&cluster(), &far).await;
    let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &Wanted::Build, &Course::default(), "p1").await;
    assert!(drawn.expect_err("no plan").to_string().contains("one minor version at a time"));
}

#[tokio::test]
async fn another_configuration_reaches_running_services_one_machine_at_a_time() {
    let mut other = cluster();
    other.kubernetes.pod_range = "10.245.0.0/16".into();
    let world = built(&cluster(), &other).await;
    let plan = draw(&world, &Wanted::Build).await;
    one_after_the_other(&plan, "control_plane.stop", &["demo-m1", "demo-m2", "demo-m3"]);
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(world.away_most(), 1);
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty());
}

/// Three workers in a pool.
fn pool(count: usize) -> Cluster {
    let mut cluster = cluster();
    let one = cluster.workers[0].clone();
    cluster.workers = (1..=count)
        .map(|n| hk_dr::config::WorkerConfig {
            name: format!("web-{n}"),
            address: [10, 0, 0, 30 + u8::try_from(n).expect("few")].into(),
            ..one.clone()
        })
        .collect();
    cluster
}

async fn servers(world: &MemoryWorld) -> Vec<String> {
    let servers = world.cloud.servers("hk-dr/role==worker").await.expect("listed");
    servers.into_iter().map(|s| s.name).collect()
}

#[tokio::test]
async fn a_lower_count_is_shown_and_takes_workers_only_when_told_to() {
    let (then, now) = (pool(3), pool(1));
    let world = built(&then, &now).await;
    world.run_pod("a", "demo-web-2", false);
    world.run_pod("stays", "demo-web-1", false);
    let shown = draw(&world, &Wanted::Build).await;
    assert!(shown.steps.is_empty(), "a build takes nothing: {:?}", shown.steps);
    let says = |name: &str| shown.findings.iter().any(|f| f.contains(name) && f.contains("--remove-workers"));
    assert!(says("demo-web-2") && says("demo-web-3") && !says("demo-web-1"), "{:?}", shown.findings);
    assert_eq!(servers(&world).await.len(), 3);

    let wanted = Wanted::Workers(WorkersChoice { remove: true, ..WorkersChoice::default() });
    let plan = draw(&world, &wanted).await;
    assert_eq!(
        kinds(&plan),
        ["node.drain", "server.fence", "node.delete", "node.drain", "server.fence", "node.delete"]
    );
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(servers(&world).await, ["demo-web-1"]);
    assert_eq!(world.nodes().into_iter().collect::<Vec<_>>(), ["demo-web-1"]);
    assert_eq!(world.pods().into_keys().collect::<Vec<_>>(), ["stays"]);
    let after = draw(&world, &Wanted::Build).await;
    assert!(after.steps.is_empty() && after.findings.is_empty(), "{:?}", after.findings);
    survives(&then, &now, &wanted, |world| world.run_pod("a", "demo-web-2", false)).await;
}

#[tokio::test]
async fn a_pool_grows_by_a_build() {
    let world = built(&pool(1), &pool(3)).await;
    let plan = draw(&world, &Wanted::Build).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(world.nodes().len(), 3);
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty());
}

#[tokio::test]
async fn a_pod_that_its_budget_holds_keeps_its_worker() {
    let world = built(&pool(2), &pool(1)).await;
    world.run_pod("held", "demo-web-2", true);
    let wanted = Wanted::Workers(WorkersChoice { remove: true, drain_seconds: 1, ..WorkersChoice::default() });
    let plan = draw(&world, &wanted).await;
    let stopped = process(&world, &plan, MemoryJournal::default()).await.expect_err("it stops").to_string();
    assert!(stopped.contains("default/held") && stopped.contains("disruption budget"), "{stopped}");
    assert_eq!(servers(&world).await.len(), 2, "the server was deleted under its pod");
    assert!(world.pods().contains_key("held"));
}

#[tokio::test]
async fn another_type_makes_workers_anew_one_after_the_other_when_told_to() {
    let (then, mut now) = (pool(2), pool(2));
    now.workers.iter_mut().for_each(|w| w.server_type = "cx33".into());
    let world = built(&then, &now).await;
    let shown = draw(&world, &Wanted::Build).await;
    assert!(shown.steps.is_empty(), "{:?}", kinds(&shown));
    assert!(shown.findings.iter().any(|f| f.contains("demo-web-1") && f.contains("--replace-workers")));

    let wanted = Wanted::Workers(WorkersChoice { replace_changed: true, ..WorkersChoice::default() });
    let plan = draw(&world, &wanted).await;
    let second = plan.steps.iter().find(|s| s.id == "drain/demo-web-2").expect("the second");
    assert_eq!(second.needs, ["node/demo-web-1"], "the first is back before the second leaves");
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let types: Vec<_> =
        world.cloud.servers("hk-dr/role==worker").await.expect("listed").into_iter().map(|s| s.server_type).collect();
    assert_eq!(types, ["cx33", "cx33"]);
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty());
    survives(&then, &now, &wanted, |_| ()).await;
}

#[tokio::test]
async fn a_worker_of_somebody_else_is_never_drained() {
    let world = built(&pool(1), &pool(1)).await;
    let labels = Labels::from([("hk-dr/role".into(), "worker".into()), ("hk-dr/cluster".into(), "other".into())]);
    let server = hk_dr::ports::ServerSpec {
        name: "other-web-9".into(),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "fsn1".into(),
        ssh_keys: Vec::new(),
        placement_group: None,
        labels,
        public_ipv4: true,
        start: true,
        user_data: String::new(),
    };
    world.cloud.create_server(&server).await.expect("made");
    let wanted = Wanted::Workers(WorkersChoice { remove: true, ..WorkersChoice::default() });
    let plan = draw(&world, &wanted).await;
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
}
