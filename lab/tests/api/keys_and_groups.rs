//! SSH keys and placement groups.

use futures::future::join_all;
use serde_json::json;

use crate::client::{KEY_ONE, KEY_TWO, Lab, server_body};

#[tokio::test]
async fn keys_are_unique_by_name_and_by_fingerprint() {
    let lab = Lab::start().await;
    let key = lab.post("/ssh_keys", json!({"name": "ops", "public_key": KEY_ONE})).await.ok()["ssh_key"].clone();
    let fingerprint = key["fingerprint"].as_str().unwrap();
    assert_eq!(fingerprint, "3d:9b:d5:9a:e4:4e:d0:f1:58:de:14:4c:9c:48:5c:3c");
    let found = lab.get(&format!("/ssh_keys?fingerprint={fingerprint}")).await.ok();
    assert_eq!(found["ssh_keys"][0]["id"], key["id"]);
    for (name, public_key, field) in [("ops", KEY_TWO, "name"), ("other", KEY_ONE, "public_key")] {
        let answer = lab.post("/ssh_keys", json!({"name": name, "public_key": public_key})).await;
        assert_eq!(answer.refused(), (409, "uniqueness_error"));
        assert_eq!(answer.body["error"]["details"]["fields"][0]["name"], field);
    }
    lab.post("/ssh_keys", json!({"name": "other", "public_key": KEY_TWO})).await.ok();
    let renamed = lab.put(&format!("/ssh_keys/{}", key["id"]), json!({"name": "other"})).await;
    assert_eq!(renamed.refused(), (409, "uniqueness_error"));
    let nonsense = lab.post("/ssh_keys", json!({"name": "n", "public_key": "ssh-ed25519 nonsense"})).await;
    assert_eq!(nonsense.wrong_field(), "public_key");
}

#[tokio::test]
async fn a_spread_group_takes_ten_servers() {
    let lab = Lab::start().await;
    let group = lab.post("/placement_groups", json!({"name": "g", "type": "spread"})).await.ok();
    let group = group["placement_group"]["id"].clone();
    let answers = join_all((0..12).map(|i| {
        let body = server_body(&format!("s{i}"), json!({"placement_group": group}));
        let lab = &lab;
        async move { lab.post("/servers", body).await }
    }))
    .await;
    let refused: Vec<_> = answers.iter().filter(|a| a.status != 201).map(|a| a.refused()).collect();
    assert_eq!(refused, [(412, "placement_error"), (412, "placement_error")]);
    let shown = lab.get(&format!("/placement_groups/{group}")).await.ok();
    assert_eq!(shown["placement_group"]["servers"].as_array().unwrap().len(), 10);
    assert_eq!(lab.delete(&format!("/placement_groups/{group}")).await.refused().1, "resource_in_use");
}

#[tokio::test]
async fn only_a_stopped_server_can_be_placed() {
    let lab = Lab::start().await;
    let group = lab.post("/placement_groups", json!({"name": "g", "type": "spread"})).await.ok();
    let group = group["placement_group"]["id"].clone();
    let server = lab.server("s").await;
    let add = format!("/servers/{server}/actions/add_to_placement_group");
    let remove = format!("/servers/{server}/actions/remove_from_placement_group");
    let body = json!({"placement_group": group});
    assert_eq!(lab.post(&add, body.clone()).await.refused(), (422, "server_not_stopped"));
    assert_eq!(lab.post(&remove, json!({})).await.refused().1, "not_in_placement_group");
    lab.done(lab.post(&format!("/servers/{server}/actions/poweroff"), json!({})).await).await;
    lab.done(lab.post(&add, body.clone()).await).await;
    assert_eq!(lab.post(&add, body).await.refused().1, "already_in_placement_group");
    assert_eq!(lab.get(&format!("/servers/{server}")).await.ok()["server"]["placement_group"]["id"], group);
    lab.done(lab.post(&remove, json!({})).await).await;
    assert_eq!(lab.delete(&format!("/placement_groups/{group}")).await.status, 204);
    let wrong = lab.post("/placement_groups", json!({"name": "g", "type": "huddle"})).await;
    assert_eq!(wrong.wrong_field(), "type");
}
