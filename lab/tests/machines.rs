//! Machines, volumes, networks and S3 of one lab, as their users meet them. Needs root.

mod common;

use common::{Lab, eventually};
use serde_json::json;

/// One lab for all of it: each part leaves behind what the next ones need.
#[test]
fn a_lab_behaves_like_a_small_cloud() {
    let lab = Lab::up("t-machines");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIEJ7dFzSvwzV7NQx2qVTXd7OGOrJfzgZcfYsHBsfMEf test";
    let key = lab.post("/ssh_keys", json!({"name": "k", "public_key": key}))["ssh_key"]["id"].clone();
    let network = lab.network();
    let user_data = "#!/bin/sh\necho ran >> /root/user-data\n";
    let more = json!({"ssh_keys": [key], "networks": [network], "user_data": user_data});
    let servers: Vec<(u64, String)> = [("m1", "fsn1"), ("m2", "nbg1"), ("m3", "hel1")]
        .into_iter()
        .map(|(name, location)| lab.server(name, location, more.clone()))
        .collect();
    for (_, address) in &servers {
        lab.wait_for_ssh(address);
    }

    metadata_arrives(&lab);
    places_reach_what_they_should(&lab, &servers[0].1);
    private_network_connects_locations(&lab);
    machines_are_fenced_off(&lab);
    let volume = volumes_keep_what_was_synced(&lab, servers[0].0, servers[1].0);
    reboot_and_power(&lab, servers[1].0, &servers[1].1);
    lab.post(&format!("/volumes/{volume}/actions/detach"), json!({}));
    lab.delete(&format!("/volumes/{volume}"));
    object_store_keeps_its_promises(&lab);
    user_data_for_cloud_init_runs(&lab);
    root_disks_end_and_lose_what_was_not_synced(&lab, servers[2].0, &servers[2].1);
    a_disk_can_be_copied_replaced_and_repaired(&lab, servers[2].0, &servers[2].1);
    for (id, _) in servers {
        lab.delete(&format!("/servers/{id}"));
    }
    assert!(!lab.answers_ssh("operator", "203.0.113.1"));
}

fn metadata_arrives(lab: &Lab) {
    assert_eq!(lab.ok("server:m1", "hostname"), "m1");
    assert!(lab.ok("server:m1", "cat /root/.ssh/authorized_keys").contains("ssh-ed25519 AAAA"));
    assert_eq!(lab.ok("server:m1", "cat /root/user-data"), "ran");
    assert_eq!(lab.ok("server:m1", "systemctl is-active containerd || true"), "inactive");
}

fn places_reach_what_they_should(lab: &Lab, address: &str) {
    assert!(lab.answers_ssh("internet", address));
    let get =
        "curl -s -o /dev/null -w '%{http_code}' -H \"Authorization: Bearer $HCLOUD_TOKEN\" $HCLOUD_ENDPOINT/servers";
    assert_eq!(lab.ok("operator", get), "200");
    assert_eq!(lab.ok("operator", "curl -s -o /dev/null -w '%{http_code}' $AWS_ENDPOINT_URL/"), "403");
    assert_eq!(lab.sh("operator", "exit 7").0, 7);
    let (status, _) = lab.sh("operator", "kill -9 $$");
    assert_eq!(status, 137);
}

fn private_network_connects_locations(lab: &Lab) {
    let address = lab.ok("server:m3", "ip -4 -o addr show dev ens10 | awk '{print $4}' | cut -d/ -f1");
    assert!(address.starts_with("10.0.0."), "{address}");
    assert!(lab.answers_ssh("server:m1", &address));
    assert!(!lab.answers_ssh("operator", &address), "a private address is private");
    assert_eq!(lab.ok("server:m1", "cat /sys/class/net/ens10/mtu"), "1450");
}

fn machines_are_fenced_off(lab: &Lab) {
    // Devices: the root disk of the host, whatever its number, is none of the machine's.
    let disk = std::fs::metadata("/dev/vda").or_else(|_| std::fs::metadata("/dev/sda"));
    if let Ok(disk) = disk {
        use std::os::unix::fs::MetadataExt;
        let device = disk.rdev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let read = format!("mknod /root/d b {major} {minor} && head -c 1 /root/d");
        assert_ne!(lab.sh("server:m1", &read).0, 0);
        assert_ne!(lab.sh("server:m1", "cat /sys/fs/cgroup/devices/devices.list | grep -q '^a'").0, 0);
    }
    // Networks: no machine speaks with another's address.
    let spoofed = "ip addr add 203.0.113.200/32 dev lo && curl -s --interface 203.0.113.200 --max-time 1 \
                   http://169.254.169.254/hetzner/v1/metadata";
    assert_ne!(lab.sh("server:m1", spoofed).0, 0);
}

/// Returns the volume, attached to the second machine.
fn volumes_keep_what_was_synced(lab: &Lab, first: u64, second: u64) -> u64 {
    let answer = lab.post("/volumes", json!({"name": "v", "size": 10, "location": "fsn1", "format": "ext4"}));
    let volume = answer["volume"]["id"].as_u64().expect("an id");
    let (attach, detach) = (format!("/volumes/{volume}/actions/attach"), format!("/volumes/{volume}/actions/detach"));
    lab.post(&attach, json!({"server": first, "automount": false}));
    let device = format!("/dev/disk/by-id/scsi-0HC_Volume_{volume}");
    let write = format!("mkdir -p /v; mount {device} /v; echo a >/v/synced; sync; echo b >/v/unsynced");
    lab.ok("server:m1", &write);
    lab.post(&detach, json!({}));
    let (status, text) = lab.sh("server:m1", "cat /v/synced; echo c >/v/late");
    assert_ne!(status, 0);
    assert!(text.contains("Input/output error"), "{text}");
    assert_ne!(lab.sh("server:m1", &format!("test -e {device}")).0, 0);
    // While the old file system is still mounted, and again after it is gone.
    lab.post(&attach, json!({"server": first, "automount": false}));
    let read = format!("mkdir -p /w; mount {device} /w; ls /w");
    let listed = lab.ok("server:m1", &read);
    assert!(listed.contains("synced") && !listed.contains("unsynced") && !listed.contains("late"), "{listed}");
    lab.ok("server:m1", "umount /w; umount /v");
    assert_ne!(lab.call("GET", &format!("/servers/{second}"), None)["server"]["id"], json!(null));
    volume
}

const CLOUD_CONFIG: &str = "#cloud-config
users:
  - name: ops
    shell: /bin/bash
    ssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIEJ7dFzSvwzV7NQx2qVTXd7OGOrJfzgZcfYsHBsfMEf ops]
write_files:
  - {path: /etc/hk/file, content: written, permissions: '0640'}
packages: [no-mirror-is-to-be-reached]
runcmd:
  - [sh, -c, 'echo ran as $(hostname) >>/root/ran']
";

/// Real cloud-init, with its own source for Hetzner; and volumes that are mounted by the server itself.
fn user_data_for_cloud_init_runs(lab: &Lab) {
    let volume = lab.post("/volumes", json!({"name": "auto", "size": 10, "location": "fsn1", "format": "ext4"}));
    let volume = volume["volume"]["id"].clone();
    let more = json!({"user_data": CLOUD_CONFIG, "volumes": [volume], "automount": true});
    let (id, address) = lab.server("m4", "fsn1", more);
    lab.wait_for_ssh(&address);
    // What has to be there before somebody logs in is there.
    assert_eq!(lab.ok("server:m4", "cat /etc/hk/file; stat -c ' %a' /etc/hk/file; hostname"), "written 640\nm4");
    assert!(lab.ok("server:m4", "cat ~ops/.ssh/authorized_keys").ends_with(" ops"));
    assert!(lab.ok("server:m4", "cloud-id; cat /run/cloud-init/instance-data.json").starts_with("hetzner"));
    let mounted = format!("findmnt -no TARGET --source $(readlink -f /dev/disk/by-id/scsi-0HC_Volume_{volume})");
    assert_eq!(lab.ok("server:m4", &mounted), format!("/mnt/HC_Volume_{volume}"));
    // The rest comes later. A package that is not to be had is told of, and hinders nothing.
    eventually("cloud-init ends", || lab.sh("server:m4", "test -e /run/cloud-init/result.json").0 == 0);
    assert_eq!(lab.ok("server:m4", "cat /root/ran"), "ran as m4");
    let result = lab.ok("server:m4", "cat /run/cloud-init/result.json");
    assert!(result.contains("package"), "{result}");

    lab.ok("server:m4", &format!("echo kept >/mnt/HC_Volume_{volume}/f; sync"));
    lab.post(&format!("/servers/{id}/actions/reset"), json!({}));
    lab.wait_for_ssh(&address);
    eventually("cloud-init ends", || lab.sh("server:m4", "test -e /run/cloud-init/result.json").0 == 0);
    assert_eq!(lab.ok("server:m4", &format!("cat /root/ran /mnt/HC_Volume_{volume}/f")), "ran as m4\nkept");
    // Hot, in a server that runs.
    let hot = json!({"name": "hot", "size": 10, "server": id, "format": "ext4", "automount": true});
    let hot = lab.post("/volumes", hot)["volume"]["id"].clone();
    lab.ok("server:m4", &format!("findmnt /mnt/HC_Volume_{hot}"));
    lab.delete(&format!("/servers/{id}"));
    for volume in [volume, hot] {
        lab.delete(&format!("/volumes/{volume}"));
    }
}

fn reboot_and_power(lab: &Lab, id: u64, address: &str) {
    let boot = || lab.sh("server:m2", "cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1").1;
    let before = boot();
    lab.ok("server:m2", "touch /run/old");
    lab.post(&format!("/servers/{id}/actions/reboot"), json!({}));
    eventually("the machine reboots", || lab.sh("server:m2", "test ! -e /run/old").0 == 0 && boot() != before);
    lab.wait_for_ssh(address);
    assert_eq!(lab.ok("server:m2", "cat /root/user-data"), "ran", "once per instance, not per boot");

    lab.sh("server:m2", "systemctl poweroff");
    let status = || lab.call("GET", &format!("/servers/{id}"), None)["server"]["status"].clone();
    eventually("the cloud notices a machine that powers itself off", || status() == "off");
    lab.post(&format!("/servers/{id}/actions/poweron"), json!({}));
    lab.wait_for_ssh(address);
    lab.post(&format!("/servers/{id}/actions/reset"), json!({}));
    lab.wait_for_ssh(address);
    lab.post(&format!("/servers/{id}/actions/shutdown"), json!({}));
    eventually("the machine obeys the power button", || status() == "off");
    lab.post(&format!("/servers/{id}/actions/poweron"), json!({}));
    lab.wait_for_ssh(address);
    lab.post(&format!("/servers/{id}/actions/poweroff"), json!({}));
    assert!(!lab.answers_ssh("operator", address));
}

fn root_disks_end_and_lose_what_was_not_synced(lab: &Lab, id: u64, address: &str) {
    // cx23 has 40 GB.
    let size: u64 = lab.ok("server:m3", "df -B1G --output=size / | tail -n 1").trim().parse().expect("a number");
    assert!((37..=40).contains(&size), "{size} GB");
    let (status, text) = lab.sh("server:m3", "fallocate -l 41G /root/too-much");
    assert_ne!(status, 0);
    assert!(text.contains("No space left on device"), "{text}");
    lab.ok("server:m3", "rm -f /root/too-much; echo a >/root/kept; sync; echo b >/root/lost");
    lab.post(&format!("/servers/{id}/actions/reset"), json!({}));
    lab.wait_for_ssh(address);
    let listed = lab.ok("server:m3", "ls /root");
    assert!(listed.contains("kept") && !listed.contains("lost"), "{listed}");
    // A system that goes down by itself writes everything out.
    lab.ok("server:m3", "echo c >/root/written");
    lab.post(&format!("/servers/{id}/actions/shutdown"), json!({}));
    let status = || lab.call("GET", &format!("/servers/{id}"), None)["server"]["status"].clone();
    eventually("the machine obeys the power button", || status() == "off");
    lab.post(&format!("/servers/{id}/actions/poweron"), json!({}));
    lab.wait_for_ssh(address);
    assert!(lab.ok("server:m3", "ls /root").contains("written"));
}

fn a_disk_can_be_copied_replaced_and_repaired(lab: &Lab, id: u64, address: &str) {
    let act = |command: &str, body: serde_json::Value| lab.post(&format!("/servers/{id}/actions/{command}"), body);
    lab.ok("server:m3", "echo original >/root/mark; sync");
    let image = act("create_image", json!({"description": "a copy"}))["image"]["id"].clone();
    lab.ok("server:m3", "echo later >/root/mark");
    let (copy, copied) = lab.server("copy", "fsn1", json!({"image": image.to_string()}));
    lab.wait_for_ssh(&copied);
    assert_eq!(lab.ok("server:copy", "cat /root/mark; hostname"), "original\ncopy");
    lab.delete(&format!("/servers/{copy}"));

    // The rescue system: another root, the server's own at /mnt, once.
    act("enable_rescue", json!({"type": "linux64"}));
    act("reset", json!({}));
    lab.wait_for_ssh(address);
    assert_eq!(lab.ok("server:m3", "cat /etc/hostname; test ! -e /root/mark; cat /mnt/root/mark"), "rescue\noriginal");
    lab.ok("server:m3", "echo repaired >/mnt/root/mark; sync");
    act("reset", json!({}));
    lab.wait_for_ssh(address);
    assert_eq!(lab.ok("server:m3", "hostname; cat /root/mark"), "m3\nrepaired");

    let password = act("reset_password", json!({}))["root_password"].as_str().expect("a password").to_owned();
    let hash = lab.ok("server:m3", "sed -n 's/^root:\\([^:]*\\):.*/\\1/p' /etc/shadow");
    let salt_and_hash: Vec<&str> = hash.split('$').collect();
    assert!(salt_and_hash.len() >= 4 && !password.is_empty(), "{hash}");
    assert!(lab.ok("server:m3", "sshd -T | grep -i ^passwordauthentication").ends_with("yes"));

    act("poweroff", json!({}));
    act("change_type", json!({"server_type": "cx33", "upgrade_disk": true}));
    lab.wait_for_ssh(address);
    let size: u64 = lab.ok("server:m3", "df -B1G --output=size / | tail -n 1").trim().parse().expect("a number");
    assert!(size > 70, "{size} GB");
    assert_eq!(lab.ok("server:m3", "cat /root/mark"), "repaired");

    act("rebuild", json!({"image": "debian-12"}));
    lab.wait_for_ssh(address);
    assert_ne!(lab.sh("server:m3", "test -e /root/mark").0, 0);
    lab.delete(&format!("/images/{image}"));
}

/// Prints "step status" lines. The secret goes through standard input; curl signs.
const S3_SCRIPT: &str = r#"
s3() {
  printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" | curl -s -K - \
    --aws-sigv4 "aws:amz:$AWS_REGION:s3" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' -w '\n%{http_code}' "$@"
}
code() { name=$1; shift; echo "$name $(s3 "$@" | tail -n 1)"; }
b=$AWS_ENDPOINT_URL/backups
code bucket -X PUT -H 'x-amz-bucket-object-lock-enabled: true' "$b"
code first -X PUT --data-binary one -H 'If-None-Match: *' "$b/a/b"
code second -X PUT --data-binary two -H 'If-None-Match: *' "$b/a/b"
md5=$(printf three | openssl md5 -binary | base64)
code locked -X PUT --data-binary three -H "Content-MD5: $md5" -H 'x-amz-object-lock-mode: COMPLIANCE' \
  -H 'x-amz-object-lock-retain-until-date: 2099-01-01T00:00:00Z' "$b/a/c"
version=$(s3 "$b?prefix=a%2Fc&versions=" | sed -n 's/.*<VersionId>\([^<]*\).*/\1/p')
code remove -X DELETE "$b/a/c?versionId=$version"
code bypass -X DELETE -H 'x-amz-bypass-governance-retention: true' "$b/a/c?versionId=$version"
code hide -X DELETE "$b/a/c"
echo "first $(s3 "$b/a/b" | head -n 1)"
echo "locked $(s3 "$b/a/c?versionId=$version" | head -n 1)"
"#;

fn object_store_keeps_its_promises(lab: &Lab) {
    let lines = lab.ok("operator", S3_SCRIPT);
    let expected = [
        "bucket 200",
        "first 200",
        // The second conditional put is refused.
        "second 412",
        "locked 200",
        // A locked version stays, whatever the request says; a deletion without a version only hides it.
        "remove 403",
        "bypass 403",
        "hide 204",
        "first one",
        "locked three",
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
}
