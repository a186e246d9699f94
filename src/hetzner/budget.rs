use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Requests the API grants a project an hour, unless its answers say otherwise.
const HOURLY: f64 = 3600.0;
/// What is assumed to be left before the first answer tells: other tools share the project's budget.
const FIRST_GUESS: f64 = 200.0;
/// First and longest pause after a refusal.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// How many requests may still be sent: a bucket that fills at the API's own rate and is corrected by every answer.
pub(super) struct Budget {
    state: Mutex<State>,
}

struct State {
    tokens: f64,
    per_second: f64,
    at: Instant,
    /// After a refusal nobody sends before this.
    closed_until: Option<Instant>,
    /// Refusals without an accepted request between them.
    refusals: u32,
}

impl Budget {
    pub(super) fn new() -> Self {
        let state = State {
            tokens: FIRST_GUESS,
            per_second: HOURLY / 3600.0,
            at: Instant::now(),
            closed_until: None,
            refusals: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// Waits until a request may be sent and takes it from the budget.
    pub(super) async fn take(&self) {
        loop {
            let Some(wait) = self.try_take(Instant::now()) else { return };
            tokio::time::sleep(wait).await;
        }
    }

    /// How much of the budget is left, roughly.
    pub(super) fn left(&self) -> f64 {
        self.lock().tokens
    }

    /// Takes one, or says how long to wait before asking again.
    fn try_take(&self, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        if let Some(until) = state.closed_until {
            if now < until {
                return Some(until - now);
            }
            state.closed_until = None;
        }
        state.tokens += now.duration_since(state.at).as_secs_f64() * state.per_second;
        state.at = now;
        if state.tokens >= 1.0 {
            state.tokens -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - state.tokens) / state.per_second))
    }

    /// Learns from an accepted request's `RateLimit-Limit` (an hour) and `RateLimit-Remaining`.
    pub(super) fn learn(&self, limit: Option<f64>, remaining: Option<f64>) {
        let mut state = self.lock();
        state.refusals = 0;
        if let Some(limit) = limit.filter(|l| *l >= 1.0) {
            state.per_second = limit / 3600.0;
        }
        if let Some(remaining) = remaining {
            state.tokens = remaining;
            state.at = Instant::now();
        }
    }

    /// The API refused for too many requests: everybody waits until its reset, but not longer than a pause that doubles
    /// with every refusal. The reset tells when the whole budget is back; single requests are granted long before.
    pub(super) fn refused(&self, reset: Option<Duration>) {
        let mut state = self.lock();
        let at_most = PAUSE.0.saturating_mul(1 << state.refusals.min(8)).min(PAUSE.1);
        state.refusals += 1;
        state.tokens = 0.0;
        state.at = Instant::now();
        let wait = reset.unwrap_or(at_most).min(at_most);
        state.closed_until = Some(state.at + wait);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_budget_refills_at_the_announced_rate() {
        let budget = Budget::new();
        budget.learn(Some(7200.0), Some(2.0));
        let start = budget.lock().at;
        assert_eq!((budget.try_take(start), budget.try_take(start)), (None, None));
        let wait = budget.try_take(start).unwrap();
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(budget.try_take(start + wait), None);
    }

    #[test]
    fn after_a_refusal_everybody_waits_for_the_reset_but_not_for_ever() {
        let budget = Budget::new();
        for expected in [1, 2, 4, 8, 16, 16] {
            budget.refused(Some(Duration::from_secs(3000)));
            let start = budget.lock().at;
            assert_eq!(budget.try_take(start), Some(Duration::from_secs(expected)));
            assert_eq!(budget.try_take(start + Duration::from_secs(expected)), None);
        }
        budget.refused(Some(Duration::from_millis(300)));
        let start = budget.lock().at;
        assert_eq!(budget.try_take(start), Some(Duration::from_millis(300)));
    }
}
