//! A versioned bucket as it was before a time: for when somebody overwrote or deleted what it held.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use secrecy::SecretString;

use super::store::collect;
use super::{S3Store, check_key, error};
use crate::ports::{ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload};

/// Answers to one list of versions: a bucket of ten million versions. Behind that the list is taken for endless.
const PAGES_MAX: usize = 10_000;

/// Reads backups as they were before a time, by the bucket's own clock; writes go to the bucket as it is, and what was
/// written through this value is read back as it is. What runs and their locks need (`leases/`, `runs/`, `artifacts/`) is
/// not looked at in the past: a recovery works with it now.
///
/// Servers give times of versions in whole seconds, cut off: a version counts from the beginning of its second. Of two in
/// one second the one that was written later counts, and an object more than its deletion.
#[derive(Clone)]
pub struct AsOfStore {
    now: Arc<S3Store>,
    before: Timestamp,
    /// What is known of the past, which does not change: none where there was no object.
    known: Arc<Mutex<HashMap<String, Option<Version>>>>,
    own: Arc<Mutex<OwnWrites>>,
    /// Set when the bucket was found to keep versions.
    versioned: Arc<tokio::sync::OnceCell<()>>,
}

/// Keys that were written while looking back, on the disk, so that a run that was killed can be resumed.
#[derive(Default)]
struct OwnWrites {
    keys: std::collections::BTreeSet<String>,
    file: Option<std::path::PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    id: Option<String>,
    at: Timestamp,
    info: ObjectInfo,
}

/// What the list of versions says about one key.
#[derive(Debug, Clone)]
enum Listed {
    Object(Version),
    Deleted(Timestamp),
}

impl Listed {
    fn at(&self) -> Timestamp {
        match self {
            Self::Object(version) => version.at,
            Self::Deleted(at) => *at,
        }
    }
}

/// The object that was there before a time. `listed` names the newer first, as servers do, objects apart from deletions.
fn there_before(listed: Vec<Listed>, before: Timestamp) -> Option<Version> {
    let mut newest: Option<Listed> = None;
    for one in listed.into_iter().filter(|one| one.at() < before) {
        let newer = newest.as_ref().is_none_or(|best| {
            let revived = matches!((&one, best), (Listed::Object(_), Listed::Deleted(_)));
            one.at() > best.at() || (one.at() == best.at() && revived)
        });
        if newer {
            newest = Some(one);
        }
    }
    match newest {
        Some(Listed::Object(version)) => Some(version),
        Some(Listed::Deleted(_)) | None => None,
    }
}

/// Whether a recovery needs it as it is now.
fn is_of_now(key: &str) -> bool {
    let below_cluster = key.split_once('/').map_or("", |(_, rest)| rest);
    ["leases/", "runs/", "artifacts/", "doctor/"].iter().any(|room| below_cluster.starts_with(room))
}

impl AsOfStore {
    /// Looks at a bucket before a time. `own_writes` is a file that remembers what was written meanwhile.
    pub fn new(now: Arc<S3Store>, before: Timestamp, own_writes: Option<std::path::PathBuf>) -> Self {
        let keys = own_writes.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let own = OwnWrites { keys: keys.lines().map(str::to_owned).collect(), file: own_writes };
        Self { now, before, known: Arc::default(), own: Arc::new(Mutex::new(own)), versioned: Arc::default() }
    }

    fn is_own(&self, key: &str) -> bool {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).keys.contains(key)
    }

    /// Before it is written: a name too many does no harm.
    fn remember(&self, key: &str) -> PortResult<()> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if is_of_now(key) || !own.keys.insert(key.to_owned()) {
            return Ok(());
        }
        let Some(file) = &own.file else { return Ok(()) };
        let local = |e: std::io::Error| {
            PortError::new(ErrorCode::Local, format!("remember in {} what is written: {e}", file.display()))
        };
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).map_err(local)?;
        }
        let mut open = std::fs::OpenOptions::new().create(true).append(true).open(file).map_err(local)?;
        std::io::Write::write_all(&mut open, format!("{key}\n").as_bytes()).map_err(local)
    }

    /// A bucket without versions shows what is there now and calls it the past.
    async fn require_versions(&self) -> PortResult<()> {
        let ask = || async {
            match self.now.keeps_versions().await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let name = &self.now.name;
                    Err(PortError::new(ErrorCode::Invalid, format!("{name} keeps no versions: its past is not known"))
                        .hint("nothing was changed; leave --as-of away, or read a bucket that keeps versions"))
                }
                // Whoever may read versions may not always ask for the setting; the list below says what there is.
                Err(e) if e.code == ErrorCode::Forbidden => Ok(()),
                Err(e) => Err(e),
            }
        };
        self.versioned.get_or_try_init(ask).await?;
        Ok(())
    }

    /// Everything that was there below a prefix.
    async fn past(&self, prefix: &str) -> PortResult<BTreeMap<String, Version>> {
        self.require_versions().await?;
        let mut listed: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        let (mut key_marker, mut version_marker) = (None, None);
        for _ in 0..PAGES_MAX {
            let asked = self.now.client.list_object_versions().bucket(&self.now.bucket).prefix(prefix);
            let asked = asked.set_key_marker(key_marker).set_version_id_marker(version_marker).send().await;
            let page = asked.map_err(|e| error::map(&self.now.name, &format!("list the versions of {prefix}"), &e))?;
            for version in page.versions.unwrap_or_default() {
                let at = made_at(version.version_id.as_deref(), version.last_modified);
                let (Some(key), Some(at)) = (version.key, at) else { continue };
                let size_bytes = u64::try_from(version.size.unwrap_or_default()).unwrap_or_default();
                let info = ObjectInfo { key: key.clone(), size_bytes, etag: version.e_tag.unwrap_or_default() };
                listed.entry(key).or_default().push(Listed::Object(Version { id: version.version_id, at, info }));
            }
            for marker in page.delete_markers.unwrap_or_default() {
                let at = made_at(marker.version_id.as_deref(), marker.last_modified);
                let (Some(key), Some(at)) = (marker.key, at) else { continue };
                listed.entry(key).or_default().push(Listed::Deleted(at));
            }
            (key_marker, version_marker) = (page.next_key_marker, page.next_version_id_marker);
            if !page.is_truncated.unwrap_or_default() || key_marker.is_none() {
                let there = |(key, versions)| there_before(versions, self.before).map(|version| (key, version));
                return Ok(listed.into_iter().filter_map(there).collect());
            }
        }
        let message = format!("the list of versions of {prefix} in {} has no end", self.now.name);
        Err(PortError::new(ErrorCode::LimitExceeded, message))
    }

    /// The version of a key that was there, as the error that it was not.
    async fn version(&self, key: &str) -> PortResult<Version> {
        check_key(key)?;
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(key).cloned();
        let found = match known {
            Some(found) => found,
            None => {
                let found = self.past(key).await?.remove(key);
                lock().insert(key.to_owned(), found.clone());
                found
            }
        };
        found.ok_or_else(|| {
            let message = format!("{key} was not in {} before {}", self.now.name, self.before);
            PortError::new(ErrorCode::NotFound, message)
        })
    }

    fn reads_now(&self, key: &str) -> bool {
        is_of_now(key) || self.is_own(key)
    }
}

/// When a version was made: what its name says, where that is a ULID (26 digits of Crockford's base 32, the first ten of them
/// milliseconds since 1970), else what the server says. versitygw names versions so, and gives as the time of one that was
/// replaced when that happened.
fn made_at(id: Option<&str>, modified: Option<aws_smithy_types::DateTime>) -> Option<Timestamp> {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digit = |byte: u8| DIGITS.iter().position(|d| *d == byte).and_then(|at| i64::try_from(at).ok());
    let ulid = id.filter(|id| id.len() == 26 && id.bytes().all(|byte| digit(byte).is_some()));
    if let Some(ulid) = ulid {
        let ms = ulid.bytes().take(10).filter_map(digit).fold(0i64, |ms, digit| ms << 5 | digit);
        return Timestamp::from_millisecond(ms).ok();
    }
    let modified = modified?;
    Timestamp::new(modified.secs(), i32::try_from(modified.subsec_nanos()).ok()?).ok()
}

#[async_trait]
impl ObjectStore for AsOfStore {
    fn name(&self) -> String {
        format!("{} as of {}", self.now.name, self.before)
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        self.remember(key)?;
        self.now.put(key, data, condition).await
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        collect(key, self.stream(key, 0).await?, limit_bytes).await
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        if self.reads_now(key) {
            return self.now.stream(key, offset_bytes).await;
        }
        let version = self.version(key).await?;
        self.now.stream_version(key, version.id.as_deref(), offset_bytes).await
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        if self.reads_now(key) {
            return self.now.head(key).await;
        }
        Ok(self.version(key).await?.info)
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        if is_of_now(prefix) {
            return self.now.list(prefix).await;
        }
        let past = self.past(prefix).await?;
        let mut all: BTreeMap<String, ObjectInfo> =
            past.iter().map(|(key, version)| (key.clone(), version.info.clone())).collect();
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(past.into_iter().map(|(key, version)| (key, Some(version))));
        let own: Vec<String> = {
            let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.keys.iter().filter(|key| key.starts_with(prefix)).cloned().collect()
        };
        for key in own {
            match self.now.head(&key).await {
                Ok(info) => drop(all.insert(key, info)),
                Err(e) if e.code == ErrorCode::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all.into_values().collect())
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        self.remember(key)?;
        self.now.upload(key).await
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        if self.reads_now(key) {
            return self.now.delete(key).await;
        }
        Err(PortError::new(ErrorCode::Invalid, format!("{key} is looked at as it was, and was not deleted"))
            .hint("leave --as-of away to change the bucket"))
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> PortResult<SecretString> {
        if self.reads_now(key) {
            return self.now.presign_get(key, valid).await;
        }
        let message = format!("{key} is looked at as it was, and is not handed out to servers");
        Err(PortError::new(ErrorCode::Invalid, message))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::contract::{looks_back, s3_server};
    use super::*;
    use crate::ports::{Clock, SystemClock};

    fn object(id: &str, at: i64) -> Listed {
        let info = ObjectInfo { key: "k".to_owned(), size_bytes: 1, etag: id.to_owned() };
        Listed::Object(Version { id: Some(id.to_owned()), at: Timestamp::from_second(at).unwrap(), info })
    }

    #[test]
    fn the_newest_before_counts_and_an_object_more_than_its_deletion() {
        let deleted = |at| Listed::Deleted(Timestamp::from_second(at).unwrap());
        let before = |listed: &[Listed], at| {
            there_before(listed.to_vec(), Timestamp::from_second(at).unwrap()).and_then(|version| version.id)
        };
        let history = [object("c", 30), object("b", 20), object("a", 10), deleted(25), deleted(30)];
        let seen: Vec<_> = [10, 11, 20, 21, 26, 31].iter().map(|at| before(&history, *at)).collect();
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(seen, [None, some("a"), some("a"), some("b"), None, some("c")]);
        // Two of one second: the first that is listed is the later one.
        assert_eq!(before(&[object("late", 10), object("early", 10)], 11), some("late"));
    }

    #[test]
    fn a_versions_name_tells_its_time_where_it_is_a_ulid() {
        let modified = aws_smithy_types::DateTime::from_secs(1_700_000_000);
        let at = |id| made_at(Some(id), Some(modified)).unwrap().to_string();
        assert_eq!(at("01ARZ3NDEKTSV4RRFFQ69G5FAV"), "2016-07-30T23:54:10.259Z");
        for other in ["null", "3sL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY", "d7f1e0d1-7f4b-4f0e-9d9b-0c1d2e3f4a5b"] {
            assert_eq!(at(other), "2023-11-14T22:13:20Z");
        }
    }

    #[tokio::test]
    async fn what_was_overwritten_or_deleted_is_read_as_it_was() {
        let (server, dir) = s3_server();
        let now = Arc::new(S3Store::connect(&server.config("backups")).unwrap());
        now.ensure_bucket().await.unwrap();
        looks_back(&now, dir.path().join("own")).await;
    }

    #[tokio::test]
    async fn a_bucket_without_versions_is_refused() {
        let (server, _dir) = s3_server();
        let now = Arc::new(S3Store::connect(&server.config("plain")).unwrap());
        now.client.create_bucket().bucket("plain").send().await.unwrap();
        let then = AsOfStore::new(now, SystemClock.now(), None);
        let refused = then.list("demo/").await.unwrap_err();
        assert!(refused.code == ErrorCode::Invalid && refused.message.contains("keeps no versions"), "{refused}");
    }
}
