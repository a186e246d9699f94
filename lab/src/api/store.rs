//! What the API acknowledged is on disk before its answer leaves.
//!
//! The whole state is one JSON document, written to a draft and renamed. Changes that come while one is written share the
//! next one. It protects from the death of processes, not of the host: nothing waits for the disk itself, as nothing else
//! of the lab would survive that either.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::error::{Attempt, LabError};

/// After a failed attempt (a full disk, say) the next one comes this much later.
const RETRY: Duration = Duration::from_millis(500);
/// How long a request waits for the state to be written.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts changes of the state, and knows which of them are on disk.
pub struct Changes {
    made: AtomicU64,
    /// As `made`, with what is to be seen and not kept.
    seen: AtomicU64,
    news: Notify,
    /// The last change that is on disk; none while nothing is to be kept.
    written: watch::Sender<Option<u64>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            made: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            news: Notify::new(),
            written: watch::Sender::new(None),
        }
    }
}

impl Changes {
    /// Something changed. Called while the lock of what changed is held.
    pub fn note(&self) {
        self.note_unkept();
        self.made.fetch_add(1, Ordering::SeqCst);
        self.news.notify_one();
    }

    /// Something changed that clients see and that need not be kept. Called as `note`.
    pub fn note_unkept(&self) {
        self.seen.fetch_add(1, Ordering::SeqCst);
    }

    /// Another one after any change that clients may see.
    pub fn version(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// Waits until all that changed so far is on disk. At once where nothing is kept.
    ///
    /// # Errors
    /// The state can't be written.
    pub async fn settled(&self) -> Result<(), LabError> {
        let wanted = self.made.load(Ordering::SeqCst);
        // As for nearly all reads.
        if self.written.borrow().is_none_or(|w| w >= wanted) {
            return Ok(());
        }
        let mut written = self.written.subscribe();
        let enough = |written: &Option<u64>| written.is_none_or(|w| w >= wanted);
        match tokio::time::timeout(PATIENCE, written.wait_for(enough)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(LabError::new("the lab cannot write its state; its log says why")),
        }
    }

    /// From now on all is kept: `document` gives the state as it is, `path` is where it goes. Returns when it is written
    /// for the first time.
    pub async fn keep(
        self: std::sync::Arc<Self>,
        path: PathBuf,
        document: impl Fn() -> Result<Vec<u8>, LabError> + Send + Sync + 'static,
    ) -> Result<(), LabError> {
        write(&path, &document()?)?;
        self.written.send_replace(Some(0));
        tokio::spawn(async move {
            loop {
                let made = self.made.load(Ordering::SeqCst);
                if *self.written.borrow() == Some(made) {
                    self.news.notified().await;
                    continue;
                }
                let attempt = document().and_then(|text| write(&path, &text));
                match attempt {
                    Ok(()) => {
                        self.written.send_replace(Some(made));
                    }
                    Err(error) => {
                        eprintln!("{error}");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
        Ok(())
    }
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &[u8]) -> Result<(), LabError> {
    let draft = path.with_extension("draft");
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft);
    file.and_then(|mut file| file.write_all(text)).attempt(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, path).attempt(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn whoever_waits_finds_the_change_on_disk_and_writers_share_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let (changes, state) = (Arc::new(Changes::default()), Arc::new(Mutex::new(0u64)));
        let writes = Arc::new(AtomicUsize::new(0));
        let (source, count) = (Arc::clone(&state), Arc::clone(&writes));
        let document = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(source.lock().expect("no panic").to_string().into_bytes())
        };
        Arc::clone(&changes).keep(path.clone(), document).await.expect("a first write");
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (changes, state, path) = (Arc::clone(&changes), Arc::clone(&state), path.clone());
            all.spawn(async move {
                let mine = {
                    let mut state = state.lock().expect("no panic");
                    *state += 1;
                    changes.note();
                    *state
                };
                changes.settled().await.expect("written");
                let on_disk: u64 = fs::read_to_string(path).expect("a file").parse().expect("a number");
                assert!(on_disk >= mine);
            });
        }
        all.join_all().await;
        assert!(writes.load(Ordering::SeqCst) < 200, "{writes:?}");
    }

    #[tokio::test]
    async fn nobody_waits_where_nothing_is_kept() {
        let changes = Changes::default();
        changes.note();
        changes.settled().await.expect("at once");
    }
}
