//! Load balancers and floating IPs that someone else changed, half made, or had before.

use hk_dr::plan::ONLY_THE_WAY_IN;
use hk_dr::ports::{
    BalancerService, BalancerSpec, BalancerTarget, Cloud, ErrorCode, Front, HealthCheck, Labels, Machines, PortError,
};
use hk_dr::steps::ServerOutput;

use super::*;

async fn drifts(world: &MemoryWorld) -> Vec<String> {
    let (_, drifts) = look_for_drift(&world.world(), "ssh-ed25519 AAAA").await.expect("looked");
    drifts.into_iter().map(|d| format!("{}: {}", d.what, d.found)).collect()
}

/// Builds, and again has nothing to do. Where the way in was missing, a build makes that first and looks again, as the command does.
async fn mend(world: &MemoryWorld) -> Vec<String> {
    let mut steps = Vec::new();
    for _ in 0..2 {
        let plan = draw(world, &Wanted::Build).await;
        process(world, &plan, MemoryJournal::default()).await.expect("it ends");
        steps.extend(plan.steps.into_iter().map(|s| s.id));
        if !plan.findings.iter().any(|f| f.starts_with(ONLY_THE_WAY_IN)) {
            break;
        }
    }
    let again: Vec<String> = draw(world, &Wanted::Build).await.steps.into_iter().map(|s| s.id).collect();
    assert_eq!(again, Vec::<String>::new(), "a second build has something to do");
    assert_eq!(drifts(world).await, Vec::<String>::new());
    steps
}

#[tokio::test]
async fn what_was_changed_by_hand_is_drift_and_the_next_build_mends_it() {
    let world = built(&private_cluster()).await;
    let before = arrivals(&world).await;
    let cloud = &world.cloud;
    let api = cloud.balancer_by_name("private-api").await.expect("asked").expect("it is there");
    let ingress = cloud.balancer_by_name("private-ingress").await.expect("asked").expect("it is there");
    cloud.remove_balancer_target(api.id, &api.targets[0]).await.expect("changed");
    cloud.set_balancer_public(api.id, true).await.expect("changed");
    let check = HealthCheck { interval: 60, ..ingress.services[0].check.clone() };
    let service = BalancerService { check, ..ingress.services[0].clone() };
    cloud.set_balancer_service(ingress.id, &service).await.expect("changed");
    cloud.set_balancer_service(ingress.id, &BalancerService { listen_port: 80, ..service }).await.expect("changed");
    cloud.add_balancer_target(ingress.id, &BalancerTarget::Address("192.0.2.7".into())).await.expect("changed");
    // To a master, and gone from inside a worker.
    let www = cloud.floating_ip_by_name("private-www").await.expect("asked").expect("it is there");
    let master = cloud.server_by_name("private-m1").await.expect("asked").expect("it is there");
    cloud.assign_floating_ip(www.id, master.id).await.expect("assigned");
    let worker = cloud.server_by_name("private-w2").await.expect("asked").expect("it is there");
    let host = ServerOutput::of(&private_cluster(), &worker).expect("made by hk-dr").host();
    world.carry(&host, &[]).await.expect("changed");

    let found = drifts(&world).await;
    for says in [
        "load balancer private-api: it has a public address",
        "load balancer private-api: hk-dr/cluster==private,hk-dr/role==master (private) is no target of it",
        "load balancer private-ingress: its service at 443 is tcp to 443, checked at 443 every 60 s",
        "load balancer private-ingress: it also takes connections at 80",
        "load balancer private-ingress: it also has the target 192.0.2.7",
        "floating IP private-www: private-m1 has it, which is no worker",
        "floating IPs on private-w2: none",
    ] {
        assert!(found.iter().any(|f| f == says), "{says} is not in {found:?}");
    }
    assert_eq!(found.len(), 7, "{found:?}");
    let mut steps = mend(&world).await;
    steps.sort_unstable();
    assert_eq!(steps, ["assign/private-www", "balancer/api", "balancer/ingress", "front/private-w2"]);
    assert_eq!(arrivals(&world).await, before);
}

#[tokio::test]
async fn what_is_lost_is_made_again_and_what_is_half_made_is_completed() {
    let world = built(&private_cluster()).await;
    let before = arrivals(&world).await;
    for name in ["private-api", "private-ingress"] {
        let balancer = world.cloud.balancer_by_name(name).await.expect("asked").expect("it is there");
        world.cloud.delete_balancer(balancer.id).await.expect("deleted");
    }
    let www = world.cloud.floating_ip_by_name("private-www").await.expect("asked").expect("it is there");
    world.cloud.delete_floating_ip(www.id).await.expect("deleted");
    // One was begun by an earlier attempt.
    let labels: Labels = [("hk-dr/cluster".to_owned(), "private".to_owned())].into();
    let spec = BalancerSpec {
        name: "private-api".into(),
        balancer_type: "lb11".into(),
        location: "fsn1".into(),
        public: false,
        services: Vec::new(),
        labels,
    };
    let half = world.cloud.create_balancer(&spec).await.expect("made").id;
    mend(&world).await;
    assert_eq!(arrivals(&world).await, before);
    let api = world.cloud.balancer_by_name("private-api").await.expect("asked").expect("it is there");
    assert_eq!(api.id, half, "it was completed, not made again");
}

#[tokio::test]
async fn names_of_someone_else_and_refusals_stop_a_build_before_anything_of_it_is_touched() {
    let world = MemoryWorld::new(&private_cluster(), false);
    world.cloud.create_floating_ip("private-www", "fsn1", &Labels::new()).await.expect("somebody else's");
    let spec = BalancerSpec {
        name: "private-ingress".into(),
        balancer_type: "lb11".into(),
        location: "fsn1".into(),
        public: true,
        services: Vec::new(),
        labels: Labels::new(),
    };
    world.cloud.create_balancer(&spec).await.expect("somebody else's");
    let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &Wanted::Build, &Course::default(), "p1").await;
    let refused = drawn.expect_err("no plan").to_string();
    for says in ["a load balancer named private-ingress exists", "a floating IP named private-www exists"] {
        assert!(refused.contains(says), "{refused}");
    }

    // The project has no room for another load balancer: what was made stays, and the next build goes on from there.
    let world = MemoryWorld::new(&private_cluster(), false);
    let plan = draw(&world, &Wanted::Build).await;
    let limit = PortError::new(ErrorCode::LimitExceeded, "load balancer limit exceeded").hint("ask for more");
    world.cloud.fail_next("create_balancer", limit);
    let stopped = process(&world, &plan, MemoryJournal::default()).await.expect_err("it stops").to_string();
    assert!(stopped.contains("load balancer limit exceeded"), "{stopped}");
    mend(&world).await;
    assert!(world.cloud.creations().values().all(|times| *times == 1), "{:?}", world.cloud.creations());
}

#[tokio::test]
async fn a_location_without_capacity_is_left_for_a_fallback_by_load_balancers_and_addresses_too() {
    let world = MemoryWorld::new(&private_cluster(), false);
    let course = Course { unavailable: ["nbg1".to_owned()].into(), ..Course::default() };
    let plan = draw_plan(&world.world(), "ssh-ed25519 AAAA", &Wanted::Build, &course, "p1").await.expect("a plan");
    for step in plan.steps.iter().filter(|s| s.params["location"].is_string()) {
        assert_ne!(step.params["location"], "nbg1", "{}", step.title);
    }
    assert!(plan.findings.iter().any(|f| f.contains("private-ingress goes to")), "{:?}", plan.findings);
    world.cloud.set_capacity("nbg1", false);
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(drifts(&world).await, Vec::<String>::new(), "a fallback that is declared is no drift");
}

#[tokio::test]
async fn an_address_leaves_a_worker_before_that_is_made_anew() {
    let world = built(&private_cluster()).await;
    let holder = || async {
        let www = world.cloud.floating_ip_by_name("private-www").await.expect("asked").expect("it is there");
        let servers = world.cloud.servers("").await.expect("listed");
        servers.into_iter().find(|s| Some(s.id) == www.server).expect("somebody has it").name
    };
    let before = holder().await;
    let name = before.strip_prefix("private-").expect("a full name").to_owned();
    let choice = hk_dr::plan::WorkersChoice { replace: vec![name], ..Default::default() };
    let plan = draw(&world, &Wanted::Workers(choice)).await;
    let assign = plan.steps.iter().find(|s| s.id == "assign/private-www").expect("it goes elsewhere");
    assert!(assign.needs.is_empty(), "the worker that takes it is ready: {:?}", assign.needs);
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert_ne!(holder().await, before);
    assert!(world.machines().await[&before].front.len() == 1, "the new worker could take it");
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty(), "a second build has something to do");
}

/// A volume with a master's data that someone attached to another server: nothing of it is touched, and drift says where it is.
#[tokio::test]
async fn a_volume_attached_elsewhere_is_named_and_left_alone() {
    let world = built(&private_cluster()).await;
    let volume = world.cloud.volume_by_name("private-m2-etcd").await.expect("asked").expect("it is there");
    let worker = world.cloud.server_by_name("private-w1").await.expect("asked").expect("it is there");
    world.cloud.detach_volume(volume.id).await.expect("detached");
    assert_eq!(volume.location, worker.location, "volumes are attached where they are");
    world.cloud.attach_volume(volume.id, worker.id).await.expect("attached");
    let found = drifts(&world).await;
    let says = format!("private-m2-etcd: attached to server {}", worker.id);
    assert!(found.contains(&says), "{says} is not in {found:?}");
    // The member's machine is asked for its data before anything is planned for it: that it is gone stops a build.
    let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &Wanted::Build, &Course::default(), "p2").await;
    if let Ok(plan) = drawn {
        let stopped = process(&world, &plan, MemoryJournal::default()).await.expect_err("it stops").to_string();
        assert!(stopped.contains("private-m2-etcd is attached to server"), "{stopped}");
    }
    let after = world.cloud.volume_by_name("private-m2-etcd").await.expect("asked").expect("it is there");
    assert_eq!(after.server, Some(worker.id), "it was touched");
}

/// What the planner saw a moment ago is not looked for again. A run that died is taken up with a look, and whoever was quicker
/// than the plan is noticed by the name.
#[tokio::test]
async fn a_new_build_looks_for_nothing_twice_and_a_resumed_one_looks_again() {
    // Machines in memory ask for their own server by its name: that look tells nothing here.
    let looks = [
        "network_by_name",
        "placement_group_by_name",
        "ssh_key_by_name",
        "firewall_by_name",
        "balancer_by_name",
        "floating_ip_by_name",
        "volume_by_name",
    ];
    let drawn = || async {
        let world = MemoryWorld::new(&private_cluster(), false);
        let plan = draw(&world, &Wanted::Build).await;
        for look in looks {
            world.cloud.fail_next(look, PortError::new(ErrorCode::Forbidden, format!("{look} was asked")));
        }
        (world, plan)
    };
    let (world, plan) = drawn().await;
    process(&world, &plan, MemoryJournal::default()).await.expect("nobody looks");

    let (world, plan) = drawn().await;
    let journal = MemoryJournal::default();
    let _ = process(&world, &plan, journal.stopping_after(2)).await;
    let stopped = process(&world, &plan, journal.continued()).await.expect_err("somebody looks").to_string();
    assert!(stopped.contains("was asked"), "{stopped}");

    let world = MemoryWorld::new(&private_cluster(), false);
    let plan = draw(&world, &Wanted::Build).await;
    world.cloud.create_floating_ip("private-www", "fsn1", &Labels::new()).await.expect("somebody else's");
    let stopped = process(&world, &plan, MemoryJournal::default()).await.expect_err("it stops").to_string();
    assert!(stopped.contains("a floating IP named private-www exists that is not this cluster's"), "{stopped}");
}
