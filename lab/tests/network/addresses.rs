//! Public addresses: who reaches whom, IPv6, floating ones, and what is left of them without power.

use serde_json::json;

use crate::common::eventually;
use crate::{Knock, Stage};

pub fn places_are_apart(stage: &Stage) {
    let Stage { lab, web, db, .. } = stage;
    assert!(lab.answers_ssh("internet", &web.public));
    let hidden = [&*web.private, &db.private, "10.0.0.1", "172.31.1.1", "169.254.169.254"].map(|address| (address, 22));
    assert!(!stage.knock_all("internet", &hidden).contains(&Knock::Open), "private addresses are not on the internet");
    let _desk = stage.run("operator", "exec systemd-socket-activate -l 7000 -a --inetd cat");
    eventually("somebody listens at the desk", || stage.knock("operator", "198.51.100.2", 7000) == Knock::Open);
    let desk = [("198.51.100.2", 7000), ("2001:db8:ffff:100::2", 7000)];
    assert_eq!(stage.knock_all("internet", &desk), [Knock::Silent; 2], "the desk is not on the internet");
    let cloud = "curl -s -o /dev/null -w '%{http_code}' http://192.0.2.10/v1/servers";
    assert_eq!(lab.ok("internet", cloud), "401", "the cloud's API is on the internet");
    // Outside, none of it exists.
    assert!(!lab.ok("internet", "ip -o addr; ip route").contains("10."));
    let here = std::fs::read_to_string("/proc/net/fib_trie").expect("the host's routes");
    assert!(!here.contains("203.0.113.") && !here.contains("198.51.10"), "the host has no route into the lab");
}

pub fn ipv6_is_there_as_at_hetzner(stage: &Stage) {
    let Stage { lab, web, .. } = stage;
    let net_of = |server: &crate::Server| {
        let shown = lab.call("GET", &format!("/servers/{}", server.id), None);
        let net = shown["server"]["public_net"]["ipv6"]["ip"].as_str().expect("a network").to_owned();
        net.strip_suffix("/64").expect("a /64").to_owned()
    };
    let (net, other) = (net_of(web), net_of(&stage.gate));
    let address = format!("{net}1");
    for from in ["internet", "operator", "server:gate"] {
        assert!(lab.answers_ssh(from, &address), "from {from}");
    }
    // After a boot as well.
    lab.post(&format!("/servers/{}/actions/reset", web.id), json!({}));
    lab.wait_for_ssh(&web.public);
    assert!(lab.answers_ssh("internet", &address));
    let inside = lab.ok("server:web", "ip -6 -o addr show dev eth0; ip -6 route show default");
    assert!(inside.contains(&format!("{address}/64")) && inside.contains("default via fe80::1 dev eth0"), "{inside}");
    // The whole /64 is the machine's, to be configured there.
    assert_ne!(stage.knock("internet", &format!("{net}5"), 22), Knock::Open);
    lab.ok("server:web", &format!("ip addr add {net}5/64 dev eth0"));
    assert!(lab.answers_ssh("internet", &format!("{net}5")));
    // Nobody speaks with another's address.
    let stolen = format!("{other}7");
    let steal = format!(
        "ip addr add {stolen}/128 dev lo nodad; \
         curl -gs --max-time 1 --interface {stolen} 'http://[2001:db8:ffff:101::2]:1/'; echo $?"
    );
    assert_eq!(lab.ok("server:web", &steal), "28", "silence, not a refusal");
    lab.ok("server:web", &format!("ip addr del {stolen}/128 dev lo"));

    let tcp = json!({"direction": "in", "protocol": "tcp", "ports": [22, 22], "networks": ["2001:db8:ffff:101::/64"]});
    stage.firewall(web, Some(vec![tcp]));
    assert!(lab.answers_ssh("internet", &address));
    assert_eq!(stage.knock("operator", &address, 22), Knock::Silent);
    assert_eq!(stage.knock("internet", &web.public, 22), Knock::Silent, "a rule for IPv6 says nothing of IPv4");
    stage.firewall(web, None);
}

pub fn floating_addresses_move(stage: &Stage) {
    let Stage { lab, web, gate, .. } = stage;
    stage.serve_name("web", 8081);
    stage.serve_name("gate", 8081);
    for (address, url) in [("203.0.113.250", "203.0.113.250"), ("2001:db8:9:9::", "[2001:db8:9:9::1]")] {
        let route = |machine: Option<u64>| {
            lab.effect(json!({"effect": "route_floating_ip", "address": address, "machine": machine}));
        };
        let url = format!("http://{url}:8081/");
        let who = || stage.name_at("internet", &url);
        route(Some(web.id));
        assert_eq!(who(), "", "inside nothing is configured");
        let inside = if address.contains(':') { "2001:db8:9:9::1/64" } else { "203.0.113.250/32" };
        for machine in ["web", "gate"] {
            lab.ok(&format!("server:{machine}"), &format!("ip addr add {inside} dev eth0"));
        }
        eventually("web answers", || who() == "web");
        route(Some(gate.id));
        eventually("gate answers", || who() == "gate");
        stage.firewall(gate, Some(vec![]));
        assert_eq!(who(), "", "the firewall of its machine holds for it");
        stage.firewall(gate, None);
        eventually("gate answers", || who() == "gate");
        route(None);
        assert_eq!(who(), "");
        // What a machine that is off was given is there when it boots.
        route(Some(web.id));
        eventually("web answers", || who() == "web");
    }
}

pub fn power_ends_connections_without_a_word(stage: &Stage) {
    let Stage { lab, web, .. } = stage;
    lab.ok("internet", "rm -f /run/connected /run/ended");
    let _client = stage.run(
        "internet",
        &format!(
            "exec 3<>/dev/tcp/{}/22; read -r line <&3; touch /run/connected; cat <&3; touch /run/ended; sleep 60",
            web.public
        ),
    );
    eventually("a client is connected", || lab.sh("internet", "test -e /run/connected").0 == 0);
    lab.post(&format!("/servers/{}/actions/poweroff", web.id), json!({}));
    assert_ne!(lab.sh("internet", "sleep 0.5; test -e /run/ended").0, 0, "who lost power says no goodbye");
    assert_ne!(stage.knock("internet", &web.public, 22), Knock::Open);
    assert_ne!(lab.sh("internet", &format!("ping -c 1 -W 1 {}", web.public)).0, 0, "what is off answers nothing");
    lab.post(&format!("/servers/{}/actions/poweron", web.id), json!({}));
    lab.wait_for_ssh(&web.public);
    assert_ne!(lab.sh("server:web", "ip addr show dev eth0 | grep -q 203.0.113.250").0, 0, "only files outlive a boot");
    assert!(lab.answers_ssh("server:db", &web.private));
}

pub fn traffic_is_counted(stage: &Stage) {
    let Stage { lab, web, .. } = stage;
    let counters = || lab.effect(json!({"effect": "machine_counters", "machine": web.id}));
    let before = counters();
    lab.ok("server:web", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; head -c 1000000 /dev/zero >/root/zero");
    stage.serve_name("web", 8082);
    let bulk = format!("head -c 1000000 /dev/zero | timeout 5 bash -c 'cat >/dev/tcp/{}/8082'", web.public);
    lab.sh("internet", &bulk);
    let after = counters();
    let grown = |what: &str| after[what].as_f64().expect("a number") - before[what].as_f64().expect("a number");
    assert!(grown("network_in_bytes") > 50_000.0, "{before} {after}");
    assert!(grown("network_out_bytes") > 500.0 && grown("network_out_packets") > 5.0, "{before} {after}");
    assert!(grown("cpu_seconds") > 0.05, "{before} {after}");
}
