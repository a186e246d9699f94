//! A run is stopped after every journal event, and after every event of its resumption once more at a drawn distance: each
//! time it must end in the same state as a run that was left alone, with nothing made twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chaos_tests::memory::{Machine, MemoryWorld};
use hk_dr::config::{Cluster, SHIPPED, load_runbook, parse};
use hk_dr::drawing::{Course, Wanted, draw_plan, look_for_drift, world_of};
use hk_dr::engine::{Engine, Gate, Open, Run, RunError, Silent};
use hk_dr::journal::{JournalError, MemoryJournal, RunStatus};
use hk_dr::plan::{DestroyChoice, Plan, RebuildChoice, RunbookChoice, works_on_copy};
use hk_dr::ports::{Cloud, Front, ObjectStore, Perimeter};
use hk_dr::steps::Registry;

#[path = "battery/abort.rs"]
mod abort;
#[path = "battery/copy.rs"]
mod copy;
#[path = "battery/front.rs"]
mod front;
#[path = "battery/guards.rs"]
mod guards;
#[path = "battery/life.rs"]
mod life;
#[path = "battery/private.rs"]
mod private;

fn cluster() -> Cluster {
    parse(include_str!("../../examples/demo/cluster.yaml"), "cluster.yaml").expect("the demo's cluster is right")
}

/// Masters have no public address; clients arrive at load balancers and a floating IP.
fn private_cluster() -> Cluster {
    parse(include_str!("../../examples/private/cluster.yaml"), "cluster.yaml").expect("the example is right")
}

async fn draw(world: &MemoryWorld, wanted: &Wanted) -> Plan {
    draw_plan(&world.world(), "ssh-ed25519 AAAA", wanted, &Course::default(), "p1").await.expect("a plan")
}

/// One process: executes the plan with what the journal holds so far, and dies where the journal says.
async fn process(world: &MemoryWorld, plan: &Plan, journal: MemoryJournal) -> Result<(), RunError> {
    process_behind(Arc::new(Open), world, plan, journal).await
}

/// The same behind a gate.
async fn process_behind(
    gate: Arc<dyn Gate>,
    world: &MemoryWorld,
    plan: &Plan,
    journal: MemoryJournal,
) -> Result<(), RunError> {
    let events = journal.events();
    let mut run = Run::open(&plan.id, plan, Box::new(journal), &events)?;
    let engine = Engine {
        registry: Arc::new(Registry::standard()),
        world: world_of(plan, &world.world()).expect("the world of the plan"),
        progress: Arc::new(Silent),
        gate,
    };
    let result = engine.execute(plan, &mut run).await;
    if result.is_ok() {
        assert_eq!(run.state.status(), RunStatus::Finished);
    }
    result
}

/// What a user would see of the cluster.
#[derive(Debug, PartialEq)]
struct Outcome {
    servers: BTreeMap<String, (String, Machine)>,
    volumes: BTreeMap<String, (String, bool)>,
    nodes: Vec<String>,
    /// Names and peer URLs of etcd's members.
    members: BTreeSet<(String, String)>,
    /// What was written to see whether the API takes writes.
    objects: Vec<String>,
    /// Firewalls with how many rules and selectors they have, and the network's routes.
    perimeter: Vec<String>,
    /// Load balancers and floating IPs, and who has them.
    front: Vec<String>,
}

async fn outcome(world: &MemoryWorld) -> Outcome {
    let machines = world.machines().await;
    let servers = world.cloud.servers("").await.expect("listed");
    let volumes = world.cloud.volumes("").await.expect("listed");
    Outcome {
        servers: servers
            .into_iter()
            .map(|s| {
                let machine = machines[&s.name].clone();
                // Device names carry the volume's id, which differs between runs.
                // Secrets differ between runs, and digests with them.
                let machine = Machine { mounted: machine.mounted.map(|_| "mounted".into()), digest: None, ..machine };
                // Addresses are given in the order of asking.
                let front = machine.front.iter().map(|_| std::net::Ipv4Addr::UNSPECIFIED).collect();
                let machine = Machine { front, ..machine };
                (s.name, (s.location, Machine { data: machine.data.clone().map(|d| d[..2].to_owned()), ..machine }))
            })
            .collect(),
        volumes: volumes.into_iter().map(|v| (v.name, (v.location, v.server.is_some()))).collect(),
        nodes: world.nodes().into_iter().collect(),
        // Members that found a cluster together start in any order.
        members: world.members().into_values().collect::<BTreeSet<_>>(),
        objects: world.objects(),
        perimeter: perimeter(world).await,
        front: arrivals(world).await,
    }
}

async fn perimeter(world: &MemoryWorld) -> Vec<String> {
    let firewalls = world.cloud.firewalls("").await.expect("listed");
    let mut perimeter: Vec<String> =
        firewalls.iter().map(|f| format!("{} {:?} {:?}", f.name, f.rules, f.selectors)).collect();
    for name in ["demo", "private"] {
        let network = world.cloud.network_by_name(name).await.expect("asked");
        perimeter
            .extend(network.into_iter().flat_map(|n| n.routes).map(|r| format!("{} {}", r.destination, r.gateway)));
    }
    perimeter.sort();
    perimeter
}

async fn arrivals(world: &MemoryWorld) -> Vec<String> {
    let servers = world.cloud.servers("").await.expect("listed");
    let balancers = world.cloud.balancers("").await.expect("listed").into_iter().map(|b| {
        let at: Vec<_> = b.private.iter().map(|p| p.address).collect();
        format!("{} public {} at {at:?} {:?} {:?}", b.name, b.public_ipv4.is_some(), b.services, b.targets)
    });
    let floating = world.cloud.floating_ips("").await.expect("listed").into_iter().map(|f| {
        let holder = f.server.map(|id| servers.iter().find(|s| s.id == id).map(|s| s.name.clone()));
        format!("{} at {holder:?}", f.name)
    });
    let mut front: Vec<String> = balancers.chain(floating).collect();
    front.sort();
    front
}

/// A world before the run: empty for a build; for a rebuild, what a half-lost cluster left.
async fn before(wanted: &Wanted) -> MemoryWorld {
    before_of(&cluster(), wanted).await
}

async fn before_of(cluster: &Cluster, wanted: &Wanted) -> MemoryWorld {
    let world = MemoryWorld::new(cluster, matches!(wanted, Wanted::Rebuild(_)));
    if matches!(wanted, Wanted::Rebuild(_)) {
        leave_remains(&world, &cluster.name).await;
    }
    if matches!(wanted, Wanted::Runbook(_) | Wanted::Destroy(_)) {
        let plan = draw(&world, &Wanted::Build).await;
        process(&world, &plan, MemoryJournal::default()).await.expect("the cluster is built");
    }
    if let Wanted::Runbook(choice) = wanted {
        lose(&world, choice).await;
        if choice.runbook.name == "restore-to-time" || works_on_copy(&choice.runbook) {
            world.add_snapshot();
        }
    }
    world
}

/// What happened before a runbook is needed: with `--fresh-volume` a master and its volume are lost, in
/// masters-from-volumes all servers are.
async fn lose(world: &MemoryWorld, choice: &RunbookChoice) {
    let fresh = choice.runbook.steps.iter().any(|s| s.fresh_volume);
    for server in world.cloud.servers("").await.expect("listed") {
        let lost = choice.servers.iter().any(|s| server.name == format!("demo-{s}"));
        if lost && (fresh || choice.runbook.name == "masters-from-volumes") {
            world.cloud.delete_server(server.id).await.expect("deleted");
        }
    }
}

/// One old master with its volume is left, in the lost cluster's name.
async fn leave_remains(world: &MemoryWorld, cluster: &str) {
    use hk_dr::ports::{ServerSpec, VolumeSpec};
    let labels: hk_dr::ports::Labels = [("hk-dr/cluster", cluster), ("hk-dr/lineage", "old"), ("hk-dr/name", "m2")]
        .into_iter()
        .chain([("hk-dr/host-key", "sAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAs")])
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let server = ServerSpec {
        name: format!("{cluster}-m2"),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "nbg1".into(),
        ssh_keys: Vec::new(),
        placement_group: None,
        labels: labels.clone(),
        public_ipv4: true,
        start: true,
        user_data: String::new(),
    };
    let server = world.cloud.create_server(&server).await.expect("the old server");
    let volume = VolumeSpec {
        name: format!("{cluster}-m2-etcd"),
        size_gb: 10,
        location: "nbg1".into(),
        server: Some(server.id),
        labels,
    };
    world.cloud.create_volume(&volume).await.expect("the old volume");
}

async fn battery(wanted: Wanted) {
    battery_of(&cluster(), wanted).await;
}

async fn battery_of(cluster: &Cluster, wanted: Wanted) {
    let alone = before_of(cluster, &wanted).await;
    let plan = draw(&alone, &wanted).await;
    let journal = MemoryJournal::default();
    process(&alone, &plan, journal.clone()).await.expect("an undisturbed run ends");
    let events = journal.events().len() as u64;
    let expected = outcome(&alone).await;
    let created = alone.cloud.creations();
    assert!(events > 2 * plan.steps.len() as u64, "{events} events for {} steps", plan.steps.len());

    for first in 0..events {
        // The second death comes a little later: 0 means none.
        let seconds = [0, 1 + first % 7];
        for second in if matches!(wanted, Wanted::Build | Wanted::Rebuild(_)) { &seconds[..] } else { &seconds[1..] } {
            let second = *second;
            let world = before_of(cluster, &wanted).await;
            let plan = draw(&world, &wanted).await;
            let journal = MemoryJournal::default();
            let died = process(&world, &plan, journal.stopping_after(first)).await;
            assert!(
                matches!(died, Err(RunError::Journal(JournalError::Stopped(_)))) || first + 1 >= events,
                "stopped after event {first}: {died:?}"
            );
            if second > 0 {
                let _ = process(&world, &plan, journal.stopping_after(first + second)).await;
            }
            process(&world, &plan, journal.continued())
                .await
                .unwrap_or_else(|e| panic!("resumed after events {first} and {second} more: {e}"));
            assert_eq!(outcome(&world).await, expected, "stopped after events {first} and {second} more");
            assert_eq!(world.cloud.creations(), created, "made twice after events {first} and {second} more");
        }
    }
    println!("{events} events, each survived");
}

#[tokio::test]
async fn a_build_survives_death_after_every_event() {
    battery(Wanted::Build).await;
}

#[tokio::test]
async fn a_rebuild_survives_death_after_every_event_and_keeps_the_old_volume() {
    battery(Wanted::Rebuild(RebuildChoice::default())).await;
    let wanted = Wanted::Rebuild(RebuildChoice::default());
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let volumes = outcome(&world).await.volumes;
    assert!(volumes.keys().any(|name| name.starts_with("demo-m2-etcd-before-")), "{volumes:?}");
    assert!(world.machines().await.values().all(|m| m.overwritten == 0), "no data was overwritten");
}

fn runbook(name: &str, servers: &[&str]) -> RunbookChoice {
    let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name).expect("a shipped runbook");
    let runbook = load_runbook(text, name).expect("it is right");
    RunbookChoice::new(runbook, servers.iter().map(|s| (*s).to_owned()).collect())
}

/// Nothing was torn away while in use, and no data is lost: what the masters have is what they had.
async fn kept(choice: &RunbookChoice) {
    let wanted = Wanted::Runbook(choice.clone());
    let world = before(&wanted).await;
    let plan = draw(&world, &wanted).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let machines = world.machines().await;
    assert!(machines.values().all(|m| m.torn == 0 && m.overwritten == 0), "{machines:?}");
    assert!(
        machines.iter().filter(|(name, _)| name.contains("-m")).all(|(_, m)| m.services.len() == 3),
        "{machines:?}"
    );
    assert!(world.objects().is_empty(), "left behind: {:?}", world.objects());
    assert_eq!(world.members().len(), 3);
    let again = draw(&world, &Wanted::Build).await;
    assert!(again.steps.is_empty(), "a build has something to do: {:?}", again.steps);
}

#[tokio::test]
async fn masters_offline_and_online_in_place_survive_death_after_every_event() {
    let choice = runbook("masters-online-offline-online", &[]);
    kept(&choice).await;
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn masters_recreated_survive_death_after_every_event() {
    let choice = runbook("masters-recreate", &[]);
    kept(&choice).await;
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn a_volume_reattached_survives_death_after_every_event() {
    let choice = runbook("volume-reattach", &["m2"]);
    kept(&choice).await;
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn the_first_master_replaced_with_its_volume_survives_death_after_every_event() {
    let choice = runbook("replace-master", &["m1"]);
    kept(&choice).await;
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn the_first_master_replaced_by_a_new_member_survives_death_after_every_event() {
    let mut choice = runbook("replace-master", &["m1"]);
    choice.runbook.steps[0].fresh_volume = true;
    kept(&choice).await;
    let wanted = Wanted::Runbook(choice);
    let world = before(&wanted).await;
    let old = world.members();
    let plan = draw(&world, &wanted).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let changed: Vec<_> = world.members().into_iter().filter(|(id, _)| !old.contains_key(id)).collect();
    assert!(matches!(&changed[..], [(_, (name, _))] if name == "m1"), "{changed:?}");
    let volumes = world.cloud.volumes("").await.expect("listed");
    assert!(volumes.iter().any(|v| v.name == "demo-m1-etcd-before-p1"), "the old data is kept: {volumes:?}");
    battery(wanted).await;
}

#[tokio::test]
async fn all_masters_brought_back_from_their_volumes_survive_death_after_every_event() {
    let choice = runbook("masters-from-volumes", &["m1", "m2", "m3"]);
    kept(&choice).await;
    battery(Wanted::Runbook(choice)).await;
}

#[tokio::test]
async fn a_runbook_whose_guard_fails_has_no_plan_and_says_what_to_do() {
    let refused = |world: MemoryWorld, choice: RunbookChoice| async move {
        let wanted = Wanted::Runbook(choice);
        let drawn = draw_plan(&world.world(), "ssh-ed25519 AAAA", &wanted, &Course::default(), "p1").await;
        drawn.expect_err("no plan").to_string()
    };
    let world = before(&Wanted::Runbook(runbook("volume-reattach", &["m2"]))).await;
    let servers = world.cloud.servers("").await.expect("listed");
    let m3 = servers.iter().find(|s| s.name == "demo-m3").expect("m3");
    world.cloud.delete_server(m3.id).await.expect("deleted");
    for (choice, says) in [
        (runbook("masters-online-offline-online", &[]), "allMastersServe does not hold: demo-m3 does not exist"),
        (runbook("volume-reattach", &["m2"]), "allMastersServe"),
        (
            runbook("replace-master", &["m2"]),
            "majorityStays does not hold: etcd has 3 members and would keep 1 of them (m1)",
        ),
        (runbook("replace-master", &["m9"]), "cluster.yaml has no master m9"),
        (runbook("replace-master", &[]), "none is chosen"),
    ] {
        let found = refused(world.clone(), choice).await;
        assert!(found.contains(says), "{found}");
    }
    // The one that is lost can be replaced.
    let plan = draw(&world, &Wanted::Runbook(runbook("replace-master", &["m3"]))).await;
    assert!(
        plan.findings.iter().any(|f| f.contains("demo-m3 does not exist; volume demo-m3-etcd")),
        "{:?}",
        plan.findings
    );
}

#[tokio::test]
async fn a_destruction_survives_death_after_every_event_and_takes_only_what_it_was_told() {
    for (choice, volumes, objects) in [
        (DestroyChoice::default(), 3, true),
        (DestroyChoice { volumes: true, backups: false }, 0, true),
        (DestroyChoice { volumes: true, backups: true }, 0, false),
    ] {
        let wanted = Wanted::Destroy(choice);
        let world = before(&wanted).await;
        stranger(&world).await;
        let plan = draw(&world, &wanted).await;
        process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
        let servers = world.cloud.servers("").await.expect("listed");
        assert_eq!(servers.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["stranger"]);
        assert_eq!(world.cloud.volumes("").await.expect("listed").len(), volumes);
        assert!(world.cloud.network_by_name("demo").await.expect("asked").is_none());
        assert!(world.cloud.placement_group_by_name("demo-masters").await.expect("asked").is_none());
        assert!(world.cloud.ssh_key_by_name("demo").await.expect("asked").is_none());
        assert_eq!(!world.store.list("demo/").await.expect("listed").is_empty(), objects);
        // The vault in memory is no object of the bucket.
        let again = draw(&world, &wanted).await;
        assert!(again.steps.iter().all(|s| s.id == "backups"), "a second one has something to do: {:?}", again.steps);
    }
    battery(Wanted::Destroy(DestroyChoice { volumes: true, backups: true })).await;
}

/// A server of somebody else in the same project.
async fn stranger(world: &MemoryWorld) {
    let server = hk_dr::ports::ServerSpec {
        name: "stranger".into(),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "fsn1".into(),
        ssh_keys: Vec::new(),
        placement_group: None,
        labels: Default::default(),
        public_ipv4: true,
        start: true,
        user_data: String::new(),
    };
    world.cloud.create_server(&server).await.expect("the stranger's server");
}

#[tokio::test]
async fn drift_is_what_changed_behind_gits_back_and_nothing_else() {
    let world = before(&Wanted::Destroy(DestroyChoice::default())).await;
    stranger(&world).await;
    let look = || async {
        let (_, drifts) = look_for_drift(&world.world(), "ssh-ed25519 AAAA").await.expect("looked");
        drifts.into_iter().map(|d| format!("{}: {} ({})", d.what, d.found, d.mend)).collect::<Vec<_>>()
    };
    assert!(look().await.is_empty(), "{:?}", look().await);

    let servers = world.cloud.servers("hk-dr/cluster").await.expect("listed");
    let id = |name: &str| servers.iter().find(|s| s.name == name).expect("a server").id;
    world.cloud.power_off(id("demo-w1")).await.expect("off");
    let volume = world.cloud.volume_by_name("demo-m2-etcd").await.expect("asked").expect("there");
    world.cloud.detach_volume(volume.id).await.expect("detached");
    world.cloud.delete_server(id("demo-m3")).await.expect("deleted");
    let found = look().await;
    for says in [
        "demo-w1: switched off or changing",
        "demo-m2-etcd: attached to nothing (hk-dr build)",
        "demo-m3: it does not exist (hk-dr runbook run replace-master --server m3)",
        "demo-m3-etcd: attached to nothing",
    ] {
        assert!(found.iter().any(|f| f.starts_with(says)), "{says} is not in {found:?}");
    }
    assert!(!found.iter().any(|f| f.contains("stranger")), "{found:?}");
}

#[tokio::test]
async fn a_second_build_has_no_steps_for_what_exists_in_the_cloud() {
    let world = before(&Wanted::Build).await;
    let plan = draw(&world, &Wanted::Build).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let (created, built) = (world.cloud.creations(), outcome(&world).await);
    let again = draw(&world, &Wanted::Build).await;
    process(&world, &again, MemoryJournal::default()).await.expect("it ends");
    assert_eq!(world.cloud.creations(), created, "a second build creates nothing in the cloud");
    assert_eq!(outcome(&world).await, built, "a second build changes no machine");
    let made: Vec<_> = again.steps.iter().filter(|s| s.kind.ends_with(".create")).collect();
    assert!(made.is_empty(), "{made:?}");
}

#[tokio::test]
async fn a_build_that_is_planned_again_still_looks_at_the_machines() {
    let world = before(&Wanted::Build).await;
    let plan = draw(&world, &Wanted::Build).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    // A location has no capacity: the plan is replaced by one without it. What the masters hold must be known to it as
    // to the first, or it would found an etcd over the one that is there.
    let course = Course { parent: Some(plan.id.clone()), lineage: Some(plan.lineage.clone()), ..Course::default() };
    let again = draw_plan(&world.world(), "ssh-ed25519 AAAA", &Wanted::Build, &course, "p2").await.expect("a plan");
    process(&world, &again, MemoryJournal::default()).await.expect("it ends");
    assert!(world.machines().await.values().all(|m| m.overwritten == 0), "no data was overwritten");
    let first = draw(&world, &Wanted::Build).await;
    let kinds = |plan: &Plan| plan.steps.iter().map(|s| s.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&again), kinds(&first), "planned again or for the first time, it finds the same to do");
}

/// A cluster that is built, and a look at what a second build would do.
async fn built(cluster: &Cluster) -> MemoryWorld {
    let world = MemoryWorld::new(cluster, false);
    let plan = draw(&world, &Wanted::Build).await;
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    let again = draw(&world, &Wanted::Build).await;
    assert!(again.steps.is_empty(), "a second build has something to do: {:?}", again.steps);
    world
}
