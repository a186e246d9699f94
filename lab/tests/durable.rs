//! A lab that is ended, or killed, and started again. Needs root.
//!
//! The long battery: `cargo test -p hk-lab --test durable -- --ignored --nocapture`.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Lab, Spaces, Traces, eventually, state_dir};
use hk_lab::control;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

#[test]
fn what_was_there_is_there_again() {
    let name = "t-durable";
    let _ = control::destroy(name, &state_dir());
    let lab = Lab::up_durable(name);
    let network = lab.network();
    let volume = lab.post("/volumes", json!({"name": "v", "size": 10, "location": "fsn1", "format": "ext4"}));
    let volume = volume["volume"]["id"].as_u64().expect("an id");
    let (one, first) = lab.server("m1", "fsn1", json!({"networks": [network], "volumes": [volume]}));
    let (two, second) = lab.server("m2", "nbg1", json!({"networks": [network]}));
    let floating = lab.post("/floating_ips", json!({"type": "ipv4", "home_location": "fsn1", "server": two}));
    assert!(floating["floating_ip"]["id"].is_u64());
    let rule = json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["198.51.100.0/24"]});
    lab.post(
        "/firewalls",
        json!({"name": "f", "rules": [rule], "apply_to": [{"type": "server", "server": {"id": one}}]}),
    );
    lab.wait_for_ssh(&first);
    lab.wait_for_ssh(&second);
    let device = format!("/dev/disk/by-id/scsi-0HC_Volume_{volume}");
    lab.ok("server:m1", &format!("mkdir -p /v; mount {device} /v; echo kept >/v/f; echo kept >/root/f; sync"));
    lab.post(&format!("/servers/{two}/actions/poweroff"), json!({}));
    lab.post(&format!("/servers/{two}/actions/enable_rescue"), json!({}));
    let (three, third) = lab.server("m3", "fsn1", json!({"start_after_create": false}));
    let later = json!({"name": "later", "size": 10, "server": three, "format": "ext4", "automount": true});
    let later = lab.post("/volumes", later)["volume"]["id"].as_u64().expect("an id");
    let all = ["servers", "volumes", "networks", "floating_ips", "primary_ips", "firewalls", "servers/actions"];
    let list = |lab: &Lab| all.map(|kind| lab.call("GET", &format!("/{kind}"), None));
    let before = list(&lab);
    let (token, port, spaces) = (lab.info.token.clone(), lab.info.api_published.port(), Spaces::of(&lab.info));

    // Another lab may not take the place of a kept one.
    control::down(name).expect("the lab ends");
    let mut traces = Traces::of(&lab.info, &spaces);
    assert!(traces.files.iter().any(|f| f.ends_with(name)), "{traces:?}");
    traces.files.clear();
    assert_eq!(traces, Traces::default());
    assert_eq!(control::kept(&state_dir()).iter().filter(|n| *n == name).count(), 1);
    assert!(Lab::try_up(name).map(|_| ()).expect_err("it is kept").message.contains("kept"));

    let lab = Lab::up_durable(name);
    assert_eq!((lab.info.token.clone(), lab.info.api_published.port()), (token, port));
    assert_eq!(list(&lab), before);
    lab.wait_for_ssh(&first);
    assert!(!lab.answers_ssh("operator", &second), "it was off");
    assert!(!lab.answers_ssh("internet", &first), "its firewall is back");
    assert_eq!(lab.ok("server:m1", "cat /root/f"), "kept");
    assert_eq!(lab.ok("server:m1", &format!("mount {device} /v; cat /v/f")), "kept");
    lab.post(&format!("/servers/{two}/actions/poweron"), json!({}));
    lab.wait_for_ssh(&second);
    assert_eq!(lab.ok("server:m2", "cat /etc/hostname"), "rescue", "it waited for the next boot");
    assert_eq!(lab.call("GET", &format!("/servers/{two}"), None)["server"]["rescue_enabled"], false);
    let private = lab.ok("server:m2", "ip -4 -o addr show dev ens10 | awk '{print $4}' | cut -d/ -f1");
    assert!(lab.answers_ssh("server:m1", &private));

    lab.post(&format!("/servers/{three}/actions/poweron"), json!({}));
    lab.wait_for_ssh(&third);
    eventually("it mounts what it was told to when it was off", || {
        lab.sh("server:m3", &format!("mountpoint -q /mnt/HC_Volume_{later}")).0 == 0
    });

    // A format of the future is refused, and left alone.
    control::down(name).expect("the lab ends");
    let state = state_dir().join("labs").join(name).join("state.json");
    let text = fs::read_to_string(&state).expect("a state");
    fs::write(&state, text.replacen("\"format\":1", "\"format\":99", 1)).expect("written");
    let error = Lab::try_up_durable(name).map(|_| ()).expect_err("an unknown format");
    assert!(error.message.contains("format 99"), "{error}");
    fs::write(&state, text).expect("written");

    let lab = Lab::up_durable(name);
    let spaces = Spaces::of(&lab.info);
    control::destroy(name, &state_dir()).expect("the lab is removed");
    assert_eq!(Traces::of(&lab.info, &spaces), Traces::default());
}

#[test]
fn a_killed_lab_has_lost_nothing_it_acknowledged() {
    battery("t-kill", 3);
}

#[test]
#[ignore = "takes minutes: cargo test -p hk-lab --test durable -- --ignored --nocapture"]
fn fifty_killed_labs_have_lost_nothing_they_acknowledged() {
    battery("t-kill50", 50);
}

/// Changes the cloud until it is killed at a drawn moment; then it must have all that was acknowledged, and nothing half.
fn battery(name: &str, rounds: u32) {
    let seed = std::env::var("HK_LAB_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u32>);
    println!("seed {seed} (HK_LAB_SEED={seed} repeats the moments)");
    let mut dice = StdRng::seed_from_u64(u64::from(seed));
    let _ = control::destroy(name, &state_dir());
    let mut known = Known::default();
    let mut last = None;
    for round in 0..rounds {
        let lab = Lab::up_durable(name);
        known.check(&lab, round);
        let moment = Duration::from_millis(dice.random_range(5..1500));
        let (guardian, init) = (lab.info.guardian_pid.to_string(), lab.info.init_pid.to_string());
        // The emulator dies with init, at once. Sometimes the guardian goes too.
        let victims = if dice.random_bool(0.5) { vec![guardian, init] } else { vec![init] };
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            assert!(Command::new("kill").arg("-9").args(victims).status().is_ok_and(|s| s.success()));
        });
        known.change(&lab, round, &mut dice);
        killer.join().expect("a kill");
        eventually("its processes are gone", || control::find(name).is_err());
        last = Some(lab);
    }
    let lab = Lab::up_durable(name);
    known.check(&lab, rounds);
    let spaces = Spaces::of(&lab.info);
    control::destroy(name, &state_dir()).expect("the lab is removed");
    assert_eq!(Traces::of(&lab.info, &spaces), Traces::default());
    drop(last);
}

/// Everything of a kind, over all pages.
fn all(lab: &Lab, path: &str) -> Vec<Value> {
    let page = |number: u32| {
        let answer = lab.call("GET", &format!("/{path}?per_page=50&page={number}"), None);
        answer[path].as_array().cloned().unwrap_or_default()
    };
    (1..).map(page).take_while(|found| !found.is_empty()).flatten().collect()
}

/// What the cloud acknowledged.
#[derive(Default)]
struct Known {
    /// Path and id of what was created.
    created: BTreeSet<(&'static str, u64)>,
    /// What a deletion was sent for: it may be there or not.
    doubtful: BTreeSet<(&'static str, u64)>,
}

impl Known {
    /// Creates and deletes until nobody answers.
    fn change(&mut self, lab: &Lab, round: u32, dice: &mut StdRng) {
        let end = Instant::now() + Duration::from_secs(30);
        for number in 0.. {
            assert!(Instant::now() < end, "the kill did not come");
            let name = format!("r{round}-{number}");
            if dice.random_bool(0.25)
                && let Some(victim) = self.created.iter().nth(dice.random_range(0..self.created.len().max(1))).copied()
            {
                self.created.remove(&victim);
                self.doubtful.insert(victim);
                if lab.try_call("DELETE", &format!("/{}/{}", victim.0, victim.1), None).is_none() {
                    return;
                }
                continue;
            }
            let (path, kind, body) = match dice.random_range(0..4) {
                0 => (
                    "servers",
                    "server",
                    json!({"name": name, "server_type": "cx23", "image": "debian-12", "location": "fsn1"}),
                ),
                1 => ("volumes", "volume", json!({"name": name, "size": 10, "location": "fsn1"})),
                2 => ("networks", "network", json!({"name": name, "ip_range": format!("10.{}.0.0/16", number % 250)})),
                _ => ("placement_groups", "placement_group", json!({"name": name, "type": "spread"})),
            };
            match lab.try_call("POST", &format!("/{path}"), Some(body)) {
                None => return,
                Some(answer) => {
                    if let Some(id) = answer[kind]["id"].as_u64() {
                        self.created.insert((path, id));
                    }
                }
            }
        }
    }

    fn check(&mut self, lab: &Lab, round: u32) {
        for (path, id) in &self.created {
            let answer = lab.try_call("GET", &format!("/{path}/{id}"), None).unwrap_or(Value::Null);
            assert!(answer["error"].is_null(), "round {round}: {path}/{id} was acknowledged: {answer}");
        }
        for path in ["servers", "volumes", "networks"] {
            for one in all(lab, path) {
                let status = one["status"].as_str().unwrap_or("none");
                assert!(["running", "off", "available", "none"].contains(&status), "round {round}: half: {one}");
            }
        }
        let actions = lab.call("GET", "/servers/actions?status=running", None);
        assert_eq!(actions["actions"], json!([]), "round {round}");
        // Every disk belongs to something, and everything has its disk.
        for (path, dir) in [("servers", "machines"), ("volumes", "volumes")] {
            let ids = all(lab, path).into_iter().filter_map(|r| r["id"].as_u64());
            let listed: BTreeSet<String> = ids.map(|id| id.to_string()).collect();
            let entries = fs::read_dir(lab.info.disks.join(dir)).expect("a directory").flatten();
            let on_disk: BTreeSet<String> =
                entries.map(|e| e.file_name().to_string_lossy().trim_end_matches(".img").to_owned()).collect();
            assert_eq!(listed, on_disk, "round {round}: {path}");
        }
        // A server a round boots or is off for good reason; more would only take memory.
        let servers = lab.call("GET", "/servers?per_page=50", None);
        for server in servers["servers"].as_array().into_iter().flatten().skip(4) {
            let id = server["id"].as_u64().expect("an id");
            self.created.remove(&("servers", id));
            lab.delete(&format!("/servers/{id}"));
        }
    }
}
