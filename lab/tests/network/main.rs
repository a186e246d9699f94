//! What the lab's networks do to packets, seen from inside machines and from the internet. Needs root.

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod balance;
mod cloud;
mod firewall;
mod routes;
mod tunnel;

use std::process::{Child, Command, Stdio};

use common::{Lab, PROGRAM, eventually};
use serde_json::{Value, json};

/// What the checks share. Servers by name, booted once.
pub struct Stage {
    pub lab: Lab,
    pub network: u64,
    /// Public; address 10.0.0.x.
    pub web: Server,
    /// Public; forwards for others.
    pub gate: Server,
    /// Has no public address.
    pub db: Server,
}

pub struct Server {
    pub id: u64,
    pub public: String,
    pub private: String,
}

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    Open,
    /// Somebody answered that there is nothing.
    Refused,
    /// Nobody answered.
    Silent,
}

#[test]
fn networks_do_what_the_cloud_says() {
    let stage = Stage::set("t-network");
    type Step = (&'static str, fn(&Stage));
    let steps: [Step; 15] = [
        ("places are apart", addresses::places_are_apart),
        ("filters new connections by all that a rule says", firewall::filters_new_connections_by_all_that_a_rule_says),
        (
            "leaves established connections and private traffic alone",
            firewall::leaves_established_connections_and_private_traffic_alone,
        ),
        ("filters what goes out", firewall::filters_what_goes_out),
        ("ipv6 is there as at hetzner", addresses::ipv6_is_there_as_at_hetzner),
        ("floating addresses move", addresses::floating_addresses_move),
        ("power ends connections without a word", addresses::power_ends_connections_without_a_word),
        ("networks route between subnets", routes::networks_route_between_subnets),
        ("aliases reach their machine", routes::aliases_reach_their_machine),
        ("a route leads through a machine", routes::a_route_leads_through_a_machine),
        (
            "private servers reach the internet through a gateway",
            routes::private_servers_reach_the_internet_through_a_gateway,
        ),
        (
            "an operator reaches a private server by wireguard",
            tunnel::an_operator_reaches_a_private_server_by_wireguard,
        ),
        ("the api orders them", cloud::the_api_orders_them),
        ("load balancers serve who is well", balance::load_balancers_serve_who_is_well),
        ("traffic is counted", addresses::traffic_is_counted),
    ];
    for (name, step) in steps {
        let start = std::time::Instant::now();
        step(&stage);
        eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
}

impl Stage {
    fn set(name: &str) -> Self {
        let lab = Lab::up(name);
        let subnet = |range: &str| json!({"type": "cloud", "ip_range": range, "network_zone": "eu-central"});
        let body = json!({"name": "n", "ip_range": "10.0.0.0/16",
            "subnets": [subnet("10.0.0.0/24"), subnet("10.0.1.0/24")]});
        let network = lab.post("/networks", body)["network"]["id"].as_u64().expect("an id");
        let more = json!({"networks": [network]});
        let server = |name: &str, location: &str| {
            let (id, public) = lab.server(name, location, more.clone());
            Server { id, public, private: private_address(&lab, id) }
        };
        let (web, gate) = (server("web", "fsn1"), server("gate", "nbg1"));
        let body = json!({"name": "db", "server_type": "cx23", "image": "debian-12", "location": "hel1",
            "public_net": {"enable_ipv4": false, "enable_ipv6": false}});
        let id = lab.post("/servers", body)["server"]["id"].as_u64().expect("an id");
        lab.post(&format!("/servers/{id}/actions/attach_to_network"), json!({"network": network, "ip": "10.0.1.9"}));
        let db = Server { id, public: String::new(), private: "10.0.1.9".into() };
        for server in [&web, &gate] {
            lab.wait_for_ssh(&server.public);
        }
        eventually("the private server is up", || lab.answers_ssh("server:web", &db.private));
        Self { lab, network, web, gate, db }
    }

    pub fn knock(&self, from: &str, address: &str, port: u16) -> Knock {
        self.knock_all(from, &[(address, port)])[0]
    }

    /// At all these doors at once: silence takes its time.
    pub fn knock_all(&self, from: &str, doors: &[(&str, u16)]) -> Vec<Knock> {
        let one = |(place, (address, port)): (usize, &(&str, u16))| {
            format!("(timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null; echo {place} $?) & ")
        };
        let script: String = doors.iter().enumerate().map(one).collect();
        let text = self.lab.ok(from, &format!("{script} wait"));
        let mut lines: Vec<(usize, i32)> = text
            .lines()
            .filter_map(|line| {
                line.split_once(' ').and_then(|(place, code)| Some((place.parse().ok()?, code.parse().ok()?)))
            })
            .collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), doors.len(), "{text}");
        let knock = |(_, code)| match code {
            0 => Knock::Open,
            124 => Knock::Silent,
            _ => Knock::Refused,
        };
        lines.into_iter().map(knock).collect()
    }

    /// Answers each connection to a port of a machine with the machine's name, over HTTP.
    pub fn serve_name(&self, machine: &str, port: u16) {
        let answer = r#"#!/bin/bash
while read -r line && [ -n "${line%$'\r'}" ]; do :; done
name=$(hostname)
printf 'HTTP/1.1 200 OK\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' ${#name} "$name"
"#;
        let place = format!("server:{machine}");
        self.lab.ok(&place, &format!("cat >/root/answer <<'X'\n{answer}\nX\nchmod +x /root/answer"));
        let serve =
            format!("systemd-run -q --unit answer-{port} systemd-socket-activate -l {port} -a --inetd /root/answer");
        self.lab.ok(&place, &serve);
        let listens = format!("ss -Hltn 'sport = {port}' | grep -q .");
        eventually("the machine listens", || self.lab.sh(&place, &listens).0 == 0);
    }

    /// Who answers over HTTP; nobody within a second is "".
    pub fn name_at(&self, from: &str, url: &str) -> String {
        self.lab.sh(from, &format!("curl -gs --max-time 1 '{url}' || true")).1
    }

    /// A program at a place that runs until it is dropped.
    pub fn run(&self, place: &str, script: &str) -> Running {
        let mut command = Command::new(PROGRAM);
        command.args(["exec", &self.lab.info.name, place, "bash", "-c", script]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Running(child.expect("hk-labd runs"))
    }

    pub fn firewall(&self, server: &Server, rules: Option<Vec<Value>>) {
        self.lab.effect(json!({"effect": "set_firewall", "machine": server.id, "rules": rules}));
    }
}

pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // What it runs ends with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn private_address(lab: &Lab, id: u64) -> String {
    let server = lab.call("GET", &format!("/servers/{id}"), None);
    server["server"]["private_net"][0]["ip"].as_str().expect("a private address").to_owned()
}
