//! Volumes.

use serde_json::{Value, json};

use crate::client::{Lab, server_body};

#[tokio::test]
async fn a_volume_for_a_server_is_attached_by_a_next_action() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let body = json!({"name": "v", "size": 10, "server": server, "format": "ext4"});
    let answer = lab.post("/volumes", body).await;
    assert_eq!(answer.body["volume"]["status"], "creating");
    assert_eq!(answer.body["action"]["command"], "create_volume");
    assert_eq!(answer.body["next_actions"][0]["command"], "attach_volume");
    let id = lab.done(answer).await["volume"]["id"].clone();
    let volume = lab.get(&format!("/volumes/{id}")).await.ok()["volume"].clone();
    assert_eq!(volume["status"], "available");
    assert_eq!(volume["server"], server);
    assert_eq!(volume["format"], "ext4");
    assert_eq!(volume["location"]["name"], "fsn1");
    assert_eq!(volume["linux_device"], format!("/dev/disk/by-id/scsi-0HC_Volume_{id}"));
}

#[tokio::test]
async fn a_volume_serves_one_server_of_its_own_location() {
    let lab = Lab::start().await;
    let (one, two) = (lab.server("one").await, lab.server("two").await);
    let away = lab.done(lab.post("/servers", server_body("away", json!({"location": "hel1"}))).await).await;
    let volume = lab.volume("v", "fsn1").await;
    let attach = format!("/volumes/{volume}/actions/attach");
    assert_eq!(lab.post(&attach, json!({"server": away["server"]["id"]})).await.wrong_field(), "server");
    assert_eq!(lab.post(&attach, json!({"server": 4711})).await.wrong_field(), "server");
    lab.done(lab.post(&attach, json!({"server": one})).await).await;
    assert_eq!(lab.post(&attach, json!({"server": two})).await.refused().1, "volume_already_attached");
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.refused().1, "resource_in_use");
    lab.done(lab.post(&format!("/volumes/{volume}/actions/detach"), json!({})).await).await;
    assert_eq!(lab.get(&format!("/volumes/{volume}")).await.ok()["volume"]["server"], Value::Null);
    lab.done(lab.post(&attach, json!({"server": two})).await).await;
    assert_eq!(lab.get(&format!("/servers/{two}")).await.ok()["server"]["volumes"], json!([volume]));
}

#[tokio::test]
async fn a_volume_only_grows() {
    let lab = Lab::start().await;
    let volume = lab.volume("v", "fsn1").await;
    let resize = format!("/volumes/{volume}/actions/resize");
    assert_eq!(lab.post(&resize, json!({"size": 10})).await.wrong_field(), "size");
    assert_eq!(lab.post(&resize, json!({"size": 10241})).await.wrong_field(), "size");
    lab.done(lab.post(&resize, json!({"size": 12})).await).await;
    assert_eq!(lab.get(&format!("/volumes/{volume}")).await.ok()["volume"]["size"], 12);
}

#[tokio::test]
async fn a_failed_attach_leaves_the_volume_free() {
    let lab = Lab::start().await;
    let (server, volume) = (lab.server("s").await, lab.volume("v", "fsn1").await);
    lab.served.backend.fail_next("attach_volume", "no slot");
    let answer = lab.post(&format!("/volumes/{volume}/actions/attach"), json!({"server": server})).await;
    assert_eq!(lab.end_of(answer).await.1[0]["status"], "error");
    assert_eq!(lab.get(&format!("/volumes/{volume}")).await.ok()["volume"]["server"], Value::Null);
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.status, 204);
}

#[tokio::test]
async fn a_volume_that_could_not_be_deleted_is_still_there() {
    let lab = Lab::start().await;
    let volume = lab.volume("v", "fsn1").await;
    lab.served.backend.fail_next("delete_volume", "disk on fire");
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.refused(), (503, "service_error"));
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.status, 204);
}

#[tokio::test]
async fn wrong_volumes_are_refused() {
    let lab = Lab::start().await;
    lab.volume("taken", "fsn1").await;
    for (body, field) in [
        (json!({"name": "v", "size": 9, "location": "fsn1"}), "size"),
        (json!({"name": "v", "size": "10", "location": "fsn1"}), "size"),
        (json!({"name": "v", "location": "fsn1"}), "size"),
        (json!({"name": "", "size": 10, "location": "fsn1"}), "name"),
        (json!({"name": "v", "size": 10}), "location"),
        (json!({"name": "v", "size": 10, "location": "fsn1", "server": 1}), "location"),
        (json!({"name": "v", "size": 10, "location": "fsn1", "format": "ntfs"}), "format"),
        (json!({"name": "v", "size": 10, "server": 4711}), "server"),
        // There is nobody to mount it.
        (json!({"name": "v", "size": 10, "location": "fsn1", "automount": true}), "automount"),
    ] {
        assert_eq!(lab.post("/volumes", body).await.wrong_field(), field);
    }
    let taken = json!({"name": "taken", "size": 10, "location": "fsn1"});
    assert_eq!(lab.post("/volumes", taken).await.refused(), (409, "uniqueness_error"));
}

#[tokio::test]
async fn a_server_mounts_its_volumes_only_if_asked() {
    let lab = Lab::start().await;
    let quiet = lab.volume("quiet", "fsn1").await;
    let more = json!({"volumes": [lab.volume("first", "fsn1").await], "automount": true});
    let body = lab.done(lab.post("/servers", server_body("s", more)).await).await;
    let server = &body["server"]["id"];
    let made = json!({"name": "second", "size": 10, "server": server, "format": "ext4", "automount": true});
    lab.done(lab.post("/volumes", made).await).await;
    lab.done(lab.post(&format!("/volumes/{quiet}/actions/attach"), json!({"server": server})).await).await;
    let detached = lab.volume("third", "fsn1").await;
    let attach = json!({"server": server, "automount": true});
    // A server that mounts nothing has its volume nevertheless.
    lab.served.backend.fail_next("automount_volume", "no such command");
    lab.done(lab.post(&format!("/volumes/{detached}/actions/attach"), attach).await).await;
    let effects = lab.served.backend.effects();
    assert_eq!(effects.iter().filter(|e| e.starts_with("attach_volume")).count(), 4);
    assert_eq!(effects.iter().filter(|e| e.starts_with("automount_volume")).count(), 3);
    assert!(!effects.iter().any(|e| e.starts_with(&format!("automount_volume {quiet} "))));
}

#[tokio::test]
async fn protection_keeps_a_volume() {
    let lab = Lab::start().await;
    let volume = lab.volume("v", "fsn1").await;
    let path = format!("/volumes/{volume}/actions/change_protection");
    lab.done(lab.post(&path, json!({"delete": true})).await).await;
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.refused(), (423, "protected"));
    lab.done(lab.post(&path, json!({"delete": false})).await).await;
    assert_eq!(lab.delete(&format!("/volumes/{volume}")).await.status, 204);
}
