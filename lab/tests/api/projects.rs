//! Projects: what one token's holder can see and do.

use serde_json::json;

use crate::client::{Lab, server_body};

#[tokio::test]
async fn projects_cannot_see_each_other() {
    let lab = Lab::start().await;
    let server = lab.server("same-name").await;
    let made = lab.post("/_lab/projects", json!({"name": "backups"})).await.ok()["project"].clone();
    let first = lab.get(&format!("/servers/{server}")).await.ok()["server"].clone();
    assert_eq!(lab.post("/_lab/projects", json!({"name": "backups"})).await.refused().1, "uniqueness_error");

    let lab = lab.holding(&made["token"]);
    assert_eq!(lab.get("/servers").await.ok()["servers"], json!([]));
    assert_eq!(lab.get(&format!("/servers/{server}")).await.refused(), (404, "not_found"));
    assert_eq!(lab.delete(&format!("/servers/{server}")).await.refused(), (404, "not_found"));
    let volume = lab.volume("v", "fsn1").await;
    let attach = lab.post(&format!("/volumes/{volume}/actions/attach"), json!({"server": server})).await;
    assert_eq!(attach.wrong_field(), "server");
    // Names are the project's own; ids and addresses are nobody else's.
    let second = lab.server("same-name").await;
    assert_ne!(second, server);
    let second = lab.get(&format!("/servers/{second}")).await.ok()["server"].clone();
    assert_ne!(second["public_net"]["ipv4"]["ip"], first["public_net"]["ipv4"]["ip"]);
    // Actions are as invisible as what they work on.
    let actions = lab.get(&format!("/servers/{}/actions", second["id"])).await.ok();
    let action = actions["actions"][0]["id"].clone();
    assert_eq!(lab.get(&format!("/actions/{action}")).await.status, 200);
    let token = json!(lab.served.token);
    let lab = lab.holding(&token);
    assert_eq!(lab.get(&format!("/actions/{action}")).await.refused(), (404, "not_found"));
    assert_eq!(lab.get("/servers").await.ok()["servers"][0]["id"], server);
}

#[tokio::test]
async fn a_read_only_token_changes_nothing() {
    let lab = Lab::start().await;
    let made = lab.post("/_lab/projects", json!({"name": "p"})).await.ok()["project"].clone();
    let lab = lab.holding(&made["token"]);
    let server = lab.server("seen").await;
    let lab = lab.holding(&made["token_readonly"]);
    assert_eq!(lab.get(&format!("/servers/{server}")).await.ok()["server"]["name"], "seen");
    let path = format!("/servers/{server}");
    for answer in [
        lab.post("/servers", server_body("x", json!({}))).await,
        lab.put(&path, json!({"name": "y"})).await,
        lab.delete(&path).await,
        lab.post(&format!("{path}/actions/poweroff"), json!({})).await,
        lab.post("/_lab/faults", json!({"kind": "lost_answer"})).await,
    ] {
        assert_eq!(answer.refused(), (403, "token_readonly"));
    }
    assert_eq!(lab.get(&path).await.ok()["server"]["status"], "running");
}
