//! Load balancers and certificates, as the machine room is told of them.

use serde_json::{Value, json};

use crate::client::{Lab, server_body};

/// A certificate and its key, in PEM.
pub fn certificate(domain: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([domain.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

pub fn tcp(listen: u16) -> Value {
    json!({"protocol": "tcp", "listen_port": listen, "destination_port": 80, "proxyprotocol": false, "health_check":
        {"protocol": "tcp", "port": 80, "interval": 15, "timeout": 10, "retries": 3}})
}

async fn balancer(lab: &Lab, more: Value) -> u64 {
    let mut body = json!({"name": "lb", "load_balancer_type": "lb11", "location": "fsn1", "services": [tcp(80)]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    lab.done(lab.post("/load_balancers", body).await).await["load_balancer"]["id"].as_u64().unwrap()
}

fn targets(lab: &Lab, balancer: u64) -> Vec<String> {
    let spec = lab.served.backend.balancer(balancer).unwrap();
    spec.targets.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn targets_by_server_label_and_address_are_reached_once_each() {
    let lab = Lab::start().await;
    let web = server_body("web", json!({"labels": {"role": "web"}}));
    let web = lab.done(lab.post("/servers", web).await).await["server"]["id"].as_u64().unwrap();
    let lb = balancer(&lab, json!({"targets": [{"type": "server", "server": {"id": web}}]})).await;
    assert_eq!(targets(&lab, lb), ["203.0.113.2"]);
    let add = format!("/load_balancers/{lb}/actions/add_target");
    let again = json!({"type": "server", "server": {"id": web}});
    assert_eq!(lab.post(&add, again).await.refused().1, "target_already_defined");
    let label = json!({"type": "label_selector", "label_selector": {"selector": "role=web"}});
    lab.done(lab.post(&add, label.clone()).await).await;
    lab.done(lab.post(&add, json!({"type": "ip", "ip": {"ip": "198.51.100.2"}})).await).await;
    let own = json!({"type": "ip", "ip": {"ip": "203.0.113.2"}});
    assert_eq!(lab.post(&add, own).await.refused().1, "cloud_resource_ip_not_allowed");
    assert_eq!(targets(&lab, lb), ["203.0.113.2", "198.51.100.2"]);

    // Another server with the label follows, and goes again.
    let more = lab.server("more").await;
    lab.put(&format!("/servers/{more}"), json!({"labels": {"role": "web"}})).await.ok();
    lab.until(|| targets(&lab, lb).len() == 3).await;
    lab.put(&format!("/servers/{more}"), json!({"labels": {}})).await.ok();
    lab.until(|| targets(&lab, lb).len() == 2).await;
    // A server that is deleted is no target any more.
    assert_eq!(lab.get(&format!("/servers/{web}")).await.ok()["server"]["load_balancers"], json!([lb]));
    lab.done(lab.delete(&format!("/servers/{web}")).await).await;
    lab.until(|| targets(&lab, lb) == ["198.51.100.2"]).await;
    let shown = lab.get(&format!("/load_balancers/{lb}")).await.ok()["load_balancer"]["targets"].clone();
    assert_eq!(shown.as_array().unwrap().len(), 2);
    lab.done(lab.post(&format!("/load_balancers/{lb}/actions/remove_target"), label).await).await;
}

#[tokio::test]
async fn health_is_what_the_checks_saw() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let lb = balancer(&lab, json!({"targets": [{"type": "server", "server": {"id": server}}]})).await;
    let path = format!("/load_balancers/{lb}");
    for (sick, status) in [(false, "healthy"), (true, "unhealthy")] {
        lab.served.backend.set_sick("203.0.113.2".parse().unwrap(), sick);
        let shown = lab.get(&path).await.ok()["load_balancer"]["targets"][0].clone();
        assert_eq!(shown["health_status"], json!([{"listen_port": 80, "status": status}]));
    }
}

#[tokio::test]
async fn private_targets_need_the_network_of_both() {
    let lab = Lab::start().await;
    let (server, network) = (lab.server("s").await, lab.network("n").await);
    let lb = balancer(&lab, json!({})).await;
    let path = format!("/load_balancers/{lb}/actions");
    let target = json!({"type": "server", "server": {"id": server}, "use_private_ip": true});
    let add = format!("{path}/add_target");
    assert_eq!(lab.post(&add, target.clone()).await.refused().1, "load_balancer_not_attached_to_network");
    let attach = json!({"network": network, "ip": "10.0.0.9"});
    lab.done(lab.post(&format!("{path}/attach_to_network"), attach.clone()).await).await;
    let again = lab.post(&format!("{path}/attach_to_network"), attach.clone()).await;
    assert_eq!(again.refused().1, "load_balancer_already_attached");
    assert_eq!(lab.post(&add, target.clone()).await.refused().1, "server_not_attached_to_network");
    let taken = lab.post(&format!("/servers/{server}/actions/attach_to_network"), attach).await;
    assert_eq!(taken.refused().1, "ip_not_available");
    let join = json!({"network": network, "ip": "10.0.0.4"});
    lab.done(lab.post(&format!("/servers/{server}/actions/attach_to_network"), join).await).await;
    lab.done(lab.post(&add, target).await).await;
    assert_eq!(targets(&lab, lb), ["10.0.0.4"]);
    lab.done(lab.post(&format!("{path}/disable_public_interface"), json!({})).await).await;
    assert_eq!(lab.served.backend.balancer(lb).unwrap().public_ipv4, None);
    let network_json = lab.get(&format!("/networks/{network}")).await.ok()["network"].clone();
    assert_eq!(network_json["load_balancers"], json!([lb]));
    let url = format!("{}/networks/{network}/members?type=load_balancer", lab.served.endpoint);
    let members = lab.http.get(url).bearer_auth(&lab.token).send().await.unwrap().text().await.unwrap();
    assert!(members.contains("\"ip\":\"10.0.0.9\"") && !members.contains("10.0.0.4"), "{members}");
    let detach = lab.post(&format!("{path}/detach_from_network"), json!({"network": network})).await;
    assert_eq!(detach.refused().1, "targets_with_use_private_ip");
    // A network that goes takes the way to its servers with it.
    assert_eq!(lab.delete(&format!("/networks/{network}")).await.status, 204);
    assert!(targets(&lab, lb).is_empty());
    assert_eq!(lab.get(&format!("/load_balancers/{lb}")).await.ok()["load_balancer"]["private_net"], json!([]));
}

#[tokio::test]
async fn services_must_fit_and_can_change() {
    let lab = Lab::start().await;
    let (chain, key) = certificate("lab.example.com");
    let body = json!({"name": "c", "type": "uploaded", "certificate": chain, "private_key": key});
    let cert = lab.post("/certificates", body).await.ok()["certificate"].clone();
    assert_eq!(cert["domain_names"], json!(["lab.example.com"]));
    let lb = balancer(&lab, json!({})).await;
    let path = format!("/load_balancers/{lb}/actions");
    assert_eq!(lab.post(&format!("{path}/add_service"), tcp(80)).await.refused().1, "source_port_already_used");
    let https = |more: Value| {
        let mut body = tcp(443);
        (body["protocol"], body["http"]) = (json!("https"), more);
        body
    };
    let add = format!("{path}/add_service");
    assert_eq!(lab.post(&add, https(json!({}))).await.wrong_field(), "certificates");
    assert_eq!(lab.post(&add, https(json!({"certificates": [4711]}))).await.wrong_field(), "certificates");
    let redirect = https(json!({"certificates": [cert["id"]], "redirect_http": true}));
    assert_eq!(lab.post(&add, redirect.clone()).await.refused().1, "source_port_already_used");
    let gone = json!({"listen_port": 80});
    lab.done(lab.post(&format!("{path}/delete_service"), gone.clone()).await).await;
    assert_eq!(lab.post(&format!("{path}/delete_service"), gone).await.wrong_field(), "listen_port");
    lab.done(lab.post(&add, redirect).await).await;
    let change = json!({"listen_port": 443, "http": {"sticky_sessions": true, "cookie_name": "ROUTE"},
        "health_check": {"protocol": "http", "http": {"path": "/healthz", "status_codes": ["200"]}}});
    lab.done(lab.post(&format!("{path}/update_service"), change).await).await;
    let shown = lab.get(&format!("/load_balancers/{lb}")).await.ok()["load_balancer"]["services"][0].clone();
    assert_eq!((&shown["http"]["redirect_http"], &shown["http"]["cookie_name"]), (&json!(true), &json!("ROUTE")));
    assert_eq!(shown["health_check"]["http"]["path"], "/healthz");
    let told = format!("{:?}", lab.served.backend.balancer(lb).unwrap().services);
    assert!(told.contains("BEGIN PRIVATE KEY") && told.contains("ROUTE") && told.contains("/healthz"), "{told}");

    assert_eq!(lab.delete(&format!("/certificates/{}", cert["id"])).await.refused().1, "resource_in_use");
    let used = lab.get(&format!("/certificates/{}", cert["id"])).await.ok()["certificate"]["used_by"].clone();
    assert_eq!(used, json!([{"id": lb, "type": "load_balancer"}]));
    lab.done(lab.delete(&format!("/load_balancers/{lb}")).await).await;
    assert_eq!(lab.get(&format!("/load_balancers/{lb}")).await.refused(), (404, "not_found"));
    assert!(lab.served.backend.balancer(lb).is_none());
    assert_eq!(lab.delete(&format!("/certificates/{}", cert["id"])).await.status, 204);
}

#[tokio::test]
async fn only_a_certificate_with_its_own_key_is_taken() {
    let lab = Lab::start().await;
    let ((chain, key), (_, other)) = (certificate("a.example.com"), certificate("b.example.com"));
    let wish = |chain: &str, key: &str| json!({"name": "c", "certificate": chain, "private_key": key});
    assert_eq!(lab.post("/certificates", wish(&chain, &other)).await.wrong_field(), "private_key");
    assert_eq!(lab.post("/certificates", wish("nonsense", &key)).await.wrong_field(), "certificate");
    assert_eq!(lab.post("/certificates", wish(&chain, "nonsense")).await.wrong_field(), "private_key");
    let managed = json!({"name": "m", "type": "managed", "domain_names": ["a.example.com"]});
    assert_eq!(lab.post("/certificates", managed).await.refused().1, "unsupported_error");
    let made = lab.post("/certificates", wish(&chain, &key)).await;
    assert!(!made.body.to_string().contains("PRIVATE KEY"));
    assert_eq!(lab.post("/certificates", wish(&chain, &key)).await.refused().1, "uniqueness_error");
}

#[tokio::test]
async fn types_limit_what_a_load_balancer_takes() {
    let lab = Lab::start().await;
    let services: Vec<Value> = (1..=5).map(tcp).collect();
    let lb = balancer(&lab, json!({"load_balancer_type": "lb11", "services": services})).await;
    let path = format!("/load_balancers/{lb}/actions");
    assert_eq!(lab.post(&format!("{path}/add_service"), tcp(6)).await.refused(), (403, "resource_limit_exceeded"));
    lab.done(lab.post(&format!("{path}/change_type"), json!({"load_balancer_type": "lb21"})).await).await;
    lab.done(lab.post(&format!("{path}/add_service"), tcp(6)).await).await;
    let back = lab.post(&format!("{path}/change_type"), json!({"load_balancer_type": "lb11"})).await;
    assert_eq!(back.refused().1, "invalid_load_balancer_type");
}

#[tokio::test]
async fn what_cannot_be_made_so_fails_the_action_and_is_tried_again() {
    let lab = Lab::start().await;
    lab.served.backend.fail_next("set_balancer", "no port is free");
    let body = json!({"name": "lb", "load_balancer_type": "lb11", "network_zone": "eu-central"});
    let (body, actions) = lab.end_of(lab.post("/load_balancers", body).await).await;
    assert_eq!(actions[0]["error"]["message"], "no port is free");
    let tries = || lab.served.backend.effects().iter().filter(|e| e.starts_with("set_balancer")).count();
    lab.until(|| tries() >= 2).await;
    lab.done(lab.delete(&format!("/load_balancers/{}", body["load_balancer"]["id"])).await).await;
}
