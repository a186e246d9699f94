//! Clients of Hetzner's that are not the project's own, unmodified, among real machines. Needs root, and the client named by
//! each test: docs/LAB.md says where it comes from.
//!
//! `cargo test -p hk-lab --test clients -- --ignored --nocapture`

mod common;

use std::path::Path;
use std::process::Command;

use common::Lab;

/// Seconds: Go compiles a library first.
const DEADLINE: &str = "600";

/// Runs a client against a fresh lab; it says that its life is complete.
fn lives(lab: &str, dir: &str, program: &str, args: &[&str]) {
    let lab = Lab::up(lab);
    let output = Command::new("timeout")
        .args(["--kill-after=5", DEADLINE, program])
        .args(args)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(dir))
        .env("HCLOUD_ENDPOINT", format!("http://{}/v1", lab.info.api_published))
        .env("HCLOUD_TOKEN", &lab.info.token)
        .env("NO_PROXY", "*")
        .output()
        .expect("timeout runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{told}");
    assert!(output.status.success() && told.contains("life is complete"), "{}", output.status);
    for kind in ["servers", "volumes", "networks", "firewalls", "load_balancers", "floating_ips", "primary_ips"] {
        assert_eq!(lab.call("GET", &format!("/{kind}"), None)["meta"]["pagination"]["total_entries"], 0, "{kind}");
    }
}

#[test]
#[ignore = "needs Go and its module proxy: cargo test -p hk-lab --test clients go_ -- --ignored --nocapture"]
fn go_library() {
    lives("t-go", "go", "go", &["run", "."]);
}

#[test]
#[ignore = "needs tofu or terraform, and terraform-provider-hcloud: cargo test -p hk-lab --test clients terraform_ -- --ignored --nocapture"]
fn terraform_provider() {
    lives("t-terraform", "terraform", "sh", &["life.sh"]);
}

#[test]
#[ignore = "needs hcloud: cargo test -p hk-lab --test clients hcloud_ -- --ignored --nocapture"]
fn hcloud_command_line() {
    lives("t-hcloud", "hcloud", "sh", &["life.sh"]);
}

#[test]
#[ignore = "needs ansible-playbook: cargo test -p hk-lab --test clients ansible_ -- --ignored --nocapture"]
fn ansible_collection() {
    lives("t-ansible", "ansible", "ansible-playbook", &["-i", "localhost,", "life.yml"]);
}
