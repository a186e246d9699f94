use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Holds a reader back to so many bytes a second.
pub(super) struct Pace {
    begun: Instant,
    bytes_per_second: NonZeroU64,
}

impl Pace {
    pub fn begin(bytes_per_second: NonZeroU64) -> Self {
        Self { begun: Instant::now(), bytes_per_second }
    }

    /// Waits until so many bytes may have come.
    pub async fn keep(&self, bytes: u64) {
        tokio::time::sleep_until((self.begun + self.due(bytes)).into()).await;
    }

    /// The same for a thread that has nothing else to do.
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, whose work it is to wait")]
    pub fn keep_blocking(&self, bytes: u64) {
        std::thread::sleep((self.begun + self.due(bytes)).saturating_duration_since(Instant::now()));
    }

    /// How long after the beginning so many bytes may have come.
    fn due(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_when_the_pace_allows_them() {
        let pace = Pace::begin(NonZeroU64::new(25_000_000).unwrap());
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(5_000_000), Duration::from_millis(200));
        assert_eq!(pace.due(1_500_000_000), Duration::from_secs(60));
    }
}
