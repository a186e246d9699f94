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

    a_location_is_cut_off(&lab, &first, &second);
    packets_get_lost(&lab, &second);
    a_link_is_narrow(&lab, &second);
    a_location_stands_still(&lab, one, &first);
    a_disk_is_full(&lab);
    a_volume_fails(&lab, volume);
    s3_fails(&lab);
    a_location_loses_its_power(&lab, one, &first, &second);
    what_cannot_be_had_is_refused(&lab);
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

fn what_cannot_be_had_is_refused(lab: &Lab) {
    let refused = lab.refused_own(json!({"kind": "clock_skew", "server": "m1", "seconds": 60}));
    assert!(refused.contains("clock"), "{refused}");
    assert_eq!(lab.own("GET", "/faults", None)["faults"], json!([]));
}
