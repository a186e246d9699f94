//! Removes what retention decided, and what is left over from work that failed.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::{Entry, Proof};
use super::log::Index;
use super::{Catalog, layout};
use crate::config::RetentionConfig;
use crate::plan::retention::{Decision, SnapshotFacts, Worth, decide};
use crate::ports::{ErrorCode, ObjectInfo, ObjectStore, PortResult};

/// What lies about without a manifest is a snapshot that is being taken, until it is older than this, in seconds.
const LEFTOVER_AFTER: i64 = 24 * 3600;

/// What is to be removed, and why; nothing has been yet.
#[derive(Debug, Clone, Serialize)]
pub struct Pruning {
    pub decisions: Vec<Decision>,
    pub log_base: Option<String>,
    /// Segments that end before the log's base.
    pub segments: usize,
    /// Objects of snapshots that failed.
    pub leftovers: usize,
    pub bytes: u64,
    /// Manifests that cannot be read or believed. While there are any, no leftovers are looked for: they might be theirs.
    pub unreadable: Vec<String>,
    /// In this order: what makes a snapshot one goes first.
    #[serde(skip)]
    keys: Vec<String>,
}

impl Pruning {
    /// How many objects go.
    pub fn objects(&self) -> usize {
        self.keys.len()
    }
}

/// Decides. Touches nothing.
pub async fn plan_pruning(
    store: &dyn ObjectStore,
    cluster: &str,
    policy: &RetentionConfig,
    now: Timestamp,
) -> PortResult<Pruning> {
    let (entries, unreadable) = Catalog::new(store, cluster).list().await?;
    let facts: Vec<SnapshotFacts> = entries.iter().map(facts).collect();
    let retention = decide(policy, &facts, now);
    let objects = store.list(&format!("{cluster}/")).await?;
    let mut keys = Vec::new();
    let gone: BTreeSet<&str> =
        retention.decisions.iter().filter(|decision| !decision.keep).map(|decision| decision.id.as_str()).collect();
    for entry in entries.iter().filter(|entry| gone.contains(entry.manifest.id.as_str())) {
        let manifest = &entry.manifest;
        keys.push(layout::beside(cluster, &manifest.id, layout::MANIFEST));
        let below = layout::beside(cluster, &manifest.id, "");
        keys.extend(objects.iter().map(|object| object.key.clone()).filter(|key| key.starts_with(&below)));
        keys.push(manifest.etcd.key.clone());
    }
    let (mut segments, mut leftovers) = (0, 0);
    if let Some(base) = entries.iter().find(|entry| Some(&entry.manifest.id) == retention.log_base.as_ref()) {
        let outdated = outdated_segments(&Index::load(store, cluster).await?, &entries, base);
        segments = outdated.len();
        keys.extend(outdated.iter().map(|name| name.key(cluster)));
    }
    if unreadable.is_empty() {
        let found = left_over(cluster, &objects, &entries, now);
        leftovers = found.len();
        keys.extend(found);
    }
    let mut seen = BTreeSet::new();
    keys.retain(|key| seen.insert(key.clone()));
    let bytes = objects.iter().filter(|object| seen.contains(&object.key)).map(|object| object.size_bytes).sum();
    Ok(Pruning {
        decisions: retention.decisions,
        log_base: retention.log_base,
        segments,
        leftovers,
        bytes,
        unreadable: unreadable.into_iter().map(|e| e.message).collect(),
        keys,
    })
}

/// Removes it. Whatever stops it, a snapshot without its manifest is a leftover that the next run finds.
pub async fn prune(store: &dyn ObjectStore, pruning: &Pruning) -> PortResult<usize> {
    remove(store, &pruning.keys).await
}

/// Deletes objects in their order; answers with how many.
pub(crate) async fn remove(store: &dyn ObjectStore, keys: &[String]) -> PortResult<usize> {
    for (done, key) in keys.iter().enumerate() {
        store.delete(key).await.map_err(|e| {
            let total = keys.len();
            let hint = match e.code {
                ErrorCode::Forbidden => {
                    "the everyday credential is not to delete: run this with one that may, in AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY"
                }
                _ => "run it again: it goes on where it stopped",
            };
            e.context(format!("{done} of {total} objects were removed")).hint(hint)
        })?;
    }
    Ok(keys.len())
}

fn facts(entry: &Entry) -> SnapshotFacts {
    SnapshotFacts {
        id: entry.manifest.id.clone(),
        taken_at: entry.manifest.taken_at,
        worth: match entry.proof {
            Proof::Unproven | Proof::Bad { .. } => Worth::Unread,
            Proof::Verified { .. } => Worth::Verified,
            Proof::Proven { .. } => Worth::Proven,
        },
    }
}

/// Segments that no state behind the base needs: those of its etcd cluster that end before it, and all of etcd clusters
/// whose last snapshot is older.
fn outdated_segments(index: &Index, entries: &[Entry], base: &Entry) -> Vec<super::log::SegmentName> {
    let base = &base.manifest;
    let mut outdated = Vec::new();
    for (name, _) in &index.segments {
        let Some(epoch) = index.epochs.get(&name.epoch) else { continue };
        let mut others =
            entries.iter().filter(|entry| entry.manifest.etcd_cluster_id == epoch.etcd_cluster_id).peekable();
        let before = if epoch.etcd_cluster_id == base.etcd_cluster_id {
            name.last <= base.revision
        } else {
            others.peek().is_some()
                && epoch.started_at < base.taken_at
                && others.all(|entry| entry.manifest.taken_at < base.taken_at)
        };
        if before {
            outdated.push(name.clone());
        }
    }
    outdated
}

/// Streams that no manifest points to, and folders without manifest.
fn left_over(cluster: &str, objects: &[ObjectInfo], entries: &[Entry], now: Timestamp) -> Vec<String> {
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.manifest.etcd.key.as_str()).collect();
    let ids: BTreeSet<&str> = entries.iter().map(|entry| entry.manifest.id.as_str()).collect();
    let (streams, snapshots) = (format!("{cluster}/streams/"), layout::snapshots(cluster));
    let old = |folder: &str| {
        let time = folder.split('-').next().unwrap_or_default();
        layout::parse_time_name(time).is_some_and(|at| now.as_second() - at.as_second() > LEFTOVER_AFTER)
    };
    let is_left = |object: &&ObjectInfo| {
        let folder =
            |prefix: &str| object.key.strip_prefix(prefix)?.split_once('/').map(|(folder, _)| folder.to_owned());
        match (folder(&streams), folder(&snapshots)) {
            (Some(name), _) => old(&name) && !known.contains(object.key.as_str()),
            (_, Some(name)) => old(&name) && !ids.contains(name.as_str()),
            _ => false,
        }
    };
    objects.iter().filter(is_left).map(|object| object.key.clone()).collect()
}
