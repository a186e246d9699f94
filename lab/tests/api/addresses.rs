//! Primary and Floating IPs, alias IPs, reverse DNS.

use serde_json::{Value, json};

use crate::client::{Lab, server_body};

async fn primary_ip(lab: &Lab, name: &str, kind: &str, location: &str) -> u64 {
    let body = json!({"name": name, "type": kind, "location": location, "assignee_type": "server"});
    let answer = lab.post("/primary_ips", body).await.ok();
    assert_eq!(answer["primary_ip"]["assignee_type"], "unassigned");
    answer["primary_ip"]["id"].as_u64().unwrap()
}

#[tokio::test]
async fn a_servers_addresses_are_primary_ips_that_go_with_it() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let net = lab.get(&format!("/servers/{server}")).await.ok()["server"]["public_net"].clone();
    assert_eq!(net["ipv6"]["ip"], "2001:db8:1:1::/64");
    let all = lab.get("/primary_ips").await.ok();
    assert_eq!(all["primary_ips"].as_array().unwrap().len(), 2);
    for address in all["primary_ips"].as_array().unwrap() {
        assert_eq!((&address["assignee_id"], &address["auto_delete"]), (&json!(server), &json!(true)));
        let path = format!("/primary_ips/{}", address["id"]);
        assert_eq!(lab.delete(&path).await.refused(), (422, "must_be_unassigned"));
        let unassign = lab.post(&format!("{path}/actions/unassign"), json!({})).await;
        assert_eq!(unassign.refused(), (422, "server_not_stopped"));
    }
    lab.done(lab.delete(&format!("/servers/{server}")).await).await;
    assert_eq!(lab.get("/primary_ips").await.ok()["primary_ips"], json!([]));
}

#[tokio::test]
async fn a_primary_ip_moves_between_servers_that_are_off() {
    let lab = Lab::start().await;
    let ip = primary_ip(&lab, "kept", "ipv4", "fsn1").await;
    let more = json!({"public_net": {"ipv4": ip, "enable_ipv6": false}});
    let body = lab.done(lab.post("/servers", server_body("one", more.clone())).await).await;
    let one = body["server"]["id"].as_u64().unwrap();
    assert_eq!(body["server"]["public_net"]["ipv4"]["id"], ip);
    assert_eq!(lab.post("/servers", server_body("two", more)).await.refused().1, "primary_ip_assigned");
    let six = json!({"public_net": {"ipv6": ip}});
    assert_eq!(lab.post("/servers", server_body("two", six)).await.refused().1, "primary_ip_version_mismatch");
    let far = primary_ip(&lab, "far", "ipv4", "nbg1").await;
    let far = json!({"public_net": {"ipv4": far}});
    assert_eq!(lab.post("/servers", server_body("two", far)).await.refused().1, "primary_ip_datacenter_mismatch");

    let off = json!({"start_after_create": false, "public_net": {"enable_ipv4": false, "enable_ipv6": false}});
    let body = lab.done(lab.post("/servers", server_body("two", off)).await).await;
    let two = body["server"]["id"].as_u64().unwrap();
    let poweron = lab.post(&format!("/servers/{two}/actions/poweron"), json!({})).await;
    assert_eq!(poweron.refused().1, "server_without_interface");
    let assign = format!("/primary_ips/{ip}/actions/assign");
    let to_two = json!({"assignee_id": two, "assignee_type": "server"});
    assert_eq!(lab.post(&assign, to_two.clone()).await.refused().1, "primary_ip_already_assigned");
    lab.done(lab.post(&format!("/servers/{one}/actions/poweroff"), json!({})).await).await;
    lab.done(lab.post(&format!("/primary_ips/{ip}/actions/unassign"), json!({})).await).await;
    lab.done(lab.post(&assign, to_two).await).await;
    let effects = lab.served.backend.effects();
    let moves: Vec<&String> = effects.iter().filter(|e| e.starts_with("set_public_addresses")).collect();
    assert_eq!(
        moves,
        [&format!("set_public_addresses {one} none none"), &format!("set_public_addresses {two} 203.0.113.2 none")]
    );
    let one = lab.get(&format!("/servers/{one}")).await.ok()["server"].clone();
    assert_eq!(one["public_net"]["ipv4"], Value::Null);
    // It does not go with its server, as it was not made for it.
    lab.done(lab.delete(&format!("/servers/{two}")).await).await;
    let kept = lab.get("/primary_ips?ip=203.0.113.2").await.ok();
    assert_eq!(kept["primary_ips"][0]["assignee_type"], "unassigned");
    assert_eq!(lab.delete(&format!("/primary_ips/{ip}")).await.status, 204);
}

#[tokio::test]
async fn protection_and_auto_delete_exclude_each_other() {
    let lab = Lab::start().await;
    let ip = primary_ip(&lab, "p", "ipv6", "fsn1").await;
    let (path, protect) = (format!("/primary_ips/{ip}"), format!("/primary_ips/{ip}/actions/change_protection"));
    lab.done(lab.post(&protect, json!({"delete": true})).await).await;
    assert_eq!(lab.put(&path, json!({"auto_delete": true})).await.wrong_field(), "auto_delete");
    assert_eq!(lab.delete(&path).await.refused(), (423, "protected"));
    lab.done(lab.post(&protect, json!({"delete": false})).await).await;
    lab.put(&path, json!({"auto_delete": true, "name": "q", "labels": {"a": "b"}})).await.ok();
    assert_eq!(lab.post(&protect, json!({"delete": true})).await.wrong_field(), "delete");
    assert_eq!(lab.get("/primary_ips?label_selector=a%3Db&name=q").await.ok()["primary_ips"][0]["id"], ip);
}

#[tokio::test]
async fn a_floating_ip_moves_while_servers_run() {
    let lab = Lab::start().await;
    let (one, two) = (lab.server("one").await, lab.server("two").await);
    let body = json!({"type": "ipv4", "name": "f", "server": one, "description": "entry"});
    let made = lab.done(lab.post("/floating_ips", body).await).await["floating_ip"].clone();
    let (id, ip) = (made["id"].as_u64().unwrap(), made["ip"].as_str().unwrap().to_owned());
    let assign = format!("/floating_ips/{id}/actions/assign");
    assert_eq!(lab.post(&assign, json!({"server": one})).await.refused().1, "floating_ip_assigned");
    lab.done(lab.post(&assign, json!({"server": two})).await).await;
    assert_eq!(lab.get(&format!("/servers/{two}")).await.ok()["server"]["public_net"]["floating_ips"], json!([id]));
    assert_eq!(lab.delete(&format!("/floating_ips/{id}")).await.refused(), (422, "must_be_unassigned"));
    // A server that goes leaves it behind.
    lab.done(lab.delete(&format!("/servers/{two}")).await).await;
    assert_eq!(lab.get(&format!("/floating_ips/{id}")).await.ok()["floating_ip"]["server"], Value::Null);
    let effects = lab.served.backend.effects();
    let routed: Vec<&str> = effects.iter().filter_map(|e| e.strip_prefix("route_floating_ip ")).collect();
    assert_eq!(routed, [format!("{ip} to {one}"), format!("{ip} to {two}"), format!("{ip} to none")]);
    let kinds = lab.get(&format!("/floating_ips/{id}/actions?sort=id")).await.ok();
    assert_eq!(kinds["actions"][0]["command"], "assign_floating_ip");
    assert_eq!(lab.delete(&format!("/floating_ips/{id}")).await.status, 204);
    let nowhere = json!({"type": "ipv6", "name": "x"});
    assert_eq!(lab.post("/floating_ips", nowhere).await.wrong_field(), "home_location");
}

#[tokio::test]
async fn names_of_addresses_are_kept_with_them() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let path = format!("/servers/{server}/actions/change_dns_ptr");
    for (ip, name) in [("203.0.113.2", "mail.example.com"), ("2001:db8:1:1::25", "mail6.example.com")] {
        lab.done(lab.post(&path, json!({"ip": ip, "dns_ptr": name})).await).await;
    }
    let net = lab.get(&format!("/servers/{server}")).await.ok()["server"]["public_net"].clone();
    assert_eq!(net["ipv4"]["dns_ptr"], "mail.example.com");
    assert_eq!(net["ipv6"]["dns_ptr"], json!([{"ip": "2001:db8:1:1::25", "dns_ptr": "mail6.example.com"}]));
    lab.done(lab.post(&path, json!({"ip": "203.0.113.2", "dns_ptr": null})).await).await;
    let net = lab.get(&format!("/servers/{server}")).await.ok()["server"]["public_net"].clone();
    assert_eq!(net["ipv4"]["dns_ptr"], "static.2.113.0.203.clients.your-server.de");
    let foreign = json!({"ip": "203.0.113.77", "dns_ptr": "x.example.com"});
    assert_eq!(lab.post(&path, foreign).await.wrong_field(), "ip");
}

#[tokio::test]
async fn alias_ips_are_taken_like_others() {
    let lab = Lab::start().await;
    let (server, network) = (lab.server("s").await, lab.network("n").await);
    let body = json!({"network": network, "ip": "10.0.0.5", "alias_ips": ["10.0.0.6"]});
    lab.done(lab.post(&format!("/servers/{server}/actions/attach_to_network"), body).await).await;
    let change = format!("/servers/{server}/actions/change_alias_ips");
    let wish = |ips: Value| json!({"network": network, "alias_ips": ips});
    lab.done(lab.post(&change, wish(json!(["10.0.0.6", "10.0.0.7"]))).await).await;
    let private = lab.get(&format!("/servers/{server}")).await.ok()["server"]["private_net"][0].clone();
    assert_eq!(private["alias_ips"], json!(["10.0.0.6", "10.0.0.7"]));
    let other = lab.server("other").await;
    let taken = json!({"network": network, "ip": "10.0.0.7"});
    let attach = lab.post(&format!("/servers/{other}/actions/attach_to_network"), taken).await;
    assert_eq!(attach.refused().1, "ip_not_available");
    assert_eq!(lab.post(&change, wish(json!(["192.168.0.1"]))).await.wrong_field(), "alias_ips");
    assert!(
        lab.served.backend.effects().contains(&format!("set_alias_ips {server} in {network} [10.0.0.6, 10.0.0.7]"))
    );
}
