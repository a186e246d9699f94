//! The loop that ships: watch, collect, seal, hand over; reconnect; close gaps with new snapshots.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::collect::{Batch, Collector};
use super::coverage;
use super::index::Index;
use super::lease::Lease;
use super::order::{ShipEvent, ShipReport, ShipRequest};
use super::segment::{self, Follows, Head, STORED_BYTES_MAX, SegmentName};
use super::spool::Spool;
use super::upload::{Uploaded, Uploader, Work};
use crate::backup::Catalog;
use crate::backup::seal::{hex, seal_small};
use crate::ports::{ChangeWatch, ErrorClass, ErrorCode, Etcd, PortError, PortResult, PutCondition, WatchNews};

/// Pauses between attempts to reach etcd or the bucket. How often is not bounded: an hour's outage must not end it.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often it is made sure that the member is up to date, and how long it may take to answer.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// A member that says nothing for so long, though asked every two seconds, is left for another.
const SILENCE: Duration = Duration::from_secs(20);
/// How long it may take to stop where nothing is half done.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Segments under way to the uploader.
const QUEUE: usize = 4;
/// One transaction may not be larger: nothing of etcd's comes near.
const OPEN_BYTES_MAX: usize = 128 << 20;
/// Leases asked at the same time, and how many are remembered as known.
const LEASE_QUESTIONS: usize = 16;
const LEASES_KNOWN_MAX: usize = 100_000;
/// A key nobody has: reading it proves that the member has heard of everything before.
const PROBE_KEY: &[u8] = b"/hk-dr/probe";

/// Ships every change until `stop` resolves or something needs a person. What is whole by then is in the bucket, or in
/// the spool.
pub async fn ship(request: &ShipRequest<'_>, stop: impl Future<Output = ()>) -> PortResult<ShipReport> {
    let mut stop = Box::pin(stop);
    let begun = tokio::select! {
        begun = begin(request) => begun?,
        () = &mut stop => return Err(PortError::new(ErrorCode::Unreachable, "stopped before etcd and the bucket answered")),
    };
    let (lease, spool, place) = begun;
    let epoch = lease.document.epoch;
    (request.event)(ShipEvent::Started { epoch, covered_revision: place.covered });
    let (work, queue) = mpsc::channel(QUEUE);
    let (report, reports) = watch::channel(Uploaded::default());
    let uploader = Uploader {
        store: Arc::clone(&request.store),
        cluster: request.cluster.to_owned(),
        lease,
        spool,
        clock: Arc::clone(&request.clock),
        report,
    };
    let mut uploading = tokio::spawn(uploader.run(queue, place.covered));
    let mut shipper = Shipper {
        request,
        epoch,
        cluster_id: place.cluster_id,
        follows: place.follows,
        collector: Collector::new(place.covered),
        oldest: None,
        known_leases: HashSet::new(),
        member: 0,
        half_done: false,
        told_away: false,
        work,
    };
    let died = |e: tokio::task::JoinError| PortError::new(ErrorCode::Local, format!("the log's uploader died: {e}"));
    // The uploader ends before its queue only with an error.
    let early = |ended: Result<PortResult<()>, tokio::task::JoinError>| {
        let silent = PortError::new(ErrorCode::Local, "the log's uploader ended early");
        ended.map_err(died).and_then(|done| done).err().unwrap_or(silent)
    };
    let stopping = CancellationToken::new();
    let shipped = tokio::select! {
        shipped = shipper.run(reports.clone(), &stopping) => shipped,
        uploaded = &mut uploading => return Err(early(uploaded)),
        // It stops by itself where nothing is half done; a snapshot or a connection is not waited for.
        () = async {
            stop.await;
            stopping.cancel();
            tokio::time::sleep(STOP_GRACE).await;
        } => Ok(()),
    };
    // What is whole is not thrown away, whatever ended the loop.
    let flushed = tokio::select! {
        flushed = shipper.flush() => flushed,
        uploaded = &mut uploading => return Err(early(uploaded)),
    };
    drop(shipper);
    uploading.await.map_err(died)??;
    shipped.and(flushed)?;
    let last = reports.borrow().clone();
    Ok(ShipReport {
        epoch,
        covered_revision: last.revision,
        segments: last.segments,
        bytes: last.bytes,
        spooled_bytes: last.spooled_bytes,
    })
}

/// Where the log goes on.
struct Place {
    cluster_id: String,
    covered: i64,
    follows: Follows,
}

/// Brings what an earlier process left into the bucket, finds where the log ends, and takes the lease. Waits for etcd and
/// the bucket as long as it must.
async fn begin(request: &ShipRequest<'_>) -> PortResult<(Lease, Spool, Place)> {
    let mut pause = PAUSES.0;
    loop {
        let failed = match try_begin(request).await {
            Err(e) if e.class() == ErrorClass::Transient => e,
            other => return other,
        };
        (request.event)(ShipEvent::Lost { what: failed.to_string() });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn try_begin(request: &ShipRequest<'_>) -> PortResult<(Lease, Spool, Place)> {
    let store = request.store.as_ref();
    let mut spool = Spool::open(&request.spool, request.spool_limit_bytes)?;
    while let Some((name, sealed)) = spool.oldest()? {
        match store.put(&name.key(request.cluster), sealed, PutCondition::Absent).await {
            // A conflict: it got there before, or its place is taken; either way it need not wait any longer.
            Err(e) if e.code != ErrorCode::Conflict => return Err(e.context("bring spooled segments into the bucket")),
            _ => spool.stored()?,
        }
    }
    let (cluster_id, revision) = ask(request.etcd).await?;
    // The lease first: whoever held it stops, so that what is read next does not grow any more for long.
    let lease = Lease::claim(
        store,
        request.cluster,
        &cluster_id,
        &request.holder,
        request.recipients.names(),
        request.clock.as_ref(),
    )
    .await?;
    let (entries, _) = Catalog::new(store, request.cluster).list().await?;
    let same = entries.into_iter().filter(|entry| entry.manifest.etcd_cluster_id == cluster_id);
    let Some(base) = same.max_by_key(|entry| entry.manifest.revision) else {
        let place = new_base(request, &cluster_id, "there is no snapshot of this etcd cluster").await?;
        return Ok((lease, spool, place));
    };
    let segments = Index::load(store, request.cluster).await?.segments_of(&cluster_id);
    let path = coverage::path(base.manifest.revision, None, &segments);
    if path.reaches > revision {
        let message = format!("etcd is at revision {revision}, but the log has revision {} of it", path.reaches);
        return Err(PortError::new(ErrorCode::Untrusted, message).hint(
            "nothing was written; etcd was set back without a new cluster ID (a restore without a new token): restore it \
             with `hk-dr rebuild`, or keep its backups under another cluster name",
        ));
    }
    let follows = match path.segments.last() {
        None => Follows::Snapshot(base.manifest.id),
        Some(last) => {
            let key = last.key(request.cluster);
            let sealed = store.get(&key, STORED_BYTES_MAX).await?;
            Follows::Segment { key, sha256: digest(&sealed) }
        }
    };
    Ok((lease, spool, Place { cluster_id, covered: path.reaches, follows }))
}

fn digest(sealed: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(sealed))
}

/// The etcd cluster's ID and newest revision, from the first member that answers.
async fn ask(etcd: &dyn Etcd) -> PortResult<(String, i64)> {
    let mut last = PortError::new(ErrorCode::Invalid, "no etcd member is declared");
    for member in etcd.members() {
        match timeout(PROBE_DEADLINE, etcd.status(&member)).await {
            Ok(Ok(status)) => return Ok((format!("{:x}", status.cluster_id), status.revision)),
            Ok(Err(e)) => last = e,
            Err(_) => last = PortError::new(ErrorCode::Timeout, format!("etcd member {member} does not answer")),
        }
    }
    Err(last)
}

async fn new_base(request: &ShipRequest<'_>, cluster_id: &str, why: &str) -> PortResult<Place> {
    let manifest = request.new_base.take().await?;
    (request.event)(ShipEvent::NewBase { snapshot: manifest.id.clone(), why: why.to_owned() });
    if manifest.etcd_cluster_id != cluster_id {
        let message = "the snapshot is of another etcd cluster than the one that is watched";
        return Err(PortError::new(ErrorCode::Untrusted, message).hint("start `hk-dr log ship` again"));
    }
    Ok(Place { cluster_id: cluster_id.to_owned(), covered: manifest.revision, follows: Follows::Snapshot(manifest.id) })
}

struct Shipper<'a> {
    request: &'a ShipRequest<'a>,
    epoch: u64,
    cluster_id: String,
    follows: Follows,
    collector: Collector,
    /// When the oldest change that is not handed over yet came.
    oldest: Option<Instant>,
    known_leases: HashSet<i64>,
    /// Index of the member that is watched.
    member: usize,
    /// A batch was taken and is not handed over: were it lost, later ones must not go out.
    half_done: bool,
    told_away: bool,
    work: mpsc::Sender<Work>,
}

impl Shipper<'_> {
    /// Watches one member after the other; ends only with an error that needs a person.
    async fn run(&mut self, mut reports: watch::Receiver<Uploaded>, stopping: &CancellationToken) -> PortResult<()> {
        let members = self.request.etcd.members();
        let mut pause = PAUSES.0;
        loop {
            let member = members.get(self.member % members.len().max(1)).cloned().unwrap_or_default();
            let begun = Instant::now();
            let failed = match self.watch(&member, &mut reports, stopping).await {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Compacted(at)) => {
                    self.close_gap(at).await?;
                    continue;
                }
                Err(e) if matches!(e.code, ErrorCode::Invalid | ErrorCode::Local | ErrorCode::LimitExceeded) => {
                    return Err(e);
                }
                // Whatever is wrong with this member, another may be well.
                Err(e) => e,
            };
            (self.request.event)(ShipEvent::Lost { what: failed.to_string() });
            self.hand_over(Work::Problem(Some(failed.to_string()))).await?;
            self.collector.reconnected();
            // What is whole must not wait until etcd is back.
            self.flush().await?;
            self.member += 1;
            pause = if begun.elapsed() > SILENCE { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    async fn watch(
        &mut self,
        member: &str,
        reports: &mut watch::Receiver<Uploaded>,
        stopping: &CancellationToken,
    ) -> PortResult<Ended> {
        let etcd = self.request.etcd;
        let mut watching = etcd.watch(member, self.collector.resume_at()).await?;
        // A restore, or masters that moved, leave another etcd under the same names.
        let found = format!("{:x}", etcd.status(member).await?.cluster_id);
        if found != self.cluster_id {
            let message =
                format!("etcd member {member} belongs to another etcd cluster now: masters were restored or moved");
            return Err(PortError::new(ErrorCode::Invalid, message)
                .hint("what was shipped before is whole; `hk-dr log ship` begins behind a snapshot of the new one"));
        }
        (self.request.event)(ShipEvent::Watching { member: member.to_owned() });
        self.hand_over(Work::Problem(None)).await?;
        let mut probe_at = Instant::now();
        let mut heard = Instant::now();
        let mut probed = None;
        loop {
            let cut_at = self.oldest.map(|oldest| oldest + self.request.cut.after);
            tokio::select! {
                () = stopping.cancelled() => return Ok(Ended::Stopped),
                news = watching.next() => {
                    heard = Instant::now();
                    match news? {
                        WatchNews::Compacted(at) => return Ok(Ended::Compacted(at)),
                        WatchNews::Progress(revision) => {
                            self.collector.progress(revision);
                            if let Some(at) = probed.take() {
                                self.flush_if_due().await?;
                                self.hand_over(Work::Probe { revision, at }).await?;
                            }
                        }
                        WatchNews::Changes(changes) => {
                            self.collector.push(changes, self.request.clock.now());
                            if self.collector.open_bytes() > OPEN_BYTES_MAX {
                                let message = format!("one revision has more than {OPEN_BYTES_MAX} bytes");
                                return Err(PortError::new(ErrorCode::LimitExceeded, message));
                            }
                            self.oldest.get_or_insert(heard);
                            // Says whether the last revision is whole.
                            if cut_at.is_none() {
                                watching.ask_progress().await?;
                            }
                        }
                    }
                    self.flush_if_due().await?;
                }
                () = sleep_until(cut_at), if cut_at.is_some() => {
                    self.flush().await?;
                    if self.collector.open_bytes() > 0 {
                        watching.ask_progress().await?;
                        self.oldest = Some(Instant::now());
                    }
                }
                () = tokio::time::sleep_until(probe_at) => {
                    probed = Some(self.probe(member, watching.as_mut()).await?);
                    probe_at = Instant::now() + PROBE_EVERY.min(self.request.cut.after);
                    if heard.elapsed() > SILENCE {
                        let message = format!("etcd member {member} says nothing on its watch");
                        return Err(PortError::new(ErrorCode::Timeout, message));
                    }
                }
                changed = reports.changed() => {
                    // The uploader's end is seen by whoever started it.
                    if changed.is_ok() {
                        self.tell(reports);
                    } else {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    /// Everything committed before the time that is returned is known to this member, which is then asked for its progress.
    /// A member that is cut off from the others fails here.
    async fn probe(&self, member: &str, watching: &mut dyn ChangeWatch) -> PortResult<jiff::Timestamp> {
        let at = self.request.clock.now();
        match timeout(PROBE_DEADLINE, self.request.etcd.get(member, PROBE_KEY)).await {
            Ok(read) => read.map(|_| ())?,
            Err(_) => {
                let message = format!("etcd member {member} does not answer a read: it may have no leader");
                return Err(PortError::new(ErrorCode::Timeout, message));
            }
        }
        watching.ask_progress().await?;
        Ok(at)
    }

    fn tell(&mut self, reports: &mut watch::Receiver<Uploaded>) {
        let now = reports.borrow_and_update().clone();
        let away = now.away.is_some();
        if let Some(why) = now.away.filter(|_| !self.told_away) {
            (self.request.event)(ShipEvent::BucketAway { why, spooled_bytes: now.spooled_bytes });
        } else if self.told_away && !away {
            (self.request.event)(ShipEvent::BucketBack);
        }
        self.told_away = away;
    }

    async fn flush_if_due(&mut self) -> PortResult<()> {
        let full = self.collector.ready_bytes() >= self.request.cut.bytes;
        let late = self.oldest.is_some_and(|oldest| oldest.elapsed() >= self.request.cut.after);
        if full || late { self.flush().await } else { Ok(()) }
    }

    /// Seals all whole revisions and hands them over.
    async fn flush(&mut self) -> PortResult<()> {
        if self.half_done {
            return Ok(());
        }
        self.oldest = (self.collector.open_bytes() > 0).then(Instant::now);
        let Some(mut batch) = self.collector.cut() else { return Ok(()) };
        self.half_done = true;
        self.add_leases(&mut batch).await;
        let name = SegmentName { epoch: self.epoch, first: batch.first, last: batch.last };
        let head = Head {
            format: segment::FORMAT,
            cluster: self.request.cluster.to_owned(),
            etcd_cluster_id: self.cluster_id.clone(),
            epoch: self.epoch,
            first: batch.first,
            last: batch.last,
            follows: self.follows.clone(),
            written_at: self.request.clock.now(),
            hk_dr_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let recipients = self.request.recipients.clone();
        let sealing = tokio::task::spawn_blocking(move || {
            let plain = segment::encode(&head, &batch.records)?;
            seal_small(&plain, &recipients)
        });
        let (sealed, stored) =
            sealing.await.map_err(|e| PortError::new(ErrorCode::Local, format!("sealing a segment died: {e}")))??;
        self.follows = Follows::Segment { key: name.key(self.request.cluster), sha256: stored.sha256 };
        self.hand_over(Work::Segment { name, sealed }).await?;
        self.half_done = false;
        Ok(())
    }

    async fn hand_over(&self, work: Work) -> PortResult<()> {
        if self.work.send(work).await.is_err() {
            // The uploader has ended; its error is the one that counts, and whoever started it has it.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Adds the granted times to live of leases that are new to it. A lease that is gone by now has none; neither has one
    /// that cannot be asked for: its keys get a time to live of their own when the state is materialized.
    async fn add_leases(&mut self, batch: &mut Batch) {
        if self.known_leases.len() > LEASES_KNOWN_MAX {
            self.known_leases.clear();
        }
        let members = self.request.etcd.members();
        let Some(member) = members.get(self.member % members.len().max(1)) else { return };
        let new: Vec<i64> = batch.leases.iter().copied().filter(|id| !self.known_leases.contains(id)).collect();
        let etcd = self.request.etcd;
        let questions: Vec<_> =
            new.into_iter().map(|id| async move { (id, etcd.lease_ttl(member, id).await) }.boxed()).collect();
        let mut answers = futures::stream::iter(questions).buffer_unordered(LEASE_QUESTIONS);
        let deadline = Instant::now() + PROBE_DEADLINE;
        while let Ok(Some((id, answer))) = tokio::time::timeout_at(deadline, answers.next()).await {
            if let Ok(Some(ttl)) = answer {
                segment::push_lease(&mut batch.records, id, ttl.granted_seconds);
                self.known_leases.insert(id);
            }
        }
    }

    /// etcd no longer has what comes next: a new snapshot has it, and the log goes on behind that.
    async fn close_gap(&mut self, compacted: i64) -> PortResult<()> {
        self.collector.reconnected();
        self.flush().await?;
        let why =
            format!("etcd was compacted at revision {compacted}, and the log ends at {}", self.collector.resume_at());
        self.hand_over(Work::Problem(Some(why.clone()))).await?;
        let mut pause = PAUSES.0;
        let place = loop {
            match new_base(self.request, &self.cluster_id, &why).await {
                Err(e) if e.class() == ErrorClass::Transient => {
                    (self.request.event)(ShipEvent::Lost { what: e.to_string() });
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                other => break other?,
            }
        };
        self.collector = Collector::new(place.covered);
        self.follows = place.follows;
        self.hand_over(Work::Problem(None)).await
    }
}

enum Ended {
    Stopped,
    Compacted(i64),
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
