//! What a bucket really does, found by trying, and what follows for backups.

use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;

use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};
use crate::s3::{BucketSettings, LockRule, OldVersions, PART_BYTES};

/// How good an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// It works, with less protection.
    Weak,
    /// It must not be used for that.
    Bad,
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    pub what: String,
    pub found: String,
    pub verdict: Verdict,
    /// What it means for backups.
    pub follows: String,
}

fn probe(what: &str, found: impl Into<String>, verdict: Verdict, follows: &str) -> Probe {
    Probe { what: what.to_owned(), found: found.into(), verdict, follows: follows.to_owned() }
}

const NO_LEASE: &str = "the lease and the log refuse it: two writers could overwrite one another unnoticed";

/// Tries it out below `<cluster>/doctor/<nonce>/`, and removes what it wrote, where it may.
///
/// # Errors
/// The bucket cannot be written or read at all.
pub async fn try_out(store: &dyn ObjectStore, cluster: &str, nonce: &str) -> PortResult<Vec<Probe>> {
    let key = |name: &str| format!("{cluster}/doctor/{nonce}/{name}");
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let mut probes = Vec::new();

    let one = key("one");
    let written = store.put(&one, first.clone(), PutCondition::Absent).await?;
    let back = store.get(&one, 100).await?;
    probes.push(if back == first {
        probe("write and read", "gives back what it took", Verdict::Good, "it can hold copies")
    } else {
        probe("write and read", "gives back something else", Verdict::Bad, "it must not hold copies")
    });

    let again = store.put(&one, second.clone(), PutCondition::Absent).await;
    probes.push(condition("write only if absent", &again));
    // If that took effect, the etag is another one now.
    let etag = store.head(&one).await?.etag;
    let stale = if etag == written.etag { format!("\"{}\"", "0".repeat(32)) } else { written.etag };
    let replaced = store.put(&one, second.clone(), PutCondition::Match(stale)).await;
    probes.push(condition("write only if unchanged", &replaced));

    let two = key("two");
    probes.push(match in_parts(store, &two).await {
        Ok(true) => {
            probe("uploads in parts", "whole and invisible until complete", Verdict::Good, "snapshots of any size")
        }
        Ok(false) => probe("uploads in parts", "not what was sent", Verdict::Bad, "snapshots cannot be stored"),
        Err(e) => probe("uploads in parts", e.message, Verdict::Bad, "snapshots cannot be stored"),
    });
    let mut upload = store.upload(&two).await?;
    upload.part(first.clone()).await?;
    let over = upload.complete(PutCondition::Absent).await;
    probes.push(match &over {
        Err(e) if e.code == ErrorCode::Conflict => {
            probe("complete an upload only if absent", "holds", Verdict::Good, "no snapshot overwrites another")
        }
        _ => probe(
            "complete an upload only if absent",
            "is ignored or refused",
            Verdict::Weak,
            "snapshots have random names, and only their manifests decide",
        ),
    });

    let listed = store.list(&key("")).await?.len();
    probes.push(if listed == 2 {
        probe("list after write", "complete", Verdict::Good, "nothing is overlooked")
    } else {
        probe("list after write", format!("{listed} of 2 objects"), Verdict::Bad, "snapshots can be overlooked")
    });

    let mut deleted = Ok(());
    for name in [&one, &two] {
        deleted = deleted.and(store.delete(name).await);
    }
    probes.push(match deleted {
        Ok(()) => probe(
            "this credential deletes",
            "yes",
            Verdict::Weak,
            "whoever steals it can remove backups, unless versions or a lock keep them: give the everyday one no right to delete",
        ),
        Err(e) if e.code == ErrorCode::Forbidden => probe(
            "this credential deletes",
            "no",
            Verdict::Good,
            "stolen, it removes nothing; `snapshot prune` needs another one. The probe's objects stay below doctor/",
        ),
        Err(e) => probe("this credential deletes", e.message, Verdict::Weak, "look at the bucket's policy"),
    });
    Ok(probes)
}

/// A put that must have been refused.
fn condition<T>(what: &str, outcome: &PortResult<T>) -> Probe {
    match outcome {
        Err(e) if e.code == ErrorCode::Conflict => {
            probe(what, "holds", Verdict::Good, "one writer wins; leases and the log are safe")
        }
        Ok(_) => probe(what, "is ignored", Verdict::Bad, NO_LEASE),
        Err(e) => probe(what, format!("is refused: {}", e.message), Verdict::Bad, NO_LEASE),
    }
}

/// Two parts, compared as they come back.
async fn in_parts(store: &dyn ObjectStore, key: &str) -> PortResult<bool> {
    let large = Bytes::from(vec![7; PART_BYTES]);
    let mut upload = store.upload(key).await?;
    upload.part(large.clone()).await?;
    upload.part(Bytes::from_static(b"end")).await?;
    let early = matches!(store.head(key).await, Err(e) if e.code == ErrorCode::NotFound);
    upload.complete(PutCondition::Absent).await?;
    let mut body = store.stream(key, 0).await?;
    let mut back = Vec::new();
    while let Some(chunk) = body.next().await {
        back.extend_from_slice(&chunk?);
    }
    Ok(early && back.len() == large.len() + 3 && back.starts_with(&large) && back.ends_with(b"end"))
}

/// What follows from how the bucket is set up.
pub fn judge(settings: &BucketSettings) -> Vec<Probe> {
    let unknown = |what: &str, e: &PortError| {
        probe(
            what,
            format!("not known: {}", e.message),
            Verdict::Weak,
            "this credential may not ask, or the server knows none",
        )
    };
    let versions = match &settings.versions {
        Ok(true) => probe("versions", "kept", Verdict::Good, "what is overwritten or deleted can be had back"),
        Ok(false) => {
            probe("versions", "not kept", Verdict::Weak, "what is overwritten or deleted is gone: turn them on")
        }
        Err(e) => unknown("versions", e),
    };
    let old_versions = match (&settings.versions, &settings.old_versions) {
        (Ok(false), _) => None,
        (_, Ok(OldVersions::Stay)) => Some(probe(
            "old versions",
            "stay for ever",
            Verdict::Weak,
            "what `prune` removes is paid for all the same: a lifecycle rule with NoncurrentVersionExpiration removes it",
        )),
        (_, Ok(OldVersions::GoAfterDays(days))) => {
            let found = format!("go after {days} days");
            Some(probe(
                "old versions",
                found,
                Verdict::Good,
                "what `prune` removed goes then, and --as-of reaches back as far",
            ))
        }
        (_, Err(e)) => Some(unknown("old versions", e)),
    };
    let kept = "nobody deletes versions before their time";
    let lock = match (&settings.locks_hold, &settings.lock) {
        (Ok(Some(true)), _) => probe("object lock", "holds: a locked version was not deleted", Verdict::Good, kept),
        (Ok(Some(false)), _) => probe(
            "object lock",
            "declared, and does not hold",
            Verdict::Bad,
            "backups are refused, or can be deleted at once: a bucket must be made with object lock, as hk-dr makes them",
        ),
        (Err(e), _) => unknown("object lock", e),
        (Ok(None), Ok(LockRule::Default(rule))) => probe("object lock", rule.clone(), Verdict::Good, kept),
        (Ok(None), Ok(LockRule::Possible)) => probe(
            "object lock",
            "possible, not declared",
            Verdict::Weak,
            "versions can be deleted by whoever may: declare `backup.objectLock` (mode, days)",
        ),
        (Ok(None), Ok(LockRule::Impossible)) => probe(
            "object lock",
            "no",
            Verdict::Weak,
            "it can be had only when a bucket is made: consider a new one, and `hk-dr mirror`",
        ),
        (Ok(None), Err(e)) => unknown("object lock", e),
    };
    let checksums = match &settings.refuses_wrong_checksums {
        Ok(true) => probe("checksums", "checked on the way", Verdict::Good, "damage on the way is noticed at once"),
        Ok(false) => probe("checksums", "ignored", Verdict::Weak, "damage on the way is noticed by `verify` only"),
        Err(e) => unknown("checksums", e),
    };
    [Some(versions), old_versions, Some(lock), Some(checksums)].into_iter().flatten().collect()
}

/// What follows from its being a directory.
pub fn judge_directory() -> Probe {
    probe(
        "versions and object lock",
        "a directory has none",
        Verdict::Weak,
        "what is overwritten or deleted is gone, unless its file system keeps snapshots: let it not be the only copy",
    )
}
