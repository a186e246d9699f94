//! Runbooks on the real cluster: hk-dr dies in the middle of some of them, and what they promise is looked up afterwards.

use std::collections::BTreeMap;
use std::process::Command;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use serde_json::Value;

use super::{Lab, die_and_resume, hk_dr, refused, succeeded, unique, whole};

/// The evidence of the newest run.
pub fn evidence(lab: &Lab) -> Value {
    let runs = std::fs::read_dir(lab.path("state") + "/demo/runs").expect("runs").flatten();
    let newest = runs.map(|r| r.path().join("evidence.json")).filter(|p| p.exists()).max().expect("evidence");
    serde_json::from_slice(&std::fs::read(newest).expect("readable")).expect("JSON")
}

/// What every run must show; whether it met its time depends on the machine this runs on.
fn nothing_lost(evidence: &Value) {
    println!(
        "{}: {} after {} s, writes {}, longest gap {} s: {}",
        evidence["runbook"],
        evidence["verdict"],
        evidence["recovery"]["seconds"],
        evidence["writes"]["percent"],
        evidence["writes"]["longest_gap_seconds"],
        evidence["reasons"]
    );
    assert_eq!(evidence["recovery_point"]["lost"], 0, "{}", evidence["reasons"]);
    assert!(evidence["recovery_point"]["acknowledged"].as_u64().expect("a count") > 0);
    let steps = evidence["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|s| s["ended"].is_string() && s["error"].is_null()), "{steps:?}");
}

fn destroy_server(lab: &Lab, name: &str, volume_too: bool) {
    let mut script = format!(
        "auth=\"Authorization: Bearer $HCLOUD_TOKEN\"; curl -fsS -X DELETE -H \"$auth\" $HCLOUD_ENDPOINT/servers/{} >/dev/null",
        unique(lab, "servers")[name]
    );
    if volume_too {
        let volume = unique(lab, "volumes")[&format!("{name}-etcd")];
        script += &format!(
            "; for i in $(seq 1 50); do curl -fsS -X DELETE -H \"$auth\" $HCLOUD_ENDPOINT/volumes/{volume} 2>/dev/null && exit 0; \
             sleep 0.2; done; exit 1"
        );
    }
    let args = ["lab", "exec", "--name", &lab.name, "--from", "operator", "--", "sh", "-c", &script];
    succeeded(&Command::new(hk_dr()).args(args).output().expect("hk-dr starts"), "losing a server");
}

/// Shipped runbooks with the masters they are run on, in the lab's battery.
const ALL: [(&str, &[&str]); 10] = [
    ("masters-online-offline-online", &[]),
    ("masters-recreate", &[]),
    ("masters-to-other-location", &[]),
    ("restore-to-time", &[]),
    ("volume-reattach", &["--server", "m2"]),
    ("replace-master", &["--server", "m1"]),
    ("sandbox-restore", &[]),
    ("rebuild-from-git", &[]),
    ("key-rotation", &[]),
    ("location-evacuate", &[HOME]),
];

/// Stands for `--from` with a location that one master is in.
const HOME: &str = "home";

/// Nobody is there to approve a manual step.
const ROTATION: &str = "apiVersion: hk-dr/v1\nkind: Runbook\nname: key-rotation\nsummary: Rotates.\nmasters: all\nsteps:\n\
                        - verb: sshKey.authorize\n- verb: sshKey.revoke\n- verb: cluster.verify\n";

/// A location with one master, if there is any: with two of three in it, leaving it would cost the majority, and is refused.
fn home(lab: &Lab) -> Option<String> {
    let mut masters: BTreeMap<String, usize> = BTreeMap::new();
    for server in lab.api("servers").iter().filter(|s| s["name"].as_str().is_some_and(|n| n.starts_with("demo-m"))) {
        let place = [&server["location"]["name"], &server["datacenter"]["location"]["name"]];
        *masters.entry(place.iter().find_map(|p| p.as_str()).expect("a location").to_owned()).or_default() += 1;
    }
    masters.into_iter().find(|(_, there)| *there == 1).map(|(place, _)| place)
}

/// Dies at so many points over all runbooks, each drawn by the seed, and continues every other one from another machine.
pub fn die_everywhere(lab: &Lab, random: &mut StdRng, points: usize) {
    std::fs::create_dir_all(lab.dir.path().join("git/runbooks")).expect("a directory");
    std::fs::write(lab.dir.path().join("git/runbooks/key-rotation.yaml"), ROTATION).expect("written");
    for point in 1..=points {
        let (mut name, mut servers) = ALL[random.random_range(0..ALL.len())];
        let place = home(lab);
        let from = place.as_deref().map(|place| ["--from", place]);
        if servers == [HOME] {
            (name, servers) = from.as_ref().map_or(ALL[0], |from| (name, from));
        }
        let planned = lab.operator(&[&["runbook", "plan", name, "--json"], servers].concat(), None);
        succeeded(&planned, "runbook plan");
        let planned: Value = serde_json::from_slice(&planned.stdout).expect("JSON");
        let events = 2 * planned["plan"]["steps"].as_array().expect("steps").len();
        let death = random.random_range(0..events);
        let elsewhere = random.random_bool(0.5);
        println!("point {point}: {name} dies after event {death} of {events}, continued elsewhere: {elsewhere}");
        lab.operator(&[&["runbook", "run", name, "--yes"], servers].concat(), Some(death));
        let place = if elsewhere { "elsewhere" } else { "state" };
        let last = lab.operator_with(&["resume", "--take-over"], None, place);
        // It may have died behind its last event, and a rehearsal that took too long has ended all the same.
        if !matches!(last.status.code(), Some(2 | 5)) {
            succeeded(&last, "resume");
        }
        whole(lab);
        for (volume, id) in unique(lab, "volumes").into_iter().filter(|(v, _)| v.contains("-before-")) {
            // A hundred deaths come near the hour's limit of requests: curl waits as it is told.
            let script = format!(
                "curl -fsS --retry 40 -X DELETE -H \"Authorization: Bearer $HCLOUD_TOKEN\" $HCLOUD_ENDPOINT/volumes/{id} >/dev/null"
            );
            let args = ["lab", "exec", "--name", &lab.name, "--from", "operator", "--", "sh", "-c", &script];
            succeeded(&lab.host(&args), &volume);
        }
    }
    println!("{points} of {points} points survived");
}

/// On the living cluster, which lives afterwards.
pub fn rehearse(lab: &Lab, random: &mut StdRng) {
    let volumes = unique(lab, "volumes");

    // All masters offline and online in place. About eighty events; the deaths fall between the first stop and the end.
    // Different ones: a resume whose event was written before its beginning would run to the end.
    let mut deaths: Vec<usize> = sample(random, 40, 2).into_iter().map(|event| event + 3).collect();
    deaths.sort_unstable();
    println!("masters-online-offline-online dies after events {deaths:?}");
    let run = ["runbook", "run", "masters-online-offline-online", "--yes"];
    lab.operator(&run, Some(deaths[0]));
    // Another machine is told who works there; it continues with nothing but Git, the bucket and an identity.
    let build = lab.operator_with(&["build", "--yes"], None, "elsewhere");
    refused(&build, 1, &["works on this (runbook masters-online-offline-online)", "nothing was touched"]);
    lab.operator_with(&["resume", "--take-over"], Some(deaths[1]), "elsewhere");
    let last = lab.operator(&["resume", "--take-over"], None);
    // A rehearsal that took longer than its runbook allows has ended all the same.
    if last.status.code() != Some(2) {
        succeeded(&last, "the last resume");
    }
    let found = evidence(lab);
    nothing_lost(&found);
    assert_eq!(found["comparison"]["equal"], true, "{}", found["comparison"]);
    assert_eq!(found["snapshot"].as_str().map(|s| s.contains("-r")), Some(true), "{}", found["snapshot"]);
    assert_eq!(unique(lab, "volumes"), volumes);
    whole(lab);

    // The first master's server is lost, its volume is not: it comes back with its data.
    let servers = unique(lab, "servers");
    destroy_server(lab, "demo-m1", false);
    succeeded(&lab.operator(&["runbook", "run", "replace-master", "--server", "m1", "--yes"], None), "replace-master");
    nothing_lost(&evidence(lab));
    assert_ne!(unique(lab, "servers")["demo-m1"], servers["demo-m1"]);
    assert_eq!(unique(lab, "volumes"), volumes);

    // Server and volume are lost: a build does not found anything in their place, a new member takes it.
    destroy_server(lab, "demo-m1", true);
    refused(&lab.operator(&["build", "--yes"], None), 1, &["neither data nor a volume", "replace-master --server m1"]);
    refused(
        &lab.operator(&["runbook", "run", "replace-master", "--server", "m2", "--yes"], None),
        2,
        &["majorityStays", "no majority", "nothing was touched"],
    );
    let death = random.random_range(8..30);
    die_and_resume(lab, &["runbook", "run", "replace-master", "--server", "m1", "--yes"], &[death]);
    nothing_lost(&evidence(lab));
    assert_ne!(unique(lab, "volumes")["demo-m1-etcd"], volumes["demo-m1-etcd"]);
    whole(lab);
}
