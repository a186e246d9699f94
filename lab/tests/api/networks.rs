//! Networks.

use futures::future::join_all;
use serde_json::json;

use crate::client::Lab;

#[tokio::test]
async fn addresses_are_pinned_or_chosen() {
    let lab = Lab::start().await;
    let network = lab.network("n").await;
    let (one, two) = (lab.server("one").await, lab.server("two").await);
    let attach = |server: u64| format!("/servers/{server}/actions/attach_to_network");
    for (ip, why) in [("10.0.0.0", "network"), ("10.0.0.255", "broadcast"), ("10.0.1.5", "no subnet"), ("x", "no IP")] {
        let answer = lab.post(&attach(one), json!({"network": network, "ip": ip})).await;
        assert_eq!(answer.wrong_field(), "ip", "{why}");
    }
    let gateway = lab.post(&attach(one), json!({"network": network, "ip": "10.0.0.1"})).await;
    assert_eq!(gateway.refused().1, "ip_not_available");
    lab.done(lab.post(&attach(one), json!({"network": network, "ip": "10.0.0.2"})).await).await;
    let taken = lab.post(&attach(two), json!({"network": network, "ip": "10.0.0.2"})).await;
    assert_eq!(taken.refused().1, "ip_not_available");
    lab.done(lab.post(&attach(two), json!({"network": network})).await).await;
    let server = lab.get(&format!("/servers/{two}")).await.ok();
    assert_eq!(server["server"]["private_net"][0]["ip"], "10.0.0.3");
    let again = lab.post(&attach(two), json!({"network": network})).await;
    assert_eq!(again.refused(), (409, "server_already_attached"));
    assert_eq!(lab.get(&format!("/networks/{network}")).await.ok()["network"]["servers"], json!([one, two]));
}

#[tokio::test]
async fn servers_join_a_network_at_the_same_time() {
    let lab = Lab::start().await;
    let network = lab.network("n").await;
    let servers = join_all(["a", "b", "c"].map(|name| lab.server(name))).await;
    let lab = &lab;
    let bodies = servers.iter().map(|s| async move {
        lab.done(lab.post(&format!("/servers/{s}/actions/attach_to_network"), json!({"network": network})).await).await
    });
    join_all(bodies).await;
    let list = lab.get("/servers").await.ok();
    let mut ips: Vec<&str> =
        list["servers"].as_array().unwrap().iter().map(|s| s["private_net"][0]["ip"].as_str().unwrap()).collect();
    ips.sort_unstable();
    assert_eq!(ips, ["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
}

#[tokio::test]
async fn overlapping_networks_and_a_fourth_network_are_refused() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let attach = format!("/servers/{server}/actions/attach_to_network");
    let network = |name: &'static str, range: &'static str| {
        let lab = &lab;
        async move {
            let subnets = json!([{"type": "cloud", "network_zone": "eu-central"}]);
            let body = json!({"name": name, "ip_range": range, "subnets": subnets});
            lab.post("/networks", body).await.ok()["network"]["id"].clone()
        }
    };
    let first = network("first", "10.0.0.0/16").await;
    lab.done(lab.post(&attach, json!({"network": first})).await).await;
    let overlapping = network("overlapping", "10.0.0.0/8").await;
    assert_eq!(lab.post(&attach, json!({"network": overlapping})).await.refused().1, "networks_overlap");
    for (name, range) in [("second", "10.1.0.0/16"), ("third", "10.2.0.0/16")] {
        let id = network(name, range).await;
        lab.done(lab.post(&attach, json!({"network": id})).await).await;
    }
    let fourth = network("fourth", "10.3.0.0/16").await;
    assert_eq!(lab.post(&attach, json!({"network": fourth})).await.refused(), (403, "resource_limit_exceeded"));
}

#[tokio::test]
async fn no_network_serves_a_zone_without_a_subnet() {
    let lab = Lab::start().await;
    let body = json!({"name": "us", "ip_range": "10.9.0.0/16", "subnets": [
        {"type": "cloud", "network_zone": "us-east", "ip_range": "10.9.1.0/24"},
    ]});
    let network = lab.post("/networks", body).await.ok()["network"]["id"].clone();
    let server = lab.server("s").await;
    let answer = lab.post(&format!("/servers/{server}/actions/attach_to_network"), json!({"network": network})).await;
    assert_eq!(answer.refused().1, "no_subnet_available");
}

#[tokio::test]
async fn subnets_and_routes_must_fit() {
    let lab = Lab::start().await;
    let id = lab.network("n").await;
    let add = format!("/networks/{id}/actions/add_subnet");
    let zone = "eu-central";
    for (range, zone, field) in [
        ("10.1.0.0/24", zone, "ip_range"),
        ("10.0.0.128/25", zone, "ip_range"),
        ("10.0.1.0/31", zone, "ip_range"),
        ("10.0.1.1/24", zone, "ip_range"),
        ("10.0.1.0/24", "mars-north", "network_zone"),
    ] {
        let body = json!({"type": "cloud", "network_zone": zone, "ip_range": range});
        assert_eq!(lab.post(&add, body).await.wrong_field(), field, "{range}");
    }
    lab.done(lab.post(&add, json!({"type": "cloud", "network_zone": zone})).await).await;
    let network = lab.get(&format!("/networks/{id}")).await.ok()["network"].clone();
    assert_eq!(network["subnets"][1]["ip_range"], "10.0.1.0/24", "the next free /24");
    assert_eq!(network["subnets"][1]["gateway"], "10.0.0.1");

    let route = format!("/networks/{id}/actions/add_route");
    let body = json!({"destination": "10.244.1.0/24", "gateway": "10.0.0.11"});
    lab.done(lab.post(&route, body.clone()).await).await;
    assert_eq!(lab.post(&route, body).await.wrong_field(), "destination");
    let inside = json!({"destination": "10.0.0.128/25", "gateway": "10.0.0.11"});
    assert_eq!(lab.post(&route, inside).await.wrong_field(), "destination");
    let outside = json!({"destination": "10.244.2.0/24", "gateway": "10.9.0.11"});
    assert_eq!(lab.post(&route, outside).await.wrong_field(), "gateway");
    let effect = format!("set_routes {id} [10.244.1.0/24 via 10.0.0.11]");
    assert_eq!(lab.served.backend.effects().last(), Some(&effect));
    // Whoever takes the gateway's address later gets the traffic.
    let server = lab.server("s").await;
    let body = json!({"network": id, "ip": "10.0.0.11"});
    lab.done(lab.post(&format!("/servers/{server}/actions/attach_to_network"), body).await).await;
    assert_eq!(lab.served.backend.effects().last(), Some(&effect));
    let gone = json!({"destination": "10.244.9.0/24", "gateway": "10.0.0.11"});
    let answer = lab.post(&format!("/networks/{id}/actions/delete_route"), gone).await;
    assert_eq!(answer.wrong_field(), "destination");
}

#[tokio::test]
async fn a_used_subnet_stays_and_a_deleted_network_lets_its_servers_go() {
    let lab = Lab::start().await;
    let (network, server) = (lab.network("n").await, lab.server("s").await);
    lab.done(lab.post(&format!("/servers/{server}/actions/attach_to_network"), json!({"network": network})).await)
        .await;
    let answer =
        lab.post(&format!("/networks/{network}/actions/delete_subnet"), json!({"ip_range": "10.0.0.0/24"})).await;
    assert_eq!(answer.refused().1, "resource_in_use");
    let protect = format!("/networks/{network}/actions/change_protection");
    lab.done(lab.post(&protect, json!({"delete": true})).await).await;
    assert_eq!(lab.delete(&format!("/networks/{network}")).await.refused(), (423, "protected"));
    lab.done(lab.post(&protect, json!({"delete": false})).await).await;
    assert_eq!(lab.delete(&format!("/networks/{network}")).await.status, 204);
    assert_eq!(lab.get(&format!("/servers/{server}")).await.ok()["server"]["private_net"], json!([]));
}

#[tokio::test]
async fn wrong_networks_are_refused_and_a_failed_one_is_gone() {
    let lab = Lab::start().await;
    lab.network("taken").await;
    for (body, field) in [
        (json!({"name": "n"}), "ip_range"),
        (json!({"ip_range": "10.0.0.0/16"}), "name"),
        (json!({"name": "n", "ip_range": "8.8.8.0/24"}), "ip_range"),
        (json!({"name": "n", "ip_range": "10.0.0.0/25"}), "ip_range"),
        (json!({"name": "n", "ip_range": "10.0.0.0/16", "subnets": [{"type": "cloud"}]}), "network_zone"),
        (json!({"name": "n", "ip_range": "10.0.0.0/16", "subnets": 3}), "subnets"),
    ] {
        assert_eq!(lab.post("/networks", body).await.wrong_field(), field);
    }
    let taken = json!({"name": "taken", "ip_range": "10.0.0.0/16"});
    assert_eq!(lab.post("/networks", taken).await.refused(), (409, "uniqueness_error"));
    lab.served.backend.fail_next("create_network", "no more cables");
    let body = json!({"name": "n", "ip_range": "10.0.0.0/16"});
    assert_eq!(lab.post("/networks", body.clone()).await.refused(), (503, "service_error"));
    lab.post("/networks", body).await.ok();
}
