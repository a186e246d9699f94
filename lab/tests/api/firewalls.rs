//! Firewalls, as the machine room is told of them.

use serde_json::{Value, json};

use crate::client::{Lab, server_body};

fn ssh_from(network: &str) -> Value {
    json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": [network]})
}

/// The last rules a machine was given.
fn rules_of(lab: &Lab, server: u64) -> Option<String> {
    let start = format!("set_firewall {server} ");
    lab.served.backend.effects().iter().rev().find_map(|e| e.strip_prefix(&start).map(str::to_owned))
}

#[tokio::test]
async fn a_server_is_filtered_before_it_boots() {
    let lab = Lab::start().await;
    let body = json!({"name": "f", "rules": [ssh_from("10.0.0.0/8")], "labels": {"a": "b"}});
    let firewall = lab.post("/firewalls", body).await.ok()["firewall"]["id"].as_u64().unwrap();
    let more = json!({"firewalls": [{"firewall": firewall}]});
    let body = lab.done(lab.post("/servers", server_body("s", more)).await).await;
    let server = body["server"]["id"].as_u64().unwrap();
    let effects = lab.served.backend.effects();
    let at = |effect: &str| effects.iter().position(|e| e.starts_with(effect)).unwrap();
    assert!(at("create_machine") < at("set_firewall") && at("set_firewall") < at("power_on"));
    assert_eq!(rules_of(&lab, server).unwrap(), "[in tcp 22-22 10.0.0.0/8]");
    let shown = lab.get(&format!("/servers/{server}")).await.ok()["server"]["public_net"]["firewalls"].clone();
    assert_eq!(shown, json!([{"id": firewall, "status": "applied"}]));
    assert_eq!(lab.delete(&format!("/firewalls/{firewall}")).await.refused(), (409, "resource_in_use"));
    // It is free when its last server is gone.
    lab.done(lab.delete(&format!("/servers/{server}")).await).await;
    assert_eq!(lab.delete(&format!("/firewalls/{firewall}")).await.status, 204);
}

async fn all_done(lab: &Lab, answer: crate::client::Answer) {
    let actions = answer.ok()["actions"].as_array().unwrap().clone();
    for action in actions {
        let body = json!({"action": action});
        lab.done(crate::client::Answer { status: 201, headers: Default::default(), body }).await;
    }
}

#[tokio::test]
async fn rules_add_up_and_change() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let body = json!({"name": name, "apply_to": [{"type": "server", "server": {"id": server}}]});
        let answer = lab.post("/firewalls", body).await;
        ids.push(answer.body["firewall"]["id"].as_u64().unwrap());
        all_done(&lab, answer).await;
    }
    assert_eq!(rules_of(&lab, server).unwrap(), "[]", "a firewall without rules lets nothing in");
    let out = json!({"direction": "out", "protocol": "udp", "port": "any", "destination_ips": ["::/0"]});
    for (id, rules) in [(ids[0], json!([ssh_from("0.0.0.0/0")])), (ids[1], json!([out]))] {
        all_done(&lab, lab.post(&format!("/firewalls/{id}/actions/set_rules"), json!({"rules": rules})).await).await;
    }
    assert_eq!(rules_of(&lab, server).unwrap(), "[in tcp 22-22 0.0.0.0/0, out udp 1-65535 ::/0]");
    let of_server = json!([{"type": "server", "server": {"id": server}}]);
    let apply = format!("/firewalls/{}/actions/apply_to_resources", ids[0]);
    let again = lab.post(&apply, json!({"apply_to": of_server})).await;
    assert_eq!(again.refused(), (422, "firewall_already_applied"));
    for id in ids {
        let path = format!("/firewalls/{id}/actions/remove_from_resources");
        all_done(&lab, lab.post(&path, json!({"remove_from": of_server})).await).await;
        assert_eq!(lab.post(&path, json!({"remove_from": of_server})).await.refused().1, "firewall_resource_not_found");
    }
    assert_eq!(rules_of(&lab, server).unwrap(), "off");
}

#[tokio::test]
async fn label_selectors_follow_labels_and_servers() {
    let lab = Lab::start().await;
    let selector = json!({"type": "label_selector", "label_selector": {"selector": "role=web"}});
    let body = json!({"name": "web", "rules": [ssh_from("0.0.0.0/0")], "apply_to": [selector]});
    let firewall = lab.post("/firewalls", body).await.ok()["firewall"]["id"].as_u64().unwrap();
    let server = lab.server("s").await;
    assert_eq!(rules_of(&lab, server), None);
    let path = format!("/servers/{server}");
    lab.put(&path, json!({"labels": {"role": "web"}})).await.ok();
    lab.until(|| rules_of(&lab, server).is_some_and(|r| r.contains("22-22"))).await;
    let shown = lab.get(&format!("/firewalls/{firewall}")).await.ok()["firewall"]["applied_to"][0].clone();
    assert_eq!(shown["applied_to_resources"], json!([{"type": "server", "server": {"id": server}}]));
    let remove = json!({"remove_from": [{"type": "server", "server": {"id": server}}]});
    let removed = lab.post(&format!("/firewalls/{firewall}/actions/remove_from_resources"), remove).await;
    assert_eq!(removed.refused(), (422, "firewall_managed_by_label_selector"));
    lab.put(&path, json!({"labels": {}})).await.ok();
    lab.until(|| rules_of(&lab, server).as_deref() == Some("off")).await;
    // A new server with the label is filtered before it boots.
    let body = server_body("late", json!({"labels": {"role": "web"}}));
    let late = lab.done(lab.post("/servers", body).await).await["server"]["id"].as_u64().unwrap();
    assert!(rules_of(&lab, late).unwrap().contains("22-22"));
}

#[tokio::test]
async fn what_could_not_be_applied_is_pending_and_tried_again() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    lab.served.backend.fail_next("set_firewall", "nft is busy");
    let body = json!({"name": "f", "apply_to": [{"type": "server", "server": {"id": server}}]});
    lab.post("/firewalls", body).await.ok();
    lab.until(|| rules_of(&lab, server).is_some()).await;
    let tries = || lab.served.backend.effects().iter().filter(|e| e.starts_with("set_firewall")).count();
    lab.until(|| tries() >= 2).await;
    // The rules are in force a moment before the API says so.
    for _ in 0..500 {
        let shown = lab.get(&format!("/servers/{server}")).await.ok();
        if shown["server"]["public_net"]["firewalls"][0]["status"] == "applied" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the firewall stays pending");
}

#[tokio::test]
async fn wrong_rules_are_refused_and_named() {
    let lab = Lab::start().await;
    for (rule, field) in [
        (json!({"direction": "up", "protocol": "tcp", "port": "1", "source_ips": ["::/0"]}), "rules.0.direction"),
        (json!({"direction": "in", "protocol": "tcp", "source_ips": ["::/0"]}), "rules.0.port"),
        (json!({"direction": "in", "protocol": "icmp", "port": "1", "source_ips": ["::/0"]}), "rules.0.port"),
        (json!({"direction": "in", "protocol": "tcp", "port": "9-1", "source_ips": ["::/0"]}), "rules.0.port"),
        (json!({"direction": "in", "protocol": "tcp", "port": "1", "source_ips": []}), "rules.0.source_ips"),
        (
            json!({"direction": "in", "protocol": "tcp", "port": "1", "source_ips": ["10.0.0.1/8"]}),
            "rules.0.source_ips",
        ),
        (json!({"direction": "out", "protocol": "tcp", "port": "1"}), "rules.0.destination_ips"),
        (json!({"direction": "in", "protocol": "ipx", "source_ips": ["::/0"]}), "rules.0.protocol"),
    ] {
        assert_eq!(lab.post("/firewalls", json!({"name": "f", "rules": [rule]})).await.wrong_field(), field);
    }
    let unknown = json!({"name": "f", "apply_to": [{"type": "server", "server": {"id": 4711}}]});
    assert_eq!(lab.post("/firewalls", unknown).await.refused().1, "firewall_resource_not_found");
}

#[tokio::test]
async fn a_server_takes_five_firewalls() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let apply = json!([{"type": "server", "server": {"id": server}}]);
    for i in 0..5 {
        all_done(&lab, lab.post("/firewalls", json!({"name": format!("f{i}"), "apply_to": apply})).await).await;
    }
    let sixth = lab.post("/firewalls", json!({"name": "f5", "apply_to": apply})).await;
    assert_eq!(sixth.refused(), (403, "resource_limit_exceeded"));
}
