//! Brings segments into the bucket in order, or into the spool while the bucket is away; keeps the lease.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::SegmentName;
use super::lease::Lease;
use super::spool::Spool;
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// How long one segment may take before it goes to the disk: it must not hold up those behind it.
const PUT_DEADLINE: Duration = Duration::from_secs(15);
/// How often the lease is renewed, and so how long a writer that was replaced goes on.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Pauses between attempts to reach a bucket that is away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));
/// Probes that wait for the bucket; more say nothing new.
const PROBES_MAX: usize = 256;

/// What the uploader is given, in order.
pub(super) enum Work {
    Segment {
        name: SegmentName,
        sealed: Bytes,
    },
    /// Everything up to this revision, and everything that was committed before this time, was handed over before.
    Probe {
        revision: i64,
        at: Timestamp,
    },
    /// The writer has this to say.
    Problem(Option<String>),
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uploaded {
    /// Everything up to here is in the bucket.
    pub revision: i64,
    pub covered_at: Option<Timestamp>,
    pub segments: u64,
    pub bytes: u64,
    pub spooled_bytes: u64,
    /// Why the bucket cannot be written, while it cannot.
    pub away: Option<String>,
}

pub(super) struct Uploader {
    pub store: Arc<dyn ObjectStore>,
    pub cluster: String,
    pub lease: Lease,
    pub spool: Spool,
    pub clock: Arc<dyn Clock>,
    pub report: watch::Sender<Uploaded>,
}

impl Uploader {
    /// Runs until the queue ends and what it held is in the bucket or in the spool. An error is final.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Work>, covered: i64) -> PortResult<()> {
        let mut state = Uploaded { revision: covered, spooled_bytes: self.spool.bytes(), ..Uploaded::default() };
        let mut probes: VecDeque<(i64, Timestamp)> = VecDeque::new();
        let mut problem = None;
        let mut pause = PAUSES.0;
        let mut drain_at = Instant::now();
        let mut renew_at = Instant::now();
        loop {
            let waiting = self.spool.bytes() > 0;
            tokio::select! {
                work = queue.recv() => match work {
                    None => break,
                    Some(Work::Segment { name, sealed }) if waiting => self.spool.add(name, &sealed)?,
                    Some(Work::Segment { name, sealed }) => match self.put(&name, &sealed).await {
                        Ok(()) => state.stored(&name, &sealed),
                        Err(failed) if may_come_back(&failed) => {
                            self.spool.add(name, &sealed)?;
                            state.away = Some(failed.to_string());
                            (pause, drain_at) = (PAUSES.0, Instant::now() + PAUSES.0);
                        }
                        Err(failed) => return Err(failed),
                    },
                    Some(Work::Probe { revision, at }) => {
                        if probes.len() == PROBES_MAX {
                            probes.pop_front();
                        }
                        probes.push_back((revision, at));
                    }
                    Some(Work::Problem(now)) => problem = now,
                },
                () = tokio::time::sleep_until(drain_at), if waiting => {
                    if let Some((name, sealed)) = self.spool.oldest()? {
                        match self.put(&name, &sealed).await {
                            Ok(()) => {
                                self.spool.stored()?;
                                state.stored(&name, &sealed);
                                state.away = None;
                                (pause, drain_at) = (PAUSES.0, Instant::now());
                            }
                            Err(failed) if may_come_back(&failed) => {
                                state.away = Some(failed.to_string());
                                pause = (pause * 2).min(PAUSES.1);
                                drain_at = Instant::now() + pause;
                            }
                            Err(failed) => return Err(failed),
                        }
                    }
                }
                // While the bucket is away its answers would only hold up the segments.
                () = tokio::time::sleep_until(renew_at), if !waiting => {
                    self.renew(&state, problem.clone(), false).await?;
                    renew_at = Instant::now() + RENEW_EVERY;
                }
            }
            while let Some((_, at)) = probes.front().copied().filter(|(revision, _)| *revision <= state.revision) {
                state.covered_at = Some(at);
                probes.pop_front();
            }
            state.spooled_bytes = self.spool.bytes();
            self.report.send_if_modified(|last| {
                let changed = *last != state;
                last.clone_from(&state);
                changed
            });
        }
        // A last attempt: what stays in the spool is brought by whoever starts next on this machine.
        while let Some((name, sealed)) = self.spool.oldest()? {
            if let Err(failed) = self.put(&name, &sealed).await {
                state.away = Some(failed.to_string());
                break;
            }
            self.spool.stored()?;
            state.stored(&name, &sealed);
        }
        while let Some((_, at)) = probes.pop_front().filter(|(revision, _)| *revision <= state.revision) {
            state.covered_at = Some(at);
        }
        state.spooled_bytes = self.spool.bytes();
        self.report.send_replace(state.clone());
        self.renew(&state, problem, true).await
    }

    /// Writes a segment that must not exist yet; what is there already must be the same.
    async fn put(&self, name: &SegmentName, sealed: &Bytes) -> PortResult<()> {
        let key = name.key(&self.cluster);
        let put = timeout(PUT_DEADLINE, self.store.put(&key, sealed.clone(), PutCondition::Absent)).await;
        let failed = match put {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(failed)) => failed,
            Err(_) => {
                let message = format!("write {key}: no answer within {} s", PUT_DEADLINE.as_secs());
                return Err(PortError::new(ErrorCode::Timeout, message));
            }
        };
        if failed.code != ErrorCode::Conflict {
            return Err(failed);
        }
        let there = timeout(PUT_DEADLINE, self.store.get(&key, sealed.len() as u64)).await;
        match there {
            Ok(Ok(there)) if there == *sealed => Ok(()),
            Ok(Err(e)) if may_come_back(&e) => Err(e),
            Err(_) => Err(PortError::new(ErrorCode::Timeout, format!("read {key}: no answer"))),
            _ => Err(PortError::new(ErrorCode::Corrupt, format!("{key} exists with other content"))
                .hint("nothing was overwritten; two writers share one epoch, or the bucket was changed by hand")),
        }
    }

    /// Only another writer ends this one: a bucket that is away is waited for.
    async fn renew(&mut self, state: &Uploaded, problem: Option<String>, stopped: bool) -> PortResult<()> {
        let document = &mut self.lease.document;
        document.covered_revision = state.revision;
        document.covered_at = state.covered_at.or(document.covered_at);
        document.spooled_bytes = state.spooled_bytes;
        document.problem = problem;
        document.stopped = stopped;
        match timeout(PUT_DEADLINE, self.lease.renew(self.store.as_ref(), self.clock.as_ref())).await {
            Ok(Err(e)) if e.code == ErrorCode::Conflict => Err(e),
            _ => Ok(()),
        }
    }
}

impl Uploaded {
    fn stored(&mut self, name: &SegmentName, sealed: &Bytes) {
        // Segments that an earlier process left may end before what is covered.
        self.revision = self.revision.max(name.last);
        self.segments += 1;
        self.bytes += sealed.len() as u64;
        self.away = None;
    }
}

/// A bucket that is full, or whose credential was changed, can be repaired while segments wait.
fn may_come_back(error: &PortError) -> bool {
    !matches!(error.code, ErrorCode::Corrupt | ErrorCode::Invalid | ErrorCode::Local)
}
