use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Lease;
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult};

/// How long one renewal may take.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// How often a kept lease asks the bucket.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A confirmation in the bucket counts as fresh for so long.
    pub fresh: Duration,
    /// Between two attempts while the bucket is away.
    pub try_every: Duration,
    /// How long a holder whose lease ran out waits for the bucket before it gives up.
    pub wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { fresh: seconds(2), try_every: seconds(1), wait: seconds(900) }
    }
}

/// A lease that renews itself in the background until it is released, lost or dropped.
pub struct KeptLease {
    inner: Arc<Inner>,
    renewals: tokio::task::JoinHandle<()>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    held: Mutex<Held>,
}

struct Held {
    lease: Lease,
    confirmed: Instant,
    /// Another has taken it: final.
    lost: Option<PortError>,
}

impl Held {
    async fn renew(&mut self, inner: &Inner) -> PortResult<()> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let renewal = self.lease.renew(inner.store.as_ref(), inner.clock.as_ref());
        match tokio::time::timeout(RENEW_WITHIN, renewal).await {
            Ok(Ok(())) => {
                self.confirmed = Instant::now();
                Ok(())
            }
            Ok(Err(error)) => {
                if error.code == ErrorCode::Conflict {
                    self.lost = Some(error.clone());
                }
                Err(error)
            }
            Err(_) => Err(PortError::new(ErrorCode::Timeout, "the bucket does not answer")),
        }
    }
}

impl KeptLease {
    /// Keeps a lease that was just acquired. Needs a runtime.
    pub fn keep(lease: Lease, store: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, pace: Pace) -> Self {
        let every = lease.ttl / 3;
        let held = Mutex::new(Held { lease, confirmed: Instant::now(), lost: None });
        let inner = Arc::new(Inner { store, clock, pace, held });
        let kept = Arc::clone(&inner);
        let renewals = tokio::spawn(async move {
            let mut pause = every;
            loop {
                tokio::time::sleep(pause).await;
                let mut held = kept.held.lock().await;
                // A bucket that is away is asked again soon; whoever is about to act hears of it from `check`.
                pause = match held.renew(&kept).await {
                    Ok(()) => every,
                    Err(_) if held.lost.is_some() => return,
                    Err(_) => kept.pace.try_every.min(every),
                };
            }
        });
        Self { inner, renewals }
    }

    /// The fencing token.
    pub async fn token(&self) -> u64 {
        self.inner.held.lock().await.lease.token()
    }

    /// Whether the holder may begin something now: asks the bucket, unless it was asked a moment ago. A bucket that does not
    /// answer is no obstacle while the lease lasts; after that this waits for the bucket, and ends with its error.
    ///
    /// # Errors
    /// `Conflict`: another has taken over.
    pub async fn check(&self, mut waiting: impl FnMut(&PortError) + Send) -> PortResult<()> {
        let pace = self.inner.pace;
        let end = Instant::now() + pace.wait;
        let mut said = false;
        loop {
            let mut held = self.inner.held.lock().await;
            if held.lost.is_none() && held.confirmed.elapsed() < pace.fresh {
                return Ok(());
            }
            let error = match held.renew(&self.inner).await {
                Ok(()) => return Ok(()),
                Err(error) if held.lost.is_some() => return Err(error),
                Err(_) if held.lease.holds(self.inner.clock.now()) => return Ok(()),
                Err(error) => error,
            };
            drop(held);
            if Instant::now() + pace.try_every >= end {
                return Err(error
                    .context("the lease on the cluster has run out and can't be renewed")
                    .hint("no further step was begun; when the bucket answers again, `hk-dr resume` continues"));
            }
            if !std::mem::replace(&mut said, true) {
                waiting(&error);
            }
            tokio::time::sleep(pace.try_every).await;
        }
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// Those of the bucket; the lease then runs out by itself.
    pub async fn release(self) -> PortResult<()> {
        self.renewals.abort();
        let mut held = self.inner.held.lock().await;
        if held.lost.is_some() {
            return Ok(());
        }
        let (store, clock) = (self.inner.store.as_ref(), self.inner.clock.as_ref());
        let release = held.lease.let_go(store, clock);
        tokio::time::timeout(RENEW_WITHIN, release)
            .await
            .unwrap_or_else(|_| Err(PortError::new(ErrorCode::Timeout, "the bucket does not answer")))
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.renewals.abort();
    }
}
