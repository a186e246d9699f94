use std::path::{Path, PathBuf};
use std::str::FromStr;

use tempfile::NamedTempFile;

use super::download::{self, Downloader, Received, shown};
use super::lock::Artifact;
use super::progress::{Happening, Progress};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Where files may come from, besides the cache.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Asked first.
    pub mirror: Option<Mirror>,
    /// Whether official releases may be downloaded.
    pub release: bool,
    /// Whether files may be built from Go modules.
    pub build: bool,
}

/// A place of the user's that holds `<sha256>` or `<name>-<version>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirror {
    Directory(PathBuf),
    /// Without the slash at the end.
    Url(String),
}

impl FromStr for Mirror {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text.starts_with("http://") || text.starts_with("https://") {
            Self::Url(text.trim_end_matches('/').to_owned())
        } else {
            Self::Directory(PathBuf::from(text.strip_prefix("file://").unwrap_or(text)))
        })
    }
}

/// A file that may enter the cache, and what vouches for it.
pub(super) struct Vouched {
    pub file: NamedTempFile,
    pub sha256: String,
    /// None if its digest is pinned.
    pub recipe: Option<String>,
    pub source: String,
}

/// Asks sources that have the file ready. Lives as long as one call to the cache.
pub(super) struct Offers<'a> {
    pub sources: &'a Sources,
    /// Where what arrives is written first: the cache's own folder.
    pub folder: &'a Path,
    pub downloader: Downloader,
    pub progress: &'a dyn Progress,
}

impl Offers<'_> {
    /// Asks the mirror, then the official release. None if neither has it; an error if one has something else.
    /// What each said goes to `refusals`.
    pub async fn obtain(&self, artifact: &Artifact, refusals: &mut Vec<String>) -> PortResult<Option<Vouched>> {
        let mut refuse = |source: &str, reason: String| {
            self.progress
                .report(&artifact.name, Happening::Skipped { source: source.to_owned(), reason: reason.clone() });
            refusals.push(format!("{source}: {reason}"));
        };
        if let Some(mirror) = &self.sources.mirror {
            match self.ask_mirror(artifact, mirror).await {
                Ok(Some(vouched)) => return Ok(Some(vouched)),
                Ok(None) => refuse("mirror", "does not have it".into()),
                Err(e) if may_try_another(e.code) => refuse("mirror", e.message),
                Err(e) => return Err(e),
            }
        }
        if self.sources.release
            && let Some(release) = &artifact.release
        {
            let Some(pinned) = &release.sha256 else {
                refuse("official release", "no digest is pinned for it".into());
                return Ok(None);
            };
            match self.downloader.get(&release.url, self.folder, &artifact.name, self.progress).await {
                Ok(received) => {
                    if received.sha256 != *pinned {
                        return Err(wrong(artifact, &shown(&release.url), &received.sha256, &[pinned]));
                    }
                    let vouched = self.unwrap(artifact, received, shown(&release.url)).await?;
                    return Ok(Some(vouched));
                }
                Err(e) if may_try_another(e.code) => refuse("official release", e.message),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    async fn ask_mirror(&self, artifact: &Artifact, mirror: &Mirror) -> PortResult<Option<Vouched>> {
        let mut pins = artifact.pinned_digests();
        pins.extend(artifact.pinned_archive().map(|(_, _, sha256)| sha256));
        let file_name = artifact.file_name();
        for name in pins.iter().copied().chain([file_name.as_str()]) {
            let (received, place) = match mirror {
                Mirror::Directory(directory) => {
                    let place = directory.join(name);
                    (download::copy(&place, self.folder), place.display().to_string())
                }
                Mirror::Url(base) => {
                    let url = format!("{base}/{name}");
                    (self.downloader.get(&url, self.folder, &artifact.name, self.progress).await, shown(&url))
                }
            };
            let received = match received {
                Err(e) if e.code == ErrorCode::NotFound => continue,
                other => other?,
            };
            if !pins.contains(&received.sha256.as_str()) {
                return Err(wrong(artifact, &place, &received.sha256, &pins));
            }
            return self.unwrap(artifact, received, place).await.map(Some);
        }
        Ok(None)
    }

    /// Takes the file out of its archive if what was received, and found to be pinned, is the archive.
    async fn unwrap(&self, artifact: &Artifact, received: Received, source: String) -> PortResult<Vouched> {
        let archive = artifact.pinned_archive().filter(|(_, _, sha256)| *sha256 == received.sha256);
        let Some((_, member, _)) = archive else {
            return Ok(Vouched { file: received.file, sha256: received.sha256, recipe: None, source });
        };
        let (member, folder) = (member.to_owned(), self.folder.to_owned());
        let unpacked = in_background(move || download::unpack(received.file.path(), &member, &folder)).await?;
        Ok(Vouched { file: unpacked.file, sha256: unpacked.sha256, recipe: Some(artifact.recipe()), source })
    }
}

/// Whether another source may have what this one could not give.
fn may_try_another(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NotFound
            | ErrorCode::Unreachable
            | ErrorCode::Timeout
            | ErrorCode::Forbidden
            | ErrorCode::Unauthorized
            | ErrorCode::RateLimited
            | ErrorCode::ServerError
    )
}

pub(super) fn wrong(artifact: &Artifact, source: &str, found: &str, pinned: &[&str]) -> PortError {
    let (name, version) = (&artifact.name, &artifact.version);
    PortError::new(
        ErrorCode::Corrupt,
        format!("{name} {version} from {source} has SHA-256 {found}, but artifacts.lock pins {}", pinned.join(" or ")),
    )
    .hint("the file was removed and nothing was installed; find out why that source has something else, or choose others with --sources")
}

/// Runs work that reads or writes much on a thread that may block.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> PortResult<T> + Send + 'static,
) -> PortResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| PortError::new(ErrorCode::Local, format!("a background task ended early: {e}")))?
}
