//! The recovery point, measured: a key is written through etcd's API and looked for in the bucket.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::index::Index;
use super::segment::{Record, STORED_BYTES_MAX};
use super::{SegmentName, read};
use crate::backup::{Identities, Logged};
use crate::bolt::decode;
use crate::ports::{Clock, ErrorCode, Etcd, ObjectStore, PortError, PortResult};

/// Below which canaries are written. Kubernetes' own keys are below `/registry`.
pub const CANARY_KEY: &[u8] = b"/hk-dr/canary/recovery-point";
/// How often the bucket is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was measured, in milliseconds from before the write to the change's being in the bucket, read back and found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CanaryReport {
    pub canaries: usize,
    pub min_ms: u64,
    pub median_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
    /// Each segment was opened and the value found in it; otherwise only its name was seen.
    pub read_back: bool,
}

/// Writes canaries one after the other and waits for each. `deadline` is for each of them.
pub async fn canary(
    etcd: &dyn Etcd,
    store: &dyn ObjectStore,
    cluster: &str,
    identities: Option<&Identities>,
    clock: &dyn Clock,
    count: usize,
    deadline: Duration,
) -> PortResult<CanaryReport> {
    let mut took = Vec::with_capacity(count);
    for number in 0..count {
        let value = format!("{} {number} {:016x}", clock.now(), rand::random::<u64>());
        let begun = Instant::now();
        let revision = put(etcd, value.as_bytes()).await?;
        let segment = find(store, cluster, revision, begun + deadline).await?;
        if let Some(identities) = identities {
            look_inside(store, cluster, &segment, identities, revision, value.as_bytes()).await?;
        }
        took.push(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
    took.sort_unstable();
    let at = |share: f64| {
        let index = (took.len() as f64 * share).ceil() as usize;
        took.get(index.clamp(1, took.len().max(1)) - 1).copied().unwrap_or_default()
    };
    Ok(CanaryReport {
        canaries: took.len(),
        min_ms: at(0.0),
        median_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        read_back: identities.is_some(),
    })
}

async fn put(etcd: &dyn Etcd, value: &[u8]) -> PortResult<i64> {
    let mut last = PortError::new(ErrorCode::Invalid, "no etcd member is declared");
    for member in etcd.members() {
        match etcd.put(&member, CANARY_KEY, value).await {
            Ok(revision) => return Ok(revision),
            Err(e) => last = e,
        }
    }
    Err(last.context("write a canary"))
}

async fn find(store: &dyn ObjectStore, cluster: &str, revision: i64, until: Instant) -> PortResult<SegmentName> {
    loop {
        let index = Index::load(store, cluster).await?;
        let has = |(name, _): &&(SegmentName, u64)| (name.first..=name.last).contains(&revision);
        if let Some((name, _)) = index.segments.iter().filter(has).max_by_key(|(name, _)| name.epoch) {
            return Ok(name.clone());
        }
        if Instant::now() >= until {
            let message = format!("the canary at revision {revision} did not come into the bucket in time");
            return Err(PortError::new(ErrorCode::Timeout, message)
                .hint("is `hk-dr log ship` running, and what does `hk-dr log status` say?"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look_inside(
    store: &dyn ObjectStore,
    cluster: &str,
    name: &SegmentName,
    identities: &Identities,
    revision: i64,
    value: &[u8],
) -> PortResult<()> {
    let key = name.key(cluster);
    let sealed = store.get(&key, STORED_BYTES_MAX).await?;
    let (_, records) = read::open(&key, &sealed, &[], identities)?;
    let found = records.iter().any(|record| match record {
        Record::Logged(Logged::Change(change)) if change.revision.main == revision => {
            decode(&change.value).is_some_and(|kv| kv.key == CANARY_KEY && kv.value == value)
        }
        _ => false,
    });
    if found {
        return Ok(());
    }
    Err(PortError::new(
        ErrorCode::Corrupt,
        format!("{key} should hold the canary at revision {revision}, but does not"),
    )
    .hint("do not rely on this log: take a snapshot now (`hk-dr snapshot`) and look at the writer's messages"))
}
