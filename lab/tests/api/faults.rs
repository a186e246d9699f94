//! Faults.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

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
async fn a_slow_answer_is_held_back_and_the_work_is_done() {
    let lab = Lab::start().await;
    lab.post("/_lab/faults", json!({"kind": "slow_answer", "path": "/v1/servers", "delay_ms": 600_000})).await.ok();
    let url = format!("{}/servers", lab.served.endpoint);
    let request = lab.http.post(url).bearer_auth(&lab.token).json(&server_body("s", json!({})));
    let impatient = request.timeout(Duration::from_millis(500)).send().await;
    assert!(impatient.expect_err("there is no answer").is_timeout());
    assert_eq!(lab.get("/servers?name=s").await.ok()["servers"][0]["name"], "s");
    assert_eq!(lab.get("/_lab/faults").await.ok()["faults"][0]["struck"], 1);
}

#[tokio::test]
async fn an_exhausted_rate_limit_refuses_all_until_it_is_lifted() {
    let lab = Lab::start().await;
    let fault = lab.post("/_lab/faults", json!({"kind": "rate_limit_exhausted"})).await.ok();
    for _ in 0..3 {
        let answer = lab.get("/servers").await;
        assert_eq!(answer.refused(), (429, "rate_limit_exceeded"));
        assert_eq!(answer.headers["ratelimit-remaining"], "0");
    }
    lab.delete(&format!("/_lab/faults/{}", fault["fault"]["id"])).await;
    let answer = lab.get("/servers").await;
    assert_ne!(answer.headers["ratelimit-remaining"], "0");
    answer.ok();

    let timed = json!({"kind": "rate_limit_exhausted", "for_seconds": 0.1});
    assert_ne!(lab.post("/_lab/faults", timed).await.ok()["fault"]["until"], Value::Null);
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.get("/servers").await.status == 429 {
        assert!(Instant::now() < deadline, "it does not lift itself");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_action_that_fails_has_had_no_effect() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    lab.post("/_lab/faults", json!({"kind": "action_error", "command": "stop_*", "message": "no hands"})).await.ok();
    let stop = format!("/servers/{server}/actions/poweroff");
    let (_, actions) = lab.end_of(lab.post(&stop, json!({})).await).await;
    assert_eq!(actions[0]["error"], json!({"code": "action_failed", "message": "no hands"}));
    assert_eq!(lab.get(&format!("/servers/{server}")).await.ok()["server"]["status"], "running");
    assert!(!lab.served.backend.effects().iter().any(|e| e.starts_with("power_off")));
    lab.done(lab.post(&stop, json!({})).await).await;
}

#[tokio::test]
async fn a_stuck_action_goes_on_when_the_fault_is_lifted() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let fault = lab.post("/_lab/faults", json!({"kind": "action_stuck", "command": "create_image"})).await.ok();
    let image = lab.post(&format!("/servers/{server}/actions/create_image"), json!({})).await.ok();
    // Whoever asks for the server meanwhile is told to wait; others are not touched.
    let locked = lab.post(&format!("/servers/{server}/actions/poweroff"), json!({})).await;
    assert_eq!(locked.refused(), (423, "locked"));
    lab.server("other").await;
    let action = format!("/actions/{}", image["action"]["id"]);
    assert_eq!(lab.get(&action).await.ok()["action"]["status"], "running");
    assert_eq!(lab.get("/_lab/faults").await.ok()["faults"][0]["struck"], 1);
    lab.delete(&format!("/_lab/faults/{}", fault["fault"]["id"])).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.get(&action).await.ok()["action"]["status"] != "success" {
        assert!(Instant::now() < deadline, "it is still stuck");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_seed_that_was_told_repeats_what_is_struck() {
    let lab = Lab::start().await;
    let mut told = Value::Null;
    let mut series = Vec::new();
    for _ in 0..2 {
        let fault =
            json!({"kind": "api_error", "code": "conflict", "path": "/servers", "probability": 0.5, "seed": told});
        let fault = lab.post("/_lab/faults", fault).await.ok()["fault"].clone();
        told = fault["seed"].clone();
        println!("seed {told}");
        let mut struck = Vec::new();
        for _ in 0..40 {
            struck.push(lab.get("/servers").await.status);
        }
        series.push(struck);
        lab.delete(&format!("/_lab/faults/{}", fault["id"])).await;
    }
    assert!(told.is_u64(), "a fault that was given no seed tells its own");
    assert_eq!(series[0], series[1], "seed {told}");
    assert!(series[0].contains(&409) && series[0].contains(&200), "{series:?}");
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
