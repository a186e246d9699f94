//! Faults, as a client of the cloud and a command inside a machine meet them. Needs root.

mod common;

use common::{Lab, eventually};
use serde_json::{Value, json};

fn set(lab: &Lab, fault: Value) -> u64 {
    lab.own("POST", "/faults", Some(fault))["fault"]["id"].as_u64().expect("an id")
}

fn lift(lab: &Lab, id: u64) {
    lab.own("DELETE", &format!("/faults/{id}"), None);
}

/// One lab for all: each part lifts what it set.
#[test]
fn a_cloud_fails_in_the_ways_it_is_told_to() {
    let lab = Lab::up("t-faults");
    let network = lab.network();
    let volume = lab.post("/volumes", json!({"name": "v", "size": 10, "location": "fsn1", "format": "ext4"}));
    let volume = volume["volume"]["id"].as_u64().expect("an id");
    let (one, first) = lab.server("m1", "fsn1", json!({"networks": [network], "volumes": [volume]}));
    let (_, second) = lab.server("m2", "nbg1", json!({"networks": [network]}));
    for address in [&first, &second] {
        lab.wait_for_ssh(address);
    }

    requests_are_slow_or_refused(&lab);
    actions_fail_or_hang(&lab, one, &first);
    a_location_is_cut_off(&lab, &first, &second);
    a_load_balancer_is_in_its_location(&lab, one, &second);
    packets_take_longer(&lab, &first, &second);
    packets_get_lost(&lab, &second);
    a_link_is_narrow(&lab, &second);
    a_location_stands_still(&lab, one, &first);
    a_disk_is_full(&lab);
    a_volume_fails(&lab, volume);
    s3_fails(&lab);
    a_location_loses_its_power(&lab, one, &first, &second);
    a_clock_is_off(&lab, one, &first);
    what_cannot_be_had_is_refused(&lab);
}

const API: &str = r#"api() { curl -s -H "Authorization: Bearer $HCLOUD_TOKEN" "$@"; }
s=$HCLOUD_ENDPOINT/servers
"#;

fn requests_are_slow_or_refused(lab: &Lab) {
    let api = |script: &str| lab.sh("operator", &format!("{API}{script}"));
    let fault = set(lab, json!({"kind": "slow_answer", "delay_ms": 60_000, "method": "GET", "path": "/servers"}));
    assert_eq!(api("api -m 1 $s").0, 28, "curl's code for a time-out");
    assert_eq!(api("api -o /dev/null -w '%{http_code}' $s").1, "200", "it struck once");
    lift(lab, fault);
    let fault = set(lab, json!({"kind": "rate_limit_exhausted"}));
    let answer = api("api -D - $s").1.to_lowercase();
    assert!(answer.contains(" 429 ") && answer.contains("ratelimit-remaining: 0"), "{answer}");
    lift(lab, fault);
    assert_eq!(api("api -o /dev/null -w '%{http_code}' $s").1, "200");
}

fn actions_fail_or_hang(lab: &Lab, one: u64, first: &str) {
    let stop = format!("/servers/{one}/actions/poweroff");
    lab.ok("server:m1", "touch /run/same-boot");
    let fault = set(lab, json!({"kind": "action_error", "command": "stop_server", "message": "no hands"}));
    assert_eq!(lab.refused("POST", &stop, json!({})), "no hands");
    lift(lab, fault);
    let fault = set(lab, json!({"kind": "action_stuck", "command": "stop_server"}));
    let stuck = lab.call("POST", &stop, None);
    assert!(lab.refused("POST", &format!("/servers/{one}/actions/reset"), json!({})).contains("locked"));
    assert!(lab.answers_ssh("operator", first));
    lab.ok("server:m1", "test -e /run/same-boot");
    lift(lab, fault);
    lab.done(&stuck);
    assert!(!lab.answers_ssh("operator", first));
    lab.post(&format!("/servers/{one}/actions/poweron"), json!({}));
    lab.wait_for_ssh(first);
}

/// Milliseconds until a connection from one place to another stands, which is there and back; the fastest of three.
fn connects_in(lab: &Lab, from: &str, address: &str, port: u16) -> u64 {
    let once = format!(
        "s=$(date +%s%N); exec 3<>/dev/tcp/{address}/{port} || exit 1; e=$(date +%s%N); exec 3>&-; echo $(((e-s)/1000000))"
    );
    let text = lab.ok(from, &format!("bash -c 'for i in 1 2 3; do ({once}); done'"));
    text.lines().map(|line| line.parse().expect("a number")).min().expect("three of them")
}

fn packets_take_longer(lab: &Lab, first: &str, second: &str) {
    let private = lab.ok("server:m2", "ip -4 -o addr show dev ens10 | awk '{print $4}' | cut -d/ -f1");
    let ipv6 = lab.ok("server:m2", "ip -6 -o addr show dev eth0 scope global | awk '{print $4}' | cut -d/ -f1");
    let near = |address: &str, port| {
        eventually("connections are fast", || connects_in(lab, "server:m1", address, port) < 200);
    };
    near(second, 22);
    // A connection stands after two ways.
    let delay = json!({"kind": "link_delay", "location": "fsn1", "to": "others", "delay_ms": 150});
    let fault = set(lab, delay.clone());
    for address in [second, &private, &ipv6].iter().filter(|address| !address.is_empty()) {
        let took = connects_in(lab, "server:m1", address, 22);
        assert!(took >= 300, "{address}: {took} ms");
    }
    assert!(connects_in(lab, "server:m2", first, 22) >= 300, "in the other direction too");
    let more = set(lab, json!({"kind": "link_delay", "location": "nbg1", "to": "fsn1", "delay_ms": 100}));
    assert!(connects_in(lab, "server:m1", second, 22) >= 500, "delays add up");
    lift(lab, more);
    lift(lab, fault);
    near(second, 22);
    near(&private, 22);

    let fault = set(lab, json!({"kind": "link_delay", "location": "fsn1", "to": "internet", "delay_ms": 150}));
    for (from, address, port) in [("internet", first, 22), ("server:m1", "192.0.2.10", 80)] {
        let took = connects_in(lab, from, address, port);
        assert!(took >= 300, "{from} to {address}: {took} ms");
    }
    // Much that waits at the same time arrives whole.
    let sum = "head -c 20000000 /dev/zero | sha256sum";
    let fetch = format!("exec 3<>/dev/tcp/{first}/9999; sha256sum <&3");
    let serve = "systemd-run -q systemd-socket-activate -l 9999 -a --inetd head -c 20000000 /dev/zero";
    lab.ok("server:m1", serve);
    eventually("it serves", || lab.sh("server:m1", "ss -Hltn 'sport = 9999' | grep -q .").0 == 0);
    assert_eq!(lab.ok("internet", &format!("bash -c '{fetch}'")), lab.ok("server:m1", sum));
    lift(lab, fault);
    near("192.0.2.10", 80);
}

fn a_load_balancer_is_in_its_location(lab: &Lab, one: u64, second: &str) {
    let check = json!({"protocol": "tcp", "port": 22, "interval": 3, "timeout": 1, "retries": 1});
    let service = json!({"protocol": "tcp", "listen_port": 2222, "destination_port": 22, "proxyprotocol": false,
        "health_check": check});
    let body = json!({"name": "lb", "load_balancer_type": "lb11", "location": "nbg1", "services": [service],
        "targets": [{"type": "server", "server": {"id": one}}]});
    let id = lab.post("/load_balancers", body)["load_balancer"]["id"].clone();
    let seen = lab.call("GET", &format!("/load_balancers/{id}"), None)["load_balancer"].clone();
    let address = seen["public_net"]["ipv4"]["ip"].as_str().expect("an address").to_owned();
    let answers = |seconds: u32| {
        let script = format!("exec timeout {seconds} bash -c 'exec 3<>/dev/tcp/{address}/2222; head -c 4 <&3'");
        lab.sh("internet", &script).1.contains("SSH-")
    };
    eventually("it balances", || answers(2));
    let fault = set(lab, json!({"kind": "link_cut", "location": "nbg1", "to": "fsn1"}));
    assert!(!answers(2), "its target is beyond the cut");
    lift(lab, fault);
    eventually("it finds its target again", || answers(2));
    let fault = set(lab, json!({"kind": "link_cut", "location": "nbg1", "to": "internet"}));
    assert!(!answers(1), "nobody reaches it");
    lift(lab, fault);
    assert!(answers(5));
    // A location that stands still, or has no power, has no load balancer either.
    for kind in ["location_frozen", "location_off"] {
        let fault = set(lab, json!({"kind": kind, "location": "nbg1"}));
        assert!(!answers(1), "{kind}");
        lift(lab, fault);
        eventually("it balances again", || answers(2));
    }
    lab.wait_for_ssh(second);
    // To the balancer and back, and twice the way of its connection to the target.
    let fault = set(lab, json!({"kind": "link_delay", "location": "nbg1", "to": "internet", "delay_ms": 400}));
    assert!(!answers(1), "the third packet comes after 1.2 s");
    lift(lab, fault);
    lab.delete(&format!("/load_balancers/{id}"));
}

fn a_location_is_cut_off(lab: &Lab, first: &str, second: &str) {
    let private = lab.ok("server:m2", "ip -4 -o addr show dev ens10 | awk '{print $4}' | cut -d/ -f1");
    let fault = set(lab, json!({"kind": "link_cut", "location": "fsn1", "to": "others"}));
    assert!(!lab.answers_ssh("server:m1", second) && !lab.answers_ssh("server:m1", &private));
    assert!(lab.answers_ssh("internet", first), "the internet is no other location");
    lift(lab, fault);
    assert!(lab.answers_ssh("server:m1", second) && lab.answers_ssh("server:m1", &private));

    let fault = set(lab, json!({"kind": "link_cut", "location": "fsn1", "to": "internet"}));
    assert!(!lab.answers_ssh("internet", first) && !lab.answers_ssh("operator", first));
    assert!(lab.answers_ssh("server:m1", second) && lab.answers_ssh("operator", second));
    let code = |url: &str| lab.sh("server:m1", &format!("curl -s -o /dev/null -m 1 -w '%{{http_code}}' {url}")).1;
    assert_eq!(code("http://192.0.2.10/v1"), "000", "the cloud's API is on the internet");
    assert_eq!(code("http://169.254.169.254/hetzner/v1/metadata"), "200");
    lift(lab, fault);
    assert!(lab.answers_ssh("internet", first));

    set(lab, json!({"kind": "link_cut", "location": "fsn1", "to": "internet", "for_seconds": 0.5}));
    eventually("the fault lifts itself", || lab.own("GET", "/faults", None)["faults"] == json!([]));
    assert!(lab.answers_ssh("internet", first));
}

/// Bytes that arrive when the first server sends 400 datagrams of 1000 bytes to the second.
fn arriving(lab: &Lab, second: &str) -> u64 {
    let received = || lab.ok("server:m2", "awk '/eth0/ {print $2}' /proc/net/dev").parse::<u64>().expect("a number");
    let before = received();
    let send = format!("for i in $(seq 400); do printf %1000s >/dev/udp/{second}/9; done 2>/dev/null; true");
    lab.ok("server:m1", &format!("bash -c '{send}'"));
    received() - before
}

fn packets_get_lost(lab: &Lab, second: &str) {
    let fault = set(lab, json!({"kind": "link_loss", "location": "fsn1", "to": "nbg1", "percent": 50}));
    let arrived = arriving(lab, second);
    lift(lab, fault);
    assert!((100_000..300_000).contains(&arrived), "{arrived} bytes of 400000");
    assert!(arriving(lab, second) > 400_000);
}

fn a_link_is_narrow(lab: &Lab, second: &str) {
    let fault = set(lab, json!({"kind": "link_rate", "location": "fsn1", "to": "nbg1", "kbit": 64}));
    let arrived = arriving(lab, second);
    lift(lab, fault);
    // A burst of 15 kB, and 8 kB a second.
    assert!(arrived < 100_000, "{arrived} bytes of 400000");
    assert!(arriving(lab, second) > 400_000);
}

fn a_location_stands_still(lab: &Lab, one: u64, first: &str) {
    lab.ok("server:m1", "touch /run/same-boot");
    let fault = set(lab, json!({"kind": "location_frozen", "location": "fsn1"}));
    assert!(!lab.answers_ssh("operator", first));
    let refused = lab.refused("POST", &format!("/servers/{one}/actions/reset"), json!({}));
    assert!(refused.contains("does not respond"), "{refused}");
    lift(lab, fault);
    lab.wait_for_ssh(first);
    lab.ok("server:m1", "test -e /run/same-boot");
}

fn a_disk_is_full(lab: &Lab) {
    let fault = set(lab, json!({"kind": "disk_full", "server": "m1"}));
    let (status, text) = lab.sh("server:m1", "head -c 1000000 /dev/zero >/root/f");
    assert_ne!(status, 0);
    assert!(text.contains("No space left on device"), "{text}");
    lift(lab, fault);
    lab.ok("server:m1", "head -c 1000000 /dev/zero >/root/f; rm /root/f");
}

fn a_volume_fails(lab: &Lab, volume: u64) {
    let device = format!("/dev/disk/by-id/scsi-0HC_Volume_{volume}");
    lab.ok("server:m1", &format!("mkdir -p /v; mount {device} /v; echo before >/v/f; sync"));
    let fault = set(lab, json!({"kind": "volume_error", "volume": volume}));
    let (status, text) = lab.sh("server:m1", "dd if=/dev/zero of=/v/g bs=1M count=1 conv=fsync");
    assert_ne!(status, 0);
    assert!(text.contains("Input/output error") || text.contains("Read-only file system"), "{text}");
    assert_ne!(lab.sh("server:m1", &format!("dd if={device} of=/dev/null bs=4k skip=4096 count=1 iflag=direct")).0, 0);
    lift(lab, fault);
    // As after a real failure, the file system has to be mounted again.
    assert_eq!(lab.ok("server:m1", &format!("umount /v; mount {device} /v; cat /v/f; umount /v")), "before");
}

const S3: &str = r#"
s3() {
  printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" | curl -s -K - \
    --aws-sigv4 "aws:amz:$AWS_REGION:s3" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$@"
}
b=$AWS_ENDPOINT_URL/faulty
"#;

fn s3_fails(lab: &Lab) {
    let s3 = |script: &str| lab.sh("operator", &format!("{S3}{script}"));
    s3("s3 -X PUT $b; s3 -X PUT --data-binary 0123456789 $b/k");
    assert_eq!(s3("s3 $b/k").1, "0123456789");
    let with = |fault: Value, script: &str| {
        let id = set(lab, fault);
        let seen = s3(script);
        lift(lab, id);
        seen
    };
    let refused = with(json!({"kind": "s3_error", "code": "SlowDown", "status": 503}), "s3 -w '%{http_code}' $b/k");
    assert!(refused.1.contains("<Code>SlowDown</Code>") && refused.1.ends_with("503"), "{refused:?}");
    let read_only = with(
        json!({"kind": "s3_read_only"}),
        "s3 -o /dev/null -w '%{http_code} ' -X PUT --data-binary x $b/l; s3 $b/k",
    );
    assert_eq!(read_only.1, "403 0123456789");
    let (status, _) = with(json!({"kind": "s3_truncated", "path": "/faulty/*"}), "s3 $b/k >/dev/null");
    assert_eq!(status, 18, "curl's code for a partial file");
    assert_eq!(with(json!({"kind": "s3_corrupt"}), "s3 $b/k").1, "0123446789");
    let (status, _) = with(json!({"kind": "s3_slow", "delay_ms": 3000}), "s3 -m 1 $b/k");
    assert_eq!(status, 28, "curl's code for a time-out");
    // Requests with a signature over their body and answers of all kinds pass unharmed.
    let through = with(
        json!({"kind": "s3_slow", "delay_ms": 1, "count": 1000}),
        "head -c 5000000 /dev/urandom >/tmp/s3-fault.$$; s3 -T /tmp/s3-fault.$$ $b/big; s3 $b/big | cmp - /tmp/s3-fault.$$ && echo same; rm /tmp/s3-fault.$$",
    );
    assert_eq!(through.1, "same");
    assert_eq!(s3("s3 $b/k").1, "0123456789");
}

fn a_location_loses_its_power(lab: &Lab, one: u64, first: &str, second: &str) {
    lab.ok("server:m1", "echo a >/root/kept; sync; echo b >/root/lost");
    let fault = set(lab, json!({"kind": "location_off", "location": "fsn1"}));
    assert!(!lab.answers_ssh("operator", first) && lab.answers_ssh("operator", second));
    let status = || lab.call("GET", &format!("/servers/{one}"), None)["server"]["status"].clone();
    eventually("the cloud notices", || status() == "off");
    let refused = lab.refused("POST", &format!("/servers/{one}/actions/poweron"), json!({}));
    assert!(refused.contains("no power"), "{refused}");
    lift(lab, fault);
    lab.wait_for_ssh(first);
    eventually("the cloud notices", || status() == "running");
    let listed = lab.ok("server:m1", "ls /root");
    assert!(listed.contains("kept") && !listed.contains("lost"), "{listed}");
}

/// By how many seconds what a command says differs from the host's clock.
fn off(lab: &Lab, place: &str, script: &str) -> i64 {
    let told = lab.ok(place, script);
    let host = std::process::Command::new("date").arg("+%s").output().expect("date runs");
    let host: i64 = String::from_utf8_lossy(&host.stdout).trim().parse().expect("a number");
    // To the nearest half minute: a command takes a moment.
    (told.parse::<i64>().unwrap_or_else(|_| panic!("{script}: {told}")) - host + 15).div_euclid(30) * 30
}

/// A statically linked Go program that serves HTTP, and with each answer tells its time.
fn go_program(lab: &Lab) {
    let artifacts = std::fs::read_dir(common::cache_dir().join("artifacts")).expect("pinned binaries").flatten();
    let names = artifacts.map(|entry| entry.path()).filter(|path| !path.to_string_lossy().ends_with(".json"));
    let is_it =
        |path: &std::path::PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("versitygw"));
    let program = names.filter(is_it).max().expect("versitygw is among them");
    lab.ok("operator", &format!("{S3}s3 -f -X PUT $b; s3 -f -T {} $b/go", program.display()));
    let info = &lab.info;
    let given = format!(
        "AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_REGION={} AWS_ENDPOINT_URL=http://192.0.2.20:7070",
        info.access_key, info.secret_key, info.region
    );
    lab.ok("server:m1", &format!("{given}{S3}s3 -f -o /root/go $b/go; chmod +x /root/go; mkdir /root/served"));
}

const GO_TIME: &str =
    r#"date -d "$(curl -s -o /dev/null -D - http://127.0.0.1:$port/ | tr -d '\r' | sed -n 's/^[Dd]ate: //p')" +%s"#;

fn a_clock_is_off(lab: &Lab, one: u64, first: &str) {
    go_program(lab);
    let serve = |port: u16| {
        let command = format!("/root/go --access a --secret b --port 127.0.0.1:{port} posix /root/served");
        lab.ok("server:m1", &format!("systemd-run -q {command}"));
        eventually("it serves", || lab.sh("server:m1", &format!("curl -s 127.0.0.1:{port}")).0 == 0);
    };
    // It looks at its clock once a second.
    let go = |port: u16, seconds: i64| {
        let what = format!("Go at port {port} is off by {seconds} s");
        eventually(&what, || off(lab, "server:m1", &format!("port={port}; {GO_TIME}")) == seconds);
    };
    serve(7001);
    let make =
        "cd /root; openssl req -x509 -newkey ed25519 -nodes -keyout k -out c -days 1 -subj /CN=x 2>/dev/null; sync";
    lab.ok("server:m1", make);
    let ended = || lab.sh("server:m1", "openssl x509 -in /root/c -noout -checkend 0").0 == 1;
    assert!(!ended());

    let fault = set(lab, json!({"kind": "clock_skew", "server": "m1", "offset_ms": 172_800_000}));
    go(7001, 172_800);
    serve(7002);
    go(7002, 172_800);
    // Whatever begins has the other clock from its first instruction on.
    let hours =
        lab.ok("server:m1", "for i in $(seq 200); do date +%s; done | awk '{print int($1/3600)}' | sort -u | wc -l");
    assert!(hours.parse::<u32>().is_ok_and(|hours| hours <= 2), "{hours} hours, within a second");
    for script in ["date +%s", "perl -e 'print time'", "python3 -c 'import time; print(int(time.time()))'"] {
        assert_eq!(off(lab, "server:m1", script), 172_800, "{script}");
    }
    assert!(ended(), "a certificate is good for a day");
    assert_eq!(off(lab, "server:m2", "date +%s"), 0, "another server");
    let more = set(lab, json!({"kind": "clock_skew", "server": "m1", "offset_ms": -172_800_000 - 3_600_500}));
    assert_eq!(off(lab, "server:m1", "date +%s"), -3600, "they add up");
    go(7001, -3600);
    lift(lab, fault);
    // Over a reboot.
    lab.post(&format!("/servers/{one}/actions/reset"), json!({}));
    lab.wait_for_ssh(first);
    assert_eq!(off(lab, "server:m1", "date +%s"), -176_400);
    serve(7001);
    go(7001, -176_400);
    lift(lab, more);
    assert_eq!(off(lab, "server:m1", "date +%s"), 0);
    go(7001, 0);
    assert!(!ended());
}

fn what_cannot_be_had_is_refused(lab: &Lab) {
    let refused = lab.refused_own(json!({"kind": "clock_skew", "server": "m1", "offset_ms": 0}));
    assert!(refused.contains("offset_ms"), "{refused}");
    assert_eq!(lab.own("GET", "/faults", None)["faults"], json!([]));
}
