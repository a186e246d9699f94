//! `--listen vpn:PORT` on a machine with a WireGuard interface: a network namespace with a userspace one of that address.
//! Needs root.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{hk_dr, succeeded, until};

const PRIVATE: &str = include_str!("../../../examples/private/cluster.yaml");
const PAGE: &str = "http://10.99.0.5:8440";

/// A network namespace, and what runs in it until it goes.
struct Place {
    name: String,
    running: Vec<Child>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

impl Place {
    fn ip(&self, args: &[&str]) {
        let output = Command::new("ip").args(["-n", &self.name]).args(args).output().expect("ip starts");
        succeeded(&output, &args.join(" "));
    }

    fn here(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// A userspace WireGuard interface, which goes with its process.
    fn tunnel(&self, log: &Path) -> Child {
        let said = std::fs::File::create(log).expect("a log");
        let also = said.try_clone().expect("a second handle");
        self.here("wireguard-go").args(["-f", "wghk0"]).stdout(said).stderr(also).spawn().expect("wireguard-go starts")
    }

    fn serve(&self, dir: &Path) -> Command {
        let mut command = self.here(&hk_dr().display().to_string());
        let of = |name: &str| dir.join(name).display().to_string();
        command.args(["serve", "--listen", "vpn:8440", "-C", &of("git"), "--state", &of("state")]);
        command.args(["--identity", &of("identity")]).envs([("HK_DR_SECRET_SERVE_TOKEN", "sesame")]);
        with_credentials(&mut command);
        command
    }

    /// What the page answers, by its status; 000: nothing listens there.
    fn status(&self, url: &str, header: &str) -> String {
        let args = ["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-H", header, url];
        let output = self.here("curl").args(args).output().expect("curl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn with_credentials(command: &mut Command) {
    command.envs([("HCLOUD_TOKEN", "x"), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_page_is_served_at_this_machines_own_address_in_the_vpn_and_nowhere_else() {
    let dir = tempfile::Builder::new().prefix("hk-dr-listen-").tempdir().expect("a scratch directory");
    let git = dir.path().join("git");
    std::fs::create_dir_all(git.join("policies")).expect("a directory");
    std::fs::write(git.join("cluster.yaml"), PRIVATE).expect("written");
    let policy = Command::new(hk_dr()).args(["policy", "show", "backups"]).output().expect("hk-dr starts");
    std::fs::write(git.join("policies/backups.yaml"), succeeded(&policy, "policy show")).expect("written");
    let mut keys = Command::new(hk_dr());
    keys.args(["keys", "init", "-C"]).arg(&git);
    keys.arg("--new-identity").arg(dir.path().join("identity"));
    keys.arg("--new-identity").arg(dir.path().join("second-identity"));
    with_credentials(&mut keys);
    succeeded(&keys.output().expect("hk-dr starts"), "keys init");

    let mut place = Place { name: format!("hk-dr-vpn-{}", std::process::id()), running: Vec::new() };
    let add = Command::new("ip").args(["netns", "add", &place.name]).output().expect("ip starts");
    succeeded(&add, "ip netns add");
    place.ip(&["link", "set", "lo", "up"]);
    let refused = place.serve(dir.path()).output().expect("hk-dr starts");
    assert!(
        !refused.status.success() && said(&refused).contains("this machine has no way to 10.0.0.2"),
        "{}",
        said(&refused)
    );

    // A way there, but not through the VPN.
    place.ip(&["link", "add", "lan0", "type", "veth", "peer", "name", "lan1"]);
    place.ip(&["link", "set", "lan1", "up"]);
    place.ip(&["addr", "add", "192.0.2.5/24", "dev", "lan0"]);
    place.ip(&["link", "set", "lan0", "up"]);
    place.ip(&["route", "add", "10.0.0.0/16", "dev", "lan0"]);
    let refused = place.serve(dir.path()).output().expect("hk-dr starts");
    assert!(
        !refused.status.success() && said(&refused).contains("it would go to 10.0.0.2 from 192.0.2.5"),
        "{}",
        said(&refused)
    );
    place.ip(&["route", "del", "10.0.0.0/16", "dev", "lan0"]);

    let log = dir.path().join("wireguard.log");
    let interface = place.tunnel(&log);
    place.running.push(interface);
    until("the tunnel's interface", Duration::from_secs(30), || {
        let shown = place.here("ip").args(["link", "show", "wghk0"]).output().expect("ip starts");
        // Seen once to have no interface all the while, without a word: what it says is printed now, and it is started again.
        if let Some(ended) = place.running[0].try_wait().expect("its state") {
            println!("wireguard-go ended with {ended}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            place.running[0] = place.tunnel(&log);
        }
        shown.status.success().then_some(())
    });
    place.ip(&["addr", "add", "10.99.0.5/22", "dev", "wghk0"]);
    place.ip(&["link", "set", "wghk0", "up"]);
    place.ip(&["route", "add", "10.0.0.0/16", "dev", "wghk0"]);
    let serving = place.serve(dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    place.running.push(serving.expect("hk-dr starts"));
    until("the page", Duration::from_secs(60), || {
        (place.status(&format!("{PAGE}/healthz"), "Accept: */*") == "200").then_some(())
    });
    assert_eq!(
        place.status(&format!("{PAGE}/"), "Accept: */*"),
        "401",
        "others can reach it: nobody reads without a token"
    );
    assert_eq!(place.status(&format!("{PAGE}/"), "Authorization: Bearer sesame"), "200");
    for elsewhere in ["http://127.0.0.1:8440/", "http://192.0.2.5:8440/"] {
        assert_eq!(place.status(elsewhere, "Authorization: Bearer sesame"), "000", "{elsewhere}");
    }
}
