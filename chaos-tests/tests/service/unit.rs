//! The shipped unit under a real systemd, with all of its hardening, on a machine of the lab.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Lab, hk_dr, succeeded, until};

pub(super) const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/hk-dr.service");
const MACHINE: &[&str] = &["demo-w1"];

impl Lab {
    /// Puts a file onto the machine.
    pub(super) fn install(&self, from: &str, to: &str, mode: &str) {
        let script = format!("mkdir -p $(dirname {to}) && cat > {to} && chmod {mode} {to}");
        let file = File::open(from).unwrap_or_else(|e| panic!("{from}: {e}"));
        let output = self.at(MACHINE).args(["sh", "-c", &script]).stdin(Stdio::from(file)).output();
        succeeded(&output.expect("hk-dr starts"), to);
    }

    pub(super) fn on_machine(&self, script: &str) -> String {
        succeeded(&self.shell(MACHINE, script), script)
    }
}

pub(super) fn runs_under_systemd(lab: &Lab) {
    let archive = lab.path("git.tar");
    let packed = Command::new("tar").args(["-C", &lab.path("git"), "-cf", &archive, "."]).output();
    succeeded(&packed.expect("tar starts"), "tar");
    std::fs::write(lab.path("token"), "sesame").expect("written");
    lab.install(&hk_dr().display().to_string(), "/usr/local/bin/hk-dr", "755");
    lab.install(UNIT, "/etc/systemd/system/hk-dr.service", "644");
    lab.install(&archive, "/tmp/git.tar", "600");
    lab.install(&lab.path("identity"), "/etc/credstore/identity", "600");
    lab.install(&lab.path("token"), "/etc/credstore/serve-token", "600");
    lab.on_machine("mkdir -p /etc/hk-dr/cluster && tar -C /etc/hk-dr/cluster --no-same-owner -xf /tmp/git.tar && chmod -R a+rX /etc/hk-dr");
    // A watchdog that can be waited for, and the lease of a test.
    lab.on_machine(
        "mkdir -p /etc/systemd/system/hk-dr.service.d && printf '[Service]\\nWatchdogSec=6\\n' \
         > /etc/systemd/system/hk-dr.service.d/short.conf && systemctl daemon-reload",
    );
    // Type=notify: this returns when the service has said READY=1, or fails.
    lab.on_machine("systemctl start hk-dr");
    let shown = |what: &str| lab.on_machine(&format!("systemctl show hk-dr --value -p {what}")).trim().to_owned();
    until("ready under systemd", Duration::from_secs(60), || {
        lab.shell(MACHINE, "curl -fsS http://127.0.0.1:8440/readyz").status.success().then_some(())
    });
    let owner = lab.on_machine("stat -c %u /proc/$(systemctl show hk-dr --value -p MainPID)");
    assert_ne!(owner.trim(), "0", "it runs as root");
    assert_eq!(lab.on_machine("stat -c %a /var/lib/private/hk-dr").trim(), "700");
    assert!(!shown("WatchdogTimestamp").is_empty(), "it never said that it lives");
    // One that lives is left alone for longer than the watchdog waits …
    lab.on_machine("sleep 9");
    assert_eq!(shown("NRestarts"), "0");
    // … and one that hangs is started anew.
    lab.on_machine("kill -STOP $(systemctl show hk-dr --value -p MainPID)");
    until("a restart by the watchdog", Duration::from_secs(60), || {
        (shown("NRestarts") == "1" && shown("ActiveState") == "active").then_some(())
    });
    assert!(lab.on_machine("journalctl -u hk-dr --no-pager").contains("Watchdog timeout"));
    lab.on_machine("curl -fsS http://127.0.0.1:8440/healthz && systemctl stop hk-dr");
    assert_eq!(shown("Result"), "success", "SIGTERM is a clean end");
    println!("{}", lab.on_machine("systemd-analyze security hk-dr --no-pager | tail -n 1"));
}
