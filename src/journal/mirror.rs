//! A run's journal in the bucket, beside its plan and the `cluster.yaml` it was planned from: whoever has Git, the bucket
//! and an identity can continue the run from there.
//!
//! The journal on the local disk stays the one that counts: it is written first and synced. The mirror follows in pieces of
//! one or more events, each an object of its own, named by its first event and put on the condition that there is none of
//! that name. So two processes that continue one run from the same event can't both go on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::{Event, Journal, JournalError};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

const FILE_BYTES_MAX: u64 = 16 << 20;
/// Events of one piece.
const PIECE_EVENTS_MAX: usize = 200;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a step may be held up until what was done before it is in the bucket.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

/// Where everything of a run lies in the bucket.
pub fn run_prefix(cluster: &str, run: &str) -> String {
    format!("{cluster}/runs/{run}/")
}

/// A run as the bucket has it.
pub struct Mirrored {
    pub plan: Bytes,
    pub cluster_yaml: Bytes,
    pub events: Vec<Event>,
}

/// Ids of runs that have a plan in the bucket, oldest first.
///
/// # Errors
/// Those of the store.
pub async fn mirrored_runs(store: &dyn ObjectStore, cluster: &str) -> PortResult<Vec<String>> {
    let below = format!("{cluster}/runs/");
    let objects = match store.list(&below).await {
        Err(e) if e.code == ErrorCode::NotFound => Vec::new(),
        other => other?,
    };
    let runs = objects.iter().filter_map(|o| o.key.strip_prefix(&below)?.strip_suffix("/plan.json"));
    let mut runs: Vec<String> = runs.filter(|run| !run.contains('/')).map(str::to_owned).collect();
    runs.sort();
    Ok(runs)
}

/// Reads a run from the bucket.
///
/// # Errors
/// `NotFound` if the bucket does not have it, `Corrupt` if a piece is damaged or missing.
pub async fn read_mirrored(store: &dyn ObjectStore, cluster: &str, run: &str) -> PortResult<Mirrored> {
    let prefix = run_prefix(cluster, run);
    let plan = store.get(&format!("{prefix}plan.json"), FILE_BYTES_MAX).await?;
    let cluster_yaml = store.get(&format!("{prefix}cluster.yaml"), FILE_BYTES_MAX).await?;
    Ok(Mirrored { plan, cluster_yaml, events: mirrored_events(store, &prefix).await? })
}

async fn mirrored_events(store: &dyn ObjectStore, prefix: &str) -> PortResult<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    for object in store.list(&format!("{prefix}journal/")).await? {
        let damaged = |why: String| {
            PortError::new(ErrorCode::Corrupt, format!("{} is damaged: {why}", object.key))
                .hint("nothing was touched; the machine that began the run has its journal too: `hk-dr resume` there")
        };
        for line in store.get(&object.key, FILE_BYTES_MAX).await?.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let event: Event = Event::parse(line).map_err(damaged)?;
            if event.seq != events.len() as u64 {
                return Err(damaged(format!("event {} where {} belongs", event.seq, events.len())));
            }
            events.push(event);
        }
    }
    Ok(events)
}

/// How far the mirror is.
#[derive(Debug, Clone, Default)]
struct Reach {
    /// Events in the bucket.
    events: u64,
    /// The bucket did not take the last piece.
    trouble: Option<PortError>,
    /// Another process continues this run: final.
    forked: Option<PortError>,
}

/// Carries events into the bucket while a run goes on.
pub struct Mirror {
    queue: Arc<Queue>,
    reach: watch::Receiver<Reach>,
    task: tokio::task::JoinHandle<()>,
}

/// Events on their way: bounded by what a plan can record.
struct Queue {
    waiting: Mutex<Waiting>,
    news: Notify,
}

struct Waiting {
    events: Vec<Event>,
    /// Events that were handed over since the run began.
    given: u64,
}

impl Queue {
    fn change<T>(&self, how: impl FnOnce(&mut Waiting) -> T) -> T {
        how(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Mirror {
    /// Begins to mirror a run whose journal holds `events`. Needs a runtime. Returns at once: that the bucket is away must
    /// not keep a recovery from beginning.
    pub fn start(
        store: Arc<dyn ObjectStore>,
        cluster: &str,
        run: &str,
        plan: Vec<u8>,
        cluster_yaml: Vec<u8>,
        events: &[Event],
    ) -> Self {
        let waiting = Mutex::new(Waiting { events: events.to_vec(), given: events.len() as u64 });
        let queue = Arc::new(Queue { waiting, news: Notify::new() });
        let (say, reach) = watch::channel(Reach::default());
        let sender = Sender { store, prefix: run_prefix(cluster, run), say, queue: Arc::clone(&queue) };
        let task = tokio::spawn(sender.carry(plan, cluster_yaml));
        Self { queue, reach, task }
    }

    fn push(&self, event: &Event) {
        self.queue.change(|waiting| {
            waiting.events.push(event.clone());
            waiting.given += 1;
        });
        self.queue.news.notify_one();
    }

    /// Waits a moment until everything that was recorded so far is in the bucket. While the bucket is away only the first
    /// call waits; what is missing follows when it is back. Returns what keeps it away, if anything does.
    ///
    /// # Errors
    /// `Conflict`: another process continues this run.
    pub async fn settle(&self) -> PortResult<Option<PortError>> {
        let wanted = self.queue.change(|waiting| waiting.given);
        let mut reach = self.reach.clone();
        let away = reach.borrow().trouble.clone();
        if away.is_none() {
            let there = reach.wait_for(|r| r.events >= wanted || r.forked.is_some() || r.trouble.is_some());
            let _ = tokio::time::timeout(SETTLED_WITHIN, there).await;
        }
        let now = reach.borrow().clone();
        match now.forked {
            Some(forked) => Err(forked),
            None if now.events >= wanted => Ok(None),
            None => {
                Ok(Some(now.trouble.or(away).unwrap_or_else(|| {
                    PortError::new(ErrorCode::Timeout, "the bucket takes long to accept the journal")
                })))
            }
        }
    }

    /// Waits until everything is in the bucket, as long as `within`. Returns what is missing there.
    pub async fn finish(&self, within: Duration) -> Option<PortError> {
        let wanted = self.queue.change(|waiting| waiting.given);
        let mut reach = self.reach.clone();
        match tokio::time::timeout(within, reach.wait_for(|r| r.events >= wanted || r.forked.is_some())).await {
            Ok(Ok(reach)) => reach.forked.clone(),
            _ => {
                Some(self.reach.borrow().trouble.clone().unwrap_or_else(|| {
                    PortError::new(ErrorCode::Timeout, "the bucket takes long to accept the journal")
                }))
            }
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sender {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    say: watch::Sender<Reach>,
    queue: Arc<Queue>,
}

impl Sender {
    async fn carry(self, plan: Vec<u8>, cluster_yaml: Vec<u8>) {
        let result = async {
            // The plan goes last: a run without a plan is none.
            self.insist("cluster.yaml", Bytes::from(cluster_yaml)).await?;
            self.insist("plan.json", Bytes::from(plan)).await?;
            let there = self.retry(|| mirrored_events(self.store.as_ref(), &self.prefix)).await?;
            let mut done = there.len();
            // Nobody takes from the queue but this task.
            let same = self.queue.change(|waiting| {
                let same = waiting.events.get(..done) == Some(&there[..]);
                waiting.events.drain(..done.min(waiting.events.len()));
                same
            });
            if !same {
                return Err(forked(&self.prefix, there.len()));
            }
            self.reached(done);
            loop {
                // The same piece until it is there: its name must always stand for the same events.
                let piece: Vec<Event> = self.queue.change(|waiting| {
                    let count = waiting.events.len().min(PIECE_EVENTS_MAX);
                    waiting.events.drain(..count).collect()
                });
                if piece.is_empty() {
                    self.queue.news.notified().await;
                    continue;
                }
                self.insist(&format!("journal/{done:08}.jsonl"), Bytes::from(lines(&piece)?)).await?;
                done += piece.len();
                self.reached(done);
            }
        };
        let result: PortResult<()> = result.await;
        if let Err(error) = result {
            self.say.send_modify(|reach| reach.forked = Some(error));
        }
    }

    fn reached(&self, events: usize) {
        self.say.send_modify(|reach| (reach.events, reach.trouble) = (events as u64, None));
    }

    /// Puts an object that nobody else may have put with another content, until the bucket has it.
    async fn insist(&self, name: &str, content: Bytes) -> PortResult<()> {
        let key = format!("{}{name}", self.prefix);
        self.retry(|| async {
            match self.store.put(&key, content.clone(), PutCondition::Absent).await {
                Ok(_) => Ok(()),
                Err(e) if e.code == ErrorCode::Conflict => {
                    let there = self.store.get(&key, FILE_BYTES_MAX).await?;
                    if there == content { Ok(()) } else { Err(forked(&key, 0)) }
                }
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Everything but a fork may pass: credentials are renewed, quotas raised, networks mended.
    async fn retry<T, F: Future<Output = PortResult<T>> + Send>(
        &self,
        mut work: impl FnMut() -> F + Send,
    ) -> PortResult<T> {
        let mut pause = RETRY_FIRST;
        loop {
            match work().await {
                Err(e) if !matches!(e.code, ErrorCode::Conflict | ErrorCode::Corrupt) => {
                    self.say.send_modify(|reach| reach.trouble = Some(e));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                other => return other,
            }
        }
    }
}

fn lines(events: &[Event]) -> PortResult<Vec<u8>> {
    let mut text = Vec::new();
    for event in events {
        serde_json::to_writer(&mut text, event)
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("writing a journal event: {e}")))?;
        text.push(b'\n');
    }
    Ok(text)
}

fn forked(what: &str, events: usize) -> PortError {
    let how_far = if events > 0 { format!(" ({events} events)") } else { String::new() };
    PortError::new(
        ErrorCode::Conflict,
        format!("this run was continued elsewhere: {what} has another journal{how_far}"),
    )
    .hint("nothing further was begun here; `hk-dr resume` takes the bucket's journal once the other one has ended")
}

/// A journal whose events are mirrored once they are durable here.
pub struct MirroredJournal {
    pub journal: Box<dyn Journal>,
    pub mirror: Arc<Mirror>,
}

impl Journal for MirroredJournal {
    fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        self.journal.append(event)?;
        self.mirror.push(event);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Body, JOURNAL_FORMAT, MemoryJournal};
    use super::*;
    use crate::s3::{Fault, MemoryStore, Operation};

    fn event(seq: u64) -> Event {
        Event {
            seq,
            at: "2026-11-23T03:00:00Z".parse().unwrap(),
            format: JOURNAL_FORMAT,
            binary_version: "1".into(),
            body: Body::RunResumed,
        }
    }

    fn start(store: &MemoryStore, events: &[Event]) -> Arc<Mirror> {
        Arc::new(Mirror::start(Arc::new(store.clone()), "demo", "r1", b"{}".to_vec(), b"x".to_vec(), events))
    }

    fn journal(mirror: &Arc<Mirror>) -> MirroredJournal {
        MirroredJournal { journal: Box::new(MemoryJournal::default()), mirror: Arc::clone(mirror) }
    }

    /// The mirror catches up; how long that takes is not looked at.
    async fn settled(mirror: &Mirror) {
        while mirror.settle().await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn what_is_recorded_is_in_the_bucket_when_it_settles_and_reads_back_the_same() {
        let store = MemoryStore::new();
        let mirror = start(&store, &[]);
        let mut journal = journal(&mirror);
        for seq in 0..7 {
            journal.append(&event(seq)).unwrap();
            if seq % 3 == 0 {
                assert!(mirror.settle().await.unwrap().is_none());
            }
        }
        assert!(mirror.settle().await.unwrap().is_none());
        let read = read_mirrored(&store, "demo", "r1").await.unwrap();
        assert_eq!(read.events, (0..7).map(event).collect::<Vec<_>>());
        assert_eq!((read.plan.as_ref(), read.cluster_yaml.as_ref()), (&b"{}"[..], &b"x"[..]));
        assert_eq!(mirrored_runs(&store, "demo").await.unwrap(), ["r1"]);
    }

    #[tokio::test]
    async fn a_run_goes_on_while_the_bucket_is_away_and_the_mirror_catches_up() {
        let store = MemoryStore::new();
        let mirror = start(&store, &[]);
        assert!(mirror.settle().await.unwrap().is_none());
        for nth in 3..5 {
            let error = PortError::new(ErrorCode::Unreachable, "away");
            store.fail(Fault { operation: Operation::Put, nth, error });
        }
        let mut journal = journal(&mirror);
        journal.append(&event(0)).unwrap();
        assert_eq!(mirror.settle().await.unwrap().unwrap().message, "away");
        journal.append(&event(1)).unwrap();
        settled(&mirror).await;
        assert_eq!(read_mirrored(&store, "demo", "r1").await.unwrap().events.len(), 2);
    }

    #[tokio::test]
    async fn of_two_who_continue_the_same_run_one_is_stopped() {
        let store = MemoryStore::new();
        let first = start(&store, &[]);
        let mut here = journal(&first);
        here.append(&event(0)).unwrap();
        first.settle().await.unwrap();
        let second = start(&store, &[event(0)]);
        second.settle().await.unwrap();
        let mut there = journal(&second);
        let other = Event { binary_version: "2".into(), ..event(1) };
        there.append(&other).unwrap();
        assert!(second.settle().await.unwrap().is_none());
        here.append(&event(1)).unwrap();
        let stopped = first.settle().await.unwrap_err();
        assert_eq!(stopped.code, ErrorCode::Conflict);
        assert!(stopped.message.contains("continued elsewhere"), "{stopped}");
        // And whoever comes back with an older journal of its own.
        let late = start(&store, &[event(0), event(1)]);
        assert_eq!(late.settle().await.unwrap_err().code, ErrorCode::Conflict);
    }

    #[tokio::test]
    async fn a_lost_answer_is_no_fork() {
        let store = MemoryStore::new();
        store.lose_answer_of_put(1);
        store.lose_answer_of_put(4);
        let mirror = start(&store, &[]);
        settled(&mirror).await;
        let mut journal = journal(&mirror);
        journal.append(&event(0)).unwrap();
        settled(&mirror).await;
        assert_eq!(read_mirrored(&store, "demo", "r1").await.unwrap().events.len(), 1);
    }
}
