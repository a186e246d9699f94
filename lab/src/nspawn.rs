//! One boot of one machine: a systemd-nspawn process and the init below it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::cgroup::Group;
use crate::error::{Attempt, LabError};
use crate::netns;

/// How nspawn tells that the machine wants to boot again.
pub(crate) const EXIT_REBOOT: i32 = 133;
/// From start to init, on a machine that boots twenty at once.
const INIT_DEADLINE: Duration = Duration::from_secs(30);

/// What to boot.
pub(crate) struct Boot<'a> {
    pub id: u64,
    pub hostname: &'a str,
    pub root: &'a Path,
    pub console: &'a Path,
    pub netns: &'a str,
    pub group: &'a Group,
    /// Real file systems for what cannot live on an overlay: (on the host, in the machine).
    pub binds: &'a [(PathBuf, &'static str)],
}

/// Starts the machine and waits for its init. Returns nspawn and init's process id.
pub(crate) async fn boot(boot: &Boot<'_>) -> Result<(Child, i32), LabError> {
    // A fresh file a boot: the console of a machine that reboots for days stays small.
    let console = File::create(boot.console).attempt(|| format!("make {}", boot.console.display()))?;
    let errors = console.try_clone().attempt(|| "duplicate the console".into())?;
    let mut command = Command::new("systemd-nspawn");
    command
        .args(["-q", "--register=no", "--keep-unit", "--boot", "--console=pipe", "--link-journal=no"])
        .args(["--resolv-conf=off", "--timezone=off"])
        // The API does not know which server becomes a worker: any may run containers.
        .args(["--capability=all", "--system-call-filter=@keyring", "--system-call-filter=bpf"])
        .arg(format!("--machine=s{}", boot.id))
        .arg(format!("--hostname={}", boot.hostname))
        .arg(format!("--directory={}", boot.root.display()))
        .arg(format!("--network-namespace-path={}", netns::path(boot.netns).display()));
    for (host, machine) in boot.binds {
        command.arg(format!("--bind={}:{machine}", host.display()));
    }
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(errors)
        .process_group(0)
        .kill_on_drop(true);
    let entrances = boot.group.entrances()?;
    let descriptors: Vec<i32> = entrances.iter().map(AsRawFd::as_raw_fd).collect();
    let join = move || {
        for descriptor in &descriptors {
            // SAFETY: one byte of a constant; the descriptors stay open in `entrances` until after the spawn.
            if unsafe { libc::write(*descriptor, c"0".as_ptr().cast(), 1) } != 1 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only write(2) is called and nothing is allocated.
    unsafe { command.pre_exec(join) };
    let mut child = command.spawn().attempt(|| "start systemd-nspawn".into())?;
    drop(entrances);
    let pid = child.id().ok_or_else(|| LabError::new("systemd-nspawn ended at once"))?;
    let end = Instant::now() + INIT_DEADLINE;
    loop {
        if let Some(leader) = leader(pid) {
            return Ok((child, leader));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(LabError::new(format!("the machine did not start ({status}): {}", tail(boot.console))));
        }
        if Instant::now() > end {
            return Err(LabError::new(format!("the machine has no init after 30 s: {}", tail(boot.console))));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The machine's init, once it is one: process 1 of its own namespace, past nspawn's own preparations.
fn leader(nspawn: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().find_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let inner = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?.split_whitespace().last()?;
        let name = status.lines().find_map(|l| l.strip_prefix("Name:"))?.trim();
        (inner == "1" && name == "systemd").then(|| pid.parse().ok())?
    })
}

fn tail(console: &Path) -> String {
    let text = fs::read(console).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
