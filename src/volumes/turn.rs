//! Nothing is removed while something is added. restic's own locks would have to be deleted by whoever adds, who must not be
//! able to; so whoever adds holds a lease for its volume, whoever removes holds one for all, and both look for the other
//! after they have theirs. Whoever only reads needs no right to write: it looks before and afterwards.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::restic::Repository;
use crate::lease::{Claim, KeptLease, Lease, LeaseDocument, LeaseError, Pace, look};
use crate::ports::{Clock, ErrorClass, ErrorCode, ObjectStore, PortError, PortResult};

/// Held by whoever removes.
const REMOVING: &str = "volumes-prune";
/// Held by whoever adds, with the volume's name behind it.
const ADDING: &str = "volume-";
/// How long a turn lasts after its holder's last sign of life.
const TTL: Duration = Duration::from_secs(90);
/// How long one is waited for: longer than a dead holder's lasts.
const WAIT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 180 });
/// Between two looks; different ones, so that two who give way to each other don't do it for ever.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_millis(2300));

/// A turn at a cluster's repository, until it is released or dropped.
pub(super) struct Turn {
    /// None: the bucket that keeps leases is away, or keeps no conditions. Nobody can begin to remove there either.
    lease: Option<KeptLease>,
    store: Arc<dyn ObjectStore>,
    cluster: String,
    clock: Arc<dyn Clock>,
}

/// What was known of removals when reading began.
pub(super) struct Before(Option<Option<u64>>);

/// Somebody else's turn.
fn busy(what: &str, holder: &LeaseDocument) -> PortError {
    let since = holder.since.strftime("%H:%M:%S UTC");
    PortError::new(ErrorCode::Locked, format!("{what} by {} since {since} ({})", holder.holder, holder.purpose))
        .hint("nothing was begun; run it again when that has ended")
}

/// A bucket that cannot say: it is away, or has no conditional writes, without which nobody gets a lease.
fn cannot_say(error: &PortError) -> bool {
    error.class() == ErrorClass::Transient || error.code == ErrorCode::Invalid
}

impl Turn {
    /// To add a backup of a volume.
    pub async fn to_add(repository: &Repository, volume: &str, clock: &Arc<dyn Clock>) -> PortResult<Arc<Self>> {
        let deadline = Instant::now() + WAIT;
        let claim = repository.claim(&format!("{ADDING}{volume}"), &format!("backing up volume {volume}"));
        loop {
            let held = match Self::take(repository, &claim, clock).await {
                Ok(turn) => match repository.removing(clock.as_ref()).await {
                    Ok(None) => return Ok(Arc::new(turn)),
                    Ok(Some(holder)) => {
                        turn.let_go().await;
                        busy("the backups of volumes are pruned", &holder)
                    }
                    Err(e) if cannot_say(&e) => return Ok(Arc::new(turn)),
                    Err(e) => return Err(e),
                },
                Err(LeaseError::Held(holder)) => busy(&format!("volume {volume} is being backed up"), &holder),
                Err(LeaseError::Port(e)) if cannot_say(&e) => {
                    return Ok(Arc::new(Self::of(None, repository, clock)));
                }
                Err(LeaseError::Port(e)) => return Err(e),
            };
            if Instant::now() + PAUSE.0 >= deadline {
                return Err(held);
            }
            sleep(PAUSE.0).await;
        }
    }

    /// To remove. Refused where the bucket keeps no conditions.
    pub async fn to_remove(repository: &Repository, clock: &Arc<dyn Clock>) -> PortResult<Arc<Self>> {
        let deadline = Instant::now() + WAIT;
        let claim = repository.claim(REMOVING, "pruning backups of volumes");
        loop {
            let mut held = repository.adding(clock.as_ref()).await?;
            if held.is_none() {
                match Self::take(repository, &claim, clock).await {
                    Ok(turn) => match repository.adding(clock.as_ref()).await? {
                        None => return Ok(Arc::new(turn)),
                        Some(holder) => {
                            turn.let_go().await;
                            held = Some(holder);
                        }
                    },
                    Err(LeaseError::Held(holder)) => held = Some(*holder),
                    Err(LeaseError::Port(e)) => return Err(e),
                }
            }
            if Instant::now() + PAUSE.1 >= deadline
                && let Some(holder) = held
            {
                return Err(busy("the backups of volumes are worked on", &holder));
            }
            sleep(PAUSE.1).await;
        }
    }

    async fn take(repository: &Repository, claim: &Claim, clock: &Arc<dyn Clock>) -> Result<Self, LeaseError> {
        let lease = Lease::acquire(repository.store.as_ref(), claim, clock.as_ref()).await?;
        let pace = Pace { wait: TTL, ..Pace::default() };
        let kept = KeptLease::keep(lease, Arc::clone(&repository.store), Arc::clone(clock), pace);
        Ok(Self::of(Some(kept), repository, clock))
    }

    fn of(lease: Option<KeptLease>, repository: &Repository, clock: &Arc<dyn Clock>) -> Self {
        let (store, cluster) = (Arc::clone(&repository.store), repository.cluster.clone());
        Self { lease, store, cluster, clock: Arc::clone(clock) }
    }

    /// Whether it still is this holder's turn.
    pub async fn check(&self) -> PortResult<()> {
        if let Some(lease) = &self.lease {
            return lease.check(|_| {}).await;
        }
        match look(self.store.as_ref(), &self.cluster, REMOVING).await {
            Ok(Some(holder)) if holder.is_held(self.clock.now()) => {
                let busy = busy("the backups of volumes are pruned", &holder);
                Err(PortError { code: ErrorCode::Conflict, ..busy })
            }
            _ => Ok(()),
        }
    }

    async fn let_go(self) {
        if let Some(lease) = self.lease {
            // What can't be released runs out by itself.
            let _ = lease.release().await;
        }
    }

    /// Ends it; whatever is still being answered keeps it until it runs out.
    pub async fn release(self: Arc<Self>) {
        if let Ok(turn) = Arc::try_unwrap(self) {
            turn.let_go().await;
        }
    }
}

impl Repository {
    fn claim(&self, name: &str, purpose: &str) -> Claim {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Claim {
            cluster: self.cluster.clone(),
            name: name.to_owned(),
            holder: format!("{}/{}", host.trim(), std::process::id()),
            // Each turn excludes every other, also of the same process.
            seat: format!("{:032x}", rand::random::<u128>()),
            purpose: purpose.to_owned(),
            ttl: TTL,
            by_force: false,
        }
    }

    /// Who removes now.
    async fn removing(&self, clock: &dyn Clock) -> PortResult<Option<LeaseDocument>> {
        let found = look(self.store.as_ref(), &self.cluster, REMOVING).await?;
        Ok(found.filter(|holder| holder.is_held(clock.now())))
    }

    /// Somebody who adds now.
    async fn adding(&self, clock: &dyn Clock) -> PortResult<Option<LeaseDocument>> {
        let prefix = format!("{}/leases/", self.cluster);
        for object in self.store.list(&format!("{prefix}{ADDING}")).await? {
            let name = object.key.strip_prefix(&prefix).and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name else { continue };
            if let Some(holder) = look(self.store.as_ref(), &self.cluster, name).await?
                && holder.is_held(clock.now())
            {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// Waits until nobody removes.
    pub(super) async fn before_reading(&self, clock: &dyn Clock) -> PortResult<Before> {
        let deadline = Instant::now() + WAIT;
        loop {
            match look(self.store.as_ref(), &self.cluster, REMOVING).await {
                Ok(Some(holder)) if holder.is_held(clock.now()) => {
                    if Instant::now() + PAUSE.0 >= deadline {
                        return Err(busy("the backups of volumes are pruned", &holder));
                    }
                }
                Ok(found) => return Ok(Before(Some(found.map(|holder| holder.token)))),
                Err(e) if cannot_say(&e) => return Ok(Before(None)),
                Err(e) => return Err(e),
            }
            sleep(PAUSE.0).await;
        }
    }

    /// What failed while somebody removed says nothing about a backup.
    pub(super) async fn undisturbed(&self, before: &Before, error: PortError) -> PortError {
        let now = look(self.store.as_ref(), &self.cluster, REMOVING).await;
        let (Some(before), Ok(now)) = (before.0, now) else { return error };
        if now.map(|holder| holder.token) == before {
            return error;
        }
        PortError::new(ErrorCode::Locked, format!("backups of volumes were pruned meanwhile: {}", error.message))
            .hint("nothing was learned or recorded; run it again")
    }
}
