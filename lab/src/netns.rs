//! Named network namespaces below /run/netns, and work done inside one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::Command;

use crate::error::{Attempt, LabError};

/// Where a named namespace is mounted.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Makes an empty namespace. Its loopback device is down.
pub(crate) fn create(name: &str) -> Result<(), LabError> {
    let path = path(name);
    let made = on_a_thread(move || {
        File::options().write(true).create_new(true).open(&path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    made.attempt(|| format!("make the network namespace {name}"))
}

/// Removes a namespace; its interfaces go with it. A missing one is fine.
pub(crate) fn remove(name: &str) -> Result<(), LabError> {
    let path = path(name);
    if !path.exists() {
        return Ok(());
    }
    umount2(&path, MntFlags::MNT_DETACH).attempt(|| format!("unmount the network namespace {name}"))?;
    fs::remove_file(&path).attempt(|| format!("remove the network namespace {name}"))
}

/// Runs `work` in the namespace and returns what it returns. Sockets it makes stay in that namespace.
pub(crate) fn within<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, LabError> {
    let path = path(name);
    on_a_thread(move || {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        work()
    })
    .attempt(|| format!("work in the network namespace {name}"))
}

/// Lets a command run in the namespace.
pub(crate) fn enter_on_spawn(command: &mut Command, name: &str) -> Result<(), LabError> {
    let space = File::open(path(name)).attempt(|| format!("open the network namespace {name}"))?;
    let join = move || {
        // SAFETY: a plain system call on a descriptor that `space` keeps open as long as the command exists.
        if unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only setns(2) is called and nothing is allocated.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// A namespace belongs to a thread: a fresh one ends with its work, so that no other work lands in the wrong place.
fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    std::thread::Builder::new()
        .spawn(work)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}
