use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::error;
use super::http::{Http, parsed};
use super::wire::Action;
use crate::ports::{ErrorClass, ErrorCode, PortError, PortResult};

/// How long anything the cloud does may take.
const ACTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Ids in one request, as official clients do it.
const CHUNK: usize = 25;
/// Polling begins fast and slows down with the age of the youngest action: half of it, within these bounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Below this many requests left the slowest pace is kept.
const THRIFTY_BELOW: f64 = 100.0;
/// Answers in which an action may be missing before it counts as gone: replicas of the API lag.
const MISSING_MAX: u32 = 5;

/// Waits for actions: one poller asks for all that anybody waits for, and rests when nobody does.
pub(super) struct Actions {
    http: Arc<Http>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    actions: HashMap<u64, Entry>,
    polling: bool,
}

struct Entry {
    since: Instant,
    missing: u32,
    waiters: Vec<oneshot::Sender<PortResult<()>>>,
}

impl Actions {
    pub(super) fn new(http: Arc<Http>) -> Arc<Self> {
        Arc::new(Self { http, waiting: Mutex::default() })
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
        let fresh = || Entry { since: Instant::now(), missing: 0, waiters: Vec::new() };
        waiting.actions.entry(id).or_insert_with(fresh).waiters.push(sender);
        if !waiting.polling {
            waiting.polling = true;
            // Weak: the poller must not outlive the client.
            tokio::spawn(poll(Arc::downgrade(self)));
        }
        receiver
    }

    /// What to ask for next, and after which pause; none when nobody waits any more.
    fn due(&self) -> Option<(Duration, Vec<u64>)> {
        let mut waiting = self.lock();
        for entry in waiting.actions.values_mut() {
            entry.waiters.retain(|w| !w.is_closed());
        }
        waiting.actions.retain(|_, entry| !entry.waiters.is_empty());
        let Some(youngest) = waiting.actions.values().map(|e| e.since).max() else {
            waiting.polling = false;
            return None;
        };
        let pause = if self.http.budget.left() < THRIFTY_BELOW {
            PAUSE.1
        } else {
            (youngest.elapsed() / 2).clamp(PAUSE.0, PAUSE.1)
        };
        let mut ids: Vec<u64> = waiting.actions.keys().copied().collect();
        ids.sort_unstable();
        Some((pause, ids))
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

async fn poll(actions: Weak<Actions>) {
    loop {
        let Some((pause, _)) = actions.upgrade().and_then(|a| a.due()) else { return };
        sleep(pause).await;
        let Some(actions) = actions.upgrade() else { return };
        // Asked again: more may have begun during the pause.
        let Some((_, ids)) = actions.due() else { return };
        for chunk in ids.chunks(CHUNK) {
            actions.ask(chunk).await;
        }
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
