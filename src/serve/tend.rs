use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::books::{Books, book_key};
use super::notify::{Letter, Notifier};
use super::service::Tended;
use super::work::{Order, Report};
use crate::config::{News, Policy, Schedule};
use crate::plan::schedule::{Book, Current, Outcome, Timing, Turn};
use crate::ports::{PortError, PortResult};

/// How often things are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Whether something is due, by what is known.
    pub tick: Duration,
    /// What others wrote into the books.
    pub read: Duration,
    /// A holder that was silent for so long is dead.
    pub lease: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tick: Duration::from_secs(1), read: Duration::from_secs(20), lease: Duration::from_secs(60) }
    }
}

/// One schedule: its times and its book.
struct Desk {
    policy: Arc<Policy>,
    schedule: Schedule,
    timing: Timing,
    books: Books,
    read_at: Option<Instant>,
}

/// Runs a cluster's schedules until `stop`; then claims nothing more, waits for runs that are under way, and returns.
/// Errors of the bucket are told and outlived.
pub async fn tend(
    tended: Arc<Tended>,
    places: Arc<Semaphore>,
    notifier: Arc<Notifier>,
    holder: String,
    pace: Pace,
    stop: CancellationToken,
) {
    let mut desks: Vec<Option<Desk>> = desks(&tended).into_iter().map(Some).collect();
    let mut at_work: JoinSet<(usize, Desk)> = JoinSet::new();
    let mut whose: HashMap<tokio::task::Id, usize> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(pace.tick) => {}
            Some(ended) = at_work.join_next_with_id() => match ended {
                Ok((id, (index, desk))) => {
                    whose.remove(&id);
                    desks[index] = Some(desk);
                }
                // A defect of ours must not end a schedule for ever: its book says that nobody holds the run any more.
                Err(died) => {
                    tended.say(&format!("a run died by a defect, please report it: {died}"));
                    if let Some(index) = whose.remove(&died.id()) {
                        desks[index] = self::desks(&tended).into_iter().nth(index);
                    }
                }
            },
        }
        let now = tended.clock.now();
        for (index, place) in desks.iter_mut().enumerate() {
            let Some(mut desk) = place.take() else { continue };
            match desk.look(&tended, &places, &notifier, &holder, pace, now).await {
                Ok(Some((current, permit))) => {
                    let (tended, notifier, holder) = (Arc::clone(&tended), Arc::clone(&notifier), holder.clone());
                    tended.keep(desk.books.book(), &desk.policy.name, &desk.schedule.name);
                    let task = at_work.spawn(async move {
                        desk.work(&tended, &notifier, &holder, current, pace).await;
                        drop(permit);
                        (index, desk)
                    });
                    whose.insert(task.id(), index);
                    continue;
                }
                Ok(None) => {}
                Err(error) => tended.bucket_is_away(&error),
            }
            tended.keep(desk.books.book(), &desk.policy.name, &desk.schedule.name);
            *place = Some(desk);
        }
    }
    // Each run ends by itself or is waited for as long as the service's grace allows: the caller has that clock.
    while at_work.join_next().await.is_some() {}
}

fn desks(tended: &Tended) -> Vec<Desk> {
    let of = |policy: &Arc<Policy>| -> Vec<Desk> {
        let all = policy.schedules.iter().filter_map(|schedule| {
            // A policy that was loaded has no schedule without times.
            let timing = Timing::of(&tended.name, policy, schedule).ok()?;
            let key = book_key(&tended.name, &policy.name, &schedule.name);
            Some(Desk {
                policy: Arc::clone(policy),
                schedule: schedule.clone(),
                timing,
                books: Books::new(Arc::clone(&tended.store), key),
                read_at: None,
            })
        });
        all.collect()
    };
    tended.policies.iter().flat_map(of).collect()
}

impl Desk {
    /// Decides what is due, if anything is and there is a place for it.
    async fn look(
        &mut self,
        tended: &Tended,
        places: &Arc<Semaphore>,
        notifier: &Notifier,
        holder: &str,
        pace: Pace,
        now: Timestamp,
    ) -> PortResult<Option<(Current, OwnedSemaphorePermit)>> {
        let stale = self.read_at.is_none_or(|at| at.elapsed() >= pace.read);
        let due = self.books.book().is_some_and(|book| book.decide(&self.timing, now, holder).is_some());
        if !stale && !due {
            return Ok(None);
        }
        self.books.read(now).await?;
        tended.bucket_answers();
        self.read_at = Some(Instant::now());
        // Nothing is claimed that could not begin: another instance may have a place.
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else { return Ok(None) };
        let Some(book) = self.books.book().cloned() else { return Ok(None) };
        if let Some(current) = &book.current {
            let dead = self.books.unchanged() >= pace.lease;
            let Some((book, taken)) = book.take_over(holder).filter(|_| dead) else { return Ok(None) };
            tended.say(&format!(
                "{} died at {}/{} of {}: taking over, attempt {}",
                current.holder, self.policy.name, self.schedule.name, current.at, taken.attempt
            ));
            return Ok(self.books.replace(book).await?.then_some((taken, permit)));
        }
        let Some(decision) = book.decide(&self.timing, now, holder) else { return Ok(None) };
        if !self.books.replace(decision.book).await? {
            return Ok(None);
        }
        for past in &decision.skipped {
            notifier.send(&self.policy, self.letter(tended, News::Skipped, past.at, &past.note, now));
        }
        if let Some(at) = decision.ask {
            let note = format!(
                "it waits for `hk-dr policy approve {} {}`, or the button on the status page",
                self.policy.name, self.schedule.name
            );
            notifier.send(&self.policy, self.letter(tended, News::Approval, at, &note, now));
        }
        Ok(decision.begin.map(|current| (current, permit)))
    }

    /// Carries out a run that was claimed, says that it lives meanwhile, and concludes it.
    async fn work(&mut self, tended: &Tended, notifier: &Notifier, holder: &str, current: Current, pace: Pace) {
        let order = Order {
            policy: self.policy.name.clone(),
            schedule: self.schedule.clone(),
            at: current.at,
            turn: Turn::of(&self.schedule, current.turn),
            attempt: current.attempt,
            began: current.began,
        };
        let before = self.books.book().map_or(0, |book| book.failures);
        let mut doing = tended.work.perform(&order);
        let mut beat = tokio::time::interval(pace.lease / 4);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beat.tick().await;
        let result = loop {
            tokio::select! {
                result = &mut doing => break Some(result),
                _ = beat.tick() => {
                    if !self.beat(tended, holder).await {
                        break None;
                    }
                }
            }
        };
        drop(doing);
        let Some(result) = result else {
            tended.say(&format!("{}: another instance has taken this run over; it is left to that one", order.key()));
            return;
        };
        let (outcome, report) = match result {
            Ok(report) if report.good => (Outcome::Succeeded, report),
            Ok(report) => (Outcome::Failed, report),
            Err(error) => (Outcome::Failed, Report { good: false, run: None, note: told(&error) }),
        };
        tended.say(&format!("{} {outcome:?}: {}", order.key(), report.note));
        if !self.conclude(tended, holder, outcome, &report).await {
            return;
        }
        let news = match outcome {
            Outcome::Succeeded if before > 0 => vec![News::Recovered, News::Succeeded],
            Outcome::Succeeded => vec![News::Succeeded],
            Outcome::Failed | Outcome::Skipped => vec![News::Failed],
        };
        for news in news {
            notifier.send(&self.policy, self.letter(tended, news, order.at, &report.note, tended.clock.now()));
        }
        tended.keep(self.books.book(), &self.policy.name, &self.schedule.name);
    }

    /// False: the run is another's now. A bucket that is away is no reason to stop what was begun.
    async fn beat(&mut self, tended: &Tended, holder: &str) -> bool {
        let Some(book) = self.books.book().map(|book| book.beat(None)) else { return true };
        match self.books.replace(book).await {
            Ok(true) => true,
            Ok(false) => self.is_ours(holder),
            Err(error) => {
                tended.bucket_is_away(&error);
                // What was written is not known: look before the next beat.
                let _ = self.books.read(tended.clock.now()).await;
                self.is_ours(holder)
            }
        }
    }

    fn is_ours(&self, holder: &str) -> bool {
        self.books.book().and_then(|book| book.current.as_ref()).is_none_or(|current| current.holder == holder)
    }

    /// Writes the end into the book, however long the bucket is away. False: it was another's to conclude.
    async fn conclude(&mut self, tended: &Tended, holder: &str, outcome: Outcome, report: &Report) -> bool {
        let mut pause = Duration::from_millis(500);
        // A day: by then another instance has long taken the run over.
        for _ in 0..3000 {
            let now = tended.clock.now();
            let ours = |book: &Book| book.current.as_ref().is_some_and(|current| current.holder == holder);
            match self.books.book().filter(|book| ours(book)).cloned() {
                None => return false,
                Some(book) => {
                    let book = book.beat(report.run.as_deref()).conclude(outcome, &report.note, now);
                    match self.books.replace(book).await {
                        Ok(true) => return true,
                        Ok(false) => continue,
                        Err(error) => tended.bucket_is_away(&error),
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
            let _ = self.books.read(now).await;
        }
        false
    }

    fn letter(&self, tended: &Tended, news: News, at: Timestamp, note: &str, now: Timestamp) -> Letter {
        Letter {
            news,
            cluster: tended.name.clone(),
            policy: self.policy.name.clone(),
            schedule: self.schedule.name.clone(),
            action: self.schedule.action.name().to_owned(),
            scheduled_at: at,
            at: now,
            note: note.to_owned(),
        }
    }
}

/// An error with what to do next.
pub(super) fn told(error: &PortError) -> String {
    match &error.hint {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// Remembers a text, and whether it is new: an outage is told once, not each second.
#[derive(Default)]
pub(super) struct Once(Mutex<Option<String>>);

impl Once {
    pub fn set(&self, text: Option<String>) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *held != text;
        *held = text;
        is_new
    }
}
