use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::notify::Notifier;
use super::tend::{Once, Pace, tend, told};
use super::view::{ClusterView, ScheduleView, View, observe, strictest, trouble};
use super::work::Work;
use crate::backup::log::status;
use crate::config::{CanaryPolicy, Heartbeat, LogPolicy, Policy};
use crate::plan::schedule::{Book, Timing};
use crate::ports::{Clock, ObjectStore, PortError};
use crate::steps::Mark;

/// Runs that are shown of what comes next.
const NEXT: usize = 3;
/// First and longest pause before a log that stopped is shipped again.
const SHIP_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A writer of the log renews its lease every three seconds; one that was silent for so long is dead.
const WRITER_SILENT: Duration = Duration::from_secs(30);

/// How long one write of the canary may take.
const MARK_WITHIN: Duration = Duration::from_secs(10);

/// One cluster that the service looks after.
pub struct Tended {
    pub name: String,
    pub policies: Vec<Arc<Policy>>,
    pub store: Arc<dyn ObjectStore>,
    pub work: Arc<dyn Work>,
    pub clock: Arc<dyn Clock>,
    /// Where things are told, a line each.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// Names of declared volumes.
    volumes: Vec<String>,
    away: Once,
    books: Mutex<BTreeMap<(String, String), Book>>,
}

impl Tended {
    /// Nothing is asked yet.
    pub fn new(
        name: String,
        policies: Vec<Arc<Policy>>,
        store: Arc<dyn ObjectStore>,
        work: Arc<dyn Work>,
        clock: Arc<dyn Clock>,
        tell: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let (away, books) = (Once::default(), Mutex::default());
        Self { name, policies, store, work, clock, tell, volumes: Vec::new(), away, books }
    }

    /// With volumes whose backups are watched.
    #[must_use]
    pub fn with_volumes(mut self, volumes: Vec<String>) -> Self {
        self.volumes = volumes;
        self
    }

    pub(super) fn say(&self, text: &str) {
        (self.tell)(&format!("{}: {text}", self.name));
    }

    pub(super) fn bucket_is_away(&self, error: &PortError) {
        // Its message may hold times and numbers: what is told again is another kind of trouble.
        if self.away.set(Some(format!("{:?}", error.code))) {
            self.say(&format!("warning: {}; runs begin when it answers again", told(error)));
        }
    }

    pub(super) fn bucket_answers(&self) {
        if self.away.set(None) {
            self.say("the bucket answers");
        }
    }

    /// Remembers a book for those who look.
    pub(super) fn keep(&self, book: Option<&Book>, policy: &str, schedule: &str) {
        if let Some(book) = book {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            books.insert((policy.to_owned(), schedule.to_owned()), book.clone());
        }
    }

    fn schedules(&self, now: Timestamp) -> Vec<ScheduleView> {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of = |policy: &Arc<Policy>| -> Vec<ScheduleView> {
            let all = policy.schedules.iter().filter_map(|schedule| {
                let timing = Timing::of(&self.name, policy, schedule).ok()?;
                let book = books.get(&(policy.name.clone(), schedule.name.clone())).cloned();
                let from =
                    book.as_ref().map_or(now, |book| book.decided.max(now.checked_sub(timing.jitter).unwrap_or(now)));
                Some(ScheduleView {
                    policy: policy.name.clone(),
                    name: schedule.name.clone(),
                    action: schedule.action.name().to_owned(),
                    cron: schedule.cron.clone(),
                    time_zone: policy.time_zone.clone(),
                    next: timing.after(from).take(NEXT).map(|at| timing.due(at)).collect(),
                    held_by: timing.held(now).map(|held| held.name),
                    book,
                })
            });
            all.collect()
        };
        self.policies.iter().flat_map(of).collect()
    }
}

/// How the service behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runs at the same time, over all clusters.
    pub at_once: usize,
    /// How long runs that are under way are waited for when it stops. What has not ended is resumed by the next start,
    /// or by another instance.
    pub grace: Duration,
    /// How often buckets are looked at for the status page and the metrics.
    pub look_every: Duration,
    pub pace: Pace,
    pub holder: String,
}

/// The running service.
pub struct Service {
    pub options: Options,
    pub clusters: Vec<Arc<Tended>>,
    pub notifier: Arc<Notifier>,
    view: watch::Sender<Arc<View>>,
}

impl Service {
    /// Nothing runs yet.
    pub fn new(options: Options, clusters: Vec<Arc<Tended>>, notifier: Arc<Notifier>, now: Timestamp) -> Arc<Self> {
        let cluster = |tended: &Arc<Tended>| ClusterView {
            name: tended.name.clone(),
            targets: strictest(tended.policies.iter().map(|p| &p.targets)),
            declared_volumes: tended.volumes.clone(),
            ..ClusterView::default()
        };
        let view = View {
            at: now,
            hk_dr_version: env!("CARGO_PKG_VERSION"),
            holder: options.holder.clone(),
            clusters: clusters.iter().map(cluster).collect(),
            letters_lost: 0,
        };
        Arc::new(Self { options, clusters, notifier, view: watch::channel(Arc::new(view)).0 })
    }

    /// What is known now: what was seen of the buckets at the last look, with books and runs as they are.
    pub fn view(&self) -> View {
        let mut view = View::clone(&self.view.borrow());
        for (tended, cluster) in self.clusters.iter().zip(&mut view.clusters) {
            view.at = tended.clock.now();
            cluster.schedules = tended.schedules(view.at);
            cluster.running = tended.work.running();
        }
        view.letters_lost = self.notifier.lost();
        view
    }

    /// Whether every bucket was read lately: otherwise nothing can be claimed here.
    pub fn ready(&self) -> Result<(), String> {
        let view = self.view.borrow();
        let not: Vec<String> = view
            .clusters
            .iter()
            .filter_map(|c| match (&c.trouble, c.observed_at) {
                (Some(trouble), _) => Some(format!("{}: {trouble}", c.name)),
                (None, None) => Some(format!("{}: its bucket was not read yet", c.name)),
                (None, Some(_)) => None,
            })
            .collect();
        if not.is_empty() { Ok(()) } else { Err(not.join("\n")) }
    }

    /// Runs until `stop`, and then as long as runs under way need, at most the grace. `alive` is called every few seconds
    /// as long as the service's own loops turn.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, alive: impl Fn() + Send + 'static) {
        let places = Arc::new(Semaphore::new(self.options.at_once));
        let mut loops = JoinSet::new();
        let mut schedules = JoinSet::new();
        for (index, tended) in self.clusters.iter().enumerate() {
            let options = &self.options;
            schedules.spawn(tend(
                Arc::clone(tended),
                Arc::clone(&places),
                Arc::clone(&self.notifier),
                options.holder.clone(),
                options.pace,
                stop.clone(),
            ));
            loops.spawn(Arc::clone(&self).look(index, stop.clone()));
            if let Some(log) = tended.policies.iter().find_map(|p| p.log.clone()) {
                schedules.spawn(ship(Arc::clone(tended), log, stop.clone()));
            }
            if let Some(canary) = tended.policies.iter().find_map(|p| p.canary) {
                loops.spawn(keep_mark(Arc::clone(tended), canary, stop.clone()));
            }
            for heartbeat in tended.policies.iter().filter_map(|p| p.heartbeat.clone()) {
                loops.spawn(Arc::clone(&self).heart(index, heartbeat, stop.clone()));
            }
        }
        loops.spawn(async move {
            let mut tick = interval(Duration::from_secs(2));
            loop {
                tick.tick().await;
                alive();
            }
        });
        stop.cancelled().await;
        let all = async { while schedules.join_next().await.is_some() {} };
        if timeout(self.options.grace, all).await.is_err() {
            for tended in &self.clusters {
                tended.say("runs under way were left as they are; the next start, or another instance, finishes them");
            }
        }
        loops.shutdown().await;
    }

    async fn look(self: Arc<Self>, index: usize, stop: CancellationToken) {
        let tended = &self.clusters[index];
        let mut known = BTreeMap::new();
        let mut cluster = self.view.borrow().clusters[index].clone();
        while !stop.is_cancelled() {
            let now = tended.clock.now();
            // An answer that does not come is no answer.
            let looked = timeout(
                self.options.look_every.max(Duration::from_secs(60)),
                observe(tended.store.as_ref(), &mut cluster, &mut known, now),
            )
            .await;
            match looked {
                Ok(Ok(())) => {}
                Ok(Err(error)) => cluster.trouble = Some(trouble(&error)),
                Err(_) => cluster.trouble = Some("the bucket did not answer in time".to_owned()),
            }
            self.publish(index, &cluster, now);
            // Those may take their time: machines are asked now and then.
            cluster.gauges = tended.work.gauges().await;
            self.publish(index, &cluster, now);
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(self.options.look_every) => {}
            }
        }
    }

    pub(super) fn publish(&self, index: usize, cluster: &ClusterView, now: Timestamp) {
        self.view.send_modify(|view| {
            let view = Arc::make_mut(view);
            view.at = now;
            view.clusters[index] = cluster.clone();
        });
    }

    /// Calls while the newest snapshot is young enough: that it stops is the alarm.
    pub(super) async fn heart(self: Arc<Self>, index: usize, heartbeat: Heartbeat, stop: CancellationToken) {
        let tended = &self.clusters[index];
        let limit = f64::from(heartbeat.while_snapshot_younger_than_hours) * 3600.0;
        let every = Duration::from_secs(60 * u64::from(heartbeat.every_minutes));
        let told_once = Once::default();
        loop {
            let age = self.view.borrow().clusters[index].snapshot_age(tended.clock.now());
            // Not known yet: soon.
            let pause = if age.is_some() { every } else { every.min(Duration::from_secs(1)) };
            if age.is_some_and(|age| age <= limit) {
                let failed = self.notifier.beat(&heartbeat).await.err().map(|e| told(&e));
                if told_once.set(failed.clone())
                    && let Some(error) = failed
                {
                    tended.say(&format!("warning: the heartbeat was not heard: {error}"));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }
}

/// Writes the canary as often as is declared. Several instances write the same one: the last is the newest.
pub(super) async fn keep_mark(tended: Arc<Tended>, canary: CanaryPolicy, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(canary.every_seconds.into()));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let told_once = Once::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let mark = Mark { at: tended.clock.now(), every_seconds: canary.every_seconds };
        let failed = match timeout(MARK_WITHIN, tended.work.mark(mark)).await {
            Ok(result) => result.err().map(|e| told(&e)),
            Err(_) => Some(format!("no answer within {} s", MARK_WITHIN.as_secs())),
        };
        // An API that is away is told once, and once that it is back.
        if told_once.set(failed.clone()) {
            tended.say(&match failed {
                Some(error) => format!("warning: the canary was not written: {error}"),
                None => "the canary is written again".to_owned(),
            });
        }
    }
}

/// Waits until no other writer of the log gives signs of life. Err: it is to stop.
async fn silence(tended: &Tended, stop: &CancellationToken) -> Result<(), ()> {
    let mut heard: Option<(Timestamp, Instant)> = None;
    loop {
        let writer = match status(tended.store.as_ref(), &tended.name, tended.clock.now()).await {
            Ok(status) => status.writer.filter(|writer| !writer.stopped),
            // Without a snapshot there is no log yet; other trouble shows when it is shipped.
            Err(_) => None,
        };
        let Some(writer) = writer else { return Ok(()) };
        // By this machine's own clock: theirs may be wrong.
        match heard {
            Some((renewed, since)) if renewed == writer.renewed_at => {
                if since.elapsed() >= WRITER_SILENT {
                    return Ok(());
                }
            }
            _ => heard = Some((writer.renewed_at, Instant::now())),
        }
        tokio::select! {
            () = stop.cancelled() => return Err(()),
            () = sleep(WRITER_SILENT / 6) => {}
        }
    }
}

/// Ships the log, again and again: whatever ends it, an hour later it may be possible again. Of several instances one
/// writes; the log's own lease sees to that, and those that come second wait their turn.
async fn ship(tended: Arc<Tended>, log: LogPolicy, stop: CancellationToken) {
    let mut pause = SHIP_PAUSE.0;
    let told_once = Once::default();
    while !stop.is_cancelled() {
        // A new writer would take the log from one that lives.
        if let Err(()) = silence(&tended, &stop).await {
            return;
        }
        let begun = Instant::now();
        match tended.work.ship(&log, stop.clone()).await {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => {}
            Err(error) => {
                let text = told(&error);
                if told_once.set(Some(text.clone())) {
                    tended.say(&format!("warning: the log is not shipped from here: {text}"));
                }
            }
        }
        pause = if begun.elapsed() > SHIP_PAUSE.1 { SHIP_PAUSE.0 } else { (pause * 2).min(SHIP_PAUSE.1) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}
