//! Every path and method of the published document: each is used with success here, or refused on purpose. Nothing is
//! missing.

use std::collections::BTreeMap;

use hk_lab::api::Options;
use hk_lab::backend::Counters;
use serde_json::{Value, json};

use crate::balancers::{certificate, tcp};
use crate::client::{KEY_ONE, Lab, server_body};
use crate::document;

/// What the lab refuses, with which code, and why.
const REFUSED: [(&str, &str, &str); 10] = [
    ("/zones", "not_implemented", "the lab serves no DNS"),
    ("/storage_boxes", "not_implemented", "the lab has no storage boxes"),
    ("/storage_box_types", "not_implemented", "the lab has no storage boxes"),
    ("/datacenters", "deprecated_api_endpoint", "gone at Hetzner, too"),
    ("/isos/", "not_found", "the lab has no ISOs"),
    ("/servers/{id}/actions/attach_iso", "invalid_input", "the lab has no ISOs"),
    ("/servers/{id}/actions/request_console", "unsupported_error", "the lab's servers have no screen"),
    ("/certificates/{id}/actions/{action_id}", "not_found", "an uploaded certificate has no actions"),
    ("/certificates/actions/{id}", "not_found", "an uploaded certificate has no actions"),
    ("/certificates/{id}/actions/retry", "unsupported_error", "the lab has uploaded certificates only"),
];

/// A resource, and the steps through its life.
struct Life<'a> {
    lab: &'a Lab,
    path: String,
}

impl<'a> Life<'a> {
    /// Creates it at a list's path; its object is under `key`.
    async fn begin(lab: &'a Lab, list: &str, key: &str, body: Value) -> Life<'a> {
        let made = lab.done(lab.post(list, body).await).await;
        let path = format!("{list}/{}", made[key]["id"]);
        Life { lab, path }
    }

    fn id(&self) -> u64 {
        self.path.rsplit('/').next().unwrap().parse().unwrap()
    }

    /// An action, waited for.
    async fn act(&self, action: &str, body: Value) -> Value {
        let answer = self.lab.post(&format!("{}/actions/{action}", self.path), body).await;
        let mut body = answer.ok();
        // Firewalls answer several actions.
        if let Some(all) = body["actions"].as_array().cloned() {
            body["next_actions"] = json!(all);
        }
        let answer = crate::client::Answer { status: 201, headers: Default::default(), body };
        self.lab.done(answer).await
    }

    /// Reads and changes it, and reads its actions in all four ways.
    async fn visit(&self, update: Value) {
        let lab = self.lab;
        let list = self.path.rsplit_once('/').unwrap().0;
        lab.get(list).await.ok();
        lab.get(&self.path).await.ok();
        lab.put(&self.path, update).await.ok();
        let known = ["/ssh_keys", "/placement_groups"].contains(&list);
        if !known {
            let actions = lab.get(&format!("{}/actions", self.path)).await.ok();
            lab.get(&format!("{list}/actions")).await.ok();
            if let Some(id) = actions["actions"][0]["id"].as_u64() {
                lab.get(&format!("{}/actions/{id}", self.path)).await.ok();
                lab.get(&format!("{list}/actions/{id}")).await.ok();
                lab.get(&format!("/actions/{id}")).await.ok();
            }
        }
    }

    async fn end(self) {
        let answer = self.lab.delete(&self.path).await;
        if answer.status != 204 {
            self.lab.done(answer).await;
        }
    }
}

async fn whole_life(lab: &Lab) {
    let named = |name: &str| json!({"name": name, "labels": {"a": "b"}});
    for list in ["/locations", "/server_types", "/images", "/load_balancer_types"] {
        let all = lab.get(list).await.ok();
        let id = &all[list.trim_start_matches('/')][0]["id"];
        lab.get(&format!("{list}/{id}")).await.ok();
    }
    lab.get("/isos").await.ok();
    lab.get("/pricing").await.ok();

    let key = Life::begin(lab, "/ssh_keys", "ssh_key", json!({"name": "k", "public_key": KEY_ONE})).await;
    key.visit(named("k2")).await;
    let group = json!({"name": "g", "type": "spread"});
    let group = Life::begin(lab, "/placement_groups", "placement_group", group).await;
    group.visit(named("g2")).await;
    let network = Life::begin(lab, "/networks", "network", json!({"name": "n", "ip_range": "10.0.0.0/16"})).await;
    let subnet = json!({"type": "cloud", "network_zone": "eu-central", "ip_range": "10.0.0.0/24"});
    network.act("add_subnet", subnet).await;
    let route = json!({"destination": "10.100.0.0/16", "gateway": "10.0.0.7"});
    network.act("add_route", route.clone()).await;
    network.act("delete_route", route).await;
    let more = json!({"type": "cloud", "network_zone": "eu-central", "ip_range": "10.0.9.0/24"});
    network.act("add_subnet", more).await;
    network.act("delete_subnet", json!({"ip_range": "10.0.9.0/24"})).await;
    network.act("change_ip_range", json!({"ip_range": "10.0.0.0/12"})).await;
    network.act("change_protection", json!({"delete": false})).await;
    network.visit(named("n2")).await;

    let server = Life::begin(lab, "/servers", "server", server_body("s", json!({}))).await;
    servers_life(lab, &server, key.id(), group.id(), network.id()).await;
    let id = server.id();

    let volume = json!({"name": "v", "size": 10, "server": id, "format": "ext4"});
    let volume = Life::begin(lab, "/volumes", "volume", volume).await;
    volume.act("detach", json!({})).await;
    volume.act("attach", json!({"server": id})).await;
    volume.act("resize", json!({"size": 11})).await;
    volume.act("change_protection", json!({"delete": false})).await;
    volume.visit(named("v2")).await;
    volume.act("detach", json!({})).await;
    volume.end().await;

    let rule = json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0", "::/0"]});
    let firewall = Life::begin(lab, "/firewalls", "firewall", json!({"name": "f", "rules": [rule]})).await;
    let of_server = json!([{"type": "server", "server": {"id": id}}]);
    firewall.act("apply_to_resources", json!({"apply_to": of_server})).await;
    firewall.act("set_rules", json!({"rules": []})).await;
    firewall.visit(named("f2")).await;
    firewall.act("remove_from_resources", json!({"remove_from": of_server})).await;
    firewall.end().await;

    let floating = json!({"type": "ipv4", "home_location": "fsn1", "name": "fl"});
    let floating = Life::begin(lab, "/floating_ips", "floating_ip", floating).await;
    floating.act("assign", json!({"server": id})).await;
    floating.act("unassign", json!({})).await;
    let ip = lab.get(&floating.path).await.ok()["floating_ip"]["ip"].clone();
    floating.act("change_dns_ptr", json!({"ip": ip, "dns_ptr": "f.example.com"})).await;
    floating.act("change_protection", json!({"delete": false})).await;
    floating.visit(named("fl2")).await;
    floating.end().await;

    balancers_life(lab, id, network.id()).await;
    primary_ips_life(lab).await;
    server.end().await;
    group.end().await;
    key.end().await;
    network.end().await;
}

async fn servers_life(lab: &Lab, server: &Life<'_>, key: u64, group: u64, network: u64) {
    let path = &server.path;
    lab.put(path, json!({"name": "s2", "labels": {"role": "web"}})).await.ok();
    for action in ["reboot", "reset", "shutdown", "poweroff"] {
        server.act(action, json!({})).await;
    }
    server.act("add_to_placement_group", json!({"placement_group": group})).await;
    server.act("remove_from_placement_group", json!({})).await;
    server.act("change_type", json!({"server_type": "cx33", "upgrade_disk": true})).await;
    server.act("poweron", json!({})).await;
    server.act("enable_rescue", json!({"type": "linux64", "ssh_keys": [key]})).await;
    server.act("disable_rescue", json!({})).await;
    server.act("reset_password", json!({})).await;
    server.act("rebuild", json!({"image": "debian-12"})).await;
    server.act("enable_backup", json!({})).await;
    let image = server.act("create_image", json!({"type": "backup"})).await["image"]["id"].clone();
    let image = Life { lab, path: format!("/images/{image}") };
    image.visit(json!({"type": "snapshot", "description": "kept"})).await;
    image.act("change_protection", json!({"delete": false})).await;
    image.end().await;
    server.act("disable_backup", json!({})).await;
    server.act("attach_to_network", json!({"network": network})).await;
    server.act("change_alias_ips", json!({"network": network, "alias_ips": ["10.0.0.77"]})).await;
    server.act("detach_from_network", json!({"network": network})).await;
    server.act("change_dns_ptr", json!({"ip": "203.0.113.2", "dns_ptr": "s.example.com"})).await;
    server.act("change_protection", json!({"delete": false, "rebuild": false})).await;
    server.act("detach_iso", json!({})).await;
    server.visit(json!({"name": "s3"})).await;
    lab.served.backend.set_counters(Counters { cpu_seconds: 1.0, ..Counters::default() });
    let query = "start=2020-01-01T00:00:00Z&end=2040-01-01T00:00:00%2B00:00";
    let metrics = lab.get(&format!("{path}/metrics?type=cpu,disk&type=network&{query}")).await.ok();
    assert_eq!(metrics["metrics"]["time_series"].as_object().unwrap().len(), 9);
    // Whoever asks for more points than are answered at most gets fewer, with or without a step of his own.
    for (step, least) in [("", 9), ("&step=1", 4)] {
        let half_an_hour = "type=cpu&start=2026-01-01T00:00:00Z&end=2026-01-01T00:30:00Z";
        let metrics = lab.get(&format!("{path}/metrics?{half_an_hour}{step}")).await.ok();
        assert_eq!(metrics["metrics"]["step"], least, "{step}");
    }
}

async fn balancers_life(lab: &Lab, server: u64, network: u64) {
    let (chain, key) = certificate("lab.example.com");
    let body = json!({"name": "c", "certificate": chain, "private_key": key});
    let cert = Life::begin(lab, "/certificates", "certificate", body).await;
    cert.visit(json!({"name": "c2"})).await;
    cert.end().await;

    let body =
        json!({"name": "lb", "load_balancer_type": "lb11", "location": "fsn1", "algorithm": {"type": "round_robin"}});
    let lb = Life::begin(lab, "/load_balancers", "load_balancer", body).await;
    lb.act("add_service", tcp(80)).await;
    lb.act("update_service", json!({"listen_port": 80, "proxyprotocol": true})).await;
    let target = json!({"type": "server", "server": {"id": server}});
    lb.act("add_target", target.clone()).await;
    lb.visit(json!({"name": "lb2", "labels": {"a": "b"}})).await;
    lb.act("remove_target", target).await;
    lb.act("delete_service", json!({"listen_port": 80})).await;
    lb.act("change_algorithm", json!({"type": "least_connections"})).await;
    lb.act("change_type", json!({"load_balancer_type": "lb21"})).await;
    lb.act("attach_to_network", json!({"network": network})).await;
    lb.act("disable_public_interface", json!({})).await;
    lb.act("enable_public_interface", json!({})).await;
    lb.act("detach_from_network", json!({"network": network})).await;
    let ip = lab.get(&lb.path).await.ok()["load_balancer"]["public_net"]["ipv4"]["ip"].clone();
    lb.act("change_dns_ptr", json!({"ip": ip, "dns_ptr": "lb.example.com"})).await;
    lb.act("change_protection", json!({"delete": false})).await;
    let query = "start=2020-01-01T00:00:00Z&end=2040-01-01T00:00:00Z";
    let types = "open_connections,connections_per_second,requests_per_second,bandwidth";
    lab.get(&format!("{}/metrics?type={types}&{query}", lb.path)).await.ok();
    lb.end().await;
}

async fn primary_ips_life(lab: &Lab) {
    let off = json!({"start_after_create": false, "public_net": {"enable_ipv4": false}});
    let server = Life::begin(lab, "/servers", "server", server_body("off", off)).await;
    let body = json!({"name": "p", "type": "ipv4", "assignee_type": "server", "location": "fsn1"});
    let primary = Life::begin(lab, "/primary_ips", "primary_ip", body).await;
    primary.act("assign", json!({"assignee_id": server.id(), "assignee_type": "server"})).await;
    primary.act("unassign", json!({})).await;
    let ip = lab.get(&primary.path).await.ok()["primary_ip"]["ip"].clone();
    primary.act("change_dns_ptr", json!({"ip": ip, "dns_ptr": "p.example.com"})).await;
    primary.act("change_protection", json!({"delete": false})).await;
    primary.visit(json!({"name": "p2", "labels": {"a": "b"}})).await;
    primary.end().await;
    server.end().await;
}

/// What a refused request is sent: enough to get past the checks that come before the refusal.
async fn refusal(lab: &Lab, method: &str, template: &str) -> String {
    let mut path = template.to_owned();
    if template.starts_with("/servers/") {
        path = path.replace("{id}", &lab.server("refused").await.to_string());
    }
    if template.starts_with("/certificates/") {
        let (chain, key) = certificate("refused.example.com");
        let body = json!({"name": template.replace('/', "-"), "certificate": chain, "private_key": key});
        let id = lab.post("/certificates", body).await.ok()["certificate"]["id"].clone();
        path = path.replace("{id}", &id.to_string());
    }
    let path: Vec<&str> = path.split('/').map(|part| if part.starts_with('{') { "4711" } else { part }).collect();
    let body = (method != "get").then(|| json!({"iso": "a.iso"}));
    let method = method.to_uppercase().parse().unwrap();
    let answer = lab.call(method, &path.join("/"), body).await;
    let code = answer.refused().1.to_owned();
    if template.starts_with("/servers/") {
        let id = path[2].to_owned();
        lab.done(lab.delete(&format!("/servers/{id}")).await).await;
    }
    code
}

#[tokio::test]
async fn every_path_and_method_is_covered_or_refused_on_purpose() {
    let Some(document) = document::load() else {
        eprintln!("skipped: the OpenAPI document is not here (set HCLOUD_OPENAPI)");
        return;
    };
    let mut options = Options::new("coverage");
    options.rate_limit.burst = 1_000_000;
    let lab = Lab::with(options).await;
    whole_life(&lab).await;
    let used = lab.used();
    let mut report: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (template, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            if !["get", "post", "put", "delete"].contains(&method.as_str()) {
                continue;
            }
            let name = format!("{} {template}", method.to_uppercase());
            // The longest that fits: `/isos/` is not `/isos`.
            let refused = REFUSED.iter().find(|(start, ..)| template.starts_with(start));
            let kind = match refused {
                _ if used.contains(&name) => "covered",
                Some((_, code, _)) if refusal(&lab, method, template).await == *code => "refused on purpose",
                _ => "missing",
            };
            report.entry(kind).or_default().push(name);
        }
    }
    for (kind, names) in &report {
        println!("{}: {kind}", names.len());
        for name in names {
            println!("  {name}");
        }
    }
    assert_eq!(report.get("missing"), None);
}
