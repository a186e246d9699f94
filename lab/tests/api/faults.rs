//! Faults.

use serde_json::json;

use crate::client::{Lab, server_body};

#[tokio::test]
async fn nothing_can_be_created_in_an_unavailable_location() {
    let lab = Lab::start().await;
    let old = lab.server("old").await;
    let fault = lab.post("/_lab/faults", json!({"kind": "location_unavailable", "location": "fsn1"})).await.ok();
    let server = lab.post("/servers", server_body("new", json!({}))).await;
    assert_eq!(server.refused(), (412, "resource_unavailable"));
    let volume = lab.post("/volumes", json!({"name": "v", "size": 10, "location": "fsn1"})).await;
    assert_eq!(volume.refused(), (412, "resource_unavailable"));
    // What is there stays, other locations serve, and a server without a wish goes elsewhere.
    lab.get(&format!("/servers/{old}")).await.ok();
    lab.volume("elsewhere", "nbg1").await;
    let free = lab.done(lab.post("/servers", server_body("free", json!({"location": null}))).await).await;
    assert_eq!(free["server"]["location"]["name"], "nbg1");
    let types = lab.get("/server_types?name=cx23").await.ok();
    assert_eq!(types["server_types"][0]["locations"][0]["available"], false);

    let listed = lab.get("/_lab/faults").await.ok();
    assert_eq!(listed["faults"][0]["struck"], 2);
    let id = &fault["fault"]["id"];
    assert_eq!(lab.delete(&format!("/_lab/faults/{id}")).await.status, 204);
    assert_eq!(lab.delete(&format!("/_lab/faults/{id}")).await.refused(), (404, "not_found"));
    lab.done(lab.post("/servers", server_body("new", json!({}))).await).await;
}

#[tokio::test]
async fn an_api_error_strikes_the_named_requests_as_often_as_told() {
    let lab = Lab::start().await;
    let fault = json!({
        "kind": "api_error", "code": "locked", "method": "POST", "path": "/servers/*/actions/*", "count": 2,
    });
    lab.post("/_lab/faults", fault).await.ok();
    let id = lab.server("s").await;
    let path = format!("/servers/{id}/actions/poweroff");
    for _ in 0..2 {
        assert_eq!(lab.post(&path, json!({})).await.refused(), (423, "locked"));
        lab.get(&format!("/servers/{id}/actions")).await.ok();
    }
    lab.done(lab.post(&path, json!({})).await).await;
}

#[tokio::test]
async fn a_lost_answer_means_work_done() {
    let lab = Lab::start().await;
    lab.post("/_lab/faults", json!({"kind": "lost_answer", "path": "/servers"})).await.ok();
    let answer = lab.post("/servers", server_body("s", json!({}))).await;
    assert_eq!(answer.refused(), (504, "timeout"));
    assert_eq!(lab.get("/servers?name=s").await.ok()["servers"][0]["name"], "s");
    let again = lab.post("/servers", server_body("s", json!({}))).await;
    assert_eq!(again.refused(), (409, "uniqueness_error"), "whoever posts again without looking is told");
}

#[tokio::test]
async fn unknown_faults_are_refused_and_all_can_be_lifted() {
    let lab = Lab::start().await;
    assert_eq!(lab.post("/_lab/faults", json!({"kind": "gremlins"})).await.wrong_field(), "kind");
    let moon = lab.post("/_lab/faults", json!({"kind": "location_unavailable", "location": "moon1"})).await;
    assert_eq!(moon.wrong_field(), "location");
    lab.post("/_lab/faults", json!({"kind": "location_unavailable", "location": "hel1"})).await.ok();
    assert_eq!(lab.delete("/_lab/faults").await.status, 204);
    assert_eq!(lab.get("/_lab/faults").await.ok()["faults"], json!([]));
}
