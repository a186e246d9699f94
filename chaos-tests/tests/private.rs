//! A cluster of which the world sees nothing but WireGuard, on booted machines. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Output, Stdio};

use chaos_tests::tethered::{hk_dr, lab_up};
use hk_lab::control::Tether;
use serde_json::Value;

struct Lab {
    name: String,
    dir: tempfile::TempDir,
    _tether: Tether,
}

impl Lab {
    fn up() -> Self {
        let dir = tempfile::Builder::new().prefix("hk-dr-private-").tempdir().expect("a scratch directory");
        let name = format!("private-{}", std::process::id());
        Self { _tether: lab_up(&name), name, dir }
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
        self.desk(args).output().expect("hk-dr starts")
    }

    /// The same, not waited for.
    fn background(&self, args: &[&str]) -> Child {
        self.desk(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("hk-dr starts")
    }

    fn desk(&self, args: &[&str]) -> Command {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(hk_dr());
        command.args(["lab", "exec", "--name", &self.name, "--from", "operator", "--"]).arg(hk_dr());
        command.arg("-C").arg(path("git")).arg("--state").arg(path("state")).arg("--identity").arg(path("identity"));
        command.args(args);
        command
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

/// The example with one master: what is looked at here does not depend on how many there are.
fn small() -> String {
    let example = include_str!("../../examples/private/cluster.yaml");
    let kept = |line: &&str| !["name: m2", "name: m3"].iter().any(|left_out| line.contains(left_out));
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
    let public: BTreeMap<&str, &str> =
        servers.iter().filter_map(|s| Some((s["name"].as_str()?, s["public_net"]["ipv4"]["ip"].as_str()?))).collect();
    assert_eq!(servers.len(), 4);
    assert_eq!(public.keys().collect::<Vec<_>>(), [&"private-vpn", &"private-w1", &"private-w2"]);
    let applied = |s: &Value| s["public_net"]["firewalls"].as_array().map_or(0, Vec::len);
    assert!(servers.iter().all(|s| applied(s) >= 1), "everything is behind a firewall: {servers:?}");
    users_arrive(&lab);
    let worker = format!("443 {}", public["private-w1"]);
    assert_eq!(open_ports(&lab, &[public["private-vpn"], public["private-w1"]]), BTreeSet::from([worker]));

    // hk-dr goes through WireGuard without any in its place; so does an interactive login, with the pinned host key.
    assert_eq!(succeeded(&lab.operator(&["ssh", "m1", "--", "hostname"]), "ssh").trim(), "private-m1");
    assert_eq!(
        succeeded(&lab.operator(&["ssh", "vpn", "--", "wg", "show", "wg0", "listen-port"]), "ssh").trim(),
        "51820"
    );
    // Servers without a public address reach the world through the VPN host.
    succeeded(
        &lab.at(&["private-m1"], "curl -fsS -o /dev/null --max-time 5 http://192.0.2.20:7070/ || [ $? = 22 ]"),
        "the way out",
    );
    let before = invocations(&lab);
    let again: Value =
        serde_json::from_str(&succeeded(&lab.operator(&["build", "--yes", "--json"]), "again")).expect("JSON");
    assert_eq!((&again["changed"], &again["cloud"]["writes"]), (&false.into(), &0.into()));
    assert_eq!(invocations(&lab), before, "a second build restarted something");
    succeeded(&lab.operator(&["drift"]), "drift");
    opened_by_hand(&lab);
    people_come_and_go(&lab);
    holder_dies(&lab);
    host_lost(&lab);
    succeeded(
        &lab.operator(&["destroy", "--confirm", "private", "--delete-volumes", "--confirm-volumes", "private"]),
        "destroy",
    );
    for what in ["servers", "firewalls", "networks", "volumes", "load_balancers", "floating_ips"] {
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
    // Both at the master and at the load balancer, whose address the certificate names as well.
    let text = std::fs::read_to_string(&kubeconfig).expect("read");
    assert!(text.contains("current-context: private-api") && text.contains("server: https://10.0.0.5:6443"), "{text}");
    let kubectl = std::env::var("HK_DR_CACHE").unwrap_or_default() + "/artifacts/kubectl-1.35.4";
    let get = format!(
        "wg-quick up {config} >/dev/null 2>&1; \
         for at in 10.0.0.11 10.0.0.5; do curl -s -k -m 5 -o /dev/null -w '%{{http_code}} ' https://$at:6443/api; done; \
         openssl s_client -connect 10.0.0.5:6443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName | grep -c 10.0.0.5; \
         if [ -f {kubectl} ]; then cp {kubectl} {kubeconfig}.bin && chmod 755 {kubeconfig}.bin && \
         {kubeconfig}.bin --kubeconfig {kubeconfig} get nodes -o name; else echo node/private-w1; fi; \
         wg-quick down {config} >/dev/null 2>&1"
    );
    let said = succeeded(&lab.at(&["--from", "operator"], &get), "the API through WireGuard");
    assert!(said.starts_with("401 401 1") && said.contains("node/private-w1"), "{said}");
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

/// Pods at 443 of the workers are reached by the world, through the load balancer and at the floating IP.
fn users_arrive(lab: &Lab) {
    let said = succeeded(&lab.operator(&["demo-probe", "front"]), "pods behind the front");
    let arrived: Value = serde_json::from_str(&said).expect("JSON");
    let addresses: Vec<&str> =
        arrived["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(addresses.len(), 2, "a load balancer and a floating IP: {arrived}");
    for address in addresses {
        let script = format!("curl -fsS -m 5 http://{address}:443/");
        let said = succeeded(&lab.at(&["--from", "internet"], &script), "a user's request");
        assert!(said.starts_with("ok from "), "{said}");
    }
    // The API's load balancer is nowhere but in the private network.
    let balancers = lab.api("load_balancers");
    let api = balancers.iter().find(|b| b["name"] == "private-api").expect("the API's load balancer");
    assert_eq!((&api["public_net"]["enabled"], &api["private_net"][0]["ip"]), (&false.into(), &"10.0.0.5".into()));
}

/// The worker that has the floating IP loses its power: users are served by another one, and it stays there.
fn holder_dies(lab: &Lab) {
    let floating = || lab.api("floating_ips").remove(0);
    let (address, holder) = (floating()["ip"].as_str().expect("an address").to_owned(), floating()["server"].clone());
    let name = lab.api("servers").into_iter().find(|s| s["id"] == holder).expect("its holder")["name"].clone();
    let mut watcher = lab.background(&["front", "watch"]);
    let act = |what: &str| {
        let script = format!(
            "curl -fsS -o /dev/null -X POST -H \"Authorization: Bearer $HCLOUD_TOKEN\" -H 'Content-Type: application/json' \
             -d '{{}}' $HCLOUD_ENDPOINT/servers/{holder}/actions/{what}"
        );
        succeeded(&lab.at(&["--from", "operator"], &script), what);
    };
    act("poweroff");
    // Silence first, then an answer: whoever answers has another holder's address.
    let script = format!(
        "lost=; end=$(($(date +%s) + 60)); while [ $(date +%s) -lt $end ]; do \
         if curl -fs -o /dev/null -m 0.5 http://{address}:443/; then [ -z \"$lost\" ] || exit 0; else lost=1; fi; sleep 0.1; done; exit 1"
    );
    succeeded(&lab.at(&["--from", "internet"], &script), "users are served again");
    assert_ne!(floating()["server"], holder);
    act("poweron");
    succeeded(&lab.operator(&["build", "--yes"]), "a build with the worker back");
    let _ = watcher.kill();
    let _ = watcher.wait();
    assert_ne!(floating()["server"], holder, "it stays where it is well");
    // The address is configured on every worker, also after a boot.
    let script = format!("ip -4 addr show dev lo | grep -c 'inet {address}/32'");
    let name = name.as_str().expect("a name");
    assert_eq!(succeeded(&lab.at(&[name], &script), "the address inside").trim(), "1");
    succeeded(&lab.operator(&["drift"]), "drift");
}

/// Names what runs: a unit that was restarted has another.
fn invocations(lab: &Lab) -> Vec<String> {
    let units = "etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy containerd hk-dr-front \
                 wg-quick@wg0 hk-dr-nat";
    let script = format!("systemctl show -p Id,InvocationID {units}");
    ["private-m1", "private-w1", "private-w2", "private-vpn"]
        .map(|server| succeeded(&lab.at(&[server], &script), "systemctl show"))
        .to_vec()
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

/// All TCP ports that answer, even with a refusal, to someone on the internet: port and address.
fn open_ports(lab: &Lab, addresses: &[&str]) -> BTreeSet<String> {
    let (program, addresses) = (hk_dr().display().to_string(), addresses.join(" "));
    let script = format!("ulimit -n 16384; {program} scan-ports --all --patience 400 --at-once 6000 {addresses}");
    let text = succeeded(&lab.at(&["--from", "internet"], &script), "scan");
    let answer = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    text.lines().map(answer).filter(|answer| !answer.is_empty()).collect()
}
