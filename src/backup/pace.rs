use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// How much costlier a byte is to the member's writes where etcd sends it, against reading beside it (docs/DECISIONS.md).
const API_COSTS_TIMES: u64 = 5;

/// Bytes that are read from a member in a second, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Where they are read beside it.
    pub in_place: NonZeroU64,
    /// Where etcd sends them.
    pub through_api: NonZeroU64,
}

impl Rate {
    /// So many beside the member, and through etcd's API as many as cost its writes the same.
    pub fn beside(bytes_per_second: NonZeroU64) -> Self {
        let through_api = NonZeroU64::new(bytes_per_second.get() / API_COSTS_TIMES).unwrap_or(NonZeroU64::MIN);
        Self { in_place: bytes_per_second, through_api }
    }

    /// So many either way.
    pub fn either(bytes_per_second: NonZeroU64) -> Self {
        Self { in_place: bytes_per_second, through_api: bytes_per_second }
    }

    /// So many times as many.
    pub(super) fn times(self, factor: NonZeroU64) -> Self {
        Self { in_place: self.in_place.saturating_mul(factor), through_api: self.through_api.saturating_mul(factor) }
    }
}

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
    fn etcd_is_asked_for_less_than_is_read_beside_it() {
        let mb = |mb: u64| NonZeroU64::new(mb * 1_000_000).unwrap();
        let rate = Rate::beside(mb(25));
        assert_eq!((rate.in_place, rate.through_api), (mb(25), mb(5)));
        let faster = rate.times(NonZeroU64::new(5).unwrap());
        assert_eq!((faster.in_place, faster.through_api), (mb(125), mb(25)));
        assert_eq!(Rate::beside(NonZeroU64::MIN).through_api, NonZeroU64::MIN);
        assert_eq!(Rate::either(mb(7)).through_api, mb(7));
    }

    #[test]
    fn bytes_are_due_when_the_pace_allows_them() {
        let pace = Pace::begin(NonZeroU64::new(25_000_000).unwrap());
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(5_000_000), Duration::from_millis(200));
        assert_eq!(pace.due(1_500_000_000), Duration::from_secs(60));
    }
}
