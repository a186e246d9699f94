//! Files on a volume, by policies: backed up and read, restored and compared, pruned, and shown.

use std::process::Command;

use serde_json::Value;

use super::unit::UNIT;
use super::{DEMO, Lab, SOON, succeeded, until};

const VOLUMES: &str = "
volumes:
  - {name: shop, server: w1, path: /mnt/shop, before: touch /run/quiesced, after: rm /run/quiesced}
";
const POLICY: &str = "apiVersion: hk-dr/v1
kind: Policy
name: quick
summary: Files of volumes, often.
timeZone: Europe/Berlin
targets: {volumeAgeHours: 1, volumeProvenAgeHours: 1}
volumeRetention: {allHours: 1}
schedules:
  - {name: backup, action: volume.backup, volumes: [shop], verify: true, cron: '* * * * *'}
  - {name: restore, action: volume.verify, level: restore, cron: '* * * * *'}
  - {name: prune, action: volume.prune, cron: '* * * * *'}
";

/// restic under the shipped unit's hardening: what it must do to prove a backup, with files of other owners, which it cannot give them back, and bits that are left out.
fn restic_works_under_the_unit(lab: &Lab) {
    let restic = Command::new("sh").args(["-c", "command -v restic"]).output().expect("sh starts");
    lab.install(succeeded(&restic, "restic is here").trim(), "/usr/local/bin/restic", "755");
    let text = std::fs::read_to_string(UNIT).expect("the unit");
    let dropped = ["ExecStart=", "Type=", "Restart", "LoadCredential", "Watchdog", "Environment="];
    let kept: Vec<&str> = text.lines().filter(|line| !dropped.iter().any(|word| line.starts_with(word))).collect();
    let script = "restic init && restic backup /mnt/others && mkdir -m 0700 out && restic restore --verify -t out latest \
                  && restic prune && test $$(stat -c %%a out/mnt/others/plain) = 755";
    let service = format!(
        "[Service]\nType=oneshot\nWorkingDirectory=/var/lib/hk-dr\nExecStart=/bin/sh -ec '{script}'\n\
         Environment=RESTIC_REPOSITORY=/var/lib/hk-dr/repo RESTIC_PASSWORD=x XDG_CACHE_HOME=/var/cache/hk-dr\n"
    );
    std::fs::write(lab.path("restic.service"), kept.join("\n").replace("[Service]", &service)).expect("written");
    lab.install(&lab.path("restic.service"), "/etc/systemd/system/restic-test.service", "644");
    lab.on_machine(
        "mkdir -p /mnt/others/shared /mnt/others/plain && echo x > /mnt/others/shared/file && chown -R 12:34 /mnt/others/* \
         && chmod 2755 /mnt/others/shared && systemctl daemon-reload",
    );
    lab.on_machine("systemctl start restic-test || { journalctl -u restic-test --no-pager -n 40 >&2; exit 1; }");
}

pub(super) fn by_policies(lab: &Lab) {
    restic_works_under_the_unit(lab);
    let on_worker = |script: &str| lab.on_machine(script);
    on_worker("mkdir -p /mnt/shop && mount -t tmpfs tmpfs /mnt/shop && head -c 2000000 /dev/urandom > /mnt/shop/file");
    std::fs::write(lab.path("git/cluster.yaml"), format!("{DEMO}{VOLUMES}")).expect("written");
    std::fs::write(lab.path("git/policies/quick.yaml"), POLICY.replace("[shop]", "[blog]")).expect("written");
    let refused = lab.hk_dr(&["serve", "--listen", "127.0.0.1:8450"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("declares no volume blog"), "{refused:?}");
    std::fs::write(lab.path("git/policies/quick.yaml"), POLICY).expect("written");

    let instance = lab.serve(&lab.path("state"), 8450);
    let note =
        |schedule: &str| instance.success(schedule, &Value::Null)["note"].as_str().unwrap_or_default().to_owned();
    let backup = note("backup");
    assert!(backup.contains("-shop") && backup.contains("all of it whole"), "{backup}");
    on_worker("test ! -e /run/quiesced");
    let restore = note("restore");
    assert!(restore.contains("1 backups of volumes restored and compared"), "{restore}");
    // The first may have found nothing yet.
    until("a removal that keeps them", SOON, || {
        let past = instance.schedule("prune")?["book"]["past"].as_array()?.clone();
        past.iter().any(|run| run["note"].as_str().is_some_and(|note| note.contains("backups kept"))).then_some(())
    });
    until("a proven backup on the page and in the metrics", SOON, || {
        let (_, metrics) = instance.get("metrics");
        let proven = metrics
            .lines()
            .any(|l| l.starts_with("hk_dr_volume_backup_proven_age_seconds{cluster=\"demo\",volume=\"shop\"}"));
        (proven && instance.get("").1.contains("proven by restore")).then_some(())
    });
    instance.signal("TERM");
    let status = lab.hk_dr(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert!(status["volumes"][0]["proof"].is_string(), "{status}");
    let left = std::fs::read_dir(lab.path("state/scratch")).expect("where it was restored").count();
    assert_eq!(left, 0, "what was restored is gone again");
}
