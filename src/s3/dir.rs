use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;
use tempfile::NamedTempFile;

use super::check_key;
use crate::ports::{ByteStream, ErrorCode, ObjectInfo, ObjectStore, PortError, PortResult, PutCondition, Upload};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// A local directory (an external disk, a mounted share) as a bucket. Objects are files with mode 0600 that appear
/// whole or not at all; conditional writes hold a lock on the directory, so several processes may use it.
#[derive(Debug, Clone)]
pub struct DirStore {
    root: PathBuf,
    /// Somebody made it: while it is not there, it is a bucket that does not answer.
    given: bool,
}

impl DirStore {
    /// Opens or makes the directory.
    pub fn open(root: impl Into<PathBuf>) -> PortResult<Self> {
        let root = root.into();
        fs::create_dir_all(root.join(".incoming")).map_err(|e| local(&root, "prepare the directory", &e))?;
        Ok(Self { root, given: false })
    }

    /// A directory that somebody made, perhaps on a share. Nothing is made in its place where the share is not mounted: every
    /// call fails then, with `Unreachable`.
    pub fn given(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), given: true }
    }

    /// Whether it can be used now.
    pub fn there(&self) -> PortResult<()> {
        if !self.given || self.root.is_dir() {
            return Ok(());
        }
        Err(PortError::new(ErrorCode::Unreachable, format!("directory {} is not there", self.root.display()))
            .hint("mount what it lies on; a new one is made by hand: mkdir -m 0700, there and nowhere else"))
    }

    fn path(&self, key: &str) -> PortResult<PathBuf> {
        check_key(key)?;
        self.there()?;
        if key.split('/').any(|segment| segment.starts_with('.')) {
            return Err(PortError::new(ErrorCode::Invalid, format!("{key:?}: no part of a key may begin with a dot")));
        }
        Ok(self.root.join(key))
    }

    fn incoming(&self) -> PortResult<NamedTempFile> {
        let incoming = self.root.join(".incoming");
        match fs::create_dir(&incoming) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(local(&incoming, "prepare", &e)),
            _ => {}
        }
        // tempfile makes files with mode 0600.
        NamedTempFile::new_in(incoming).map_err(|e| local(&self.root, "make a file", &e))
    }

    /// Moves a finished file to its key if the condition holds; under the lock, so that nobody comes in between.
    fn publish(&self, file: NamedTempFile, key: &str, condition: &PutCondition) -> PortResult<ObjectInfo> {
        let path = self.path(key)?;
        file.as_file().sync_all().map_err(|e| local(&path, "write", &e))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.root.join(".lock"))
            .map_err(|e| local(&self.root, "lock", &e))?;
        lock.lock().map_err(|e| local(&self.root, "lock", &e))?;
        let present = info(&path, key);
        let holds = match (condition, &present) {
            (PutCondition::Any, _) => true,
            (PutCondition::Absent, present) => present.is_none(),
            (PutCondition::Match(etag), present) => present.as_ref().is_some_and(|p| p.etag == *etag),
        };
        if !holds {
            return Err(PortError::new(
                ErrorCode::Conflict,
                format!("write {key}: the object in {} is not in the expected state", self.root.display()),
            ));
        }
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(|e| local(parent, "make the directory", &e))?;
        file.persist(&path).map_err(|e| local(&path, "write", &e.error))?;
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| local(parent, "write", &e))?;
        info(&path, key).ok_or_else(|| {
            PortError::new(ErrorCode::Local, format!("{} vanished while it was written", path.display()))
        })
    }

    /// Runs blocking work outside the asynchronous threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> PortResult<T> + Send + 'static,
    ) -> PortResult<T> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .map_err(|e| PortError::new(ErrorCode::Local, format!("a file operation died: {e}")))?
    }
}

/// Identity of a file's content: a new object is always a new inode or has a new time.
fn info(path: &Path, key: &str) -> Option<ObjectInfo> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let etag = format!("{:x}-{:x}.{:x}-{:x}", meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
    Some(ObjectInfo { key: key.to_owned(), size_bytes: meta.len(), etag })
}

fn local(path: &Path, doing: &str, error: &std::io::Error) -> PortError {
    use std::io::ErrorKind;
    let (code, hint) = match error.kind() {
        ErrorKind::NotFound => (ErrorCode::NotFound, None),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (ErrorCode::LimitExceeded, Some("free space there")),
        ErrorKind::PermissionDenied => (ErrorCode::Forbidden, Some("check the owner and mode of the directory")),
        _ => (ErrorCode::Local, None),
    };
    let mut failed = PortError::new(code, format!("{doing} {}: {error}", path.display()));
    failed.hint = hint.map(str::to_owned);
    failed
}

struct DirUpload {
    store: DirStore,
    key: String,
    file: NamedTempFile,
}

#[async_trait]
impl Upload for DirUpload {
    async fn part(&mut self, data: Bytes) -> PortResult<()> {
        let mut file = self.file.reopen().map_err(|e| local(self.file.path(), "open", &e))?;
        let path = self.file.path().to_owned();
        self.store
            .blocking(move |_| {
                file.seek(SeekFrom::End(0)).map_err(|e| local(&path, "write", &e))?;
                file.write_all(&data).map_err(|e| local(&path, "write", &e))
            })
            .await
    }

    async fn complete(self: Box<Self>, condition: PutCondition) -> PortResult<ObjectInfo> {
        let Self { store, key, file } = *self;
        store.blocking(move |store| store.publish(file, &key, &condition)).await
    }

    async fn abort(self: Box<Self>) -> PortResult<()> {
        let path = self.file.path().to_owned();
        self.file.close().map_err(|e| local(&path, "remove", &e))
    }
}

#[async_trait]
impl ObjectStore for DirStore {
    fn name(&self) -> String {
        format!("directory {}", self.root.display())
    }

    async fn put(&self, key: &str, data: Bytes, condition: PutCondition) -> PortResult<ObjectInfo> {
        let key = key.to_owned();
        self.blocking(move |store| {
            store.path(&key)?;
            let mut file = store.incoming()?;
            file.write_all(&data).map_err(|e| local(file.path(), "write", &e))?;
            store.publish(file, &key, &condition)
        })
        .await
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> PortResult<Bytes> {
        let key = key.to_owned();
        self.blocking(move |store| {
            let path = store.path(&key)?;
            let file = File::open(&path).map_err(|e| local(&path, "read", &e))?;
            let mut data = Vec::new();
            file.take(limit_bytes + 1).read_to_end(&mut data).map_err(|e| local(&path, "read", &e))?;
            if data.len() as u64 > limit_bytes {
                return Err(PortError::new(
                    ErrorCode::LimitExceeded,
                    format!("read {key}: larger than the {limit_bytes} bytes it may have"),
                ));
            }
            Ok(Bytes::from(data))
        })
        .await
    }

    async fn stream(&self, key: &str, offset_bytes: u64) -> PortResult<ByteStream> {
        let path = self.path(key)?;
        let mut file = File::open(&path).map_err(|e| local(&path, "read", &e))?;
        file.seek(SeekFrom::Start(offset_bytes)).map_err(|e| local(&path, "read", &e))?;
        let store = self.clone();
        Ok(Box::pin(futures::stream::try_unfold((store, file, path), |(store, mut file, path)| async move {
            let (chunk, file, path) = store
                .blocking(move |_| {
                    let mut buffer = vec![0; READ_BYTES];
                    let read = file.read(&mut buffer).map_err(|e| local(&path, "read", &e))?;
                    buffer.truncate(read);
                    Ok((Bytes::from(buffer), file, path))
                })
                .await?;
            Ok((!chunk.is_empty()).then_some((chunk, (store, file, path))))
        })))
    }

    async fn head(&self, key: &str) -> PortResult<ObjectInfo> {
        let path = self.path(key)?;
        info(&path, key).ok_or_else(|| {
            PortError::new(ErrorCode::NotFound, format!("look at {key}: not in {}", self.root.display()))
        })
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<ObjectInfo>> {
        let prefix = prefix.to_owned();
        self.blocking(move |store| {
            store.there()?;
            let mut found = Vec::new();
            let mut directories = vec![store.root.clone()];
            while let Some(directory) = directories.pop() {
                let entries = fs::read_dir(&directory).map_err(|e| local(&directory, "list", &e))?;
                for entry in entries {
                    let entry = entry.map_err(|e| local(&directory, "list", &e))?;
                    if entry.file_name().as_encoded_bytes().starts_with(b".") {
                        continue;
                    }
                    let path = entry.path();
                    let Some(key) = path.strip_prefix(&store.root).ok().and_then(Path::to_str).map(str::to_owned)
                    else {
                        continue;
                    };
                    if path.is_dir() {
                        directories.push(path);
                    } else if key.starts_with(&prefix) {
                        found.extend(info(&path, &key));
                    }
                }
            }
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn upload(&self, key: &str) -> PortResult<Box<dyn Upload>> {
        self.path(key)?;
        Ok(Box::new(DirUpload { store: self.clone(), key: key.to_owned(), file: self.incoming()? }))
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(local(&path, "delete", &e)),
            _ => Ok(()),
        }
    }

    async fn presign_get(&self, key: &str, _valid: Duration) -> PortResult<SecretString> {
        let path = self.path(key)?;
        Ok(SecretString::from(format!("file://{}", path.display())))
    }
}
