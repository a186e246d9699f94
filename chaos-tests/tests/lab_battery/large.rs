//! A database so large that it is read on its member's machine, and what comes back from it.

use serde_json::{Value, json};

use super::everyday::{answer, ssh};
use super::guarded::kube;
use super::{Lab, succeeded};

/// Objects of 900 kB each: 72 MB, more than what is read through etcd's API.
const OBJECTS: usize = 80;
const OBJECT_BYTES: usize = 900_000;
/// Where hk-dr lies on masters.
const PLACE: &str = "/var/lib/hk-dr";

fn configure(lab: &Lab) {
    let config = lab.path("kubeconfig-gitops");
    succeeded(&lab.operator(&["kubeconfig", "--to", &config], None), "kubeconfig");
}

pub fn fill(lab: &Lab) {
    configure(lab);
    let items: Vec<Value> = (0..OBJECTS)
        .map(|n| {
            let text: String = (0..OBJECT_BYTES / 10).map(|i| format!("{:09} ", i * (n + 1) % 999_983)).collect();
            let metadata = json!({"name": format!("large-{n}"), "namespace": "default", "labels": {"large": "yes"}});
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}})
        })
        .collect();
    let file = lab.path("large.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    std::fs::write(&file, serde_json::to_vec(&list).expect("JSON")).expect("written");
    succeeded(&kube(lab, &["create", "-f", &file]), "large objects");
}

/// Through the API when it is asked for, or when the machine takes no program; else beside the member. The last one is what comes
/// back later.
pub fn snapshots(lab: &Lab) {
    let snapshot = |args: &[&str]| {
        let taken = lab.operator(&[&["snapshot", "take", "--json"], args].concat(), None);
        succeeded(&taken, "snapshot");
        answer(&taken)
    };
    let everywhere = |command: &str| {
        for master in ["m1", "m2", "m3"] {
            succeeded(&ssh(lab, master, command), command);
        }
    };
    let asked = snapshot(&["--through-api"]);
    assert_eq!(asked["not_in_place"], Value::Null);
    everywhere(&format!("test ! -e {PLACE} && echo mine >{PLACE}"));
    let refused = snapshot(&[]);
    let why = refused["not_in_place"].as_str().unwrap_or_default();
    assert!(why.contains("did not take hk-dr"), "{refused}");
    everywhere(&format!("rm {PLACE}"));

    let beside = snapshot(&[]);
    assert_eq!(beside["not_in_place"], Value::Null, "{beside}");
    let source = beside["source_member"].as_str().expect("a member");
    succeeded(
        &ssh(lab, source, &format!("test $(ls -A {PLACE} | wc -l) = 1 && ! pgrep hk-dr")),
        "one program, at rest",
    );
    for snapshot in [&asked, &refused, &beside] {
        assert!(snapshot["etcd"]["plain_bytes"].as_u64() > Some((OBJECTS * OBJECT_BYTES) as u64), "{snapshot}");
        // Deletions and leases of their own may have come in between.
        let keys = |of: &Value| of["keys"].as_i64().unwrap_or_default();
        assert!((keys(snapshot) - keys(&asked)).abs() < 20, "{snapshot}");
    }
}

pub fn came_back(lab: &Lab) {
    configure(lab);
    let listed = kube(lab, &["get", "configmap", "-l", "large=yes", "-o", "json"]);
    let items = answer(&listed)["items"].as_array().cloned().unwrap_or_default();
    assert_eq!(items.len(), OBJECTS);
    for item in &items {
        assert_eq!(item["data"]["text"].as_str().map(str::len), Some(OBJECT_BYTES), "{}", item["metadata"]["name"]);
    }
    succeeded(&kube(lab, &["delete", "configmap", "-l", "large=yes"]), "their end");
}
