use std::time::Duration;

/// What happens while artifacts are obtained, for someone who watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// It was in the cache.
    Cached,
    /// What the cache held was not what is pinned, and was removed.
    Discarded { reason: String },
    /// A source could not be used; the next one is tried.
    Skipped { source: String, reason: String },
    /// Bytes arrived; `total_bytes` if the source announced it.
    Downloading { source: String, received_bytes: u64, total_bytes: Option<u64> },
    /// The build that makes it is running.
    Building { elapsed: Duration },
    /// The build has made it; its digest is still to be checked.
    Built { elapsed: Duration },
    /// It is in the cache now.
    Ready { source: String, size_bytes: u64, elapsed: Duration },
    /// Another process is filling the same cache; this one waits for it.
    Waiting { elapsed: Duration },
}

/// Receives what happens, in order, for each artifact by name.
pub trait Progress: Send + Sync {
    /// Must return at once: it is called from the work itself.
    fn report(&self, artifact: &str, happening: Happening);
}

/// Ignores everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _artifact: &str, _happening: Happening) {}
}
