use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Timing;
use crate::config::{Approval, Missed};

/// Format of the document.
pub const BOOK_FORMAT: u32 = 1;
/// Ended runs that are kept in it.
const PAST_MAX: usize = 60;

/// What was decided of one schedule of one cluster: `<cluster>/schedule/<policy>.<schedule>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    pub format: u32,
    /// Everything scheduled up to here was decided.
    pub decided: Timestamp,
    /// Counts claims and take-overs: a process that claimed before and lost it since is told apart by it.
    pub epoch: u64,
    /// Runs that were begun, for rotations.
    pub turns: u64,
    pub current: Option<Current>,
    /// A run that waits for a person.
    pub asked: Option<Asked>,
    pub last_success: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: u32,
    /// Failures ever.
    pub failures_total: u64,
    /// Ended and skipped runs, newest last.
    pub past: Vec<Past>,
}

/// A run that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// The scheduled instant.
    pub at: Timestamp,
    pub began: Timestamp,
    /// Its number, from 0, for rotations.
    pub turn: u64,
    /// Machine and process.
    pub holder: String,
    /// From 1; more: the process before died.
    pub attempt: u32,
    /// Grows while the holder lives.
    pub beats: u64,
    /// The run in `runs/`, where there is one.
    pub run: Option<String>,
}

/// A run that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub at: Timestamp,
    pub approved_by: Option<String>,
}

/// A run that ended, or was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub at: Timestamp,
    pub outcome: Outcome,
    pub began: Option<Timestamp>,
    pub ended: Timestamp,
    pub holder: String,
    pub run: Option<String>,
    /// What came out, or why it was skipped.
    pub note: String,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    Skipped,
}

/// What is to be written, and what follows when that has succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub book: Book,
    /// A run to begin.
    pub begin: Option<Current>,
    /// A run that waits for a person since now.
    pub ask: Option<Timestamp>,
    /// Runs that were skipped.
    pub skipped: Vec<Past>,
}

impl Book {
    /// A book that knows of nothing: what was scheduled before is not caught up.
    pub fn new(now: Timestamp) -> Self {
        Self {
            format: BOOK_FORMAT,
            decided: now,
            epoch: 0,
            turns: 0,
            current: None,
            asked: None,
            last_success: None,
            failures: 0,
            failures_total: 0,
            past: Vec::new(),
        }
    }

    /// What is to be decided now. None: nothing is due, or a run is under way.
    pub fn decide(&self, timing: &Timing, now: Timestamp, holder: &str) -> Option<Decision> {
        if self.current.is_some() {
            return None;
        }
        let due = timing.due_between(self.decided, now);
        if due.is_empty() || timing.held(now).is_some() {
            return None;
        }
        let mut decision = Decision { book: self.clone(), begin: None, ask: None, skipped: Vec::new() };
        let (last, late) = (due[due.len() - 1], |at: Timestamp| timing.is_late(at, now));
        for at in due {
            let why_not = match timing.missed {
                Missed::Each => None,
                Missed::Once => (at != last).then(|| format!("missed; the run of {last} stands for it")),
                // Several that are not late yet are no reason to do the same several times in a row.
                Missed::Skip if at != last => Some(format!("missed; the run of {last} is newer")),
                Missed::Skip => late(at).then(|| "its time had passed".to_owned()),
            };
            let unapproved = timing.approval == Approval::Required && late(at);
            match why_not.or_else(|| unapproved.then(|| "nobody approved it in time".to_owned())) {
                Some(note) => decision.skip(at, now, holder, note),
                None => {
                    decision.wish(at, timing, now, holder);
                    break;
                }
            }
        }
        (decision.book != *self).then_some(decision)
    }

    /// Takes over a run whose holder is dead.
    pub fn take_over(&self, holder: &str) -> Option<(Self, Current)> {
        let mut book = self.clone();
        let current = book.current.as_mut()?;
        current.holder = holder.to_owned();
        current.attempt = current.attempt.saturating_add(1);
        current.beats = current.beats.wrapping_add(1);
        let current = current.clone();
        book.epoch += 1;
        Some((book, current))
    }

    /// Says that the holder lives, and which run it is.
    pub fn beat(&self, run: Option<&str>) -> Self {
        let mut book = self.clone();
        if let Some(current) = &mut book.current {
            current.beats = current.beats.wrapping_add(1);
            if let Some(run) = run {
                current.run = Some(run.to_owned());
            }
        }
        book
    }

    /// Ends the run that is under way.
    pub fn conclude(&self, outcome: Outcome, note: &str, now: Timestamp) -> Self {
        let mut book = self.clone();
        let Some(current) = book.current.take() else { return book };
        match outcome {
            Outcome::Succeeded => {
                book.last_success = Some(now);
                book.failures = 0;
            }
            Outcome::Failed => {
                book.failures = book.failures.saturating_add(1);
                book.failures_total += 1;
            }
            Outcome::Skipped => {}
        }
        book.remember(Past {
            at: current.at,
            outcome,
            began: Some(current.began),
            ended: now,
            holder: current.holder,
            run: current.run,
            note: note.to_owned(),
        });
        book
    }

    /// Notes that a person agrees to the run that waits. None: no run waits.
    pub fn approve(&self, who: &str) -> Option<Self> {
        let mut book = self.clone();
        book.asked.as_mut()?.approved_by = Some(who.to_owned());
        Some(book)
    }

    fn remember(&mut self, past: Past) {
        self.past.push(past);
        let surplus = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..surplus);
    }
}

impl Decision {
    fn skip(&mut self, at: Timestamp, now: Timestamp, holder: &str, note: String) {
        let (holder, outcome) = (holder.to_owned(), Outcome::Skipped);
        let past = Past { at, outcome, began: None, ended: now, holder, run: None, note };
        self.book.decided = at;
        self.book.asked = None;
        self.book.remember(past.clone());
        self.skipped.push(past);
    }

    /// Begins it, or asks for it.
    fn wish(&mut self, at: Timestamp, timing: &Timing, now: Timestamp, holder: &str) {
        let book = &mut self.book;
        if timing.approval == Approval::Required {
            match book.asked.as_ref().filter(|asked| asked.at == at) {
                Some(Asked { approved_by: Some(_), .. }) => {}
                Some(_) => return,
                None => {
                    book.asked = Some(Asked { at, approved_by: None });
                    self.ask = Some(at);
                    return;
                }
            }
        }
        let current =
            Current { at, began: now, turn: book.turns, holder: holder.to_owned(), attempt: 1, beats: 0, run: None };
        book.decided = at;
        book.asked = None;
        book.epoch += 1;
        book.turns += 1;
        book.current = Some(current.clone());
        self.begin = Some(current);
    }
}
