//! Runbooks on the real cluster: hk-dr dies in the middle of some of them, and what they promise is looked up afterwards.

use std::process::Command;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use serde_json::Value;

use super::{Lab, die_and_resume, hk_dr, refused, succeeded, unique, whole};

/// The evidence of the newest run.
fn evidence(lab: &Lab) -> Value {
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

/// On the living cluster, which lives afterwards.
pub fn rehearse(lab: &Lab, random: &mut StdRng) {
    let volumes = unique(lab, "volumes");

    // All masters offline and online in place. About eighty events; the deaths fall between the first stop and the end.
    // Different ones: a resume whose event was written before its beginning would run to the end.
    let mut deaths: Vec<usize> = sample(random, 40, 2).into_iter().map(|event| event + 3).collect();
    deaths.sort_unstable();
    println!("masters-online-offline-online dies after events {deaths:?}");
    die_and_resume(lab, &["runbook", "run", "masters-online-offline-online", "--yes"], &deaths);
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
