//! Rehearsals on a copy of the real cluster: production's resources are counted out before and after, action by action.

use serde_json::Value;

use super::runbooks::evidence;
use super::{Lab, refused, succeeded};

/// What the cloud has that a cluster is made of.
const KINDS: [&str; 6] = ["servers", "volumes", "networks", "firewalls", "placement_groups", "ssh_keys"];

/// Everything the cloud shows of production, and how often each thing was acted on: a write leaves a trace in one of both.
fn production(lab: &Lab) -> Vec<(String, Value, usize)> {
    let mut found = Vec::new();
    for kind in KINDS {
        for mut thing in lab.api(kind) {
            assert!(thing["labels"]["hk-dr/copy-of"].is_null(), "{kind} {} of a copy is left", thing["name"]);
            // Traffic flows whatever anybody asks of the cloud.
            for counter in ["outgoing_traffic", "ingoing_traffic"] {
                thing.as_object_mut().expect("an object").remove(counter);
            }
            let id = thing["id"].as_u64().expect("an id");
            // These two have no actions: what was done to them shows in what they are.
            let actions = match kind {
                "placement_groups" | "ssh_keys" => 0,
                _ => lab.get(&format!("{kind}/{id}/actions"))["meta"]["pagination"]["total_entries"]
                    .as_u64()
                    .expect("a count"),
            };
            found.push((format!("{kind}/{id}"), thing, usize::try_from(actions).expect("a few")));
        }
    }
    found
}

/// What each rehearsal on a copy must show.
fn same(evidence: &Value) {
    println!("{}: {} {}", evidence["runbook"], evidence["verdict"], evidence["reasons"]);
    let copy = &evidence["copy"];
    let number = |name: &str| copy[name].as_u64().unwrap_or_else(|| panic!("{name} of {copy}"));
    assert_eq!(number("keys"), number("keys_equal") + number("keys_ended_with_lease"));
    assert!(number("keys") > 100 && number("objects_served") > 50, "{copy}");
    assert!(copy["cost"].as_f64().is_some_and(|cost| cost > 0.0) && copy["currency"] == "EUR", "{copy}");
    assert!(evidence["recovery"]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{evidence}");
    assert!(evidence["recovery_point"]["seconds"].as_f64().is_some(), "{evidence}");
}

fn rehearse(lab: &Lab, name: &str) {
    let run = lab.operator(&["runbook", "run", name, "--yes"], None);
    // One that took longer than its runbook allows has ended all the same.
    if run.status.code() != Some(2) {
        succeeded(&run, name);
    }
    let found = evidence(lab);
    assert_eq!(found["runbook"], name);
    same(&found);
    assert_eq!(found["copy"]["after"], "discarded");
}

/// A sandbox; then one that fails; then one that is kept for a look.
pub fn sandbox(lab: &Lab) {
    let was = production(lab);
    let planned = lab.operator(&["runbook", "run", "sandbox-restore", "--plan"], None);
    succeeded(&planned, "the plan");
    let text = String::from_utf8_lossy(&planned.stdout).into_owned();
    for says in ["demo is not touched", "EUR for each hour that is begun", "Point of no return: none"] {
        assert!(text.contains(says), "nothing about {says} in: {text}");
    }
    rehearse(lab, "sandbox-restore");
    assert_eq!(production(lab), was, "production was touched");
    let snapshots = lab.operator(&["snapshot", "list", "--json"], None);
    assert!(String::from_utf8_lossy(&snapshots.stdout).contains("drill"), "the snapshot counts as proven by a drill");

    let unavailable = |location: &str| {
        let args = ["lab", "fault", "add", "--name", &lab.name, "location-unavailable", location];
        succeeded(&lab.host(&args), "a fault");
    };
    // Its location has no capacity: the copy goes where the cluster could fall back to.
    unavailable("hel1");
    let run = lab.operator(&["runbook", "run", "sandbox-restore", "--to", "hel1", "--yes"], None);
    succeeded(&run, "a copy elsewhere");
    assert!(String::from_utf8_lossy(&run.stderr).contains("hel1 has no capacity"), "it says so");
    assert_eq!(evidence(lab)["verdict"], "passed");
    for location in ["fsn1", "nbg1"] {
        unavailable(location);
    }
    let run = lab.operator(&["runbook", "run", "sandbox-restore", "--to", "hel1", "--yes"], None);
    refused(&run, 1, &["its copy was deleted", "production was not touched"]);
    assert_eq!(evidence(lab)["verdict"], "failed");
    let args = ["lab", "fault", "lift", "--name", &lab.name, "--all"];
    succeeded(&lab.host(&args), "no faults");
    assert_eq!(production(lab), was, "production was touched, or something is left");
}

/// Reading back, a sandbox that is kept and deleted, and the whole cluster beside itself.
pub fn all(lab: &Lab) {
    let was = production(lab);
    succeeded(&lab.operator(&["snapshot", "verify", "latest", "--level", "boot"], None), "verify");
    assert_eq!(production(lab), was, "verify touched production");
    sandbox(lab);
    succeeded(&lab.operator(&["runbook", "run", "sandbox-restore", "--keep", "--yes"], None), "a sandbox to look at");
    assert_eq!(evidence(lab)["copy"]["after"], "kept");
    assert!(lab.api("servers").iter().any(|s| s["name"] == "demo-copy-m1"), "it is kept");
    succeeded(&lab.operator(&["runbook", "run", "discard-copy", "--yes"], None), "discard-copy");
    assert_eq!(production(lab), was, "production was touched, or something is left");
    rehearse(lab, "rebuild-from-git");
    assert_eq!(production(lab), was, "production was touched, or something is left");
}
