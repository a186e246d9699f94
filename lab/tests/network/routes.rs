//! Private networks: subnets, aliases, routes, gateways.

use serde_json::json;

use crate::common::eventually;
use crate::{Knock, Stage};

pub fn networks_route_between_subnets(stage: &Stage) {
    let Stage { lab, web, db, .. } = stage;
    assert!(web.private.starts_with("10.0.0.") && db.private.starts_with("10.0.1."));
    assert!(lab.answers_ssh("server:db", &web.private));
    assert!(lab.answers_ssh("server:web", &db.private));
    assert_eq!(lab.ok("server:db", "cat /sys/class/net/ens10/mtu"), "1450");
    // All on layer 3: neighbours are reached through the gateway, which answers itself.
    assert!(lab.ok("server:db", &format!("ip route get {}", web.private)).contains("via 10.0.0.1"));
    assert_eq!(stage.knock("server:db", "10.0.0.1", 1), Knock::Refused);
    assert_eq!(stage.knock("server:db", "203.0.113.1", 22), Knock::Refused, "no way out by itself");
}

pub fn aliases_reach_their_machine(stage: &Stage) {
    let Stage { lab, network, gate, .. } = stage;
    stage.serve_name("gate", 8083);
    let set = |aliases: &[&str]| {
        lab.effect(json!({"effect": "set_alias_ips", "machine": gate.id, "network": network, "aliases": aliases}));
    };
    let who = || stage.name_at("server:db", "http://10.0.0.200:8083/");
    set(&["10.0.0.200", "10.0.0.201"]);
    assert_eq!(who(), "", "inside nothing is configured");
    lab.ok("server:gate", "ip addr add 10.0.0.200/32 dev ens10");
    eventually("the alias answers", || who() == "gate");
    set(&["10.0.0.201"]);
    assert_eq!(who(), "");
}

fn set_routes(stage: &Stage, method: &str, destination: &str) {
    let body = json!({"destination": destination, "gateway": stage.gate.private});
    stage.lab.post(&format!("/networks/{}/actions/{method}", stage.network), body);
}

pub fn a_route_leads_through_a_machine(stage: &Stage) {
    let Stage { lab, gate, .. } = stage;
    stage.serve_name("gate", 8084);
    lab.ok("server:gate", "ip addr add 10.0.99.1/32 dev lo");
    lab.ok("server:db", "ip route add 10.99.0.0/24 via 10.0.0.1");
    lab.ok("server:gate", "ip addr add 10.99.0.1/32 dev lo");
    let who = |address: &str| stage.name_at("server:db", &format!("http://{address}:8084/"));
    assert_eq!(who("10.99.0.1"), "");
    set_routes(stage, "add_route", "10.99.0.0/24");
    // In the network's own range no route is needed inside.
    set_routes(stage, "add_route", "10.0.99.0/24");
    eventually("gate answers", || who("10.99.0.1") == "gate");
    eventually("gate answers", || who("10.0.99.1") == "gate");
    // It holds again when the machine it leads through is back.
    lab.post(&format!("/servers/{}/actions/reset", gate.id), json!({}));
    lab.wait_for_ssh(&gate.public);
    stage.serve_name("gate", 8084);
    lab.ok("server:gate", "ip addr add 10.99.0.1/32 dev lo");
    eventually("gate answers", || who("10.99.0.1") == "gate");
    set_routes(stage, "delete_route", "10.99.0.0/24");
    set_routes(stage, "delete_route", "10.0.99.0/24");
    assert_eq!(who("10.99.0.1"), "");
}

pub fn private_servers_reach_the_internet_through_a_gateway(stage: &Stage) {
    let Stage { lab, .. } = stage;
    let _site = stage.run("internet", "exec systemd-socket-activate -l 7001 -a --inetd ss -Htn");
    eventually("a site is up", || stage.knock("internet", "198.51.101.2", 7001) == Knock::Open);
    lab.ok("server:db", "ip route add default via 10.0.0.1 dev ens10");
    assert_ne!(stage.knock("server:db", "198.51.101.2", 7001), Knock::Open);
    set_routes(stage, "add_route", "0.0.0.0/0");
    assert_ne!(stage.knock("server:db", "198.51.101.2", 7001), Knock::Open, "private addresses are not routed outside");
    lab.ok(
        "server:gate",
        "sysctl -qw net.ipv4.ip_forward=1; nft 'add table ip nat; add chain ip nat post { type nat hook postrouting \
         priority 100; }; add rule ip nat post ip saddr 10.0.0.0/16 oifname eth0 masquerade'",
    );
    let seen = "timeout 2 bash -c 'exec 3<>/dev/tcp/198.51.101.2/7001; cat <&3'";
    let peers = lab.ok("server:db", seen);
    assert!(peers.contains(&format!(":{}]", stage.gate.public)), "the site sees the gateway: {peers}");
    lab.ok("server:db", "curl -s --max-time 2 -o /dev/null http://192.0.2.10/v1/servers");
    assert_ne!(stage.knock("server:db", "10.0.77.7", 22), Knock::Open, "what is not in the network is nowhere");
    set_routes(stage, "delete_route", "0.0.0.0/0");
    assert_ne!(stage.knock("server:db", "198.51.101.2", 7001), Knock::Open);
}
