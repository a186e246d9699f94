//! Removes backups that retention does not keep, and what restic then no longer needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::records::{Entry, MANIFEST};
use super::relay::Deed;
use super::restic::Repository;
use super::turn::Turn;
use crate::backup::{Proof, remove};
use crate::config::RetentionConfig;
use crate::plan::retention::{Decision, SnapshotFacts, Worth, decide_about_volume};
use crate::ports::{Clock, ErrorCode, PortError, PortResult, PutCondition};

/// A snapshot of restic's without a record is a backup that is being made, until it is older than this, in seconds: twice
/// as long as one may last.
const LEFTOVER_AFTER: i64 = 24 * 3600;
const MARK_BYTES_MAX: u64 = 64 << 10;

/// What becomes of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decided {
    pub volume: String,
    #[serde(flatten)]
    pub decision: Decision,
}

/// What is to be removed, and why; nothing has been yet.
#[derive(Debug, Clone, Serialize)]
pub struct Pruning {
    /// By volume, newest first.
    pub decisions: Vec<Decided>,
    /// restic's snapshots that no record names.
    pub leftovers: usize,
    /// An earlier removal was interrupted before restic gave the space back.
    pub unfinished: bool,
    /// Records that cannot be read or believed. While there are any, no leftovers are looked for: they might be theirs.
    pub unreadable: Vec<String>,
    /// Objects of records, what makes a backup one first.
    #[serde(skip)]
    records: Vec<String>,
    /// restic's snapshots.
    #[serde(skip)]
    snapshots: Vec<String>,
}

impl Pruning {
    /// Backups that go.
    pub fn gone(&self) -> usize {
        self.decisions.iter().filter(|decided| !decided.decision.keep).count()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.snapshots.is_empty() && !self.unfinished
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub backups: usize,
    pub leftovers: usize,
    /// By how much the repository became smaller.
    pub freed_bytes: u64,
}

/// `<cluster>/volumes/prune.json`: the last removal.
#[derive(Serialize, Deserialize)]
struct Mark {
    began: Timestamp,
    /// None: restic has not given the space back yet.
    finished: Option<Timestamp>,
}

fn mark_key(cluster: &str) -> String {
    format!("{}/prune.json", super::prefix(cluster))
}

fn facts(entry: &Entry) -> SnapshotFacts {
    SnapshotFacts {
        id: entry.backup.id.clone(),
        taken_at: entry.backup.taken_at,
        worth: match entry.proof {
            Proof::Unproven | Proof::Bad { .. } => Worth::Unread,
            Proof::Verified { .. } => Worth::Verified,
            Proof::Proven { .. } => Worth::Proven,
        },
    }
}

/// Decides about the backups of each volume by itself, as it is decided about snapshots. Touches nothing.
pub async fn plan_pruning(repository: &Repository, policy: &RetentionConfig, now: Timestamp) -> PortResult<Pruning> {
    let records = repository.records();
    let (entries, unreadable) = records.list().await?;
    let mut volumes: BTreeMap<&str, Vec<SnapshotFacts>> = BTreeMap::new();
    for entry in &entries {
        volumes.entry(&entry.backup.volume).or_default().push(facts(entry));
    }
    let mut decisions = Vec::new();
    for (volume, backups) in &volumes {
        let decided = decide_about_volume(policy, backups, now);
        decisions.extend(decided.into_iter().map(|decision| Decided { volume: (*volume).to_owned(), decision }));
    }
    let gone: BTreeSet<&str> = decisions.iter().filter(|d| !d.decision.keep).map(|d| d.decision.id.as_str()).collect();
    let (going, kept): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| gone.contains(entry.backup.id.as_str()));
    let objects = repository.store.list(&records.prefix()).await?;
    let mut keys = Vec::new();
    for entry in &going {
        let manifest = records.key(&entry.backup.id, MANIFEST);
        let below = records.key(&entry.backup.id, "");
        let beside: Vec<String> =
            objects.iter().map(|o| o.key.clone()).filter(|key| key.starts_with(&below) && *key != manifest).collect();
        keys.push(manifest);
        keys.extend(beside);
    }
    let needed: BTreeSet<&str> = kept.iter().map(|entry| entry.backup.snapshot.as_str()).collect();
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.backup.snapshot.as_str()).collect();
    let mut snapshots: Vec<String> =
        going.iter().map(|entry| entry.backup.snapshot.clone()).filter(|id| !needed.contains(id.as_str())).collect();
    let mut leftovers = 0;
    if unreadable.is_empty() {
        let left = left_over(repository, &known, now).await?;
        leftovers = left.len();
        snapshots.extend(left);
    }
    Ok(Pruning {
        leftovers,
        unfinished: is_unfinished(repository).await?,
        unreadable: unreadable.into_iter().map(|e| e.message).collect(),
        records: keys,
        snapshots,
        decisions,
    })
}

/// Old snapshots that no record names: backups that died before they were recorded, and what somebody put there.
async fn left_over(repository: &Repository, known: &BTreeSet<&str>, now: Timestamp) -> PortResult<Vec<String>> {
    let all = repository.snapshots().await?;
    let old = |at: Timestamp| now.as_second() - at.as_second() > LEFTOVER_AFTER;
    Ok(all.into_iter().filter(|s| old(s.time) && !known.contains(s.id.as_str())).map(|s| s.id).collect())
}

async fn is_unfinished(repository: &Repository) -> PortResult<bool> {
    match repository.store.get(&mark_key(&repository.cluster), MARK_BYTES_MAX).await {
        // One that can't be read says nothing: looking once more costs time only.
        Ok(text) => Ok(serde_json::from_slice::<Mark>(&text).map_or(true, |mark| mark.finished.is_none())),
        Err(e) if e.code == ErrorCode::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes it, while nobody adds: records first, then restic's snapshots, then what restic no longer needs. Whatever stops
/// it, the next run finds the rest.
///
/// # Errors
/// `Forbidden`: the credential is not to delete, and nothing was removed. `Locked`: somebody adds.
pub async fn prune(repository: &Repository, pruning: &Pruning, clock: &Arc<dyn Clock>) -> PortResult<Pruned> {
    if pruning.is_empty() {
        return Ok(Pruned::default());
    }
    let turn = Turn::to_remove(repository, clock).await?;
    let permit = repository.relay.allow(Deed::Remove, &turn);
    let pruned = pruned(repository, pruning, clock.as_ref(), &turn).await;
    drop(permit);
    turn.release().await;
    pruned
}

async fn pruned(repository: &Repository, pruning: &Pruning, clock: &dyn Clock, turn: &Turn) -> PortResult<Pruned> {
    let store = repository.store.as_ref();
    let began = clock.now();
    let mark = async |finished: Option<Timestamp>| {
        let text = serde_json::to_vec_pretty(&Mark { began, finished })
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write a mark: {e}")))?;
        store.put(&mark_key(&repository.cluster), text.into(), PutCondition::Any).await.map(|_| ())
    };
    let before = stored(repository).await?;
    remove(store, &pruning.records).await?;
    mark(None).await?;
    turn.check().await?;
    let files: Vec<String> = pruning
        .snapshots
        .iter()
        .map(|id| format!("{}/restic/snapshots/{id}", super::prefix(&repository.cluster)))
        .collect();
    remove(store, &files).await?;
    let goes_on = "the backups themselves are gone; run it again, and it gives back the space";
    repository.local(&["prune"]).await.map_err(|e| e.context("giving back the space").hint(goes_on))?;
    mark(Some(clock.now())).await?;
    let freed_bytes = before.saturating_sub(stored(repository).await?);
    Ok(Pruned { backups: pruning.gone(), leftovers: pruning.leftovers, freed_bytes })
}

/// Bytes of the repository.
async fn stored(repository: &Repository) -> PortResult<u64> {
    let prefix = format!("{}/restic/", super::prefix(&repository.cluster));
    Ok(repository.store.list(&prefix).await?.iter().map(|object| object.size_bytes).sum())
}
