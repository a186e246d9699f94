//! A cluster of which the world sees nothing but WireGuard, on booted machines. Needs root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The program under test: built beside this test.
fn hk_dr() -> PathBuf {
    let here = std::env::current_exe().expect("this test has a path");
    let path = here.parent().and_then(Path::parent).expect("deps/..").join("hk-dr");
    assert!(path.exists(), "{} is not built: run `make test` or `cargo build` first", path.display());
    path
}

struct Lab {
    name: String,
    dir: tempfile::TempDir,
}

impl Lab {
    fn up() -> Self {
        let dir = tempfile::Builder::new().prefix("hk-dr-private-").tempdir().expect("a scratch directory");
        let lab = Self { name: format!("private-{}", std::process::id()), dir };
        succeeded(&lab.run(&["lab", "up", "--ephemeral", "--name", &lab.name]), "lab up");
        lab
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(hk_dr()).args(args).output().expect("hk-dr starts")
    }

    /// A shell command at a place of the lab, or in a server.
    fn at(&self, place: &[&str], script: &str) -> Output {
        let args = [&["lab", "exec", "--name", &self.name], place, &["--", "sh", "-c", script]].concat();
        self.run(&args)
    }

    /// hk-dr at the operator's desk.
    fn operator(&self, args: &[&str]) -> Output {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let program = hk_dr().display().to_string();
        let place = ["lab", "exec", "--name", &self.name, "--from", "operator", "--", &program];
        let (git, state, identity) = (path("git"), path("state"), path("identity"));
        self.run(&[&place[..], &["-C", &git, "--state", &state, "--identity", &identity], args].concat())
    }

    fn api(&self, what: &str) -> Vec<Value> {
        let script = format!("curl -fsS -H \"Authorization: Bearer $HCLOUD_TOKEN\" $HCLOUD_ENDPOINT/{what}");
        let output = self.at(&["--from", "operator"], &script);
        succeeded(&output, what);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value[what].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.run(&["lab", "down", "--delete", "--name", &self.name]);
    }
}

fn succeeded(output: &Output, what: &str) -> String {
    assert!(
        output.status.success(),
        "{what} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The example with one master and one worker: what is looked at here does not depend on how many there are.
fn small() -> String {
    let example = include_str!("../../examples/private/cluster.yaml");
    let kept = |line: &&str| !["name: m2", "name: m3", "name: w2"].iter().any(|left_out| line.contains(left_out));
    example.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_world_sees_wireguard_only_and_hk_dr_does_everything_through_it() {
    let lab = Lab::up();
    let git = lab.dir.path().join("git");
    std::fs::create_dir(&git).expect("a directory");
    std::fs::write(git.join("cluster.yaml"), small()).expect("written");
    let second = lab.dir.path().join("second").display().to_string();
    let first = lab.dir.path().join("identity").display().to_string();
    let init = lab.operator(&["keys", "init", "--new-identity", &first, "--new-identity", &second]);
    succeeded(&init, "keys init");
    succeeded(&lab.operator(&["build", "--yes"]), "build");

    let servers = lab.api("servers");
    let public: Vec<&str> = servers.iter().filter_map(|s| s["public_net"]["ipv4"]["ip"].as_str()).collect();
    assert_eq!((servers.len(), public.len()), (3, 1), "only the VPN host has a public address: {servers:?}");
    let applied = |s: &Value| s["public_net"]["firewalls"].as_array().map_or(0, Vec::len);
    assert!(servers.iter().all(|s| applied(s) >= 1), "everything is behind a firewall: {servers:?}");
    assert_eq!(open_ports(&lab, public[0]), BTreeSet::new());

    // hk-dr goes through WireGuard without any in its place; so does an interactive login, with the pinned host key.
    assert_eq!(succeeded(&lab.operator(&["ssh", "m1", "--", "hostname"]), "ssh").trim(), "private-m1");
    assert_eq!(
        succeeded(&lab.operator(&["ssh", "vpn", "--", "wg", "show", "wg0", "listen-port"]), "ssh").trim(),
        "51820"
    );
    // Servers without a public address reach the world through the VPN host.
    succeeded(
        &lab.at(&["private-w1"], "curl -fsS -o /dev/null --max-time 5 http://192.0.2.20:7070/ || [ $? = 22 ]"),
        "the way out",
    );
    let again: Value =
        serde_json::from_str(&succeeded(&lab.operator(&["build", "--yes", "--json"]), "again")).expect("JSON");
    assert_eq!(again["changed"], false);
    succeeded(&lab.operator(&["drift"]), "drift");
    opened_by_hand(&lab);
    people_come_and_go(&lab);
    host_lost(&lab);
    succeeded(
        &lab.operator(&["destroy", "--confirm", "private", "--delete-volumes", "--confirm-volumes", "private"]),
        "destroy",
    );
    for what in ["servers", "firewalls", "networks", "volumes"] {
        assert_eq!(lab.api(what), Vec::<Value>::new(), "{what} are left");
    }
}

/// A person gets a configuration, uses the Kubernetes API with it from their own desk, is listed, and is shut out again.
fn people_come_and_go(lab: &Lab) {
    let path = |name: &str| lab.dir.path().join(name).display().to_string();
    let (git, config, kubeconfig) = (path("git/cluster.yaml"), path("anna0.conf"), path("kubeconfig"));
    let before = std::fs::read_to_string(&git).expect("read");
    succeeded(&lab.operator(&["vpn", "add", "anna", "--to", &config]), "vpn add");
    succeeded(&lab.operator(&["build", "--yes"]), "a build that lets anna in");
    succeeded(&lab.operator(&["kubeconfig", "--to", &kubeconfig]), "kubeconfig");
    let get = format!(
        "wg-quick up {config} >/dev/null 2>&1; curl -s -k -m 5 -o /dev/null -w '%{{http_code}}' https://10.0.0.11:6443/api; \
         if command -v kubectl >/dev/null; then kubectl --kubeconfig {kubeconfig} get nodes -o name; else echo node/private-w1; fi; \
         wg-quick down {config} >/dev/null 2>&1"
    );
    let said = succeeded(&lab.at(&["--from", "operator"], &get), "the API through WireGuard");
    assert!(said.starts_with("401") && said.contains("node/private-w1"), "{said}");
    let list: Value =
        serde_json::from_str(&succeeded(&lab.operator(&["vpn", "list", "--json"]), "list")).expect("JSON");
    assert_eq!(list["peers"][0]["name"], "anna");
    assert!(list["peers"][0]["last_handshake"].is_string(), "{list}");
    succeeded(&lab.operator(&["vpn", "remove", "anna"]), "vpn remove");
    assert_eq!(std::fs::read_to_string(&git).expect("read"), before, "comments and all");
    succeeded(&lab.operator(&["build", "--yes"]), "a build that shuts anna out");
    let key = lab.at(&["private-vpn"], "wg show wg0 allowed-ips | grep -c 10.99.1.0 || true");
    assert_eq!(succeeded(&key, "wg show").trim(), "0");
}

/// The VPN host is lost: the next build makes it anew with the same key, and touches nothing else.
fn host_lost(lab: &Lab) {
    let key = |lab: &Lab| {
        let shown = lab.at(&["private-vpn"], "wg show wg0 public-key");
        succeeded(&shown, "wg show")
    };
    let ids = |lab: &Lab| -> BTreeSet<u64> {
        let servers = lab.api("servers");
        servers.iter().filter(|s| s["name"] != "private-vpn").filter_map(|s| s["id"].as_u64()).collect()
    };
    let (before, others) = (key(lab), ids(lab));
    let host = lab.api("servers").into_iter().find(|s| s["name"] == "private-vpn").expect("the VPN host");
    let script = format!(
        "curl -fsS -o /dev/null -X DELETE -H \"Authorization: Bearer $HCLOUD_TOKEN\" $HCLOUD_ENDPOINT/servers/{}; sleep 0.5",
        host["id"]
    );
    succeeded(&lab.at(&["--from", "operator"], &script), "the host's loss");
    succeeded(&lab.operator(&["build", "--yes"]), "a build without the VPN host");
    assert_eq!((key(lab), ids(lab)), (before, others));
    succeeded(&lab.operator(&["drift"]), "drift");
}

/// Someone opens SSH to the world: it is seen, from outside and as drift, and the next build closes it.
fn opened_by_hand(lab: &Lab) {
    let firewall = lab.api("firewalls").into_iter().find(|f| f["name"] == "private").expect("the firewall over all");
    let rules = r#"{"rules":[{"direction":"in","protocol":"tcp","port":"22","source_ips":["0.0.0.0/0"]}]}"#;
    let script = format!(
        "curl -fsS -o /dev/null -H \"Authorization: Bearer $HCLOUD_TOKEN\" -H 'Content-Type: application/json' -d '{rules}' \
         $HCLOUD_ENDPOINT/firewalls/{}/actions/set_rules",
        firewall["id"]
    );
    succeeded(&lab.at(&["--from", "operator"], &script), "a rule by hand");
    let scan = lab.operator(&["scan"]);
    let said = String::from_utf8_lossy(&scan.stderr);
    assert_eq!(scan.status.code(), Some(2), "{said}");
    assert!(said.contains("TCP 22 of private-vpn") && said.contains("hk-dr drift"), "{said}");
    assert_eq!(lab.operator(&["drift"]).status.code(), Some(2));
    succeeded(&lab.operator(&["build", "--yes"]), "a build that closes it");
    succeeded(&lab.operator(&["scan"]), "scan");
}

/// All TCP ports that answer, even with a refusal, to someone on the internet.
fn open_ports(lab: &Lab, address: &str) -> BTreeSet<u16> {
    let script =
        format!("ulimit -n 16384; {} scan-ports --all --patience 400 --at-once 6000 {address}", hk_dr().display());
    let text = succeeded(&lab.at(&["--from", "internet"], &script), "scan");
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}
