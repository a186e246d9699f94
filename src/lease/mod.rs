//! Leases in the bucket: one holder at a time of a named thing, by conditional puts, with a fencing token that only grows.
//!
//! Whoever acquires a lease that is free, was released, or has run out, gets the next token. The holder renews it; when it
//! can't, it holds the lease no longer than until [`Lease::holds`] says no, which is before anybody else may take it:
//! a sixth of the lease's time lies between, for clocks that differ. The time is always a parameter.

mod document;
mod kept;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

pub use document::{put_document, read_document};
pub use kept::{KeptLease, Pace};

/// Format of the document.
pub const LEASE_FORMAT: u32 = 1;
const DOCUMENT_BYTES_MAX: u64 = 64 << 10;
/// Attempts to acquire while others try the same.
const ATTEMPTS: u32 = 5;

/// `<cluster>/leases/<name>.json`: who holds it, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDocument {
    pub format: u32,
    pub name: String,
    /// Grows with each acquisition, over all holders.
    pub token: u64,
    /// Who, for people: user and machine.
    pub holder: String,
    /// Tells holders apart: one place that keeps state, which a second process of the same place can take over from a dead
    /// one without waiting.
    pub seat: String,
    /// What it is held for: `runbook run masters-recreate`.
    pub purpose: String,
    pub since: Timestamp,
    pub renewed_at: Timestamp,
    /// From then on anybody may take it.
    pub expires_at: Timestamp,
    /// The holder has let go of it.
    pub released: bool,
}

impl LeaseDocument {
    /// Whether somebody holds it now.
    pub fn is_held(&self, now: Timestamp) -> bool {
        !self.released && now < self.expires_at
    }
}

/// Where the lease of this name is kept.
pub fn lease_key(cluster: &str, name: &str) -> String {
    format!("{cluster}/leases/{name}.json")
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Claim {
    pub cluster: String,
    /// The thing that only one may hold: `operator`, `service`.
    pub name: String,
    pub holder: String,
    /// See [`LeaseDocument::seat`].
    pub seat: String,
    pub purpose: String,
    /// How long it lasts without a renewal.
    pub ttl: Duration,
    /// Take it from whoever holds it, whose next renewal then fails. Only for a person who knows that the holder is dead.
    pub by_force: bool,
}

/// Why a lease was not acquired.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError {
    /// Another holds it.
    #[error(
        "{} works on this ({}), since {}, and may until {}",
        .0.holder, .0.purpose, second(.0.since), second(.0.expires_at)
    )]
    Held(Box<LeaseDocument>),
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Fractions of seconds help nobody at night.
fn second(at: Timestamp) -> Timestamp {
    at.round(jiff::Unit::Second).unwrap_or(at)
}

/// A lease as its holder has it.
#[derive(Debug)]
pub struct Lease {
    key: String,
    etag: String,
    ttl: Duration,
    document: LeaseDocument,
}

/// Reads a lease without touching it.
pub async fn look(store: &dyn ObjectStore, cluster: &str, name: &str) -> PortResult<Option<LeaseDocument>> {
    Ok(read(store, &lease_key(cluster, name)).await?.map(|(document, _)| document))
}

async fn read(store: &dyn ObjectStore, key: &str) -> PortResult<Option<(LeaseDocument, String)>> {
    let found: Option<(LeaseDocument, String)> = read_document(store, key, DOCUMENT_BYTES_MAX).await.map_err(|e| {
        if e.code != ErrorCode::Corrupt {
            return e;
        }
        e.hint(format!("nothing was touched; make sure that nobody works on the cluster, then remove {key}"))
    })?;
    if let Some((document, _)) = &found
        && document.format != LEASE_FORMAT
    {
        let message = format!("{key} has format {}, this hk-dr knows {LEASE_FORMAT}", document.format);
        return Err(PortError::new(ErrorCode::Invalid, message)
            .hint("nothing was touched; use the hk-dr that holds the lease, or one as new"));
    }
    Ok(found)
}

impl Lease {
    /// Acquires the lease if nobody else holds it, and makes sure that the bucket keeps conditions: a lease that everybody
    /// gets is worse than none.
    ///
    /// # Errors
    /// [`LeaseError::Held`] by whom; what the store answers.
    pub async fn acquire(store: &dyn ObjectStore, claim: &Claim, clock: &dyn Clock) -> Result<Self, LeaseError> {
        let key = lease_key(&claim.cluster, &claim.name);
        for _ in 0..ATTEMPTS {
            let there = read(store, &key).await?;
            let now = clock.now();
            if let Some((document, _)) = &there
                && document.is_held(now)
                && document.seat != claim.seat
                && !claim.by_force
            {
                return Err(LeaseError::Held(Box::new(document.clone())));
            }
            let (token, condition) = match there {
                Some((document, etag)) => (document.token + 1, PutCondition::Match(etag)),
                None => (1, PutCondition::Absent),
            };
            let document = LeaseDocument {
                format: LEASE_FORMAT,
                name: claim.name.clone(),
                token,
                holder: claim.holder.clone(),
                seat: claim.seat.clone(),
                purpose: claim.purpose.clone(),
                since: now,
                renewed_at: now,
                expires_at: after(now, claim.ttl),
                released: false,
            };
            let etag = match put_document(store, &key, &document, condition).await {
                Ok(etag) => etag,
                // Someone was quicker, or an answer was lost: what is there now tells.
                Err(e) if matches!(e.code, ErrorCode::Conflict | ErrorCode::NotFound | ErrorCode::Timeout) => {
                    match read(store, &key).await? {
                        Some((there, etag)) if there == document => etag,
                        _ => continue,
                    }
                }
                Err(e) => return Err(e.into()),
            };
            let lease = Self { key, etag, ttl: claim.ttl, document };
            lease.conditions_hold(store).await?;
            return Ok(lease);
        }
        Err(PortError::new(ErrorCode::Locked, format!("others take the lease {key} again and again"))
            .hint("nothing was touched; run it again in a moment")
            .into())
    }

    /// A put that must be refused, because the object exists.
    async fn conditions_hold(&self, store: &dyn ObjectStore) -> PortResult<()> {
        match put_document(store, &self.key, &self.document, PutCondition::Absent).await {
            Err(e) if e.code == ErrorCode::Conflict => Ok(()),
            Err(e) => Err(e),
            Ok(_) => {
                let message = format!("{} ignores conditions on writes (If-None-Match)", store.name());
                Err(PortError::new(ErrorCode::Invalid, message).hint(
                    "nothing was touched: two operators could work against each other there; use a bucket that keeps \
                     conditions",
                ))
            }
        }
    }

    /// The fencing token: whoever acquires the lease after this one has a larger one.
    pub fn token(&self) -> u64 {
        self.document.token
    }

    /// As it stands in the bucket, if nobody took it.
    pub fn document(&self) -> &LeaseDocument {
        &self.document
    }

    /// Whether it is certainly still this holder's.
    pub fn holds(&self, now: Timestamp) -> bool {
        after(now, self.ttl / 6) < self.document.expires_at
    }

    /// Prolongs it. One that ran out meanwhile is still this holder's if nobody has taken it.
    ///
    /// # Errors
    /// `Conflict`: another holder has it, with a larger token.
    pub async fn renew(&mut self, store: &dyn ObjectStore, clock: &dyn Clock) -> PortResult<()> {
        let now = clock.now();
        let renewed = LeaseDocument {
            renewed_at: now,
            expires_at: after(now, self.ttl),
            released: false,
            ..self.document.clone()
        };
        self.put(store, renewed).await
    }

    /// Lets go of it: anybody may take it at once.
    ///
    /// # Errors
    /// As [`Lease::renew`]. It then runs out by itself.
    pub async fn release(mut self, store: &dyn ObjectStore, clock: &dyn Clock) -> PortResult<()> {
        self.let_go(store, clock).await
    }

    async fn let_go(&mut self, store: &dyn ObjectStore, clock: &dyn Clock) -> PortResult<()> {
        // All that the bucket had of the cluster was deleted: there is nothing to let go of.
        if matches!(store.head(&self.key).await, Err(e) if e.code == ErrorCode::NotFound) {
            return Ok(());
        }
        let now = clock.now();
        let released = LeaseDocument { renewed_at: now, expires_at: now, released: true, ..self.document.clone() };
        self.put(store, released).await
    }

    async fn put(&mut self, store: &dyn ObjectStore, document: LeaseDocument) -> PortResult<()> {
        let mut condition = PutCondition::Match(self.etag.clone());
        for _ in 0..ATTEMPTS {
            match put_document(store, &self.key, &document, condition).await {
                Ok(etag) => {
                    (self.etag, self.document) = (etag, document);
                    return Ok(());
                }
                Err(e) if matches!(e.code, ErrorCode::Conflict | ErrorCode::NotFound) => {
                    condition = match read(store, &self.key).await? {
                        // Ours: an answer was lost, and the repetition met what the first attempt wrote.
                        Some((there, etag)) if there.token == document.token && there.seat == document.seat => {
                            PutCondition::Match(etag)
                        }
                        Some((there, _)) => return Err(self.superseded(&there)),
                        // Removed behind our back: ours again if we are the first to write it.
                        None => PutCondition::Absent,
                    };
                }
                Err(e) => return Err(e),
            }
        }
        Err(PortError::new(ErrorCode::Locked, format!("{} changes faster than it can be renewed", self.key)))
    }

    fn superseded(&self, by: &LeaseDocument) -> PortError {
        let message = format!(
            "{} has taken over ({}, token {}) what this process held with token {}",
            by.holder, by.purpose, by.token, self.document.token
        );
        PortError::new(ErrorCode::Conflict, message)
            .hint("nothing further was begun here; leave it to them: `hk-dr runs` shows how far they are")
    }
}

fn after(now: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    now.saturating_add(duration).unwrap_or(Timestamp::MAX)
}
