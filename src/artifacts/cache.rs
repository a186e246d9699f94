use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::download::{self, Downloader, digest_file, local};
use super::gobuild::Builder;
use super::lock::{Artifact, Kind, Lock};
use super::progress::{Happening, Progress};
use super::sources::{Offers, Sources, Vouched, in_background, wrong};
use crate::ports::{ErrorCode, PortError, PortResult};

/// How long another process may hold the cache: as long as all builds together may take.
const LOCK_DEADLINE: Duration = Duration::from_secs(60 * 60);
const LOCK_POLL: Duration = Duration::from_millis(250);

/// The folder `artifacts` below hk-dr's cache.
pub struct Cache {
    root: PathBuf,
    lock: Lock,
}

/// What is remembered beside a file, so that its digest need not be computed each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size_bytes: u64,
    mtime_ns: i128,
    sha256: String,
    /// Set if no digest is pinned for how the file was made: the artifact's recipe then.
    recipe: Option<String>,
}

impl Cache {
    /// The cache below `root`, for what this binary's `artifacts.lock` pins. Made when first written to.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with_lock(root, Lock::embedded())
    }

    /// The cache below `root`, for another lock.
    pub fn with_lock(root: impl Into<PathBuf>, lock: Lock) -> Self {
        Self { root: root.into(), lock }
    }

    /// What is pinned.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Where an artifact is or would be.
    pub fn path(&self, artifact: &Artifact) -> PathBuf {
        self.folder().join(artifact.file_name())
    }

    /// The SHA-256 of a cached artifact, in hex.
    ///
    /// # Errors
    /// `NotFound` if it is not pinned or not in the cache; `Corrupt` if what is there is not what is pinned.
    pub async fn digest(&self, name: &str, version: &str) -> PortResult<String> {
        let artifact = self.lock.get(name, version)?;
        match self.check(artifact).await? {
            Checked::Good(sha256) => Ok(sha256),
            Checked::Absent => {
                Err(PortError::new(ErrorCode::NotFound, format!("{name} {version} is not in the cache"))
                    .hint(format!("`hk-dr artifacts fetch {name}` obtains it")))
            }
            Checked::Bad(reason) => {
                Err(PortError::new(ErrorCode::Corrupt, format!("{name} {version} in the cache: {reason}"))
                    .hint(format!("`hk-dr artifacts fetch {name}` replaces it")))
            }
        }
    }

    /// The path of an artifact, obtained from the first source that has it if it is not in the cache.
    ///
    /// # Errors
    /// `NotFound` if it is not pinned; `Corrupt` if a source offered something else (nothing is kept of it then);
    /// `Unreachable` if no source has it, with what each said.
    pub async fn ensure(
        &self,
        name: &str,
        version: &str,
        sources: &Sources,
        progress: &dyn Progress,
    ) -> PortResult<PathBuf> {
        let artifact = self.lock.get(name, version)?;
        self.ensure_all(&[artifact], sources, progress).await?;
        Ok(self.path(artifact))
    }

    /// Like [`Cache::ensure`] for several at once: what is built from the same module is built together, which takes a
    /// fraction of the time.
    ///
    /// # Errors
    /// As [`Cache::ensure`]; what was obtained before the error stays in the cache.
    pub async fn ensure_all(
        &self,
        artifacts: &[&Artifact],
        sources: &Sources,
        progress: &dyn Progress,
    ) -> PortResult<()> {
        if self.missing(artifacts, progress, true).await?.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(self.folder()).map_err(|e| local("making", &self.folder(), &e))?;
        let _guard = self.exclusive(artifacts, progress).await?;
        // The process that held the lock may have brought them.
        let missing = self.missing(artifacts, progress, false).await?;
        let folder = self.folder();
        let offers = Offers { sources, folder: &folder, downloader: Downloader::new()?, progress };
        let mut unobtained: Vec<(&Artifact, Vec<String>)> = Vec::new();
        for artifact in missing {
            let started = Instant::now();
            let mut refusals = Vec::new();
            match offers.obtain(artifact, &mut refusals).await? {
                Some(vouched) => self.admit(artifact, vouched, started, progress).await?,
                None => unobtained.push((artifact, refusals)),
            }
        }
        if unobtained.is_empty() {
            return Ok(());
        }
        if !sources.build {
            let (artifact, mut refusals) = unobtained.swap_remove(0);
            refusals.push("building: not allowed by the choice of sources".into());
            let (name, version) = (&artifact.name, &artifact.version);
            return Err(PortError::new(
                ErrorCode::Unreachable,
                format!("{name} {version} could not be obtained ({})", refusals.join("; ")),
            )
            .hint("name a mirror with --mirror, or allow more sources with --sources"));
        }
        let to_build: Vec<_> = unobtained.into_iter().map(|(artifact, _)| artifact).collect();
        self.build(&to_build, progress).await
    }

    /// Removes what builds leave behind to make later ones faster: gigabytes. Nothing else needs it.
    pub fn drop_build_caches(&self) {
        Builder::new(&self.root).clean();
    }

    fn folder(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    /// Removes what a process that was killed had begun to write. Called with the lock held.
    fn sweep(&self) {
        for entry in std::fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(download::INCOMING) {
                // What cannot be removed costs space, not correctness.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn record_path(&self, artifact: &Artifact) -> PathBuf {
        self.folder().join(format!(".{}.json", artifact.file_name()))
    }

    /// Those of `artifacts` that the cache does not hold. What is there but wrong is removed.
    async fn missing<'a>(
        &self,
        artifacts: &[&'a Artifact],
        progress: &dyn Progress,
        announce: bool,
    ) -> PortResult<Vec<&'a Artifact>> {
        let mut missing = Vec::new();
        for &artifact in artifacts {
            match self.check(artifact).await? {
                Checked::Good(_) => {
                    if announce {
                        progress.report(&artifact.name, Happening::Cached);
                    }
                    continue;
                }
                Checked::Absent => {}
                Checked::Bad(reason) => {
                    let path = self.path(artifact);
                    std::fs::remove_file(&path).map_err(|e| local("removing", &path, &e))?;
                    let _ = std::fs::remove_file(self.record_path(artifact));
                    progress.report(&artifact.name, Happening::Discarded { reason });
                }
            }
            missing.push(artifact);
        }
        Ok(missing)
    }

    /// Looks at the cached file. Its content is read only if its size or time is not what was remembered.
    async fn check(&self, artifact: &Artifact) -> PortResult<Checked> {
        let path = self.path(artifact);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Err(PortError::new(ErrorCode::Local, format!("{} is not a file", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Checked::Absent),
            Err(e) => return Err(local("looking at", &path, &e)),
        };
        let record: Option<Record> =
            std::fs::read(self.record_path(artifact)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let unchanged = record.as_ref().filter(|r| r.size_bytes == metadata.len() && r.mtime_ns == mtime_ns(&metadata));
        let sha256 = match unchanged {
            Some(record) => record.sha256.clone(),
            None => digest_in_background(path.clone()).await?,
        };
        if artifact.pinned_digests().contains(&sha256.as_str()) {
            if unchanged.is_none() {
                // A cache that cannot be written to is still good to read from.
                let _ = self.remember(artifact, &metadata, &sha256, None);
            }
            return Ok(Checked::Good(sha256));
        }
        match record {
            Some(record) if record.recipe == Some(artifact.recipe()) && record.sha256 == sha256 => {
                Ok(Checked::Good(sha256))
            }
            _ => Ok(Checked::Bad(format!("its SHA-256 is {sha256}, which artifacts.lock does not pin"))),
        }
    }

    async fn build(&self, artifacts: &[&Artifact], progress: &dyn Progress) -> PortResult<()> {
        let builder = Builder::new(&self.root);
        let mut rest = artifacts.to_vec();
        let mut result = Ok(());
        while let (Some(first), Ok(())) = (rest.first().copied(), &result) {
            let same =
                |a: &&Artifact| a.go.module == first.go.module && (a.go.stamp.is_empty() || a.version == first.version);
            let (group, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(same);
            rest = others;
            result = self.build_group(&builder, &group, progress).await;
        }
        // The compiler's cache serves the files of the same module that are still to come, and nothing else.
        let modules: Vec<_> = artifacts.iter().map(|a| a.go.module.as_str()).collect();
        let siblings: Vec<_> = self.lock.artifacts.iter().filter(|a| modules.contains(&a.go.module.as_str())).collect();
        if result.is_ok() && siblings.iter().all(|a| self.path(a).exists()) {
            self.drop_build_caches();
        }
        result
    }

    async fn build_group(&self, builder: &Builder, group: &[&Artifact], progress: &dyn Progress) -> PortResult<()> {
        let started = Instant::now();
        let built = builder.build(group, &self.lock.toolchain, progress).await?;
        for &artifact in group {
            let folder = self.folder();
            let made = built.out.join(&artifact.name);
            let received = in_background(move || {
                let received = download::copy(&made, &folder)?;
                let _ = std::fs::remove_file(&made);
                Ok(received)
            })
            .await?;
            let recipe = match &artifact.go.sha256 {
                Some(pinned) if built.pinned && *pinned != received.sha256 => {
                    return Err(wrong(artifact, &format!("the build with {}", built.go), &received.sha256, &[pinned]));
                }
                Some(_) if built.pinned => None,
                // go.sum vouches for the sources, and artifacts.lock cannot know this toolchain's result.
                _ => Some(artifact.recipe()),
            };
            let source = format!("build with {}", built.go);
            let vouched = Vouched { file: received.file, sha256: received.sha256, recipe, source };
            self.admit(artifact, vouched, started, progress).await?;
        }
        Ok(())
    }

    /// Moves a vouched-for file into its place.
    async fn admit(
        &self,
        artifact: &Artifact,
        vouched: Vouched,
        started: Instant,
        progress: &dyn Progress,
    ) -> PortResult<()> {
        let path = self.path(artifact);
        let kept = |e: std::io::Error| local("keeping", &path, &e);
        let mode = match artifact.kind {
            Kind::Executable => 0o755,
            Kind::Images => 0o644,
        };
        let file = vouched.file;
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).map_err(kept)?;
        file.as_file().sync_all().map_err(kept)?;
        // A stale record must never meet the new file.
        let _ = std::fs::remove_file(self.record_path(artifact));
        let file = file.persist(&path).map_err(|e| kept(e.error))?;
        let metadata = file.metadata().map_err(kept)?;
        self.remember(artifact, &metadata, &vouched.sha256, vouched.recipe)?;
        let (size_bytes, elapsed) = (metadata.len(), started.elapsed());
        progress.report(&artifact.name, Happening::Ready { source: vouched.source, size_bytes, elapsed });
        Ok(())
    }

    fn remember(
        &self,
        artifact: &Artifact,
        metadata: &std::fs::Metadata,
        sha256: &str,
        recipe: Option<String>,
    ) -> PortResult<()> {
        let record =
            Record { size_bytes: metadata.len(), mtime_ns: mtime_ns(metadata), sha256: sha256.to_owned(), recipe };
        let path = self.record_path(artifact);
        let text = serde_json::to_vec(&record).map_err(|e| PortError::new(ErrorCode::Local, e.to_string()))?;
        // Not called like an incoming file: records are written without the lock, too.
        let file = tempfile::Builder::new().prefix(".record-").tempfile_in(self.folder());
        let mut file = file.map_err(|e| local("writing", &path, &e))?;
        std::io::Write::write_all(&mut file, &text).map_err(|e| local("writing", &path, &e))?;
        file.persist(&path).map_err(|e| local("writing", &path, &e.error))?;
        Ok(())
    }

    /// Waits until no other process fills this cache.
    async fn exclusive(&self, artifacts: &[&Artifact], progress: &dyn Progress) -> PortResult<File> {
        let path = self.folder().join(".lock");
        let file = File::create(&path).map_err(|e| local("opening", &path, &e))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => {
                    self.sweep();
                    return Ok(file);
                }
                Err(TryLockError::Error(e)) => return Err(local("locking", &path, &e)),
                Err(TryLockError::WouldBlock) if started.elapsed() > LOCK_DEADLINE => {
                    let message = format!("another process has held {} for an hour", path.display());
                    return Err(PortError::new(ErrorCode::Timeout, message)
                        .hint("end that process, or use another cache with --cache"));
                }
                Err(TryLockError::WouldBlock) => {
                    if let Some(artifact) = artifacts.first() {
                        progress.report(&artifact.name, Happening::Waiting { elapsed: started.elapsed() });
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
            }
        }
    }
}

enum Checked {
    /// The file is there and has this SHA-256.
    Good(String),
    Absent,
    Bad(String),
}

fn mtime_ns(metadata: &std::fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

async fn digest_in_background(path: PathBuf) -> PortResult<String> {
    in_background(move || digest_file(&path).map(|(sha256, _)| sha256).map_err(|e| local("reading", &path, &e))).await
}
