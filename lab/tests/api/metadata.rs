//! The metadata service, asked from the addresses of machines.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hk_lab::api::metadata_router;
use serde_json::json;
use tower::ServiceExt;

use crate::client::{KEY_ONE, Lab, server_body};

async fn ask(lab: &Lab, from: &str, path: &str) -> (u16, String) {
    let peer: SocketAddr = format!("{from}:40000").parse().unwrap();
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = metadata_router(Arc::clone(&lab.served.provider)).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn each_machine_learns_about_itself() {
    let lab = Lab::start().await;
    let network = lab.network("n").await;
    lab.post("/ssh_keys", json!({"name": "ops", "public_key": KEY_ONE})).await.ok();
    let more = json!({"user_data": "#!/bin/sh\necho hi\n", "ssh_keys": ["ops"], "networks": [network]});
    let body = lab.done(lab.post("/servers", server_body("m1", more)).await).await;
    let id = body["server"]["id"].as_u64().unwrap();
    lab.server("m2").await;

    let from = "203.0.113.2";
    for (item, expected) in [
        ("metadata/hostname", "m1".to_owned()),
        ("metadata/instance-id", id.to_string()),
        ("metadata/public-ipv4", from.to_owned()),
        ("metadata/region", "eu-central".to_owned()),
        ("metadata/availability-zone", "fsn1-dc1".to_owned()),
        ("metadata/public-keys", json!([KEY_ONE]).to_string()),
        ("userdata", "#!/bin/sh\necho hi\n".to_owned()),
    ] {
        assert_eq!(ask(&lab, from, &format!("/hetzner/v1/{item}")).await, (200, expected), "{item}");
    }
    let (_, document) = ask(&lab, from, "/hetzner/v1/metadata").await;
    assert!(
        document.contains("hostname: \"m1\"\n") && document.contains(&format!("instance-id: {id}\n")),
        "{document}"
    );
    // What cloud-init's source for Hetzner insists on.
    let config = document.lines().find_map(|l| l.strip_prefix("network-config: ")).expect("a network's configuration");
    let config: serde_json::Value = serde_json::from_str(config).expect("JSON");
    assert_eq!((&config["version"], &config["config"][0]["name"]), (&json!(1), &json!("eth0")));
    let (_, networks) = ask(&lab, from, "/hetzner/v1/metadata/private-networks").await;
    assert!(networks.contains("- ip: 10.0.0.2\n") && networks.contains("subnet: 10.0.0.0/24\n"), "{networks}");

    assert_eq!(ask(&lab, "203.0.113.3", "/hetzner/v1/metadata/hostname").await.1, "m2");
    assert_eq!(ask(&lab, "203.0.113.3", "/hetzner/v1/userdata").await.0, 404);
    assert_eq!(ask(&lab, "203.0.113.77", "/hetzner/v1/metadata/hostname").await.0, 404);
    assert_eq!(ask(&lab, "10.0.0.2", "/hetzner/v1/metadata/hostname").await.1, "m1", "by a private address too");
    assert_eq!(ask(&lab, from, "/hetzner/v1/metadata/nonsense").await.0, 404);
}
