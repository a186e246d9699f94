//! Names of objects in the bucket.

use jiff::Timestamp;

/// `20261123T101500Z`: sorts by time, and needs no escaping anywhere.
pub(super) fn time_name(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The time that a name was made from.
pub(super) fn parse_time_name(name: &str) -> Option<Timestamp> {
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", name).ok()?;
    jiff::tz::Offset::UTC.to_timestamp(civil).ok()
}

/// The name of a snapshot: the time it was begun, and the revision that was read from its data.
pub(super) fn snapshot_id(at: Timestamp, revision: i64) -> String {
    format!("{}-r{revision}", time_name(at))
}

/// Where the etcd snapshot goes. S3 cannot rename and the revision is known only when the last byte has passed, hence a
/// name of its own, to which the manifest points.
pub(super) fn stream_key(cluster: &str, at: Timestamp, nonce: &str) -> String {
    format!("{cluster}/streams/{}-{nonce}/etcd.db.zst.age", time_name(at))
}

/// Prefix of all snapshots.
pub(super) fn snapshots(cluster: &str) -> String {
    format!("{cluster}/snapshots/")
}

/// An object that lies beside the manifest.
pub(super) fn beside(cluster: &str, id: &str, name: &str) -> String {
    format!("{cluster}/snapshots/{id}/{name}")
}

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const RECOVERY: &str = "recovery.tar.zst.age";
pub(super) const VERIFY: &str = "verify.json";
pub(super) const BAD: &str = "bad.json";

/// Whether a string can be a snapshot's name: nothing else is put into a key.
pub(super) fn is_snapshot_id(id: &str) -> bool {
    id.split_once("-r").is_some_and(|(time, revision)| {
        time.len() == 16
            && time.bytes().all(|b| b.is_ascii_digit() || b == b'T' || b == b'Z')
            && (1..=19).contains(&revision.len())
            && revision.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_time_and_are_recognised() {
        let early = snapshot_id("2026-11-23T09:15:00.9Z".parse().unwrap(), 9_000_000_000);
        let late = snapshot_id("2026-11-23T10:15:00Z".parse().unwrap(), 7);
        assert_eq!(late, "20261123T101500Z-r7");
        assert!(early < late);
        let at = "2026-11-23T10:15:00Z".parse().unwrap();
        assert_eq!((parse_time_name(&time_name(at)), parse_time_name("latest")), (Some(at), None));
        assert!(is_snapshot_id(&early) && is_snapshot_id(&late));
        for wrong in ["", "latest", "20261123T101500Z", "20261123T101500Z-r", "20261123T101500Z-r7/../x", "x-r1"] {
            assert!(!is_snapshot_id(wrong), "{wrong}");
        }
    }
}
