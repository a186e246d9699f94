//! Waiting for a state that another process brings about.

use std::time::Duration;

use crate::ports::{ErrorClass, ErrorCode, PortError, PortResult};

/// Asks `check` until it says yes or the deadline passes; what it said last is in the error. Transient errors count as
/// "not yet", others end the wait.
pub async fn until<T, F: Future<Output = PortResult<Result<T, String>>> + Send>(
    what: &str,
    deadline: Duration,
    interval: Duration,
    mut check: impl FnMut() -> F + Send,
) -> PortResult<T> {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let last = match check().await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(not_yet)) => not_yet,
            Err(error) if error.class() == ErrorClass::Transient => error.message,
            Err(error) => return Err(error.context(what)),
        };
        if tokio::time::Instant::now() + interval >= end {
            return Err(PortError::new(
                ErrorCode::Timeout,
                format!("{what}: not within {} s; last: {last}", deadline.as_secs()),
            ));
        }
        tokio::time::sleep(interval).await;
    }
}
