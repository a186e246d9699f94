//! Which revisions a snapshot and segments cover together.

use serde::Serialize;

use super::SegmentName;

/// Segments to read behind a snapshot, in order, and where they end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Path {
    pub segments: Vec<SegmentName>,
    /// The last revision that is covered without a gap.
    pub reaches: i64,
}

/// Revisions that no segment has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last covered revision before it, and the first one behind it.
    pub after: i64,
    pub before: i64,
    /// The snapshot behind which the log goes on: states inside of the gap are lost, later ones are not.
    pub closed_by: Option<String>,
}

/// The way from a revision through segments of one etcd cluster. Where writers overlapped, the later epoch's segments are
/// taken: both hold the same history. Stops behind `to`.
pub(super) fn path(from: i64, to: Option<i64>, segments: &[SegmentName]) -> Path {
    let mut path = Path { segments: Vec::new(), reaches: from };
    while to.is_none_or(|to| path.reaches < to) {
        let next = path.reaches.saturating_add(1);
        let fitting = segments.iter().filter(|segment| segment.first <= next && next <= segment.last);
        let Some(best) = fitting.max_by_key(|segment| (segment.epoch, segment.last)) else { break };
        path.reaches = best.last;
        path.segments.push(best.clone());
    }
    path
}

/// Holes between what segments and snapshots (name and revision) cover, oldest first.
pub(super) fn gaps(snapshots: &[(String, i64)], segments: &[SegmentName]) -> Vec<Gap> {
    let mut ordered: Vec<(i64, i64)> = segments.iter().map(|segment| (segment.first, segment.last)).collect();
    ordered.sort_unstable();
    let mut gaps = Vec::new();
    let Some((_, mut reached)) = ordered.first().copied() else { return gaps };
    for (first, last) in ordered {
        if first > reached + 1 {
            let closing = snapshots
                .iter()
                .filter(|(_, revision)| *revision + 1 >= first && *revision <= last)
                .min_by_key(|(_, revision)| *revision);
            gaps.push(Gap { after: reached, before: first, closed_by: closing.map(|(id, _)| id.clone()) });
        }
        reached = reached.max(last);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(epoch: u64, first: i64, last: i64) -> SegmentName {
        SegmentName { epoch, first, last }
    }

    #[test]
    fn the_way_goes_through_overlaps_and_stops_at_gaps() {
        let segments = [name(1, 5, 9), name(1, 10, 20), name(1, 21, 25), name(2, 18, 30), name(2, 40, 50)];
        let whole = path(7, None, &segments);
        assert_eq!(whole.reaches, 30);
        assert_eq!(whole.segments, [name(1, 5, 9), name(1, 10, 20), name(2, 18, 30)]);
        assert_eq!(path(7, Some(9), &segments).segments, [name(1, 5, 9)]);
        assert_eq!(path(30, None, &segments), Path { segments: Vec::new(), reaches: 30 });
        assert_eq!(path(45, None, &segments).reaches, 50);
        assert_eq!(path(i64::MAX, None, &segments).reaches, i64::MAX);
    }

    #[test]
    fn gaps_are_named_with_the_snapshot_that_closed_them() {
        let segments = [name(1, 5, 9), name(2, 20, 30), name(2, 41, 50), name(1, 10, 12)];
        let snapshots = [("a".to_owned(), 4), ("b".to_owned(), 19), ("c".to_owned(), 25)];
        let found = gaps(&snapshots, &segments);
        assert_eq!(
            found,
            [
                Gap { after: 12, before: 20, closed_by: Some("b".to_owned()) },
                Gap { after: 30, before: 41, closed_by: None },
            ]
        );
        assert!(gaps(&snapshots, &[]).is_empty());
    }
}
