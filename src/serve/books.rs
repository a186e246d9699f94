use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::plan::schedule::{BOOK_FORMAT, Book};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Largest book that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Where a schedule's book is.
pub fn book_key(cluster: &str, policy: &str, schedule: &str) -> String {
    format!("{cluster}/schedule/{policy}.{schedule}.json")
}

/// One schedule's book, as it was last seen, and since when it has been as it is.
pub struct Books {
    store: Arc<dyn ObjectStore>,
    key: String,
    seen: Option<(Book, String)>,
    /// Of the clock that nobody sets: whether a holder is dead must not depend on what time it is.
    unchanged_since: Instant,
}

impl Books {
    /// Nothing is read yet.
    pub fn new(store: Arc<dyn ObjectStore>, key: String) -> Self {
        Self { store, key, seen: None, unchanged_since: Instant::now() }
    }

    /// The book as it was last seen.
    pub fn book(&self) -> Option<&Book> {
        self.seen.as_ref().map(|(book, _)| book)
    }

    /// How long it has not changed.
    pub fn unchanged(&self) -> Duration {
        self.unchanged_since.elapsed()
    }

    /// Reads it; begins it where there is none.
    ///
    /// # Errors
    /// The bucket is away, or the book is damaged or of a later format.
    pub async fn read(&mut self, now: Timestamp) -> PortResult<&Book> {
        let etag = match self.store.head(&self.key).await {
            Ok(info) => info.etag,
            Err(e) if e.code == ErrorCode::NotFound => {
                let _ = self.replace(Book::new(now)).await?;
                self.store.head(&self.key).await?.etag
            }
            Err(e) => return Err(e),
        };
        if self.seen.as_ref().is_none_or(|(_, known)| *known != etag) {
            let text = self.store.get(&self.key, BYTES_MAX).await?;
            // Replaced between both questions: the condition of the next put does not hold then, and it is read again.
            let book = parse(&self.key, &text)?;
            self.see(book, etag);
        }
        match &self.seen {
            Some((book, _)) => Ok(book),
            None => Err(PortError::new(ErrorCode::NotFound, format!("{} vanished", self.key))),
        }
    }

    /// Replaces it if it still is what was seen. False: somebody else replaced it; it is read anew next time.
    ///
    /// # Errors
    /// The bucket is away; whether it was replaced shows the next reading.
    pub async fn replace(&mut self, book: Book) -> PortResult<bool> {
        let condition = match &self.seen {
            Some((_, etag)) => PutCondition::Match(etag.clone()),
            None => PutCondition::Absent,
        };
        let text = serde_json::to_vec_pretty(&book)
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write {}: {e}", self.key)))?;
        match self.store.put(&self.key, Bytes::from(text), condition).await {
            Ok(info) => {
                self.see(book, info.etag);
                Ok(true)
            }
            Err(e) if matches!(e.code, ErrorCode::Conflict | ErrorCode::NotFound) => {
                // An answer may have been lost and the repetition met what the first attempt wrote.
                self.seen = None;
                let there = parse(&self.key, &self.store.get(&self.key, BYTES_MAX).await?)?;
                let ours = there == book;
                let etag = self.store.head(&self.key).await?.etag;
                self.see(there, etag);
                Ok(ours)
            }
            Err(e) => Err(e),
        }
    }

    fn see(&mut self, book: Book, etag: String) {
        self.seen = Some((book, etag));
        self.unchanged_since = Instant::now();
    }
}

fn parse(key: &str, text: &[u8]) -> PortResult<Book> {
    let book: Book = serde_json::from_slice(text).map_err(|e| {
        PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}"))
            .hint("delete it: the schedule begins anew, and what was missed meanwhile is not caught up")
    })?;
    if book.format > BOOK_FORMAT {
        let message = format!("{key} has format {}; this hk-dr reads up to {BOOK_FORMAT}", book.format);
        return Err(PortError::new(ErrorCode::Invalid, message).hint("run the same hk-dr version everywhere"));
    }
    Ok(book)
}
