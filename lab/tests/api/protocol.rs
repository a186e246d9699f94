//! What holds for every request.

use hk_lab::api::Options;
use serde_json::{Value, json};

use crate::client::Lab;

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let lab = Lab::start().await;
    let url = format!("{}/servers", lab.served.endpoint);
    for authorization in [None, Some("Bearer wrong"), Some("lab-token"), Some("Basic lab-token")] {
        let mut request = lab.http.get(&url);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(response.headers().contains_key("x-correlation-id"));
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["error"]["code"], "unauthorized");
        assert_eq!(body["error"]["details"], Value::Null);
    }
    let faults = lab.http.get(lab.served.endpoint.replace("/v1", "/_lab/faults")).send().await.unwrap();
    assert_eq!(faults.status(), 401);
}

#[tokio::test]
async fn the_rate_limit_is_told_and_kept() {
    let mut options = Options::new("t");
    options.rate_limit.burst = 3;
    options.rate_limit.refill_per_second = 0.001;
    let lab = Lab::with(options).await;
    for remaining in ["2", "1", "0"] {
        let answer = lab.get("/locations").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["ratelimit-limit"], "3");
        assert_eq!(answer.headers["ratelimit-remaining"], remaining);
        assert!(answer.headers["ratelimit-reset"].to_str().unwrap().parse::<u64>().is_ok());
    }
    let answer = lab.get("/locations").await;
    assert_eq!(answer.refused(), (429, "rate_limit_exceeded"));
    assert_eq!(answer.headers["ratelimit-remaining"], "0");
    // The lab's own paths stay open.
    assert_eq!(lab.get("/_lab/faults").await.status, 200);
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_same_form() {
    let lab = Lab::start().await;
    assert_eq!(lab.get("/teapots").await.refused(), (404, "not_found"));
    assert_eq!(lab.get("/servers/4711").await.refused(), (404, "not_found"));
    assert_eq!(lab.delete("/servers").await.refused(), (405, "method_not_allowed"));
    assert_eq!(lab.put("/servers/1/actions/poweron", json!({})).await.refused(), (405, "method_not_allowed"));
    let url = format!("{}/networks", lab.served.endpoint);
    for body in ["{", "[]", "nonsense"] {
        let response = lab.http.post(&url).bearer_auth(&lab.served.token).body(body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["error"]["code"], "json_error");
    }
}

#[tokio::test]
async fn a_project_has_limits() {
    let mut options = Options::new("t");
    options.limits.volumes = 1;
    options.limits.servers = 0;
    let lab = Lab::with(options).await;
    lab.volume("one", "fsn1").await;
    let answer = lab.post("/volumes", json!({"name": "two", "size": 10, "location": "fsn1"})).await;
    assert_eq!(answer.refused(), (403, "resource_limit_exceeded"));
    assert_eq!(answer.body["error"]["details"]["limits"][0]["name"], "volume_limit");
    let answer = lab.post("/servers", crate::client::server_body("s", json!({}))).await;
    assert_eq!(answer.refused(), (403, "resource_limit_exceeded"));
}
