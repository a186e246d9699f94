//! One walk past every endpoint.

use serde_json::json;

use crate::client::{KEY_ONE, Lab, server_body};
use crate::document;

#[tokio::test]
async fn every_answer_fits_the_published_document() {
    if document::load().is_none() {
        eprintln!("skipped: no OpenAPI document (set HCLOUD_OPENAPI to its path)");
    }
    // The walk itself is worth a test even then; the client holds each answer against the document if there is one.
    let lab = Lab::start().await;
    for list in ["locations", "server_types", "images"] {
        let body = lab.get(&format!("/{list}?per_page=50")).await.ok();
        for item in body[list].as_array().unwrap() {
            lab.get(&format!("/{list}/{}", item["id"])).await.ok();
            // Gone since the document was written.
            assert!(item.get("deprecated").is_none());
        }
    }
    assert_eq!(lab.get("/datacenters").await.refused(), (410, "deprecated_api_endpoint"));
    assert_eq!(lab.get("/datacenters/1").await.refused(), (410, "deprecated_api_endpoint"));

    let labels = json!({"env": "test"});
    let key = lab.post("/ssh_keys", json!({"name": "k", "public_key": KEY_ONE, "labels": labels})).await.ok();
    let key = key["ssh_key"]["id"].clone();
    let group = lab.post("/placement_groups", json!({"name": "g", "type": "spread", "labels": labels})).await.ok();
    let group = group["placement_group"]["id"].clone();
    let network = lab.network("n").await;
    let volume = lab.volume("v", "fsn1").await;
    let body = server_body(
        "s",
        json!({
            "ssh_keys": [key], "labels": labels, "networks": [network], "volumes": [volume],
            "placement_group": group, "user_data": "#!/bin/sh\n", "public_net": {"enable_ipv4": true},
        }),
    );
    let server = lab.done(lab.post("/servers", body).await).await["server"].clone();
    assert!(server.get("datacenter").is_none());
    let server = server["id"].as_u64().unwrap();
    lab.done(lab.post("/volumes", json!({"name": "w", "size": 10, "server": server, "format": "ext4"})).await).await;

    for (path, name) in [
        ("ssh_keys", "ssh_key"),
        ("placement_groups", "placement_group"),
        ("networks", "network"),
        ("volumes", "volume"),
        ("servers", "server"),
    ] {
        let list = lab.get(&format!("/{path}?label_selector=!gone&sort=name:desc&per_page=1")).await.ok();
        let id = list[path][0]["id"].as_u64().unwrap();
        lab.get(&format!("/{path}/{id}")).await.ok();
        let changed = lab.put(&format!("/{path}/{id}"), json!({"name": "renamed", "labels": {"a": ""}})).await.ok();
        assert_eq!(changed[name]["name"], "renamed");
        assert_eq!(changed[name]["labels"], json!({"a": ""}));
    }

    for command in ["shutdown", "reboot", "reset", "poweroff", "poweron"] {
        lab.done(lab.post(&format!("/servers/{server}/actions/{command}"), json!({})).await).await;
    }
    for (path, body) in [
        (format!("/servers/{server}/actions/change_protection"), json!({"delete": true, "rebuild": true})),
        (format!("/servers/{server}/actions/change_protection"), json!({"delete": false, "rebuild": false})),
        (format!("/servers/{server}/actions/detach_from_network"), json!({"network": network})),
        (format!("/servers/{server}/actions/attach_to_network"), json!({"network": network, "ip": "10.0.0.9"})),
        (format!("/servers/{server}/actions/poweroff"), json!({})),
        (format!("/servers/{server}/actions/remove_from_placement_group"), json!({})),
        (format!("/servers/{server}/actions/add_to_placement_group"), json!({"placement_group": group})),
        (format!("/volumes/{volume}/actions/resize"), json!({"size": 20})),
        (format!("/volumes/{volume}/actions/detach"), json!({})),
        (format!("/volumes/{volume}/actions/attach"), json!({"server": server, "automount": false})),
        (format!("/volumes/{volume}/actions/change_protection"), json!({"delete": false})),
        (
            format!("/networks/{network}/actions/add_subnet"),
            json!({"type": "cloud", "network_zone": "us-east", "ip_range": "10.0.1.0/24"}),
        ),
        (format!("/networks/{network}/actions/delete_subnet"), json!({"ip_range": "10.0.1.0/24"})),
        (
            format!("/networks/{network}/actions/add_route"),
            json!({"destination": "10.244.1.0/24", "gateway": "10.0.0.9"}),
        ),
        (
            format!("/networks/{network}/actions/delete_route"),
            json!({"destination": "10.244.1.0/24", "gateway": "10.0.0.9"}),
        ),
        (format!("/networks/{network}/actions/change_ip_range"), json!({"ip_range": "10.0.0.0/12"})),
        (format!("/networks/{network}/actions/change_protection"), json!({"delete": false})),
    ] {
        lab.done(lab.post(&path, body).await).await;
    }

    for (path, id) in [("servers", server), ("volumes", volume), ("networks", network)] {
        let list = lab.get(&format!("/{path}/{id}/actions?status=success&sort=command")).await.ok();
        let action = list["actions"][0]["id"].clone();
        lab.get(&format!("/{path}/{id}/actions/{action}")).await.ok();
        lab.get(&format!("/{path}/actions?per_page=2&page=2")).await.ok();
        lab.get(&format!("/{path}/actions/{action}")).await.ok();
        lab.get(&format!("/actions/{action}")).await.ok();
    }

    lab.done(lab.delete(&format!("/servers/{server}")).await).await;
    for path in [
        format!("/volumes/{volume}"),
        format!("/networks/{network}"),
        format!("/placement_groups/{group}"),
        format!("/ssh_keys/{key}"),
    ] {
        assert_eq!(lab.delete(&path).await.status, 204, "{path}");
        assert_eq!(lab.get(&path).await.refused(), (404, "not_found"));
        assert_eq!(lab.delete(&path).await.refused(), (404, "not_found"));
    }
}
