//! Before a snapshot: do all members hold the same data, and which one gives it?

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;

use super::HashKvCheck;
use crate::ports::{ErrorCode, Etcd, HashKv, MemberStatus, PortError, PortResult};

/// How long one member may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a member may take to hash its whole database.
const HASH_DEADLINE: Duration = Duration::from_secs(120);
/// Comparisons, when members are caught at different compactions.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// One member as the comparison saw it.
#[derive(Debug, Clone)]
pub struct MemberView {
    pub name: String,
    pub status: Result<MemberStatus, PortError>,
}

/// The outcome: who gives the snapshot, and what was compared.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// A follower if there is one, so that the leader is left to its work.
    pub source: MemberStatus,
    pub check: HashKvCheck,
    /// The compaction that members were at.
    pub compact_revision: i64,
}

/// Asks all members, compares their hashes at one revision, and picks the source. A member whose hash differs is named
/// and stops the snapshot: what it holds, and what the others hold, must be looked at by a person first.
pub async fn agree(etcd: &dyn Etcd) -> PortResult<Agreement> {
    let mut attempt = 1;
    loop {
        let views = look(etcd).await;
        let healthy: Vec<&MemberStatus> = views.iter().filter_map(|view| view.status.as_ref().ok()).collect();
        let source = choose(&views, &healthy)?;
        if etcd.members().len() == 1 {
            // One member has nobody to differ from, and hashing reads its whole file.
            let check = HashKvCheck {
                revision: source.revision,
                hash: None,
                agreed: Vec::new(),
                not_compared: vec![format!("{}: the only member", source.name)],
                compact_revision: None,
            };
            return Ok(Agreement { source, check, compact_revision: 0 });
        }
        let revision = healthy.iter().map(|status| status.revision).min().unwrap_or_default();
        let names: Vec<String> = healthy.iter().map(|status| status.name.clone()).collect();
        let hashes = join_all(names.into_iter().map(|name| async move {
            let asked = tokio::time::timeout(HASH_DEADLINE, etcd.hash_kv(&name, revision)).await;
            let hash = asked.unwrap_or_else(|_| Err(late(&name, "HashKV", HASH_DEADLINE)));
            (name, hash)
        }))
        .await;
        let (check, compact_revision, complete) = compare(revision, &views, &hashes)?;
        if complete || attempt == ATTEMPTS {
            return Ok(Agreement { source, check, compact_revision });
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(etcd: &dyn Etcd) -> Vec<MemberView> {
    let names = etcd.members();
    join_all(names.into_iter().map(|name| async move {
        let asked = tokio::time::timeout(ANSWER_DEADLINE, etcd.status(&name)).await;
        let status = asked.unwrap_or_else(|_| Err(late(&name, "its status", ANSWER_DEADLINE)));
        MemberView { name, status }
    }))
    .await
}

fn late(member: &str, what: &str, deadline: Duration) -> PortError {
    let message = format!("etcd member {member} did not give {what} within {} s", deadline.as_secs());
    PortError::new(ErrorCode::Timeout, message)
}

/// A voting follower that knows its leader comes first, the most advanced of them; then the leader; then whoever answers.
fn choose(views: &[MemberView], healthy: &[&MemberStatus]) -> PortResult<MemberStatus> {
    let Some(first) = healthy.first() else {
        let reasons: Vec<String> = views
            .iter()
            .map(|view| format!("{} ({})", view.name, view.status.as_ref().err().map_or("", |e| e.message.as_str())))
            .collect();
        let message = format!("no etcd member answers: {}", reasons.join(", "));
        return Err(PortError::new(ErrorCode::Unreachable, message)
            .hint("no snapshot was taken; look at the masters, or bring the cluster back with `hk-dr rebuild`"));
    };
    if let Some(other) = healthy.iter().find(|status| status.cluster_id != first.cluster_id) {
        let message = format!("{} and {} belong to different etcd clusters", first.name, other.name);
        return Err(PortError::new(ErrorCode::Untrusted, message)
            .hint("no snapshot was taken; find out which of them is the production cluster"));
    }
    let rank = |status: &MemberStatus| {
        let follower = status.leader_id != 0 && status.leader_id != status.member_id;
        (!status.is_learner, follower, status.leader_id != 0, status.raft_index)
    };
    // `max_by_key` takes the last of equals; the first declared is the more predictable choice.
    let best = healthy.iter().rev().max_by_key(|status| rank(status)).unwrap_or(first);
    Ok((*best).clone())
}

/// Compares hashes of members at the same compaction. Returns whether all healthy members could be compared.
fn compare(
    revision: i64,
    views: &[MemberView],
    hashes: &[(String, PortResult<HashKv>)],
) -> PortResult<(HashKvCheck, i64, bool)> {
    let mut not_compared: Vec<String> = views
        .iter()
        .filter_map(|view| view.status.as_ref().err().map(|e| format!("{}: {}", view.name, e.message)))
        .collect();
    let mut complete = true;
    // The hash covers what lies behind the compaction: hashes of different compactions say nothing about each other.
    let mut by_compaction: BTreeMap<i64, Vec<(&str, u32)>> = BTreeMap::new();
    for (name, hash) in hashes {
        match hash {
            Ok(hash) => by_compaction.entry(hash.compact_revision).or_default().push((name, hash.hash)),
            Err(e) => {
                complete = false;
                not_compared.push(format!("{name}: {}", e.message));
            }
        }
    }
    for group in by_compaction.values() {
        refuse_difference(revision, group)?;
    }
    let compact_hint = by_compaction.keys().next().copied().unwrap_or_default().max(0);
    let Some((compaction, largest)) = by_compaction.iter().max_by_key(|(_, group)| group.len()) else {
        return Ok((
            HashKvCheck { revision, hash: None, agreed: Vec::new(), not_compared, compact_revision: None },
            compact_hint,
            false,
        ));
    };
    for (other, group) in by_compaction.iter().filter(|(other, _)| *other != compaction) {
        complete = false;
        not_compared.extend(group.iter().map(|(name, _)| format!("{name}: compacted at {other}, not at {compaction}")));
    }
    let agreed = largest.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok((
        HashKvCheck {
            revision,
            hash: largest.first().map(|(_, hash)| *hash),
            agreed,
            not_compared,
            compact_revision: Some(*compaction),
        },
        compact_hint,
        complete,
    ))
}

fn refuse_difference(revision: i64, group: &[(&str, u32)]) -> PortResult<()> {
    let mut by_hash: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (name, hash) in group {
        by_hash.entry(*hash).or_default().push(name);
    }
    if by_hash.len() < 2 {
        return Ok(());
    }
    let most = by_hash.values().map(Vec::len).max().unwrap_or_default();
    let majority: Vec<_> = by_hash.values().filter(|names| names.len() == most).collect();
    let all: Vec<String> = group.iter().map(|(name, hash)| format!("{name} {hash:08x}")).collect();
    let message = if let [only] = majority[..] {
        let corrupt: Vec<&str> = group.iter().map(|(name, _)| *name).filter(|name| !only.contains(name)).collect();
        format!(
            "etcd member {} is corrupt: its data at revision {revision} differs from the others'",
            corrupt.join(", ")
        )
    } else {
        format!("etcd's members hold different data at revision {revision}, and no majority says who is right")
    };
    Err(PortError::new(ErrorCode::Corrupt, format!("{message} (HashKV: {})", all.join(", ")))
        .hint("no snapshot was taken; remove the corrupt member and let it join again empty, then take the snapshot"))
}
