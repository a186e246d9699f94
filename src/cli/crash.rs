//! A named fault point after each journal event, for the crash battery: the process dies there as by kill -9.

use crate::journal::{Event, FileJournal, Journal, JournalError};

/// Number of the event after which the process kills itself.
const VARIABLE: &str = "HK_DR_CRASH_AFTER_EVENT";

/// The journal, or one that dies where the environment says.
pub fn wrap(journal: FileJournal) -> Box<dyn Journal> {
    match std::env::var(VARIABLE).ok().and_then(|n| n.parse().ok()) {
        Some(after) => Box::new(Dying { journal, after }),
        None => Box::new(journal),
    }
}

struct Dying {
    journal: FileJournal,
    after: u64,
}

impl Journal for Dying {
    fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        self.journal.append(event)?;
        if event.seq == self.after {
            // SAFETY: signals this very process; kill takes plain numbers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        Ok(())
    }
}
