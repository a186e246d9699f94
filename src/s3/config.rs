use secrecy::SecretString;

/// Where a bucket is and the credential for it.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// URL of an S3-compatible server; none means AWS in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: SecretString,
    /// Locks what backups consist of as it is written.
    pub lock: Option<ObjectLock>,
}

/// How long nobody deletes versions of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Not even who may bypass locks.
    pub compliance: bool,
    /// From the time of writing.
    pub seconds: u32,
}

impl ObjectLock {
    /// Whether an object of this name is locked. Leases, books and journals are rewritten every few seconds: each of their
    /// versions would stay for as long.
    pub(super) fn holds_for(key: &str) -> bool {
        let below = key.split_once('/').map_or("", |(_, rest)| rest);
        let rooms = ["snapshots/", "streams/", "recovery/", "volumes/restic/", "volumes/backups/"];
        rooms.iter().any(|room| below.starts_with(room))
            || (below.starts_with("log/") && !below.starts_with("log/lease.json"))
            || (below.starts_with("runs/")
                && ["/evidence.json", "/report.html"].iter().any(|name| below.contains(name)))
            || below.starts_with("volumes/password.age")
    }
}

impl S3Config {
    /// The bucket as messages name it, without a credential.
    pub fn display_name(&self) -> String {
        let host = match &self.endpoint {
            Some(url) => url.trim_end_matches('/').rsplit('@').next().unwrap_or_default().to_owned(),
            None => format!("AWS {}", self.region),
        };
        format!("s3://{} at {}", self.bucket, host)
    }
}

#[cfg(test)]
mod tests {
    use super::ObjectLock;

    #[test]
    fn backups_and_evidence_are_locked_and_what_is_rewritten_all_the_time_is_not() {
        for key in [
            "demo/snapshots/20260101T000000Z-r5/manifest.json.minisig",
            "demo/streams/20260101T000000Z-0a0b0c0d/etcd.db.zst.age",
            "demo/log/0000000000000001/00000000000000000001-00000000000000000002.seg.zst.age",
            "demo/volumes/restic/data/ab/abcd",
            "demo/volumes/password.age",
            "demo/runs/20260508t030000-bbbbbb/evidence.json",
        ] {
            assert!(ObjectLock::holds_for(key), "{key}");
        }
        for key in [
            "demo/log/lease.json",
            "demo/leases/operator.json",
            "demo/schedule/p.a.json",
            "demo/runs/20260508t030000-bbbbbb/events/000001.json",
            "demo/doctor/1/one",
            "demo/artifacts/abcd",
            "demo/volumes/prune.json",
        ] {
            assert!(!ObjectLock::holds_for(key), "{key}");
        }
    }
}
