//! Running a command at a place in the lab: the operator's desk, the internet, or inside a machine.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::error::{Attempt, LabError};
use crate::options::{LabInfo, labs_dir};
use crate::registry::{self, Resident};
use crate::{control, fabric, netns};

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `operator` or `internet`: the host's files, the lab's network.
    Outside(String),
    /// A server's name or id: its files, processes and network.
    Server(String),
}

/// Runs a command with this process's standard streams and terminal and returns its exit status (128 + the signal's
/// number if one ended it). Call it before any thread exists.
///
/// # Errors
/// There is no such lab or place, the machine is off, or namespaces can't be entered.
pub fn exec(lab: &str, place: &Place, command: &[String]) -> Result<i32, LabError> {
    let info = control::find(lab)?;
    let (program, arguments) = command.split_first().ok_or_else(|| LabError::new("no command is given"))?;
    let mut run = Command::new(program);
    run.args(arguments);
    match place {
        Place::Outside(name) => go_outside(&info, name, &mut run)?,
        Place::Server(name) => go_inside(&info, name, &mut run)?,
    }
    // A process namespace takes only children in.
    // SAFETY: no thread exists, so the child may go on like any process.
    match unsafe { fork() }.attempt(|| "fork".into())? {
        ForkResult::Child => {
            // Ends with its caller: nothing of it may outlive the command line unnoticed.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let error = run.exec();
            let _ = writeln!(std::io::stderr(), "error: cannot run {program}: {error}");
            std::process::exit(127);
        }
        ForkResult::Parent { child } => wait(child),
    }
}

fn wait(child: Pid) -> Result<i32, LabError> {
    // Interrupts from the terminal reach the child too: it decides. Others are passed on.
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block().attempt(|| "block signals".into())?;
    loop {
        match waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).attempt(|| "wait for the command".into())? {
            WaitStatus::Exited(_, status) => return Ok(status),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
            _ => {}
        }
        let signal = set.wait().attempt(|| "wait for a signal".into())?;
        if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
            let _ = kill(child, signal);
        }
    }
}

fn go_outside(info: &LabInfo, place: &str, run: &mut Command) -> Result<(), LabError> {
    if !fabric::PLACES.iter().any(|(name, ..)| *name == place) {
        return Err(LabError::new(format!("{place:?} is no place of the lab")).hint("use operator or internet"));
    }
    let here = std::env::current_dir().ok();
    let lab = Spaces::of(&format!("/proc/{}", info.init_pid), &["ipc", "uts", "pid", "mnt"])?;
    lab.enter()?;
    let space = File::open(netns::path(place)).attempt(|| format!("open the place {place}"))?;
    setns(space, CloneFlags::CLONE_NEWNET).attempt(|| format!("go to the place {place}"))?;
    if let Some(here) = here {
        std::env::set_current_dir(&here).attempt(|| format!("go back to {}", here.display()))?;
    }
    run.envs(info.environment(true));
    // A proxy of the host's is not to be had from here.
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        run.env_remove(name);
    }
    Ok(())
}

fn go_inside(info: &LabInfo, name: &str, run: &mut Command) -> Result<(), LabError> {
    let residents = registry::read(&labs_dir().join(&info.name).join("machines"));
    let resident = find(&residents, name).ok_or_else(|| {
        let names: Vec<&str> = residents.iter().map(|r| r.name.as_str()).collect();
        LabError::new(format!("there is no server {name:?} in the lab")).hint(if names.is_empty() {
            "it has none".into()
        } else {
            format!("it has: {}", names.join(", "))
        })
    })?;
    let leader = resident.leader.ok_or_else(|| LabError::new(format!("the server {name} is off")))?;
    // Files before namespaces: paths change their meaning on the way.
    let entrances: Vec<File> = resident
        .entrances
        .iter()
        .map(|path| File::options().write(true).open(path).attempt(|| format!("open {}", path.display())))
        .collect::<Result<_, _>>()?;
    Spaces::of(&format!("/proc/{}", info.init_pid), &["mnt"])?.enter()?;
    let process = format!("/proc/{leader}");
    let root = File::open(format!("{process}/root")).attempt(|| "open the server's root".into())?;
    let guest = Spaces::of(&process, &["cgroup", "ipc", "uts", "net", "pid", "mnt"])?;
    for mut entrance in entrances {
        entrance.write_all(b"0").attempt(|| "join the server's control groups".into())?;
    }
    guest.enter()?;
    nix::unistd::fchdir(&root).attempt(|| "go to the server's root".into())?;
    nix::unistd::chroot(".").attempt(|| "go to the server's root".into())?;
    std::env::set_current_dir("/root").or_else(|_| std::env::set_current_dir("/")).attempt(|| "go home".into())?;
    let terminal = std::env::var_os("TERM");
    run.env_clear()
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LANG", "C.UTF-8")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(terminal.map(|value| ("TERM", value)));
    Ok(())
}

fn find<'a>(residents: &'a [Resident], name: &str) -> Option<&'a Resident> {
    residents.iter().find(|r| r.name == name).or_else(|| residents.iter().find(|r| r.id.to_string() == name))
}

/// Namespaces of a process, opened, to be entered in this order.
struct Spaces(Vec<(File, CloneFlags)>);

impl Spaces {
    fn of(process: &str, kinds: &[&str]) -> Result<Self, LabError> {
        let open = |kind: &&str| {
            let flag = match *kind {
                "cgroup" => CloneFlags::CLONE_NEWCGROUP,
                "ipc" => CloneFlags::CLONE_NEWIPC,
                "uts" => CloneFlags::CLONE_NEWUTS,
                "net" => CloneFlags::CLONE_NEWNET,
                "pid" => CloneFlags::CLONE_NEWPID,
                _ => CloneFlags::CLONE_NEWNS,
            };
            let path = PathBuf::from(process).join("ns").join(kind);
            File::open(&path).attempt(|| format!("open {}", path.display())).map(|file| (file, flag))
        };
        kinds.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    fn enter(self) -> Result<(), LabError> {
        self.0.into_iter().try_for_each(|(file, flag)| setns(file, flag).attempt(|| "enter a namespace".into()))
    }
}
