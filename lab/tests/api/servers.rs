//! Servers.

use std::sync::Arc;

use futures::future::join_all;
use hk_lab::backend::MachineEvent;
use serde_json::{Value, json};

use crate::client::{KEY_ONE, Lab, server_body};

#[tokio::test]
async fn a_server_gets_its_volumes_and_networks_before_it_boots() {
    let lab = Lab::start().await;
    let (volume, network) = (lab.volume("v", "fsn1").await, lab.network("n").await);
    lab.post("/ssh_keys", json!({"name": "ops", "public_key": KEY_ONE})).await.ok();
    let more = json!({"volumes": [volume], "networks": [network], "ssh_keys": ["ops"], "user_data": "#!/bin/sh\n"});
    let answer = lab.post("/servers", server_body("m1", more)).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.body["server"]["status"], "initializing");
    assert_eq!(answer.body["action"]["status"], "running");
    assert_eq!(answer.body["action"]["command"], "create_server");
    let commands: Vec<&Value> = answer.body["next_actions"].as_array().unwrap().iter().map(|a| &a["command"]).collect();
    assert_eq!(commands, ["attach_volume", "attach_to_network", "start_server"]);

    let id = lab.done(answer).await["server"]["id"].as_u64().unwrap();
    let effects = lab.served.backend.effects();
    let of_server: Vec<&str> = effects.iter().map(String::as_str).skip(2).collect();
    assert_eq!(
        of_server,
        [
            format!("create_machine {id} m1 in fsn1"),
            format!("attach_volume {volume} to {id}"),
            format!("attach_network {id} to {network} as 10.0.0.2 in 10.0.0.0/16"),
            format!("power_on {id}"),
        ]
    );
    let server = lab.get(&format!("/servers/{id}")).await.ok()["server"].clone();
    assert_eq!(server["status"], "running");
    assert_eq!(server["locked"], false);
    assert_eq!(server["volumes"], json!([volume]));
    assert_eq!(server["private_net"][0]["ip"], "10.0.0.2");
    assert_eq!(server["public_net"]["ipv4"]["ip"], "203.0.113.2");
    assert_eq!(lab.get(&format!("/volumes/{volume}")).await.ok()["volume"]["server"], id);
    let metadata = lab.served.backend.metadata(id).unwrap();
    assert_eq!((metadata.hostname.as_str(), metadata.user_data.as_str()), ("m1", "#!/bin/sh\n"));
    assert_eq!(metadata.public_keys, [KEY_ONE]);
}

#[tokio::test]
async fn a_server_that_is_not_to_start_is_off() {
    let lab = Lab::start().await;
    let more = json!({"start_after_create": false, "public_net": {"enable_ipv4": false}});
    let answer = lab.post("/servers", server_body("cold", more)).await;
    assert_eq!(answer.body["next_actions"], json!([]));
    let id = lab.done(answer).await["server"]["id"].clone();
    let server = lab.get(&format!("/servers/{id}")).await.ok()["server"].clone();
    assert_eq!(server["status"], "off");
    assert_eq!(server["public_net"]["ipv4"], Value::Null);
    lab.done(lab.post(&format!("/servers/{id}/actions/poweron"), json!({})).await).await;
    assert_eq!(lab.get(&format!("/servers/{id}")).await.ok()["server"]["status"], "running");
}

#[tokio::test]
async fn servers_are_created_at_the_same_time() {
    let lab = Lab::start().await;
    lab.served.backend.hold();
    let answers = join_all(["a", "b", "c"].map(|name| lab.post("/servers", server_body(name, json!({}))))).await;
    // Each is at its first effect, and none of them waits for another.
    lab.until(|| lab.served.backend.running() == answers.len()).await;
    lab.served.backend.release();
    for answer in answers {
        lab.done(answer).await;
    }
}

#[tokio::test]
async fn of_parallel_creates_with_one_name_exactly_one_wins() {
    let lab = Lab::start().await;
    let answers = join_all((0..8).map(|_| lab.post("/servers", server_body("same", json!({}))))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 1);
    for lost in answers.iter().filter(|a| a.status != 201) {
        assert_eq!(lost.refused(), (409, "uniqueness_error"));
        assert_eq!(lost.body["error"]["details"]["fields"][0]["name"], "name");
    }
    let all = lab.get("/servers?name=same").await.ok();
    assert_eq!(all["meta"]["pagination"]["total_entries"], 1);
}

#[tokio::test]
async fn a_server_is_locked_while_an_action_runs() {
    let lab = Lab::start().await;
    let id = lab.server("busy").await;
    lab.served.backend.hold();
    let running = lab.post(&format!("/servers/{id}/actions/reset"), json!({})).await;
    assert_eq!(lab.get(&format!("/servers/{id}")).await.ok()["server"]["locked"], true);
    assert_eq!(lab.post(&format!("/servers/{id}/actions/poweroff"), json!({})).await.refused(), (423, "locked"));
    assert_eq!(lab.delete(&format!("/servers/{id}")).await.refused(), (423, "locked"));
    lab.served.backend.release();
    lab.done(running).await;
    lab.done(lab.delete(&format!("/servers/{id}")).await).await;
}

#[tokio::test]
async fn deleting_a_server_keeps_its_volumes_and_frees_its_name() {
    let lab = Lab::start().await;
    let volume = lab.volume("v", "fsn1").await;
    let body = server_body("m1", json!({"volumes": [volume]}));
    let id = lab.done(lab.post("/servers", body).await).await["server"]["id"].as_u64().unwrap();
    let before = lab.served.backend.effects().len();
    lab.done(lab.delete(&format!("/servers/{id}")).await).await;
    assert_eq!(
        lab.served.backend.effects()[before..],
        [format!("power_off {id}"), format!("detach_volume {volume} from {id}"), format!("delete_machine {id}")]
    );
    assert_eq!(lab.get(&format!("/servers/{id}")).await.refused(), (404, "not_found"));
    assert_eq!(lab.get(&format!("/volumes/{volume}")).await.ok()["volume"]["server"], Value::Null);
    let again = lab.server("m1").await;
    let server = lab.get(&format!("/servers/{again}")).await.ok()["server"].clone();
    assert_ne!(server["public_net"]["ipv4"]["ip"], "203.0.113.2", "addresses are used again as late as possible");
}

#[tokio::test]
async fn protection_keeps_a_server() {
    let lab = Lab::start().await;
    let id = lab.server("kept").await;
    let path = format!("/servers/{id}/actions/change_protection");
    assert_eq!(lab.post(&path, json!({"delete": true})).await.wrong_field(), "rebuild");
    lab.done(lab.post(&path, json!({"delete": true, "rebuild": true})).await).await;
    assert_eq!(lab.delete(&format!("/servers/{id}")).await.refused(), (423, "protected"));
}

#[tokio::test]
async fn a_machine_that_powers_off_by_itself_is_off() {
    let lab = Lab::start().await;
    let id = lab.server("sleepy").await;
    lab.done(lab.post(&format!("/servers/{id}/actions/shutdown"), json!({})).await).await;
    assert_eq!(lab.get(&format!("/servers/{id}")).await.ok()["server"]["status"], "running");
    lab.served.provider.machine_event(MachineEvent::Stopped(id));
    assert_eq!(lab.get(&format!("/servers/{id}")).await.ok()["server"]["status"], "off");
    assert_eq!(lab.get("/servers?status=off").await.ok()["servers"][0]["id"], id);
}

#[tokio::test]
async fn a_failed_effect_is_the_actions_error_and_the_server_can_be_deleted() {
    let lab = Lab::start().await;
    lab.served.backend.fail_next("power_on", "the kernel is on holiday");
    let (body, actions) = lab.end_of(lab.post("/servers", server_body("m1", json!({}))).await).await;
    for action in &actions {
        assert_eq!(action["status"], "error");
        assert_eq!(action["error"], json!({"code": "action_failed", "message": "the kernel is on holiday"}));
    }
    let id = &body["server"]["id"];
    assert_eq!(lab.get(&format!("/servers/{id}")).await.ok()["server"]["status"], "unknown");
    let poweron = lab.post(&format!("/servers/{id}/actions/poweron"), json!({})).await;
    assert_eq!(poweron.refused().1, "unsupported_error");
    lab.done(lab.delete(&format!("/servers/{id}")).await).await;

    // A machine that was never made is not destroyed.
    lab.served.backend.fail_next("create_machine", "out of tin");
    let (body, _) = lab.end_of(lab.post("/servers", server_body("m1", json!({}))).await).await;
    let effects = lab.served.backend.effects();
    lab.done(lab.delete(&format!("/servers/{}", body["server"]["id"])).await).await;
    assert_eq!(lab.served.backend.effects(), effects);
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let lab = Lab::start().await;
    let volume = lab.volume("v", "nbg1").await;
    for (more, field) in [
        (json!({"name": "not a host name"}), "name"),
        (json!({"name": null}), "name"),
        (json!({"server_type": "cx999"}), "server_type"),
        (json!({"image": "beos-5"}), "image"),
        (json!({"location": "moon1"}), "location"),
        (json!({"location": "ash"}), "location"),
        (json!({"datacenter": "fsn1-dc14"}), "datacenter"),
        (json!({"ssh_keys": ["nobody"]}), "ssh_keys"),
        (json!({"networks": [4711]}), "networks"),
        (json!({"volumes": [4711]}), "volumes"),
        (json!({"placement_group": 4711}), "placement_group"),
        (json!({"firewalls": [{"firewall": 4711}]}), "firewalls"),
        (json!({"public_net": {"ipv4": 4711}}), "ipv4"),
        (json!({"public_net": {"enable_ipv6": false, "ipv6": 4711}}), "ipv6"),
        (json!({"labels": {"hetzner.cloud/x": "y"}}), "labels"),
        (json!({"labels": {"k": "no spaces"}}), "labels"),
        (json!({"user_data": "x".repeat(32 * 1024 + 1)}), "user_data"),
        // The volume is in another location.
        (json!({"volumes": [volume]}), "server"),
    ] {
        assert_eq!(lab.post("/servers", server_body("x", more)).await.wrong_field(), field);
    }
    for more in [json!({"image": "ubuntu-24.04"}), json!({"server_type": "cax11"})] {
        assert_eq!(lab.post("/servers", server_body("x", more)).await.refused(), (422, "unsupported_error"));
    }
    assert_eq!(lab.get("/servers").await.ok()["meta"]["pagination"]["total_entries"], 0);
    assert!(!lab.served.backend.effects().iter().any(|e| e.starts_with("create_machine")));
}

#[tokio::test]
async fn a_lost_client_does_not_stop_the_work() {
    let lab = Arc::new(Lab::start().await);
    lab.served.backend.hold();
    let caller = Arc::clone(&lab);
    let call = tokio::spawn(async move { caller.network("n").await });
    lab.until(|| lab.served.backend.running() == 1).await;
    call.abort();
    let id = lab.get("/networks").await.ok()["networks"][0]["id"].clone();
    assert_eq!(lab.delete(&format!("/networks/{id}")).await.refused(), (409, "conflict"));
    lab.served.backend.release();
    lab.until(|| lab.served.backend.running() == 0).await;
    assert_eq!(lab.delete(&format!("/networks/{id}")).await.status, 204);
}
