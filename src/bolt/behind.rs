//! Writing beside computing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::BoltError;

/// Buffers that wait to be written.
const BUFFERS: usize = 2;

/// A thread that writes while the next pages are filled.
pub(super) struct Behind {
    to_write: SyncSender<(Vec<u8>, u64)>,
    /// None once it was joined.
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Behind {
    /// Begins with an open file.
    pub(super) fn begin(file: File) -> Self {
        let (to_write, buffers) = sync_channel::<(Vec<u8>, u64)>(BUFFERS);
        let write = move || buffers.iter().try_for_each(|(buffer, at)| file.write_all_at(&buffer, at));
        Self { to_write, thread: Some(std::thread::spawn(write)) }
    }

    /// Takes what belongs at an offset, and waits if too much waits to be written.
    pub(super) fn write(&mut self, buffer: Vec<u8>, at: u64) -> Result<(), BoltError> {
        self.to_write.send((buffer, at)).map_err(|_| self.failed())
    }

    /// Waits until all is written.
    pub(super) fn finish(self) -> Result<(), BoltError> {
        let Self { to_write, thread } = self;
        drop(to_write);
        join(thread).map_err(BoltError::Write)
    }

    /// Why it takes no more.
    fn failed(&mut self) -> BoltError {
        let why = join(self.thread.take()).err();
        BoltError::Write(why.unwrap_or_else(|| std::io::Error::other("a write before this one failed")))
    }
}

fn join(thread: Option<JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    let Some(thread) = thread else { return Err(std::io::Error::other("a write before this one failed")) };
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that writes died")))
}
