use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{LogPolicy, Policy, load_policy};
use crate::ports::{Clock, ErrorCode, PortError, PortResult};
use crate::s3::{Fault, MemoryStore, Operation};
use crate::serve::{Gauges, Notifier, Order, Pace, Report, RunView, Secrets, Tended, Work, tend};
use crate::steps::Mark;

pub const HOURLY: &str = "action: snapshot.take, cron: \"0 * * * *\"";
pub const HOUR_LONG: SignedDuration = SignedDuration::from_hours(1);
/// What a tenth of a second is on the clock.
pub const HOUR: u32 = 36_000;

pub fn policy(schedule: &str) -> Policy {
    let text = format!(
        "apiVersion: hk-dr/v1\nkind: Policy\nname: p\nsummary: s\ntimeZone: Europe/Berlin\n\
         targets: {{recoveryPointSeconds: 60, recoverySeconds: 30, snapshotAgeHours: 8, provenAgeHours: 48, drillAgeDays: 8}}\n\
         schedules:\n  - {{name: a, {schedule}}}\n"
    );
    load_policy(&text, "p.yaml").unwrap_or_else(|e| panic!("{}", e.plain()))
}

/// A clock that runs faster than the wall's.
pub struct Hands {
    began: Instant,
    times: u32,
}

impl Hands {
    pub fn new(times: u32) -> Self {
        Self { began: Instant::now(), times }
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        let base: Timestamp = "2026-06-01T00:30:00Z".parse().unwrap();
        base + SignedDuration::try_from(self.began.elapsed() * self.times).unwrap()
    }
}

/// What all instances' work comes to.
#[derive(Default)]
pub struct Worker {
    done: Mutex<Vec<Timestamp>>,
    attempts: Mutex<BTreeMap<Timestamp, u32>>,
    held: AtomicBool,
    hanging: AtomicBool,
    pub marks: Mutex<Vec<Mark>>,
}

impl Worker {
    pub fn hang(&self) {
        self.held.store(true, Ordering::SeqCst);
    }
    pub fn hanging(&self) -> bool {
        self.hanging.load(Ordering::SeqCst)
    }
    pub fn go_on(&self) {
        self.held.store(false, Ordering::SeqCst);
    }
    pub fn done(&self) -> Vec<Timestamp> {
        let mut done = self.done.lock().unwrap().clone();
        done.sort();
        done
    }
    pub fn attempts(&self, at: Timestamp) -> u32 {
        self.attempts.lock().unwrap().get(&at).copied().unwrap_or_default()
    }
}

/// One instance's way to the work.
pub struct Instance {
    pub name: String,
    pub shared: Arc<Worker>,
}

#[async_trait]
impl Work for Instance {
    async fn perform(&self, order: &Order) -> PortResult<Report> {
        self.shared.attempts.lock().unwrap().insert(order.at, order.attempt);
        while self.shared.held.load(Ordering::SeqCst) {
            self.shared.hanging.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.shared.done.lock().unwrap().push(order.at);
        Ok(Report { good: true, run: None, note: format!("done by {}", self.name) })
    }
    async fn ship(&self, _: &LogPolicy, stop: CancellationToken) -> PortResult<()> {
        stop.cancelled().await;
        Ok(())
    }
    async fn mark(&self, mark: Mark) -> PortResult<()> {
        self.shared.marks.lock().unwrap().push(mark);
        Ok(())
    }
    fn running(&self) -> Vec<RunView> {
        Vec::new()
    }
    async fn gauges(&self) -> Gauges {
        Gauges { cloud_requests_left: Some(3000.0), certificate_ends: None }
    }
}

pub fn tended(policy: Policy, store: &MemoryStore, work: Arc<dyn Work>, clock: Arc<dyn Clock>) -> Arc<Tended> {
    let policies = vec![Arc::new(policy)];
    let tended = Tended::new("demo".into(), policies, Arc::new(store.clone()), work, clock, Arc::new(|_: &str| {}));
    Arc::new(tended.with_volumes(vec!["shop".to_owned(), "never".to_owned()]))
}

/// An instance that looks often and believes a silent one dead after half a second.
pub fn start(
    name: &str,
    policy: Policy,
    store: &MemoryStore,
    work: Arc<dyn Work>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let pace =
        Pace { tick: Duration::from_millis(3), read: Duration::from_millis(30), lease: Duration::from_millis(500) };
    let tended = tended(policy, store, work, clock);
    let notifier = Notifier::start(Secrets::new(), Duration::from_millis(1), |_| {});
    tokio::spawn(tend(tended, Arc::new(Semaphore::new(2)), notifier, name.to_owned(), pace, stop))
}

/// The next calls of every kind fail.
pub fn away(store: &MemoryStore, calls: u64) {
    for operation in [Operation::Put, Operation::Read, Operation::Head] {
        let so_far = store.calls(operation);
        for nth in so_far + 1..=so_far + calls {
            let error = PortError::new(ErrorCode::Unreachable, "the bucket is away");
            store.fail(Fault { operation, nth, error });
        }
    }
}

/// Evidence of a drill that measured nothing.
pub fn sample(run: &str, runbook: &str) -> crate::drill::Evidence {
    serde_json::from_value(serde_json::json!({
        "format": 1, "run": run, "cluster": "demo", "runbook": runbook, "servers": ["m1"], "started_by": "me@desk",
        "hk_dr_version": "0.1.0", "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"etcd": "3.6.16"}, "began": null, "ended": null, "verdict": "passed", "reasons": [],
        "recovery": {"from": null, "to": null, "seconds": null, "target_seconds": null},
        "recovery_point": {"acknowledged": 0, "lost": null, "seconds": null, "target_seconds": null},
        "writes": {"attempted": 0, "acknowledged": 0, "percent": null, "target_percent": null, "longest_gap_seconds": null},
        "comparison": {"before": null, "after": null, "equal": null}, "snapshot": null, "resumed": 0, "steps": [],
    }))
    .unwrap()
}
