use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Event, IllegalTransition};

/// Why a journal can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("journal {path}, line {line}: {reason}")]
    Damaged { path: PathBuf, line: usize, reason: String },
    #[error("run {path} is being executed by another process")]
    Busy { path: PathBuf },
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The process would have died here: only the crash battery's journal answers this.
    #[error("stopped after journal event {0}")]
    Stopped(u64),
}

/// Where events go. `append` returns when the event is durable.
pub trait Journal: Send {
    fn append(&mut self, event: &Event) -> Result<(), JournalError>;
}

/// An append-only file of JSON lines, synced after each, locked against a second writer.
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    file: File,
}

impl FileJournal {
    /// Opens or creates the journal at `path` (mode 0600) and returns it with the events it holds. A last line that was cut
    /// off by a crash is removed: its effect had not begun.
    pub fn open(path: &Path) -> Result<(Self, Vec<Event>), JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(JournalError::Busy { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(e)) => return Err(io(e)),
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.read_to_end(&mut text).map_err(io)?;
        let (events, whole) = parse(path, &text)?;
        if whole < text.len() {
            file.set_len(whole as u64).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        // The file's name must survive a power cut as well.
        if let Some(parent) = path.parent() {
            File::open(parent).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Ok((Self { path: path.to_owned(), file }, events))
    }

    /// Reads the events of a journal without locking it.
    pub fn read(path: &Path) -> Result<Vec<Event>, JournalError> {
        let text = std::fs::read(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
        Ok(parse(path, &text)?.0)
    }
}

/// Events of all whole lines, and where the last whole line ends.
fn parse(path: &Path, text: &[u8]) -> Result<(Vec<Event>, usize), JournalError> {
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut events = Vec::new();
    for (index, line) in text[..whole].split(|b| *b == b'\n').filter(|l| !l.is_empty()).enumerate() {
        events.push(Event::parse(line).map_err(|reason| JournalError::Damaged {
            path: path.to_owned(),
            line: index + 1,
            reason,
        })?);
    }
    Ok((events, whole))
}

impl Journal for FileJournal {
    fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(event).map_err(|e| io(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io)?;
        self.file.sync_data().map_err(io)
    }
}

/// A journal in memory that can stop the run after a given event: how the crash battery dies at every point.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal {
    events: Arc<Mutex<Vec<Event>>>,
    stop_after: Option<u64>,
}

impl MemoryJournal {
    /// A journal that becomes unusable once the event with this number is stored.
    pub fn stopping_after(&self, seq: u64) -> Self {
        Self { events: Arc::clone(&self.events), stop_after: Some(seq) }
    }

    /// The same events, without a stop.
    pub fn continued(&self) -> Self {
        Self { events: Arc::clone(&self.events), stop_after: None }
    }

    /// What was stored.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Journal for MemoryJournal {
    fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        let mut events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.stop_after.is_some_and(|stop| event.seq > stop) {
            return Err(JournalError::Stopped(event.seq));
        }
        events.push(event.clone());
        Ok(())
    }
}
