//! Compares every object of a snapshot with the cluster that was brought back from it.
//!
//! Each is equal byte for byte, or changed in a way that a rule of this file expects and explains, or lost. There is no
//! fourth verdict: a change that no rule explains counts as a loss.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::objects::parts;

/// Keys and values below `/registry/`.
pub type Keyspace = BTreeMap<Vec<u8>, Vec<u8>>;

/// How an object may differ from the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// Its content may change; it must be there.
    Change,
    /// Only its status: identity and specification stay as they were.
    ChangeStatus,
    /// As `ChangeStatus`, or gone if another object of the same set took its place.
    BeReplaced,
    /// It may change, or be gone.
    Vanish,
}

/// What a rebuild changes, and why that is right.
const RULES: &[(&str, May, &str)] = &[
    ("/registry/leases/", May::Vanish, "leases: holders renew them, those of dead holders are deleted"),
    ("/registry/masterleases/", May::Vanish, "API servers register their addresses anew"),
    ("/registry/events/", May::Vanish, "events expire, and repeated ones are counted"),
    ("/registry/minions/", May::Change, "nodes register anew on their new servers"),
    ("/registry/csinodes/", May::Change, "nodes register anew on their new servers"),
    ("/registry/pods/", May::BeReplaced, "pods start anew: status, never specification"),
    ("/registry/deployments/", May::ChangeStatus, "controllers count pods anew: status, never specification"),
    ("/registry/replicasets/", May::ChangeStatus, "controllers count pods anew: status, never specification"),
    ("/registry/endpointslices/", May::Change, "pods and API servers come and go at their addresses"),
    ("/registry/services/endpoints/", May::Change, "pods and API servers come and go at their addresses"),
];

/// What became of the snapshot's objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// All objects of the snapshot: the sum of the other three.
    pub compared: usize,
    /// The same, byte for byte.
    pub equal: usize,
    /// Changed as a rule expects.
    pub expected: usize,
    /// Gone, or changed in a way that no rule explains.
    pub lost: usize,
    /// How many changed for which reason.
    pub reasons: BTreeMap<String, usize>,
    /// The lost ones with what is wrong; at most [`LISTED_MAX`].
    pub lost_objects: Vec<String>,
    /// Objects the cluster has and the snapshot had not.
    pub added: usize,
}

/// How many lost objects are listed by name.
pub const LISTED_MAX: usize = 100;

/// Compares.
pub fn compare(before: &Keyspace, after: &Keyspace) -> Comparison {
    let mut comparison = Comparison {
        compared: before.len(),
        added: after.keys().filter(|key| !before.contains_key(*key)).count(),
        ..Comparison::default()
    };
    for (key, old) in before {
        let new = after.get(key);
        if new == Some(old) {
            comparison.equal += 1;
            continue;
        }
        match explain(key, old, new, after) {
            Ok(reason) => {
                comparison.expected += 1;
                *comparison.reasons.entry(reason.to_owned()).or_default() += 1;
            }
            Err(what) => {
                comparison.lost += 1;
                if comparison.lost_objects.len() < LISTED_MAX {
                    comparison.lost_objects.push(format!("{}: {what}", String::from_utf8_lossy(key)));
                }
            }
        }
    }
    comparison
}

fn explain(key: &[u8], old: &[u8], new: Option<&Vec<u8>>, after: &Keyspace) -> Result<&'static str, &'static str> {
    let rule = RULES.iter().find(|(prefix, _, _)| key.starts_with(prefix.as_bytes()));
    let Some((_, may, reason)) = rule else {
        return Err(if new.is_some() { "changed, and nothing explains why" } else { "gone" });
    };
    match (may, new) {
        (May::Vanish, _) | (May::Change, Some(_)) => Ok(reason),
        (May::ChangeStatus | May::BeReplaced, Some(new)) => match (parts(old), parts(new)) {
            (Some(old), Some(new)) if old == new => Ok(reason),
            (Some(old), Some(new)) if old.uid == new.uid => Err("its specification changed"),
            (Some(_), Some(_)) => Err("another object has its name"),
            _ => Err("changed, and is not stored as it should be"),
        },
        (May::BeReplaced, None) if sibling(key, after) => Ok("pods were replaced by their controllers"),
        (May::BeReplaced, None) => Err("gone, and nothing took its place"),
        (May::Change | May::ChangeStatus, None) => Err("gone"),
    }
}

/// Whether another object of the same set is there: the same name up to the random ending that controllers give.
fn sibling(key: &[u8], after: &Keyspace) -> bool {
    let Some(dash) = key.iter().rposition(|b| *b == b'-') else { return false };
    let set = &key[..=dash];
    after
        .range(set.to_vec()..)
        .next()
        .is_some_and(|(other, _)| other.starts_with(set) && !other[set.len()..].contains(&b'-'))
}

#[cfg(test)]
mod tests {
    use super::super::objects::tests::stored;
    use super::*;

    fn keyspace(entries: &[(&str, Vec<u8>)]) -> Keyspace {
        entries.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.clone())).collect()
    }

    fn verdict(key: &str, old: Vec<u8>, new: Option<Vec<u8>>) -> (usize, usize, usize) {
        let after: Vec<_> = new.into_iter().map(|value| (key, value)).collect();
        let result = compare(&keyspace(&[(key, old)]), &keyspace(&after));
        assert_eq!(result.compared, result.equal + result.expected + result.lost);
        assert_eq!(result.lost, result.lost_objects.len());
        (result.equal, result.expected, result.lost)
    }

    const EQUAL: (usize, usize, usize) = (1, 0, 0);
    const EXPECTED: (usize, usize, usize) = (0, 1, 0);
    const LOST: (usize, usize, usize) = (0, 0, 1);

    #[test]
    fn a_secret_must_be_the_same_to_the_last_byte() {
        let key = "/registry/secrets/shop/s-1";
        assert_eq!(verdict(key, b"k8s:enc:abc".to_vec(), Some(b"k8s:enc:abc".to_vec())), EQUAL);
        assert_eq!(verdict(key, b"k8s:enc:abc".to_vec(), Some(b"k8s:enc:abd".to_vec())), LOST);
        assert_eq!(verdict(key, b"k8s:enc:abc".to_vec(), None), LOST);
    }

    #[test]
    fn a_workload_may_change_its_status_and_nothing_else() {
        let key = "/registry/deployments/shop/web";
        let old = stored("u1", "replicas 1", "0 ready");
        assert_eq!(verdict(key, old.clone(), Some(stored("u1", "replicas 1", "1 ready"))), EXPECTED);
        assert_eq!(verdict(key, old.clone(), Some(stored("u1", "replicas 0", "0 ready"))), LOST);
        assert_eq!(verdict(key, old.clone(), Some(stored("u2", "replicas 1", "0 ready"))), LOST);
        assert_eq!(verdict(key, old.clone(), Some(b"garbage".to_vec())), LOST);
        assert_eq!(verdict(key, old, None), LOST);
    }

    #[test]
    fn a_pod_may_be_gone_only_if_another_took_its_place() {
        let before = keyspace(&[("/registry/pods/shop/web-5d4-aaaaa", stored("u1", "s", "running"))]);
        let other = keyspace(&[("/registry/pods/shop/web-5d4-bbbbb", stored("u2", "s", "running"))]);
        assert_eq!(compare(&before, &other).expected, 1);
        assert_eq!(compare(&before, &other).added, 1);
        let stranger = keyspace(&[("/registry/pods/shop/web-5d4-x-bbbbb", stored("u2", "s", "running"))]);
        assert_eq!(compare(&before, &stranger).lost, 1);
        assert_eq!(compare(&before, &Keyspace::new()).lost, 1);
    }

    #[test]
    fn leases_may_vanish_and_nodes_must_come_back() {
        assert_eq!(verdict("/registry/leases/kube-node-lease/demo-w1", b"a".to_vec(), None), EXPECTED);
        assert_eq!(verdict("/registry/minions/demo-w1", b"a".to_vec(), Some(b"b".to_vec())), EXPECTED);
        assert_eq!(verdict("/registry/minions/demo-w1", b"a".to_vec(), None), LOST);
    }

    #[test]
    fn every_rule_says_why() {
        for (prefix, _, reason) in RULES {
            assert!(prefix.starts_with("/registry/") && prefix.ends_with('/') && reason.len() > 20, "{prefix}");
        }
    }
}
