//! Everyday commands on the real cluster, and its end.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::{Lab, hk_dr, refused, succeeded, unique};

pub fn answer(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!("no JSON ({e}): {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

/// Calls the cloud's API with curl's arguments; `$1` is its address.
pub fn call(lab: &Lab, arguments: &str) -> Value {
    let script = format!(
        "set -- $HCLOUD_ENDPOINT; curl -fsS -H \"Authorization: Bearer $HCLOUD_TOKEN\" -H 'Content-Type: application/json' {arguments}"
    );
    let output = lab.host(&["lab", "exec", "--name", &lab.name, "--from", "operator", "--", "sh", "-c", &script]);
    succeeded(&output, arguments);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// What stands behind `--` is the server's, so hk-dr's own options come first.
pub fn ssh(lab: &Lab, server: &str, command: &str) -> std::process::Output {
    let program = hk_dr().display().to_string();
    let (git, state, identity) = (lab.path("git"), lab.path("state"), lab.path("identity"));
    let place = ["lab", "exec", "--name", &lab.name, "--from", "operator", "--", &program];
    let options = ["-C", &git, "--state", &state, "--identity", &identity];
    lab.host(&[&place[..], &options, &["ssh", server, "--", command]].concat())
}

/// Looking changes nothing, says what is, and a server with another host key than the pinned one gets nobody's login.
#[expect(clippy::disallowed_methods, reason = "this test has no runtime")]
pub fn look(lab: &Lab) {
    let status = lab.operator(&["status", "--json"], None);
    let status = answer(&status);
    assert_ne!(status["health"], "down", "{status}");
    assert_eq!(status["etcd"], json!({"members": 3, "serving": 3, "majority": true}));
    assert_eq!(status["drift"], json!([]));
    let servers = status["servers"].as_array().expect("servers");
    assert!(servers.iter().all(|s| s["state"] == "running" && s["certificates_until"].is_string()), "{servers:?}");
    assert!(status["drill"]["runbook"].is_string() && status["snapshot"]["id"].is_string(), "{status}");
    succeeded(&lab.operator(&["drift"], None), "drift");

    let inside = ssh(lab, "m1", "hostname; exit 7");
    assert_eq!((inside.status.code(), inside.stdout.as_slice()), (Some(7), &b"demo-m1\n"[..]));
    let id = unique(lab, "servers")["demo-w1"];
    let labels = call(lab, &format!("$1/servers/{id}"))["server"]["labels"].clone();
    let mut forged = labels.clone();
    forged["hk-dr/host-key"] = json!(format!("s{}s", "A".repeat(43)));
    let relabel = |labels: &Value| call(lab, &format!("-X PUT -d '{}' $1/servers/{id}", json!({"labels": labels})));
    relabel(&forged);
    refused(&ssh(lab, "w1", "true"), 255, &["pinned is SHA256:AAAA"]);
    relabel(&labels);
    refused(&lab.operator(&["ssh", "m9"], None), 3, &["has no server m9", "m1, m2, m3, w1"]);

    let file = lab.path("kubeconfig");
    succeeded(&lab.operator(&["kubeconfig", "--to", &file], None), "kubeconfig");
    assert_eq!(std::fs::metadata(&file).expect("written").permissions().mode() & 0o777, 0o600);

    call(lab, &format!("-X POST $1/servers/{id}/actions/poweroff"));
    let off = (0..50).any(|_| call(lab, &format!("$1/servers/{id}"))["server"]["status"] == "off");
    assert!(off, "w1 is still on");
    let drift = lab.operator(&["drift"], None);
    assert_eq!(drift.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&drift.stdout).contains("demo-w1: declared is running"), "{drift:?}");
    call(lab, &format!("-X POST $1/servers/{id}/actions/poweron"));
    let back = (0..50).any(|_| {
        ssh(lab, "w1", "true").status.success() || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            false
        }
    });
    assert!(back, "w1 is still off");

    // Somebody else's, in the same project: nothing may ever happen to it.
    let stranger = json!({"name": "stranger", "server_type": "cx23", "image": "debian-12", "location": "fsn1"});
    call(lab, &format!("-X POST -d '{stranger}' $1/servers"));
}

/// The end of the cluster: only what it was told, only what is its own.
pub fn destroy(lab: &Lab) {
    let before = unique(lab, "servers");
    refused(&lab.operator(&["destroy"], None), 3, &["nothing was touched", "--confirm demo"]);
    refused(&lab.operator(&["destroy", "--confirm", "other"], None), 3, &["nothing was touched"]);
    refused(&lab.operator(&["destroy", "--confirm", "demo", "--delete-volumes"], None), 3, &["--confirm-volumes demo"]);
    assert_eq!(unique(lab, "servers"), before);

    succeeded(&lab.operator(&["destroy", "--confirm", "demo"], None), "destroy");
    assert_eq!(unique(lab, "servers").into_keys().collect::<Vec<_>>(), ["stranger"]);
    let kept = unique(lab, "volumes");
    assert!(["demo-m1-etcd", "demo-m2-etcd", "demo-m3-etcd"].iter().all(|v| kept.contains_key(*v)), "{kept:?}");
    refused(&lab.operator(&["build", "--yes"], None), 1, &["masters-from-volumes --server m1", "hk-dr rebuild"]);

    let all = ["destroy", "--confirm", "demo", "--delete-volumes", "--confirm-volumes", "demo"];
    succeeded(&lab.operator(&all, None), "destroy with volumes");
    for what in ["volumes", "networks", "placement_groups", "ssh_keys"] {
        assert_eq!(unique(lab, what).len(), 0, "{what} are left");
    }
    assert_eq!(unique(lab, "servers").into_keys().collect::<Vec<_>>(), ["stranger"]);
    succeeded(&lab.operator(&["snapshot", "list"], None), "the snapshots are there");
}
