//! A machine whose wall clock is off.
//!
//! The kernel has one wall clock, and programs read it by code that the kernel maps into each of them (the vDSO). That code is
//! changed in each process of the machine, so that it adds an offset, whatever the program is written in. Two threads for each such
//! machine keep it so. One changes all processes when it begins, and looks ten times a second for whatever has come since. The
//! other is asked by the kernel before a program is opened (fanotify); the answer waits until the first one holds that process
//! (ptrace), so that it stops behind the `exec` and is changed before its first instruction. Nothing is left in the machine when
//! the fault is lifted.
//!
//! They are two because holding a process can wait for its `exec`, which can wait for the answer: that one comes in any case.
//!
//! What the kernel does by its clock itself stays true: times of files, waits until a time of day, system calls made past
//! the C library and Go's runtime.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};
use nix::sys::ptrace;
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::cgroup::Group;
use crate::error::{Attempt, LabError};

mod code;
mod hold;
mod vdso;

use hold::{Held, Status};
use vdso::{Offset, Vdso};

/// Between two looks at all processes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks whether there is anything to do, when nothing happens.
const IDLE: Duration = Duration::from_millis(20);
/// Between two looks at those that are about to begin a program.
const PAUSE: Duration = Duration::from_millis(1);
/// Until all processes have another clock; one that reacts later gets it later.
const SETTLE_DEADLINE: Duration = Duration::from_secs(2);
/// A program that did not begin by then will not: the call that was to begin it failed.
const BEGIN_DEADLINE: Duration = Duration::from_secs(1);
const HOLD_DEADLINE: Duration = Duration::from_millis(100);
/// Until a process is held that is about to begin a program; longer, and it begins unheld.
const ANSWER_DEADLINE: Duration = Duration::from_millis(20);

/// Keeps the clock of one machine off during one boot. When this is dropped nothing new is changed.
pub(crate) struct Keeper {
    messages: Sender<Message>,
    over: Arc<AtomicBool>,
}

enum Message {
    /// Be off by this much from now on, and tell whether all processes are.
    Offset(Option<Offset>, oneshot::Sender<bool>),
    /// A process is about to begin a program, and waits.
    Begins(Pid, SyncSender<()>),
}

impl Keeper {
    /// `root`: the mounted file system from which the machine's programs begin.
    ///
    /// # Errors
    /// The kernel does not let clocks be bent, or nobody be told when programs begin.
    pub(crate) fn start(group: Group, root: &Path) -> Result<Self, LabError> {
        let vdso = Vdso::of_this_kernel()?;
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let programs = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
            .attempt(|| "watch a machine's programs (fanotify with permission events)".into())?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        programs
            .mark(mark, MaskFlags::FAN_OPEN_EXEC_PERM, AT_FDCWD, Some(root))
            .attempt(|| format!("watch the programs below {}", root.display()))?;
        let (messages, received) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let keeper = Self { messages: messages.clone(), over: Arc::clone(&over) };
        let watch = Watch { vdso, group, over: Arc::clone(&over), offset: None, beginning: HashMap::new() };
        thread(move || watch.run(&received))?;
        thread(move || answer(&programs, &messages, &over))?;
        Ok(keeper)
    }

    /// Sets the clock apart by so many milliseconds; by none: lets it be true. Returns whether all processes have it by now; what
    /// does not react gets it later.
    pub(crate) async fn set(&self, milliseconds: i64) -> Result<bool, LabError> {
        let ended = || LabError::new("the watch over a machine's clock has ended");
        let (done, waiting) = oneshot::channel();
        self.messages.send(Message::Offset(Offset::new(milliseconds), done)).map_err(|_| ended())?;
        waiting.await.map_err(|_| ended())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn thread(work: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
    let spawned = std::thread::Builder::new().name("clock".into()).spawn(work);
    spawned.map(|_| ()).attempt(|| "start a thread".into())
}

/// Lets programs begin when their processes are held, or a moment later.
fn answer(programs: &Fanotify, messages: &Sender<Message>, over: &AtomicBool) {
    let idle = PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::ZERO);
    while !over.load(Ordering::SeqCst) {
        // Whatever ends it, what there is to answer is looked for.
        let _ = poll(&mut [PollFd::new(programs.as_fd(), PollFlags::POLLIN)], idle);
        // An error says that there is nothing, or not now.
        for event in programs.read_events().unwrap_or_default() {
            let (held, waiting) = sync_channel(1);
            // 0: a process that is not to be seen from here.
            let asks = event.pid() > 0 && !is_ours(event.pid());
            if asks && messages.send(Message::Begins(Pid::from_raw(event.pid()), held)).is_ok() {
                // Not held in time: it gets its clock at the next look.
                let _ = waiting.recv_timeout(ANSWER_DEADLINE);
            }
            if let Some(file) = event.fd() {
                // Killed meanwhile is as good.
                let _ = programs.write_response(FanotifyResponse::new(file, Response::FAN_ALLOW));
            }
        }
    }
}

/// What holds and changes processes.
struct Watch {
    vdso: Vdso,
    group: Group,
    over: Arc<AtomicBool>,
    offset: Option<Offset>,
    /// Processes that are about to begin a program, and since when.
    beginning: HashMap<Pid, Instant>,
}

impl Watch {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut look_at = Instant::now();
        let mut settling: Option<(oneshot::Sender<bool>, Instant)> = None;
        while !self.over.load(Ordering::SeqCst) {
            let busy = settling.is_some() || !self.beginning.is_empty();
            match messages.recv_timeout(if busy { PAUSE } else { IDLE }) {
                Ok(Message::Offset(offset, done)) => {
                    self.offset = offset;
                    settling = Some((done, Instant::now() + SETTLE_DEADLINE));
                }
                Ok(Message::Begins(pid, held)) => {
                    self.hold(pid);
                    // It may have begun unheld by now.
                    let _ = held.send(());
                }
                // Nothing yet; or nobody is left, and so it is over.
                Err(_) => {}
            }
            self.change_who_began();
            if settling.is_none() && Instant::now() < look_at {
                continue;
            }
            let settled = self.look_at_all();
            look_at = Instant::now() + LOOK_EVERY;
            settling = settling.and_then(|(done, end)| match settled {
                None if Instant::now() < end => Some((done, end)),
                settled => {
                    // Whoever waited may be gone.
                    let _ = done.send(settled == Some(true));
                    None
                }
            });
        }
    }

    /// Changes all processes that are not as they should be. Whether there was none; Some(false): it stands still as a whole, reacts
    /// to nothing and looks at no clock.
    fn look_at_all(&self) -> Option<bool> {
        if self.group.is_frozen() {
            return Some(false);
        }
        let wrong = |pid: &i32| {
            let differs = self.vdso.look(*pid).is_some_and(|(_, state)| !state.is(self.offset));
            differs && !is_ours(*pid) && !self.beginning.contains_key(&Pid::from_raw(*pid))
        };
        let found: Vec<i32> = self.group.processes().into_iter().filter(wrong).collect();
        for pid in &found {
            let (vdso, pid, offset) = (&self.vdso, *pid, self.offset);
            // Its end lets everything go on that did not react in time.
            std::thread::scope(|scope| scope.spawn(move || bend(vdso, pid, offset)).join().is_ok());
        }
        (found.is_empty() && self.beginning.is_empty()).then_some(true)
    }

    /// Holds who is about to begin a program. Who is held by somebody else is changed at the next look.
    fn hold(&mut self, pid: Pid) {
        let since = Instant::now();
        if self.offset.is_some()
            && !self.beginning.contains_key(&pid)
            && ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXEC).is_ok()
        {
            if since.elapsed() >= ANSWER_DEADLINE {
                // Older kernels (before 6.8) let nobody hold a process from here to the end of `exec`, and that was not waited
                // for. It is let go of when it stands still, and changed at the next look.
                let _ = ptrace::interrupt(pid);
            }
            self.beginning.insert(pid, since);
        }
    }

    fn change_who_began(&mut self) {
        let (vdso, offset) = (&self.vdso, self.offset);
        self.beginning.retain(|pid, since| match hold::status(*pid) {
            Some(Status::Event(libc::PTRACE_EVENT_EXEC)) => {
                let held = Held::begun(*pid);
                if let Some((base, state)) = vdso.look(pid.as_raw())
                    && !state.is(offset)
                {
                    // What fails here is seen at the next look.
                    let _ = vdso.bend(&held, base, offset);
                }
                false
            }
            // It was told to stand still: by us, as it begins nothing, or by somebody in the machine.
            Some(Status::Event(_)) => {
                hold::let_go(*pid, 0);
                false
            }
            Some(Status::Signal(signal)) => {
                hold::go_on(*pid, signal);
                true
            }
            Some(Status::Ended) => false,
            None if since.elapsed() > BEGIN_DEADLINE => {
                // Let go of when it stands still.
                let _ = ptrace::interrupt(*pid);
                *since = Instant::now();
                true
            }
            None => true,
        });
    }
}

fn bend(vdso: &Vdso, pid: i32, offset: Option<Offset>) {
    let Some(held) = Held::take(pid, HOLD_DEADLINE) else { return };
    if let Some((base, _)) = vdso.look(pid) {
        // What fails here is tried again at the next look.
        let _ = vdso.bend(&held, base, offset);
    }
}

/// Whether this process started it, and waits for it: that must not see it stopped.
fn is_ours(pid: i32) -> bool {
    let parent = || -> io::Result<Option<u32>> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()))
    };
    parent().is_ok_and(|parent| parent == Some(std::process::id()))
}
