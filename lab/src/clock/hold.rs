//! Processes that stand still for a moment (ptrace(2)), so that their code can be changed. Only the thread that holds one can
//! do anything with it; when that thread ends, the kernel lets everything go on that it still held.

use std::fs;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// Between two looks whether a thread stands still already.
const PAUSE: Duration = Duration::from_micros(100);

/// A process of which all threads stand still. They go on when this ends.
pub(super) struct Held {
    pid: Pid,
    threads: Vec<Thread>,
}

struct Thread {
    id: Pid,
    /// What it is to be told when it goes on.
    signal: i32,
}

impl Held {
    /// None: it is gone, somebody else holds it, or a thread of it does not react before the deadline. In the last case threads
    /// may go on to be held until the calling thread ends: call this on one that is about to.
    pub fn take(pid: i32, deadline: Duration) -> Option<Self> {
        let end = Instant::now() + deadline;
        let mut held = Self { pid: Pid::from_raw(pid), threads: Vec::new() };
        // A thread that is not held yet may start another one.
        loop {
            let new: Vec<Pid> = threads(pid).filter(|id| held.threads.iter().all(|t| t.id != *id)).collect();
            if new.is_empty() {
                return (!held.threads.is_empty()).then_some(held);
            }
            let mut gone = 0;
            let seized = held.threads.len();
            for id in &new {
                match ptrace::seize(*id, ptrace::Options::empty()) {
                    Ok(()) => held.threads.push(Thread { id: *id, signal: 0 }),
                    Err(Errno::ESRCH) => gone += 1,
                    Err(_) => return None,
                }
                // Gone meanwhile: the wait below notices.
                let _ = ptrace::interrupt(*id);
            }
            let mut place = seized;
            while let Some(thread) = held.threads.get_mut(place) {
                match stop_of(thread.id, end)? {
                    Stop::Still(signal) => {
                        thread.signal = signal;
                        place += 1;
                    }
                    Stop::Ended => {
                        held.threads.remove(place);
                    }
                }
            }
            if gone == new.len() {
                return (!held.threads.is_empty()).then_some(held);
            }
        }
    }

    /// A process that stands still already because it has just begun a program.
    pub fn begun(pid: Pid) -> Self {
        Self { pid, threads: vec![Thread { id: pid, signal: 0 }] }
    }

    /// Whether a thread is about to execute something in these places.
    pub fn is_in(&self, places: impl Iterator<Item = Range<u64>> + Clone) -> nix::Result<bool> {
        for thread in &self.threads {
            let at = ptrace::getregs(thread.id)?.rip;
            if places.clone().any(|place| place.contains(&at)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes whole words, to code as well.
    pub fn write(&self, at: u64, bytes: &[u8]) -> nix::Result<()> {
        for (address, word) in (at..).step_by(8).zip(bytes.chunks_exact(8)) {
            let word = <[u8; 8]>::try_from(word).map_err(|_| Errno::EINVAL)?;
            ptrace::write(self.pid, address as ptrace::AddressType, i64::from_le_bytes(word))?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for thread in &self.threads {
            let_go(thread.id, thread.signal);
        }
    }
}

/// What a thread came to.
pub(super) enum Stop {
    /// With the signal that it is to get when it goes on.
    Still(i32),
    Ended,
}

/// Waits until a thread that was told so stands still; None at the deadline.
pub(super) fn stop_of(id: Pid, end: Instant) -> Option<Stop> {
    loop {
        match status(id) {
            Some(Status::Event(_)) => return Some(Stop::Still(0)),
            Some(Status::Signal(signal)) => return Some(Stop::Still(signal)),
            Some(Status::Ended) => return Some(Stop::Ended),
            None if Instant::now() > end => return None,
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// What the kernel tells of a thread that somebody holds.
pub(super) enum Status {
    /// A `PTRACE_EVENT_*`; 128 (`PTRACE_EVENT_STOP`) when it was told to stand still.
    Event(i32),
    /// It is about to get a signal.
    Signal(i32),
    Ended,
}

/// None: nothing new.
pub(super) fn status(id: Pid) -> Option<Status> {
    let mut status = 0;
    // SAFETY: the kernel writes one number during the call.
    let result = unsafe { libc::waitpid(id.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
    match result {
        0 => None,
        // Ended and forgotten, or not held at all.
        -1 => Some(Status::Ended),
        _ if libc::WIFSTOPPED(status) && status >> 16 != 0 => Some(Status::Event(status >> 16)),
        _ if libc::WIFSTOPPED(status) => Some(Status::Signal(libc::WSTOPSIG(status))),
        _ => Some(Status::Ended),
    }
}

/// Lets a thread that stands still go on without anybody who holds it.
pub(super) fn let_go(id: Pid, signal: i32) {
    if detach(id, signal).is_err() {
        // It was killed meanwhile, and its end is told to us first of all.
        let _ = status(id);
    }
}

/// Lets a thread that stands still go on, still held.
pub(super) fn go_on(id: Pid, signal: i32) {
    // Killed meanwhile is as good.
    let _ = resume(libc::PTRACE_CONT, id, signal);
}

fn detach(id: Pid, signal: i32) -> io::Result<()> {
    resume(libc::PTRACE_DETACH, id, signal)
}

/// nix knows no real-time signals, and systemd is told things by them.
fn resume(request: libc::c_uint, id: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory of this process is read or written.
    match unsafe { libc::ptrace(request, id.as_raw(), 0, libc::c_long::from(signal)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn threads(pid: i32) -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok().map(Pid::from_raw))
}
