//! Object locks of what backups share. A lock is set as an object is written, and restic writes what two backups share once: so
//! whatever the repository holds is locked again, as if it were written now, before the time of its locks is over.

use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::restic::Repository;
use crate::ports::{Clock, ErrorCode, PortError, PortResult, PutCondition};

const MARK_BYTES_MAX: u64 = 4 << 10;
/// The version of the mark.
const FORMAT: u32 = 1;
/// Objects locked at the same time.
const LOCKS: usize = 8;

/// `<cluster>/volumes/locked.json`: until when everything that was in the repository then is locked, at least. What was written
/// since is locked for longer.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: u32,
    at: Timestamp,
    until: Timestamp,
}

/// Whether locks that hold until `until` are taken again, where one that is taken now holds until `fresh`: with a third of the time
/// over, so that one turn that fails, or misses a bucket, uncovers nothing.
fn is_due(until: Option<Timestamp>, now: Timestamp, fresh: Timestamp) -> bool {
    let (all, left) = (fresh.as_second() - now.as_second(), until.map(|until| until.as_second() - now.as_second()));
    left.is_none_or(|left| 3 * left < 2 * all)
}

/// Locks everything again if it is time. Returns how many objects were locked; nothing where the bucket locks nothing. To be called by
/// whoever adds, so that nothing is removed meanwhile.
pub(super) async fn renew(repository: &Repository, clock: &dyn Clock) -> PortResult<usize> {
    let (store, prefix) = (repository.store.as_ref(), super::prefix(&repository.cluster));
    // The smallest object tells how long locks last here.
    let Some(fresh) = store.lock_again(&format!("{prefix}/restic/config")).await? else { return Ok(0) };
    let now = clock.now();
    let mark_key = format!("{prefix}/locked.json");
    let known = match store.get(&mark_key, MARK_BYTES_MAX).await {
        Ok(text) => serde_json::from_slice::<Mark>(&text).ok().filter(|mark| mark.format == FORMAT),
        // One that nobody vouches for says nothing: locking once more costs time only.
        Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::Untrusted) => None,
        Err(e) => return Err(e),
    };
    if !is_due(known.map(|mark| mark.until), now, fresh) {
        return Ok(0);
    }
    let objects = store.list(&format!("{prefix}/restic/")).await?;
    let password = format!("{prefix}/password.age");
    let keys: Vec<&str> = objects.iter().map(|o| o.key.as_str()).chain([password.as_str()]).collect();
    let mut locks = Vec::with_capacity(keys.len());
    for key in &keys {
        locks.push(store.lock_again(key));
    }
    let mut locks = futures::stream::iter(locks).buffer_unordered(LOCKS);
    while let Some(locked) = locks.next().await {
        locked?;
    }
    drop(locks);
    let mark = serde_json::to_vec_pretty(&Mark { format: FORMAT, at: now, until: fresh })
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write a mark: {e}")))?;
    store.put(&mark_key, mark.into(), PutCondition::Any).await?;
    Ok(keys.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_again_when_a_third_of_their_time_is_over() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(is_due(None, at(0), at(300)), "nothing is known");
        assert!(!is_due(Some(at(300)), at(0), at(300)));
        assert!(!is_due(Some(at(300)), at(100), at(400)));
        assert!(is_due(Some(at(300)), at(101), at(401)));
        assert!(is_due(Some(at(300)), at(1000), at(1300)), "they are over");
        assert!(is_due(Some(at(300)), at(0), at(3000)), "locks last longer now");
    }
}
