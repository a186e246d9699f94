//! The same effects, ordered through the cloud's API: by label, by name, by resource.

use serde_json::{Value, json};

use crate::common::eventually;
use crate::{Knock, Stage};

pub fn the_api_orders_them(stage: &Stage) {
    let Stage { lab, web, gate, .. } = stage;
    for server in [web, gate] {
        lab.call("PUT", &format!("/servers/{}", server.id), Some(json!({"labels": {"role": "web"}})));
    }
    for machine in ["web", "gate"] {
        stage.serve_name(machine, 8087);
    }
    let selected = json!({"type": "label_selector", "label_selector": {"selector": "role=web"}});
    firewalls(stage, &selected);
    floating_ips(stage);
    balancers(stage, &selected);
}

fn firewalls(stage: &Stage, selected: &Value) {
    let Stage { lab, web, gate, .. } = stage;
    let rule = json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0", "::/0"]});
    let answer = lab.post("/firewalls", json!({"name": "f", "rules": [rule], "apply_to": [selected]}));
    let id = answer["firewall"]["id"].as_u64().expect("an id");
    let doors = || stage.knock_all("internet", &[(&*web.public, 8087), (&*gate.public, 8087), (&*web.public, 22)]);
    eventually("the label's servers are closed", || doors() == [Knock::Silent, Knock::Silent, Knock::Open]);
    lab.post(&format!("/firewalls/{id}/actions/remove_from_resources"), json!({"remove_from": [selected]}));
    eventually("and open again", || doors() == [Knock::Open; 3]);
    lab.delete(&format!("/firewalls/{id}"));
}

fn floating_ips(stage: &Stage) {
    let Stage { lab, web, gate, .. } = stage;
    let answer = lab.post("/floating_ips", json!({"type": "ipv4", "server": web.id}));
    let (id, ip) = (&answer["floating_ip"]["id"], answer["floating_ip"]["ip"].as_str().expect("an address"));
    for machine in ["web", "gate"] {
        lab.ok(&format!("server:{machine}"), &format!("ip addr add {ip}/32 dev eth0"));
    }
    let who = || stage.name_at("internet", &format!("http://{ip}:8087/"));
    eventually("web answers", || who() == "web");
    lab.post(&format!("/floating_ips/{id}/actions/assign"), json!({"server": gate.id}));
    eventually("gate answers", || who() == "gate");
    lab.post(&format!("/floating_ips/{id}/actions/unassign"), json!({}));
    assert_eq!(who(), "");
    lab.delete(&format!("/floating_ips/{id}"));
}

fn balancers(stage: &Stage, selected: &Value) {
    let Stage { lab, network, .. } = stage;
    let mut target = selected.clone();
    target["use_private_ip"] = json!(true);
    let check = json!({"protocol": "tcp", "port": 8087, "interval": 3, "timeout": 2, "retries": 1});
    let service = json!({"protocol": "tcp", "listen_port": 80, "destination_port": 8087, "proxyprotocol": false,
        "health_check": check});
    let body = json!({"name": "lb", "load_balancer_type": "lb11", "location": "fsn1", "network": network,
        "services": [service], "targets": [target]});
    let id = lab.post("/load_balancers", body)["load_balancer"]["id"].clone();
    let seen = || lab.call("GET", &format!("/load_balancers/{id}"), None)["load_balancer"].clone();
    let (public, private) = (seen()["public_net"].clone(), seen()["private_net"][0]["ip"].clone());
    let text = |value: &Value| value.as_str().expect("an address").to_owned();
    let addresses = [text(&public["ipv4"]["ip"]), format!("[{}]", text(&public["ipv6"]["ip"])), text(&private)];
    for (from, address) in ["internet", "internet", "server:db"].into_iter().zip(&addresses) {
        let mut names: Vec<String> = (0..4).map(|_| stage.name_at(from, &format!("http://{address}/"))).collect();
        names.sort();
        assert_eq!(names, ["gate", "gate", "web", "web"], "from {from} to {address}");
    }
    eventually("the API says who is well", || {
        let targets = &seen()["targets"][0]["targets"];
        let all = targets.as_array().map(Vec::as_slice).unwrap_or_default();
        all.len() == 2 && all.iter().all(|t| t["health_status"][0]["status"] == "healthy")
    });
    lab.delete(&format!("/load_balancers/{id}"));
    assert_ne!(stage.knock("internet", &addresses[0], 80), Knock::Open);
}
