//! Makes sure that nobody else changes the cluster while this process does.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::connect::Connected;
use super::{CliError, Context, ExitKind};
use crate::engine::Gate;
use crate::journal::Mirror;
use crate::lease::{Claim, KeptLease, Lease, LeaseError, Pace, look};
use crate::plan::Step;
use crate::ports::PortResult;

/// The lease's name.
const NAME: &str = "operator";
/// How long a lease lasts after its holder's last sign of life, in seconds, and what it may be set to.
const TTL_SECONDS: u64 = 90;
const TTL_RANGE: std::ops::RangeInclusive<u64> = 6..=3600;
const TTL_VARIABLE: &str = "HK_DR_LEASE_SECONDS";

/// The right to change one cluster, from everywhere: against other places by a lease in the bucket, against other processes
/// of this place by a lock on a file.
pub struct Held {
    lease: Arc<KeptLease>,
    _lock: File,
}

/// Acquires it. `take_over`: from whoever holds it elsewhere.
pub async fn hold(context: &Context, connected: &Connected, purpose: &str, take_over: bool) -> Result<Held, CliError> {
    connected.buckets.ensure().await?;
    let world = &connected.world;
    let cluster = &connected.declared.cluster.name;
    let dir = context.state_dir().join(cluster);
    let lock = lock(&dir)?;
    let Some(lock) = lock else {
        let who = match look(world.store.as_ref(), cluster, NAME).await {
            Ok(Some(document)) => format!("{}, since {}", document.purpose, document.since),
            _ => "it has just begun".to_owned(),
        };
        let message = format!("another hk-dr process with this state directory changes cluster {cluster} ({who})");
        return Err(CliError::new(ExitKind::Failed, message)
            .hint("nothing was touched; wait until it has ended, `hk-dr runs` shows how far it is"));
    };
    let claim = Claim {
        cluster: cluster.clone(),
        name: NAME.into(),
        holder: super::runbook::who(),
        seat: seat(&dir)?,
        purpose: purpose.to_owned(),
        ttl: ttl()?,
        by_force: take_over,
    };
    let lease = Lease::acquire(world.store.as_ref(), &claim, world.clock.as_ref()).await.map_err(|e| match e {
        LeaseError::Port(error) => CliError::from(error),
        held @ LeaseError::Held(_) => CliError::new(ExitKind::Failed, format!("cluster {cluster}: {held}"))
            .hint("nothing was touched: two operators at once would work against each other")
            .hint("wait until they are done; a process that died loses its right at the time named above")
            .hint("if you know that it is dead: `hk-dr resume --take-over` continues its run at once"),
    })?;
    let lease = KeptLease::keep(lease, Arc::clone(&world.store), Arc::clone(&world.clock), Pace::default());
    Ok(Held { lease: Arc::new(lease), _lock: lock })
}

impl Held {
    /// What the engine asks before each step.
    pub fn gate(&self, context: &Context, mirror: Option<Arc<Mirror>>) -> Arc<dyn Gate> {
        let (lease, said) = (Arc::clone(&self.lease), AtomicBool::new(context.global.quiet));
        Arc::new(StillOurs { lease, mirror, said })
    }

    /// Lets go of it. What can't be released runs out by itself: nobody needs to hear of it.
    pub async fn release(self) {
        if let Ok(lease) = Arc::try_unwrap(self.lease) {
            let _ = lease.release().await;
        }
    }
}

/// The cluster is still ours, and what was done so far is known outside of this machine.
struct StillOurs {
    lease: Arc<KeptLease>,
    mirror: Option<Arc<Mirror>>,
    /// That the bucket is away was said.
    said: AtomicBool,
}

#[async_trait]
impl Gate for StillOurs {
    async fn enter(&self, _: &Step) -> PortResult<()> {
        let say = |text: String| {
            if !self.said.swap(true, Ordering::SeqCst) {
                eprintln!("{text}");
            }
        };
        self.lease.check(|error| say(format!("waiting for the bucket before the next step: {error}"))).await?;
        if let Some(mirror) = &self.mirror
            && let Some(away) = mirror.settle().await?
        {
            // This machine's journal is the one that counts, and a recovery must not wait for a bucket.
            say(format!("warning: the run goes on, but its journal is not in the bucket now and will follow: {away}"));
        }
        Ok(())
    }
}

/// None: another process has it.
fn lock(dir: &Path) -> Result<Option<File>, CliError> {
    let path = dir.join("operator.lock");
    let failed = |e: std::io::Error| CliError::new(ExitKind::Failed, format!("locking {}: {e}", path.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Names this state directory. Only whoever has the lock asks.
fn seat(dir: &Path) -> Result<String, CliError> {
    let path = dir.join("seat");
    let failed = |e: std::io::Error| CliError::new(ExitKind::Failed, format!("writing {}: {e}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let seat = format!("{:032x}", rand::random::<u128>());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
    file.write_all(seat.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(seat)
}

fn ttl() -> Result<Duration, CliError> {
    let Ok(text) = std::env::var(TTL_VARIABLE) else { return Ok(Duration::from_secs(TTL_SECONDS)) };
    match text.parse() {
        Ok(seconds) if TTL_RANGE.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => {
            let (from, to) = (TTL_RANGE.start(), TTL_RANGE.end());
            let message = format!("{TTL_VARIABLE} is `{text}`: it must be a number of seconds from {from} to {to}");
            Err(CliError::new(ExitKind::Usage, message).hint("nothing was touched"))
        }
    }
}
