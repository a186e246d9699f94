//! Whatever dies, nothing of a lab is left. Needs root.

mod common;

use std::process::Command;

use common::{Lab, Spaces, Traces, eventually};
use hk_lab::{LabOptions, control};
use serde_json::json;

/// A lab with a machine that uses a volume: something of every kind that could leak.
fn furnished(name: &str) -> (Lab, Spaces) {
    let lab = Lab::up(name);
    let (server, address) = lab.server("m1", "fsn1", json!({}));
    let volume = lab.post("/volumes", json!({"name": "v", "size": 10, "server": server, "format": "ext4"}));
    let volume = &volume["volume"]["id"];
    let check = json!({"protocol": "tcp", "port": 22, "interval": 3, "timeout": 2, "retries": 1});
    let service = json!({"protocol": "tcp", "listen_port": 22, "destination_port": 22, "proxyprotocol": false,
        "health_check": check});
    let target = json!({"type": "server", "server": {"id": server}});
    let body = json!({"name": "lb", "load_balancer_type": "lb11", "location": "fsn1", "services": [service],
        "targets": [target]});
    let balancer = lab.post("/load_balancers", body)["load_balancer"]["public_net"]["ipv4"]["ip"].clone();
    lab.wait_for_ssh(&address);
    lab.wait_for_ssh(balancer.as_str().expect("an address"));
    lab.ok("server:m1", &format!("mkdir -p /v; mount /dev/disk/by-id/scsi-0HC_Volume_{volume} /v; echo x >/v/x"));
    let spaces = Spaces::of(&lab.info);
    let traces = Traces::of(&lab.info, &spaces);
    assert!(traces.processes.len() > 3 && traces.loops.len() == 2 && !traces.groups.is_empty(), "{traces:?}");
    (lab, spaces)
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().is_ok_and(|s| s.success()));
}

#[test]
fn down_leaves_nothing() {
    let (lab, spaces) = furnished("t-down");
    control::down("t-down").expect("the lab ends");
    assert_eq!(Traces::of(&lab.info, &spaces), Traces::default());
    assert!(control::find("t-down").is_err());
}

#[test]
fn a_killed_init_leaves_nothing() {
    let (lab, spaces) = furnished("t-init");
    kill(lab.info.init_pid);
    eventually("everything is gone", || Traces::of(&lab.info, &spaces) == Traces::default());
}

#[test]
fn a_killed_guardian_leaves_nothing() {
    let (lab, spaces) = furnished("t-guardian");
    kill(lab.info.guardian_pid);
    eventually("everything is gone", || Traces::of(&lab.info, &spaces) == Traces::default());
}

#[test]
fn a_tethered_lab_ends_with_the_tether_unless_it_is_cut() {
    let options =
        |name: &str| LabOptions { name: name.into(), cache_dir: common::cache_dir(), state_dir: common::state_dir() };
    let daemon = || {
        let mut daemon = Command::new(common::PROGRAM);
        daemon.arg("daemon");
        daemon
    };
    let (info, tether) = control::up_tethered(&options("t-tether"), daemon(), &mut |_| {}).expect("the lab comes up");
    let spaces = Spaces::of(&info);
    assert!(!Traces::of(&info, &spaces).processes.is_empty());
    // What the kernel does when the process that holds it is killed.
    drop(tether);
    eventually("everything is gone", || Traces::of(&info, &spaces) == Traces::default());

    let (_, tether) = control::up_tethered(&options("t-cut"), daemon(), &mut |_| {}).expect("the lab comes up");
    tether.cut().expect("the lab lives");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(control::find("t-cut").is_ok());
    control::down("t-cut").expect("the lab ends");
}

#[test]
fn what_both_killed_leave_is_swept_by_the_next_look() {
    let (lab, spaces) = furnished("t-both");
    // Both at once: neither can clean up after the other.
    let (guardian, init) = (lab.info.guardian_pid.to_string(), lab.info.init_pid.to_string());
    assert!(Command::new("kill").args(["-9", &guardian, &init]).status().is_ok_and(|s| s.success()));
    eventually("no process is left", || Traces::of(&lab.info, &spaces).processes.is_empty());
    eventually("the next look sweeps", || {
        assert!(control::status().is_ok());
        Traces::of(&lab.info, &spaces) == Traces::default()
    });
}

#[test]
fn labs_run_side_by_side_and_a_name_is_taken_once() {
    let (one, two) = (Lab::up("t-side1"), Lab::up("t-side2"));
    let (_, first) = one.server("m1", "fsn1", json!({}));
    let (_, second) = two.server("m1", "fsn1", json!({}));
    assert_eq!(first, second, "the same address in two worlds");
    one.wait_for_ssh(&first);
    two.wait_for_ssh(&second);
    one.ok("server:m1", "touch /root/one");
    assert_ne!(two.sh("server:m1", "test -e /root/one").0, 0);

    let again = LabOptions { name: "t-side1".into(), cache_dir: common::cache_dir(), state_dir: common::state_dir() };
    let mut daemon = Command::new(common::PROGRAM);
    daemon.arg("daemon");
    let error = control::up(&again, daemon, &mut |_| {}).map(|_| ()).expect_err("the name is taken");
    assert!(error.message.contains("already"), "{error}");

    control::down("t-side1").expect("the first ends");
    assert!(two.answers_ssh("operator", &second), "the second lives on");
}
