//! Load balancers: who gets the connections, and who no longer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::eventually;
use crate::{Knock, Stage};

const ID: u64 = 900_001;
const PUBLIC: &str = "203.0.113.240";

fn check(http: Option<Value>) -> Value {
    json!({"port": 8085, "interval_seconds": 1, "timeout_seconds": 1, "retries": 1, "http": http})
}

fn service(kind: Value, listen: u16, destination: u16, health_check: Value) -> Value {
    json!({"kind": kind, "listen_port": listen, "destination_port": destination, "proxyprotocol": false,
        "health_check": health_check})
}

/// The load balancer of these checks.
struct Balancer<'a> {
    stage: &'a Stage,
    spec: Value,
}

impl Balancer<'_> {
    fn set(&mut self, services: Vec<Value>, targets: &[&str]) {
        self.spec["services"] = json!(services);
        self.spec["targets"] = json!(targets);
        self.stage.lab.effect(json!({"effect": "set_balancer", "spec": self.spec}));
    }

    /// How many of so many requests each machine answered.
    fn shares(&self, from: &str, url: &str, requests: usize) -> BTreeMap<String, usize> {
        let script = format!("for i in $(seq {requests}); do curl -gsk --max-time 1 '{url}'; echo; done");
        let mut shares = BTreeMap::new();
        for name in self.stage.lab.sh(from, &script).1.lines().filter(|line| !line.is_empty()) {
            *shares.entry(name.to_owned()).or_default() += 1;
        }
        shares
    }

    fn health(&self, port: u16, target: &str) -> Value {
        let all = self.stage.lab.effect(json!({"effect": "balancer_health", "id": ID}));
        let found = all.as_array().expect("a list").iter().find(|h| h["listen_port"] == port && h["target"] == target);
        found.map(|h| h["healthy"].clone()).expect("each target has a health")
    }

    fn becomes(&self, port: u16, target: &str, healthy: bool) {
        eventually(&format!("{target} on {port} is found to be {healthy}"), || self.health(port, target) == healthy);
    }
}

fn shares(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

pub fn load_balancers_serve_who_is_well(stage: &Stage) {
    let Stage { lab, web, gate, db, .. } = stage;
    for machine in ["web", "gate", "db"] {
        stage.serve_name(machine, 8085);
    }
    let mut balancer = Balancer {
        stage,
        spec: json!({"id": ID, "location": "fsn1", "public_ipv4": PUBLIC, "public_ipv6": "2001:db8:7:7::", "private": [stage.network, "10.0.0.100"],
            "least_connections": false, "services": [], "targets": []}),
    };
    balancer.set(vec![], &[]);
    assert_eq!(stage.knock("internet", PUBLIC, 81), Knock::Refused, "it is there without services");

    let tcp = service(json!("tcp"), 81, 8085, check(None));
    let lives = json!({"domain": "x", "path": "/", "response": "e", "status_codes": ["2??"], "tls": false});
    let http = service(
        json!({"http": {"certificates": [], "redirect_http": false, "sticky": null, "timeout_idle_seconds": 60}}),
        82,
        8085,
        check(Some(lives)),
    );
    let ssh =
        service(json!("tcp"), 2222, 22, json!({"port": 22, "interval_seconds": 1, "timeout_seconds": 1, "retries": 1}));
    let (three, two) = ([&*web.private, &gate.private, &db.private], [&*web.private, &gate.private]);
    balancer.set(vec![tcp.clone(), http.clone(), ssh.clone()], &three);
    for target in three {
        balancer.becomes(81, target, true);
    }
    let even = shares(&[("web", 2), ("gate", 2), ("db", 2)]);
    for (from, address) in [("internet", PUBLIC), ("internet", "[2001:db8:7:7::1]"), ("server:db", "10.0.0.100")] {
        assert_eq!(balancer.shares(from, &format!("http://{address}:81/"), 6), even, "from {from} to {address}");
    }
    // "db" says nothing with an e: its answer is not the one that the check wants.
    balancer.becomes(82, &web.private, true);
    balancer.becomes(82, &db.private, false);
    let with_e = shares(&[("web", 3), ("gate", 3)]);
    assert_eq!(balancer.shares("internet", &format!("http://{PUBLIC}:82/"), 6), with_e);

    sick_targets_are_taken_out_and_come_back(stage, &balancer);
    changes_end_no_connection(stage, &mut balancer, [&ssh, &tcp], &two);
    public_targets_are_behind_their_firewall(stage, &mut balancer, &tcp);
    targets_may_hear_of_the_client(stage, &mut balancer);
    https_is_ended_with_cookies_and_redirects(stage, &mut balancer, &two);

    let counters = lab.effect(json!({"effect": "balancer_counters", "id": ID}));
    for what in ["connections", "requests", "network_in_bytes", "network_out_packets"] {
        assert!(counters[what].as_u64().expect("a number") > 10, "{what}: {counters}");
    }
    lab.ok("operator", "pkill -9 haproxy");
    eventually("one that dies is started again", || stage.knock("internet", PUBLIC, 443) == Knock::Open);
    lab.effect(json!({"effect": "delete_balancer", "id": ID}));
    assert_ne!(stage.knock("internet", PUBLIC, 443), Knock::Open);
    eventually("nothing of it is left", || lab.sh("operator", "! pgrep haproxy && ! ls -d /run/balancers/*").0 == 0);
}

fn sick_targets_are_taken_out_and_come_back(stage: &Stage, balancer: &Balancer) {
    let Stage { lab, web, .. } = stage;
    let url = format!("http://{PUBLIC}:81/");
    lab.ok("server:web", "systemctl stop answer-8085");
    // Whoever comes before the next check is sent to another target.
    assert_eq!(balancer.shares("internet", &url, 6).values().sum::<usize>(), 6, "no request is lost");
    balancer.becomes(81, &web.private, false);
    assert_eq!(balancer.shares("internet", &url, 4), shares(&[("gate", 2), ("db", 2)]));
    stage.serve_name("web", 8085);
    balancer.becomes(81, &web.private, true);
    // It catches up first.
    let even = shares(&[("web", 2), ("gate", 2), ("db", 2)]);
    eventually("all get their share again", || balancer.shares("internet", &url, 6) == even);
}

fn changes_end_no_connection(stage: &Stage, balancer: &mut Balancer, [ssh, tcp]: [&Value; 2], targets: &[&str]) {
    let lab = &stage.lab;
    let marks = "/run/connected /run/go /run/heard";
    lab.ok("internet", &format!("rm -f {marks}"));
    let _client = stage.run(
        "internet",
        &format!(
            "exec 3<>/dev/tcp/{PUBLIC}/2222; read -r line <&3; touch /run/connected; \
             while [ ! -e /run/go ]; do sleep 0.05; done; printf 'SSH-2.0-test\\r\\n' >&3; \
             timeout 5 head -c 10 <&3 >/run/heard; sleep 60"
        ),
    );
    eventually("a client is connected", || lab.sh("internet", "test -e /run/connected").0 == 0);
    balancer.set(vec![tcp.clone()], targets);
    // At once, not after the first check of the new process: what is known of targets outlives a change.
    assert_eq!(balancer.health(81, targets[0]), true);
    assert_eq!(stage.knock("internet", PUBLIC, 2222), Knock::Refused, "the service is gone");
    lab.ok("internet", "touch /run/go");
    eventually("its connection goes on", || lab.sh("internet", "test -s /run/heard").0 == 0);
    lab.ok("internet", &format!("rm -f {marks}"));
    balancer.set(vec![ssh.clone(), tcp.clone()], targets);
}

fn public_targets_are_behind_their_firewall(stage: &Stage, balancer: &mut Balancer, tcp: &Value) {
    let Stage { web, gate, .. } = stage;
    balancer.set(vec![tcp.clone()], &[&web.public, &gate.public]);
    let url = format!("http://{PUBLIC}:81/");
    balancer.becomes(81, &web.public, true);
    assert_eq!(balancer.shares("internet", &url, 4), shares(&[("web", 2), ("gate", 2)]));
    stage.firewall(web, Some(vec![]));
    balancer.becomes(81, &web.public, false);
    assert_eq!(balancer.shares("internet", &url, 4), shares(&[("gate", 4)]));
    let from_balancer = format!("{PUBLIC}/32");
    let rule = json!({"direction": "in", "protocol": "tcp", "ports": [8085, 8085], "networks": [from_balancer]});
    stage.firewall(web, Some(vec![rule]));
    balancer.becomes(81, &web.public, true);
    stage.firewall(web, None);
}

fn targets_may_hear_of_the_client(stage: &Stage, balancer: &mut Balancer) {
    let Stage { lab, web, .. } = stage;
    lab.ok("server:web", "systemd-run -q systemd-socket-activate -l 8086 -a --inetd head -n 1");
    let mut heard = service(json!("tcp"), 83, 8086, check(None));
    heard["proxyprotocol"] = json!(true);
    balancer.set(vec![heard], &[&web.private]);
    balancer.becomes(83, &web.private, true);
    let line = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{PUBLIC}/83; read -r line <&3; echo \"$line\"'");
    let line = lab.ok("internet", &line);
    assert!(line.starts_with(&format!("PROXY TCP4 198.51.101.2 {PUBLIC} ")), "{line}");
}

fn https_is_ended_with_cookies_and_redirects(stage: &Stage, balancer: &mut Balancer, targets: &[&str]) {
    let lab = &stage.lab;
    let certificate = lab.ok(
        "operator",
        "cd /run && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=shop.example \
         -keyout k -out c 2>/dev/null && cat c k && rm c k",
    );
    let https = json!({"http": {"certificates": [certificate + "\n"], "redirect_http": true, "timeout_idle_seconds": 60,
        "sticky": {"name": "HCLBSTICKY", "lifetime_seconds": 300}}});
    let https = service(https, 443, 8085, check(None));
    balancer.set(vec![https], targets);
    targets.iter().for_each(|target| balancer.becomes(443, target, true));
    let url = format!("https://{PUBLIC}/");
    assert_eq!(balancer.shares("internet", &url, 4), shares(&[("web", 2), ("gate", 2)]));
    let subject =
        format!("openssl s_client -connect {PUBLIC}:443 </dev/null 2>/dev/null | openssl x509 -noout -subject");
    assert!(lab.ok("internet", &subject).contains("shop.example"));
    let sticky = format!(
        "cd /run; rm -f jar; for i in 1 2 3 4; do curl -sk -c jar -b jar {url}; echo; done | sort -u | wc -l; \
         grep -c HCLBSTICKY jar; rm jar"
    );
    assert_eq!(lab.ok("internet", &sticky), "1\n1", "one target for one client");
    let moved = format!("curl -s -o /dev/null -w '%{{http_code}} %{{redirect_url}}' http://{PUBLIC}/a?b");
    assert_eq!(lab.ok("internet", &moved), format!("301 https://{PUBLIC}/a?b"));
    // The key is in one file that only root may read, and in no argument list.
    let open = "find /run/balancers -name '*.pem' | wc -l; find /run/balancers -type f -perm /077 | wc -l";
    assert_eq!(lab.ok("operator", open), "1\n0");
    assert!(!lab.ok("operator", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").contains("PRIVATE KEY--"));
}
