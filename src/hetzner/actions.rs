use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::error;
use super::http::{Http, parsed};
use super::wire::Action;
use crate::ports::{ErrorClass, ErrorCode, PortError, PortResult};

/// How long anything the cloud does may take.
const ACTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Ids in one request, as official clients do it.
const CHUNK: usize = 25;
/// When an action is asked for first, and again: after half its age, within these bounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Between two requests, for each action that is waited for, and at most. One request asks for all: who waits alone is told at
/// once, and where many begin and end within moments, they share requests.
const APART: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// Below this many requests left the slowest pace is kept.
const THRIFTY_BELOW: f64 = 100.0;
/// Answers in which an action may be missing before it counts as gone: replicas of the API lag.
const MISSING_MAX: u32 = 5;

/// Waits for actions: one poller asks for all that anybody waits for, and rests when nobody does.
pub(super) struct Actions {
    http: Arc<Http>,
    waiting: Mutex<Waiting>,
    /// Something began that may have to be asked for earlier than the poller thinks.
    begun: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    actions: HashMap<u64, Entry>,
    polling: bool,
    /// When the last request for actions was sent.
    asked: Option<Instant>,
}

struct Entry {
    since: Instant,
    due: Instant,
    missing: u32,
    waiters: Vec<oneshot::Sender<PortResult<()>>>,
}

impl Actions {
    pub(super) fn new(http: Arc<Http>) -> Arc<Self> {
        Arc::new(Self { http, waiting: Mutex::default(), begun: Arc::default() })
    }

    /// Returns when all have succeeded, or with the first failure.
    pub(super) async fn all(self: &Arc<Self>, actions: impl IntoIterator<Item = Action>) -> PortResult<()> {
        let waits: Vec<_> = actions.into_iter().map(|action| self.one(action)).collect();
        futures::future::try_join_all(waits).await.map(|_| ())
    }

    async fn one(self: &Arc<Self>, action: Action) -> PortResult<()> {
        if let Some(end) = ended(&action) {
            return end;
        }
        let doing = format!("wait for action {} ({})", action.command, action.id);
        match timeout(ACTION_TIMEOUT, self.register(action.id)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PortError::new(ErrorCode::Local, format!("{doing}: the poller ended"))),
            Err(_) => Err(PortError::new(
                ErrorCode::Timeout,
                format!("{doing}: not done within {} s", ACTION_TIMEOUT.as_secs()),
            )),
        }
    }

    fn register(self: &Arc<Self>, id: u64) -> oneshot::Receiver<PortResult<()>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        let now = Instant::now();
        let fresh = || Entry { since: now, due: now + PAUSE.0, missing: 0, waiters: Vec::new() };
        waiting.actions.entry(id).or_insert_with(fresh).waiters.push(sender);
        if waiting.polling {
            self.begun.notify_one();
        } else {
            waiting.polling = true;
            // Weak: the poller must not outlive the client.
            tokio::spawn(poll(Arc::downgrade(self), Arc::clone(&self.begun)));
        }
        receiver
    }

    /// When to ask next; none when nobody waits any more.
    fn next(&self) -> Option<Instant> {
        let mut waiting = self.lock();
        for entry in waiting.actions.values_mut() {
            entry.waiters.retain(|w| !w.is_closed());
        }
        waiting.actions.retain(|_, entry| !entry.waiters.is_empty());
        let Some(due) = waiting.actions.values().map(|e| e.due).min() else {
            waiting.polling = false;
            return None;
        };
        let waited_for = u32::try_from(waiting.actions.len()).unwrap_or(u32::MAX);
        let thrifty = self.http.budget.left() < THRIFTY_BELOW;
        let apart = if thrifty { PAUSE.1 } else { APART.0.saturating_mul(waited_for).min(APART.1) };
        Some(waiting.asked.map_or(due, |asked| due.max(asked + apart)))
    }

    /// Asks for all that anybody waits for.
    async fn ask_all(&self) {
        let mut ids: Vec<u64> = self.lock().actions.keys().copied().collect();
        ids.sort_unstable();
        for chunk in ids.chunks(CHUNK) {
            self.ask(chunk).await;
        }
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.asked = Some(now);
        for (_, entry) in waiting.actions.iter_mut().filter(|(id, _)| ids.binary_search(id).is_ok()) {
            entry.due = now + (now.duration_since(entry.since) / 2).clamp(PAUSE.0, PAUSE.1);
        }
    }

    async fn ask(&self, ids: &[u64]) {
        let query: Vec<String> = ids.iter().map(|id| format!("id={id}")).collect();
        let path = format!("/actions?{}&per_page={CHUNK}", query.join("&"));
        let answer = self.http.get::<serde_json::Value>(&path).await;
        let answer = answer.and_then(|mut v| parsed::<Vec<Action>>(v["actions"].take(), &path));
        let mut waiting = self.lock();
        match answer {
            Ok(actions) => {
                for id in ids {
                    let end = match actions.iter().find(|a| a.id == *id) {
                        Some(action) => ended(action),
                        None => waiting.actions.get_mut(id).and_then(missing),
                    };
                    if let Some(end) = end {
                        waiting.finish(*id, &end);
                    }
                }
            }
            // The waiters' own deadline ends this.
            Err(error) if error.class() == ErrorClass::Transient => {}
            Err(error) => ids.iter().for_each(|id| waiting.finish(*id, &Err(error.clone()))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn finish(&mut self, id: u64, end: &PortResult<()>) {
        let Some(entry) = self.actions.remove(&id) else { return };
        for waiter in entry.waiters {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(end.clone());
        }
    }
}

async fn poll(actions: Weak<Actions>, begun: Arc<Notify>) {
    loop {
        let Some(next) = actions.upgrade().and_then(|a| a.next()) else { return };
        tokio::select! {
            () = sleep_until(next) => {}
            () = begun.notified() => continue,
        }
        let Some(actions) = actions.upgrade() else { return };
        actions.ask_all().await;
    }
}

/// The result of an action that has ended. A status this version does not know counts as running.
fn ended(action: &Action) -> Option<PortResult<()>> {
    match action.status.as_str() {
        "success" => Some(Ok(())),
        "error" => Some(Err(error::from_action(action))),
        _ => None,
    }
}

fn missing(entry: &mut Entry) -> Option<PortResult<()>> {
    entry.missing += 1;
    (entry.missing >= MISSING_MAX)
        .then(|| Err(PortError::new(ErrorCode::NotFound, "the cloud does not know the action it started")))
}
