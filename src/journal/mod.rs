//! The journal of a run: what was intended and what was done, in order. A pure function rejects illegal transitions; an
//! event is on disk before the effect it announces begins.

mod event;
mod mirror;
mod run;
mod store;

pub use event::{Body, Event, JOURNAL_FORMAT};
pub use mirror::{Mirror, Mirrored, MirroredJournal, mirrored_runs, read_mirrored};
pub use run::{IllegalTransition, RunState, RunStatus, StepState};
pub use store::{FileJournal, Journal, JournalError, MemoryJournal};
