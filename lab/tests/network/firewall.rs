//! Firewalls, from outside and inside.

use serde_json::{Value, json};

use crate::common::eventually;
use crate::{Knock, Stage};

fn rule(direction: &str, protocol: &str, ports: Option<(u16, u16)>, networks: &[&str]) -> Value {
    json!({"direction": direction, "protocol": protocol, "ports": ports, "networks": networks})
}

pub fn filters_new_connections_by_all_that_a_rule_says(stage: &Stage) {
    let Stage { lab, web, .. } = stage;
    stage.serve_name("web", 8080);
    stage.serve_name("web", 8090);
    assert_eq!(
        stage.knock("internet", &web.public, 9),
        Knock::Refused,
        "without a firewall the machine itself answers"
    );

    stage.firewall(web, Some(vec![]));
    let pinged = |from: &str| lab.sh(from, &format!("ping -c 1 -W 1 {}", web.public)).0 == 0;
    let scanned = [1, 9, 22, 53, 80, 443, 2222, 6443, 8080, 8090].map(|port| (&*web.public, port));
    assert_eq!(stage.knock_all("internet", &scanned), [Knock::Silent; 10], "a scan of a closed machine hears nothing");
    assert!(!pinged("internet"));

    let rules = vec![
        rule("in", "tcp", Some((22, 22)), &["198.51.101.0/24", "2001:db8::/32"]),
        rule("in", "tcp", Some((8080, 8085)), &["0.0.0.0/0"]),
        rule("in", "udp", Some((9000, 9000)), &["0.0.0.0/0"]),
        rule("in", "icmp", None, &["198.51.100.2/32"]),
        rule("in", "esp", None, &["0.0.0.0/0"]),
        rule("in", "gre", None, &["::/0"]),
    ];
    stage.firewall(web, Some(rules));
    assert!(lab.answers_ssh("internet", &web.public));
    assert_eq!(stage.knock("operator", &web.public, 22), Knock::Silent, "another network than the rule's");
    assert_eq!(stage.name_at("operator", &format!("http://{}:8080/", web.public)), "web");
    let knocks = stage.knock_all("internet", &[8080, 8085, 8090].map(|port| (&*web.public, port)));
    assert_eq!(knocks, [Knock::Open, Knock::Refused, Knock::Silent], "in the range; nobody listens; out of the range");
    assert!(pinged("operator") && !pinged("internet"), "ICMP by its source");

    lab.ok("server:web", "systemd-run -q systemd-socket-activate -d -l 9000 --inetd tee /root/heard-9000");
    lab.ok("server:web", "systemd-run -q systemd-socket-activate -d -l 9001 --inetd tee /root/heard-9001");
    eventually("a packet of a protocol and port that a rule names arrives", || {
        for port in [9001, 9000] {
            lab.sh("internet", &format!("bash -c 'echo x >/dev/udp/{}/{port}'", web.public));
        }
        lab.sh("server:web", "test -s /root/heard-9000").0 == 0
    });
    assert_ne!(lab.sh("server:web", "test -e /root/heard-9001").0, 0, "another port of the same protocol");

    // The rules are the firewall's, not the boot's.
    lab.post(&format!("/servers/{}/actions/reset", web.id), json!({}));
    eventually("the machine is back", || lab.answers_ssh("internet", &web.public));
    assert_eq!(stage.knock("operator", &web.public, 22), Knock::Silent);
    stage.firewall(web, None);
    assert_eq!(stage.knock("operator", &web.public, 22), Knock::Open);
    assert_eq!(stage.knock("operator", &web.public, 9), Knock::Refused);
}

pub fn leaves_established_connections_and_private_traffic_alone(stage: &Stage) {
    let Stage { lab, web, db, .. } = stage;
    // Opened before the machine has any firewall; sshd goes on when it hears the other side's name.
    let marks = "/run/connected /run/go /run/heard";
    lab.ok("internet", &format!("rm -f {marks}"));
    let _client = stage.run(
        "internet",
        &format!(
            "exec 3<>/dev/tcp/{}/22; read -r line <&3; touch /run/connected; \
             while [ ! -e /run/go ]; do sleep 0.05; done; printf 'SSH-2.0-test\\r\\n' >&3; \
             timeout 5 head -c 10 <&3 >/run/heard; sleep 60",
            web.public
        ),
    );
    eventually("a client is connected", || lab.sh("internet", "test -e /run/connected").0 == 0);
    stage.firewall(web, Some(vec![]));
    assert_eq!(stage.knock("internet", &web.public, 22), Knock::Silent, "no new connection");
    lab.ok("internet", "touch /run/go");
    eventually("the established connection goes on", || lab.sh("internet", "test -s /run/heard").0 == 0);
    lab.ok("internet", &format!("rm -f {marks}"));

    assert!(lab.answers_ssh("server:db", &web.private), "private traffic is not filtered");
    assert_eq!(stage.knock("server:db", &web.private, 9), Knock::Refused);
    // Answers to what the machine itself asked for come in.
    lab.ok("server:web", "curl -s --max-time 2 -o /dev/null http://192.0.2.10/v1/servers");
    assert!(lab.answers_ssh("server:web", &stage.gate.public));
    stage.firewall(web, None);
    assert_eq!(stage.db.private, db.private);
}

pub fn filters_what_goes_out(stage: &Stage) {
    let Stage { lab, web, .. } = stage;
    let asks = |url: &str| lab.sh("server:web", &format!("curl -s --max-time 1 -o /dev/null {url}")).0 == 0;
    stage.firewall(web, Some(vec![rule("out", "tcp", Some((80, 80)), &["192.0.2.0/24"])]));
    assert!(asks("http://192.0.2.10/v1/servers"), "the rule's destination and port");
    assert!(!asks("http://192.0.2.20:7070/"), "another port");
    assert_eq!(stage.knock("server:web", &stage.gate.public, 22), Knock::Silent, "another machine");
    assert!(asks("http://169.254.169.254/hetzner/v1/metadata"), "no firewall shuts the metadata off");
    assert!(lab.answers_ssh("server:web", &stage.gate.private), "private traffic is not filtered");
    stage.firewall(web, None);
    assert!(asks("http://192.0.2.20:7070/"));
}
