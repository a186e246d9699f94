//! One outer namespace a lab, and the two processes that make sure nothing of it survives.
//!
//! The *guardian* stays on the host. It forks *init*, process 1 of the outer namespace, which forks the *emulator* (see
//! `daemon`) and reaps orphans. The death of init ends every process of the lab, and with them mounts, interfaces and
//! loop devices; the guardian then removes control groups, disks and the lab's directory. If the guardian dies, init
//! notices by the end of a pipe and does the same. If both die at once, empty control groups and directories remain,
//! which the next `up`, `down` or `status` sweeps away.
//!
//! Everything here runs before any thread exists.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use crate::cgroup::Cgroups;
use crate::daemon::{self, Inheritance};
use crate::error::{Attempt, LabError};
use crate::options::{Access, LabInfo, Launch, labs_dir, state_file};
use crate::{objectstore, volume};

/// What comes through a tether when the lab is to live without it.
pub(crate) const CUT: u8 = b'!';

/// A killed lab of twenty machines is gone in under a second; a busy host takes longer.
const GONE_DEADLINE: Duration = Duration::from_secs(30);

/// Becomes the guardian of a new lab. Progress goes to standard output, one line of JSON each, until the lab is ready.
///
/// # Errors
/// Another lab has the name, or namespaces can't be made. Then nothing is left behind.
pub fn guard(launch: Launch) -> Result<(), LabError> {
    // Whoever started this may wait for the end of a pipe that leaked into it: let go of all but the standard streams.
    // SAFETY: a plain system call; no descriptor above 2 belongs to this program yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    let dir = labs_dir().join(&launch.name);
    let lock = claim(&dir)?;
    let keep = launch.durable;
    sweep(&launch.name, &dir, &launch.disks, keep)?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&launch.disks);
    made.attempt(|| format!("make {}", launch.disks.display()))?;
    let result = guard_claimed(&launch, &dir);
    // One that never came up the first time has nothing to keep.
    let keep = keep && state_file(&launch.disks).exists();
    let swept = sweep(&launch.name, &dir, &launch.disks, keep);
    // The lock's file goes last: until then the name is taken.
    let removed = fs::remove_dir_all(&dir).attempt(|| format!("remove {}", dir.display()));
    drop(lock);
    result.and(swept).and(removed)
}

fn guard_claimed(launch: &Launch, dir: &Path) -> Result<(), LabError> {
    let before = if launch.durable { read_access(&launch.disks)? } else { None };
    let listen = |port: u16| {
        // The port of last time may belong to somebody else by now.
        let listener = TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind("127.0.0.1:0"));
        listener.attempt(|| "listen on the host's loopback".into())
    };
    let api = listen(before.as_ref().map_or(0, |b| b.api_port))?;
    let s3 = listen(before.as_ref().map_or(0, |b| b.s3_port))?;
    let mut info = LabInfo {
        name: launch.name.clone(),
        guardian_pid: std::process::id() as i32,
        init_pid: 0,
        disks: launch.disks.clone(),
        api_published: api.local_addr().attempt(|| "look at a listener".into())?,
        s3_published: s3.local_addr().attempt(|| "look at a listener".into())?,
        token: before.as_ref().map_or_else(|| secret(64), |b| b.token.clone()),
        access_key: before.as_ref().map_or_else(|| secret(20), |b| b.access_key.clone()),
        secret_key: before.as_ref().map_or_else(|| secret(40), |b| b.secret_key.clone()),
        region: objectstore::REGION.to_owned(),
        durable: launch.durable,
    };
    if launch.durable {
        let access = Access {
            token: info.token.clone(),
            access_key: info.access_key.clone(),
            secret_key: info.secret_key.clone(),
            api_port: info.api_published.port(),
            s3_port: info.s3_published.port(),
        };
        write_secret(&launch.disks, "access.json", &access)?;
    }
    let signals = watch_signals(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
    let (guardian_lives, guardian_end) = pipe().attempt(|| "make a pipe".into())?;
    // Only children land in the new process namespace: the guardian stays on the host.
    unshare(CloneFlags::CLONE_NEWPID).attempt(|| "make a process namespace".into())?;
    // SAFETY: no thread exists yet, so the child may go on like any process.
    let init = match unsafe { fork() }.attempt(|| "fork the lab's init".into())? {
        ForkResult::Child => {
            drop(guardian_end);
            drop(signals);
            let inheritance = Inheritance { info, launch: launch.clone(), api, s3, registry: PathBuf::new() };
            std::process::exit(init(inheritance, dir, guardian_lives));
        }
        ForkResult::Parent { child } => child,
    };
    drop((api, s3, guardian_lives));
    info.init_pid = init.as_raw();
    let written = write_info(dir, &info);
    // From here on only the lab itself reports: its end closes the pipe to the waiting `lab up`.
    let groups = Cgroups::of(&launch.name)?;
    let watched =
        written.and_then(|()| to_log(dir)).and_then(|()| watch_init(&signals, init, &groups, launch.tethered));
    if watched.is_err() {
        // It has an error of its own to report; the kill's would say less.
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
    }
    drop(guardian_end);
    watched
}

/// Waits until init ends by itself, somebody asks the guardian to end, or the tether's other end is gone.
fn watch_init(signals: &SignalFd, init: Pid, groups: &Cgroups, mut tethered: bool) -> Result<(), LabError> {
    let stdin = std::io::stdin();
    loop {
        let mut watched =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(if tethered { &mut watched } else { &mut watched[..1] }, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).attempt(|| "wait for a signal".into()),
        }
        let mut ordered = false;
        if tethered && watched[1].any().unwrap_or(false) {
            let mut said = [0];
            ordered = !matches!(nix::unistd::read(&stdin, &mut said), Ok(1) if said[0] == CUT);
            tethered = false;
        }
        if watched[0].any().unwrap_or(false) {
            let signal = signals.read_signal().attempt(|| "wait for a signal".into())?;
            ordered |= signal.is_some_and(|s| s.ssi_signo != Signal::SIGCHLD as u32);
        }
        if ordered {
            groups.thaw_all();
            kill(init, Signal::SIGKILL).attempt(|| "end the lab".into())?;
        }
        let how = if ordered { None } else { Some(WaitPidFlag::WNOHANG) };
        match waitpid(init, how).attempt(|| "wait for the lab's end".into())? {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
            _ => {}
        }
    }
}

/// Process 1 of the lab. Returns its exit status.
fn init(mut inheritance: Inheritance, dir: &Path, guardian: OwnedFd) -> i32 {
    let name = inheritance.launch.name.clone();
    let disks = inheritance.launch.disks.clone();
    let durable = inheritance.launch.durable;
    // The path through the descriptor stays valid when a fresh /run covers the real one.
    let anchor = match File::open(labs_dir()) {
        Ok(anchor) => anchor,
        Err(error) => return fail(&format!("cannot open {}: {error}", labs_dir().display())),
    };
    let hidden_dir = PathBuf::from(format!("/proc/self/fd/{}", anchor.as_raw_fd())).join(&name);
    if let Err(error) = enter(&name, dir) {
        return fail(&error.message);
    }
    inheritance.registry = dir.join("machines");
    let signals = match watch_signals(&[Signal::SIGCHLD]) {
        Ok(signals) => signals,
        Err(error) => return fail(&error.message),
    };
    // SAFETY: still no thread.
    let emulator = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            drop((signals, guardian));
            if let Err(error) = SigSet::all().thread_unblock() {
                return fail(&error.to_string());
            }
            return daemon::run(inheritance);
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(error) => return fail(&format!("cannot fork: {error}")),
    };
    drop(inheritance);
    if let Err(error) = to_log(dir) {
        return fail(&error.message);
    }
    if reap(&signals, emulator, &guardian) {
        // The emulator's end is the lab's end: the guardian cleans up.
        return 1;
    }
    // The guardian is gone: its work is ours now. No one else is left to report an error to.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while !matches!(waitpid(None::<Pid>, None), Err(Errno::ECHILD)) {}
    unmount_below(&disks);
    let _ = sweep(&name, &hidden_dir, &disks, durable);
    let _ = fs::remove_dir_all(&hidden_dir);
    0
}

/// Reaps orphans until the emulator ends (true) or the guardian does (false).
fn reap(signals: &SignalFd, emulator: Pid, guardian: &OwnedFd) -> bool {
    loop {
        let mut watched =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(guardian.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
        if watched[1].any().unwrap_or(false) {
            return false;
        }
        // One signal may stand for many children.
        let _ = signals.read_signal();
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(status) if status.pid() == Some(emulator) => return true,
                Ok(_) => {}
            }
        }
    }
}

/// Takes down what is mounted on the lab's disks in this namespace: removing files must not go through a machine's root.
fn unmount_below(disks: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let mut below: Vec<&Path> = paths.filter(|path| path.starts_with(disks)).collect();
    below.reverse();
    for path in below {
        // What can't be unmounted shows as a directory that can't be removed.
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
}

/// Makes and enters the remaining namespaces.
fn enter(name: &str, dir: &Path) -> Result<(), LabError> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .attempt(|| "make the lab's namespaces".into())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).attempt(|| "make mounts private".into())?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), safe, none).attempt(|| "mount /proc".into())?;
    let own = File::open(dir).attempt(|| format!("open {}", dir.display()))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
        .attempt(|| "mount /run".into())?;
    // The lab's own directory stays visible where it is on the host.
    for path in [dir, Path::new("/run/netns"), Path::new("/run/lock"), Path::new("/run/systemd")] {
        fs::create_dir_all(path).attempt(|| format!("make {}", path.display()))?;
    }
    let own = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
    mount(Some(&own), dir, none, MsFlags::MS_BIND, none).attempt(|| format!("mount {}", dir.display()))?;
    fs::write("/proc/sys/kernel/hostname", format!("lab-{name}")).attempt(|| "name the lab's host".into())
}

/// Takes a name: makes its directory and locks it. The lock lives as long as guardian or init do.
fn claim(dir: &Path) -> Result<Flock<File>, LabError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).attempt(|| format!("make {}", dir.display()))?;
    match lock_of(dir)? {
        Some(lock) => Ok(lock),
        None => Err(taken(&dir.file_name().unwrap_or_default().to_string_lossy())),
    }
}

pub(crate) fn taken(name: &str) -> LabError {
    LabError::new(format!("there is a lab {name:?} already; it was left untouched"))
        .hint(format!("choose another --name, or end it: hk-dr lab down --name {name}"))
}

/// The lock of a lab's directory; none while the lab lives.
pub(crate) fn lock_of(dir: &Path) -> Result<Option<Flock<File>>, LabError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.attempt(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).attempt(|| format!("lock {}", path.display())),
    }
}

/// Removes what a lab without processes has left: control groups, registry, and disks unless they are to be kept. Waits for
/// what the kernel is about to take down. Keeps the lab's directory with the lock and the log.
pub(crate) fn sweep(name: &str, dir: &Path, disks: &Path, keep: bool) -> Result<(), LabError> {
    Cgroups::of(name)?.remove_all(GONE_DEADLINE)?;
    let end = Instant::now() + GONE_DEADLINE;
    loop {
        let left = volume::loops_below(disks);
        if left.is_empty() {
            break;
        }
        if Instant::now() > end {
            return Err(LabError::new(format!("loop devices are still in use: {left:?}"))
                .hint("somebody holds a volume of the lab open; close it, then run `hk-dr lab status`"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let disks = (!keep).then(|| disks.to_owned());
    for path in disks.into_iter().chain([dir.join("machines")]) {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).attempt(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write_info(dir: &Path, info: &LabInfo) -> Result<(), LabError> {
    write_secret(dir, "lab.json", info)
}

/// Writes a file with mode 0600, as a whole.
fn write_secret(dir: &Path, name: &str, what: &impl serde::Serialize) -> Result<(), LabError> {
    let text = serde_json::to_vec_pretty(what).map_err(|error| LabError::new(error.to_string()))?;
    let (draft, path) = (dir.join(format!(".{name}")), dir.join(name));
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft);
    file.and_then(|mut file| file.write_all(&text)).attempt(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, &path).attempt(|| format!("write {}", path.display()))
}

fn read_access(disks: &Path) -> Result<Option<Access>, LabError> {
    let path = disks.join("access.json");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| LabError::new(format!("{} is damaged: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).attempt(|| format!("read {}", path.display())),
    }
}

/// Sends this process's standard output and error to the lab's log.
pub(crate) fn to_log(dir: &Path) -> Result<(), LabError> {
    let path = dir.join("lab.log");
    let log = File::options().create(true).append(true).mode(0o600).open(&path);
    let log = log.attempt(|| format!("open {}", path.display()))?;
    nix::unistd::dup2_stdout(&log).attempt(|| "redirect the output".into())?;
    nix::unistd::dup2_stderr(&log).attempt(|| "redirect the errors".into())
}

fn watch_signals(signals: &[Signal]) -> Result<SignalFd, LabError> {
    let mut set = SigSet::empty();
    signals.iter().for_each(|signal| set.add(*signal));
    set.thread_block().attempt(|| "block signals".into())?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).attempt(|| "watch signals".into())
}

/// Tells the waiting `lab up` why it failed.
fn fail(message: &str) -> i32 {
    daemon::report(&daemon::Report::Failed { message: message.to_owned(), hint: None });
    1
}

/// Letters and digits from the kernel's generator; 5.9 bits each.
fn secret(length: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::new();
    while text.len() < length {
        let byte = rand::random::<u8>() as usize;
        // 248 is the largest multiple of 62 in a byte: no letter is likelier than another.
        if byte < 248 {
            text.push(char::from(ALPHABET[byte % ALPHABET.len()]));
        }
    }
    text
}
