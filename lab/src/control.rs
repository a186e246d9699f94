//! From the host: starting, ending and looking at labs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::daemon::Report;
use crate::error::{Attempt, LabError};
use crate::options::{LabInfo, LabOptions, Launch, check_name, labs_dir, state_file};
use crate::{golden, outer, registry};

/// Tools the lab calls, and the Debian packages they are in.
const TOOLS: [(&str, &str); 8] = [
    ("systemd-nspawn", "systemd-container"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("haproxy", "haproxy"),
    ("mkfs.ext4", "e2fsprogs"),
    ("apt-get", "apt"),
];
/// The lab's S3 server among the pinned binaries.
const VERSITYGW: &str = "artifacts/versitygw-1.8.0";
/// The guardian itself waits up to 30 s for each kind of leftover.
const DOWN_DEADLINE: Duration = Duration::from_secs(90);

/// One lab, as `lab status` shows it.
#[derive(Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub guardian_pid: i32,
    /// The cloud API on the host's loopback answers.
    pub api_answers: bool,
    pub api: String,
    pub s3: String,
    pub machines: Vec<Machine>,
}

/// One machine, as `lab status` shows it.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub id: u64,
    pub name: String,
    pub running: bool,
}

/// Starts a lab of which nothing is left when it ends, and returns when its API and S3 answer. `daemon` is a command that,
/// given one more argument, calls `launched` with it in a process of its own.
///
/// # Errors
/// Not root, missing tools, a name that is taken, or a lab that does not come up; then nothing is left of it.
pub fn up(options: &LabOptions, daemon: Command, progress: &mut dyn FnMut(&str)) -> Result<LabInfo, LabError> {
    start(options, daemon, progress, Life::Ephemeral).map(|(info, _)| info)
}

/// As `up`, and the lab ends with the tether: when it is dropped, or the process that holds it ends, however it ends.
///
/// # Errors
/// As `up`.
pub fn up_tethered(
    options: &LabOptions,
    daemon: Command,
    progress: &mut dyn FnMut(&str),
) -> Result<(LabInfo, Tether), LabError> {
    let (info, stdin) = start(options, daemon, progress, Life::Tethered)?;
    let end = stdin.ok_or_else(|| LabError::new("the guardian has no input"))?;
    Ok((info, Tether { end }))
}

/// What a lab's life hangs on. Nobody else has this end of the pipe: it closes on exec.
#[derive(Debug)]
pub struct Tether {
    end: ChildStdin,
}

impl Tether {
    /// Lets the lab live on.
    ///
    /// # Errors
    /// The lab has ended.
    pub fn cut(mut self) -> Result<(), LabError> {
        self.end.write_all(&[outer::CUT]).and_then(|()| self.end.flush()).attempt(|| "let the lab live on".into())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Ephemeral,
    Tethered,
    Durable,
}

/// As `up`, but state and disks stay when the lab ends, however it ends; the next call with the same name and state
/// directory brings the same servers, disks, addresses and tokens back. `destroy` removes them.
///
/// # Errors
/// As `up`; or what was kept can't be read.
pub fn up_durable(options: &LabOptions, daemon: Command, progress: &mut dyn FnMut(&str)) -> Result<LabInfo, LabError> {
    start(options, daemon, progress, Life::Durable).map(|(info, _)| info)
}

fn start(
    options: &LabOptions,
    mut daemon: Command,
    progress: &mut dyn FnMut(&str),
    life: Life,
) -> Result<(LabInfo, Option<ChildStdin>), LabError> {
    let (durable, tethered) = (life == Life::Durable, life == Life::Tethered);
    options.check()?;
    require_root()?;
    require_tools()?;
    sweep_dead()?;
    let dir = labs_dir().join(&options.name);
    // Before the minutes that an image may take; the guardian decides for good.
    if dir.exists() && outer::lock_of(&dir)?.is_none() {
        return Err(outer::taken(&options.name));
    }
    let versitygw = options.cache_dir.join(VERSITYGW);
    if !versitygw.exists() {
        return Err(LabError::new(format!("the lab's S3 server is missing: {}", versitygw.display()))
            .hint("`make demo` or `hk-dr artifacts fetch` obtain it; HK_DR_CACHE names another cache"));
    }
    fs::create_dir_all(&options.state_dir).attempt(|| format!("make {}", options.state_dir.display()))?;
    let absolute = |path: &Path| fs::canonicalize(path).attempt(|| format!("find {}", path.display()));
    let disks = LabOptions { state_dir: absolute(&options.state_dir)?, ..options.clone() }.disks();
    if !durable && state_file(&disks).exists() {
        return Err(LabError::new(format!("{} holds a lab that was kept; it was left untouched", disks.display()))
            .hint("choose another name or state directory, or remove it: hk-dr lab down --delete"));
    }
    let launch = Launch {
        name: options.name.clone(),
        golden: absolute(&golden::ensure(&options.cache_dir, progress)?)?,
        disks,
        versitygw: absolute(&versitygw)?,
        durable,
        tethered,
    };
    let argument = serde_json::to_string(&launch).map_err(|error| LabError::new(error.to_string()))?;
    let mut child = daemon
        .arg(argument)
        .stdin(if tethered { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .attempt(|| "start the lab's guardian".into())?;
    let reports = child.stdout.take().ok_or_else(|| LabError::new("the guardian has no output"))?;
    let outcome = follow(BufReader::new(reports), progress);
    if outcome.is_err() {
        // It cleans up by itself; only then may the error be shown, so that nothing is left when the user reads it.
        let _ = child.wait();
    }
    outcome?;
    Ok((find(&options.name)?, child.stdin.take()))
}

fn follow(reports: impl BufRead, progress: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    for line in reports.lines() {
        let line = line.attempt(|| "listen to the lab".into())?;
        match serde_json::from_str(&line) {
            Ok(Report::Progress(text)) => progress(&text),
            Ok(Report::Ready) => return Ok(()),
            Ok(Report::Failed { message, hint }) => return Err(LabError { message, hint }),
            Err(_) => progress(&line),
        }
    }
    Err(LabError::new("the lab ended while it came up; nothing of it was left behind"))
}

/// What the process that `up` started does: becomes the guardian. Call it before any thread exists.
#[must_use]
pub fn launched(argument: &str) -> i32 {
    let outcome = serde_json::from_str::<Launch>(argument)
        .map_err(|error| LabError::new(format!("this command is for `lab up` only: {error}")))
        .and_then(|launch| {
            check_name(&launch.name)?;
            require_root()?;
            // Ends of terminals and sessions are not the lab's end.
            nix::unistd::setsid().attempt(|| "leave the session".into())?;
            outer::guard(launch)
        });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            crate::daemon::report(&Report::Failed { message: error.message, hint: error.hint });
            1
        }
    }
}

/// Ends a lab and returns when nothing of it is left but what a durable lab keeps. Also removes what a killed lab left.
///
/// # Errors
/// There is no such lab, or something of it is still there after 90 s.
pub fn down(name: &str) -> Result<(), LabError> {
    check_name(name)?;
    require_root()?;
    let dir = labs_dir().join(name);
    if !dir.exists() {
        return Err(not_there(name));
    }
    let end = Instant::now() + DOWN_DEADLINE;
    let mut asked = false;
    while dir.exists() {
        if sweep_one(name, &dir)? {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(LabError::new(format!("the lab {name} is still there after 90 s"))
                .hint(format!("{} says why", dir.join("lab.log").display())));
        }
        if !asked && let Some(info) = LabInfo::read(&dir) {
            // While the lock is held one of the two lives. A guardian that is gone leaves the work to init.
            if is_guardian(info.guardian_pid) {
                let _ = kill(Pid::from_raw(info.guardian_pid), Signal::SIGTERM);
            }
            asked = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Ends a lab, if it runs, and removes what it keeps.
///
/// # Errors
/// There is no such lab, running or kept; or something of it can't be removed.
pub fn destroy(name: &str, state_dir: &Path) -> Result<(), LabError> {
    check_name(name)?;
    require_root()?;
    let running = LabInfo::read(&labs_dir().join(name)).map(|info| info.disks);
    let ended = down(name);
    let kept = LabOptions { name: name.to_owned(), cache_dir: state_dir.into(), state_dir: state_dir.into() }.disks();
    let mut found = ended.is_ok();
    if found && let Some(disks) = running {
        remove_disks(&disks)?;
    }
    // A lab that does not run may be kept all the same. One that runs elsewhere and can't be ended is left alone.
    if !labs_dir().join(name).exists() && (state_file(&kept).exists() || kept.join("access.json").exists()) {
        remove_disks(&kept)?;
        found = true;
    }
    if found { Ok(()) } else { ended }
}

fn remove_disks(disks: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(disks) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", disks.display()))
        }
        _ => Ok(()),
    }
}

/// The names of labs that are kept in a state directory and do not run.
#[must_use]
pub fn kept(state_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(state_dir.join("labs")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| state_file(&entry.path()).exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| LabInfo::read(&labs_dir().join(name)).is_none())
        .collect();
    names.sort();
    names
}

/// How to use a running lab.
///
/// # Errors
/// There is none of this name.
pub fn find(name: &str) -> Result<LabInfo, LabError> {
    check_name(name)?;
    require_root()?;
    let dir = labs_dir().join(name);
    match LabInfo::read(&dir) {
        Some(info) if outer::lock_of(&dir)?.is_none() => Ok(info),
        _ => Err(not_there(name)),
    }
}

/// All labs of this host; sweeps away what killed ones left.
///
/// # Errors
/// Leftovers can't be removed.
pub fn status() -> Result<Vec<Status>, LabError> {
    require_root()?;
    sweep_dead()?;
    let mut all = Vec::new();
    for name in names() {
        let dir = labs_dir().join(&name);
        let Some(info) = LabInfo::read(&dir) else { continue };
        all.push(Status {
            api_answers: TcpStream::connect_timeout(&info.api_published, Duration::from_secs(2)).is_ok(),
            api: format!("http://{}/v1", info.api_published),
            s3: format!("http://{}", info.s3_published),
            guardian_pid: info.guardian_pid,
            machines: registry::read(&dir.join("machines"))
                .into_iter()
                .map(|r| Machine { id: r.id, name: r.name, running: r.leader.is_some() })
                .collect(),
            name,
        });
    }
    Ok(all)
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(labs_dir()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| check_name(name).is_ok());
    names.sort();
    names
}

fn sweep_dead() -> Result<(), LabError> {
    for name in names() {
        sweep_one(&name, &labs_dir().join(&name))?;
    }
    Ok(())
}

/// Removes a lab that has no process any more; false if it lives.
fn sweep_one(name: &str, dir: &Path) -> Result<bool, LabError> {
    let Some(lock) = (if dir.exists() { outer::lock_of(dir)? } else { return Ok(true) }) else { return Ok(false) };
    // Without a file it never got as far as to have disks.
    let info = LabInfo::read(dir);
    let keep = info.as_ref().is_some_and(|info| info.durable);
    let disks = info.map_or_else(|| dir.join("machines"), |info| info.disks);
    outer::sweep(name, dir, &disks, keep)?;
    fs::remove_dir_all(dir).attempt(|| format!("remove {}", dir.display()))?;
    drop(lock);
    Ok(true)
}

/// Numbers of processes are used again: signal only what looks like ours.
fn is_guardian(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(9).any(|w| w == b"versitygw"))
}

fn not_there(name: &str) -> LabError {
    LabError::new(format!("there is no lab {name:?}")).hint(format!("start it: hk-dr lab up --name {name}"))
}

pub(crate) fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(LabError::new("the lab needs root: it makes namespaces, loop devices and boots machines")
        .hint("run it again with sudo"))
}

fn require_tools() -> Result<(), LabError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<(&str, &str)> = TOOLS
        .into_iter()
        .filter(|(tool, _)| !std::env::split_paths(&path).any(|dir| dir.join(tool).exists()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (tools, packages): (Vec<&str>, Vec<&str>) = missing.into_iter().unzip();
    Err(LabError::new(format!("the lab needs tools that are not installed: {}", tools.join(", ")))
        .hint(format!("apt-get install {}", packages.join(" "))))
}
