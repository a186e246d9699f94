//! From what a watch delivers to whole revisions. A revision is whole when a later one begins or a progress says so: its
//! changes may come in several pieces, and a segment never ends within one.

use std::collections::HashSet;

use jiff::Timestamp;

use super::segment::{push_change, push_time};
use crate::bolt::{Revision, encode};
use crate::ports::{KeyValue, WatchedChange};

/// What fills one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub first: i64,
    pub last: i64,
    pub records: Vec<u8>,
    /// Leases that its keys are attached to.
    pub leases: Vec<i64>,
}

/// Takes changes in order and gives whole revisions.
#[derive(Debug)]
pub(super) struct Collector {
    /// Everything up to here was given away or is in `ready`.
    whole: i64,
    ready: Option<Batch>,
    /// The revision that may not be whole yet.
    open: Option<Batch>,
    open_sub: i64,
    leases: HashSet<i64>,
}

impl Collector {
    /// Continues behind a revision that is covered.
    pub fn new(covered: i64) -> Self {
        Self { whole: covered, ready: None, open: None, open_sub: 0, leases: HashSet::new() }
    }

    /// Where a watch must begin that continues this: at the last whole revision, which it delivers once more.
    pub fn resume_at(&self) -> i64 {
        self.whole
    }

    /// Forgets the piece of a revision whose rest will not come: the next watch delivers it from its beginning.
    pub fn reconnected(&mut self) {
        self.open = None;
    }

    /// Takes changes as they came.
    pub fn push(&mut self, changes: Vec<WatchedChange>, now: Timestamp) {
        for change in changes {
            let main = change.kv.mod_revision;
            if main <= self.whole {
                continue;
            }
            if self.open.as_ref().is_none_or(|open| open.last != main) {
                self.close_open();
                let mut records = Vec::new();
                push_time(&mut records, now, main);
                self.open = Some(Batch { first: main, last: main, records, leases: Vec::new() });
                self.open_sub = 0;
            }
            let Some(open) = &mut self.open else { continue };
            // A deletion is stored with nothing but its key.
            let kv = if change.tombstone { only_key(change.kv) } else { change.kv };
            if kv.lease != 0 {
                open.leases.push(kv.lease);
            }
            push_change(&mut open.records, Revision { main, sub: self.open_sub }, change.tombstone, &encode(&kv));
            self.open_sub += 1;
        }
    }

    /// Everything up to a revision was delivered.
    pub fn progress(&mut self, revision: i64) {
        if self.open.as_ref().is_some_and(|open| open.last <= revision) {
            self.close_open();
        }
    }

    fn close_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.whole = open.last;
        self.leases.extend(&open.leases);
        match &mut self.ready {
            Some(ready) => {
                ready.last = open.last;
                ready.records.extend_from_slice(&open.records);
            }
            none => *none = Some(Batch { leases: Vec::new(), ..open }),
        }
    }

    /// Bytes of whole revisions.
    pub fn ready_bytes(&self) -> usize {
        self.ready.as_ref().map_or(0, |ready| ready.records.len())
    }

    /// Bytes of the revision that may not be whole.
    pub fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.records.len())
    }

    /// Takes all whole revisions.
    pub fn cut(&mut self) -> Option<Batch> {
        let mut batch = self.ready.take()?;
        batch.leases = self.leases.drain().collect();
        batch.leases.sort_unstable();
        Some(batch)
    }
}

fn only_key(kv: KeyValue) -> KeyValue {
    KeyValue { key: kv.key, value: Vec::new(), create_revision: 0, mod_revision: 0, version: 0, lease: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::log::segment::{Follows, Head, Record, decode, encode as encode_segment};

    fn change(main: i64, n: u8) -> WatchedChange {
        let kv = KeyValue {
            key: vec![n],
            value: vec![n; 3],
            create_revision: main,
            mod_revision: main,
            version: 1,
            lease: i64::from(n % 3),
        };
        WatchedChange { tombstone: n.is_multiple_of(4), kv }
    }

    fn revisions(batch: &Batch) -> Vec<(i64, i64)> {
        let head = Head {
            format: 1,
            cluster: String::new(),
            etcd_cluster_id: String::new(),
            epoch: 1,
            first: batch.first,
            last: batch.last,
            follows: Follows::Snapshot(String::new()),
            written_at: Timestamp::UNIX_EPOCH,
            hk_dr_version: String::new(),
        };
        let (_, records) = decode(&encode_segment(&head, &batch.records).unwrap()).unwrap();
        let changes = records.into_iter().filter_map(|record| match record {
            Record::Logged(crate::backup::Logged::Change(change)) => Some((change.revision.main, change.revision.sub)),
            _ => None,
        });
        changes.collect()
    }

    #[test]
    fn a_revision_is_whole_when_the_next_begins_or_progress_says_so() {
        let mut collector = Collector::new(4);
        collector.push(vec![change(4, 9), change(5, 1)], Timestamp::UNIX_EPOCH);
        assert_eq!((collector.cut(), collector.resume_at()), (None, 4));
        collector.push(vec![change(5, 2), change(6, 3)], Timestamp::UNIX_EPOCH);
        assert_eq!(revisions(&collector.cut().unwrap()), [(5, 0), (5, 1)]);
        collector.progress(5);
        assert_eq!(collector.cut(), None);
        collector.progress(6);
        let batch = collector.cut().unwrap();
        assert_eq!((batch.first, batch.last, collector.resume_at()), (6, 6, 6));
    }

    proptest! {
        /// However a watch cuts what it delivers, and wherever it breaks and begins again: every change once, in order.
        #[test]
        fn every_change_once_in_order(
            sizes in proptest::collection::vec(1..6usize, 1..30),
            pieces in proptest::collection::vec(1..7usize, 1..60),
            breaks in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let all: Vec<WatchedChange> = sizes.iter().enumerate()
                .flat_map(|(n, size)| (0..*size).map(move |sub| change(n as i64 + 11, sub as u8))).collect();
            let mut collector = Collector::new(10);
            let (mut at, mut found) = (0, Vec::new());
            for (turn, piece) in pieces.iter().enumerate() {
                let end = (at + piece).min(all.len());
                collector.push(all[at..end].to_vec(), Timestamp::UNIX_EPOCH);
                at = end;
                if breaks[turn] {
                    collector.reconnected();
                    at = all.iter().position(|c| c.kv.mod_revision >= collector.resume_at()).unwrap_or(all.len());
                }
                found.extend(collector.cut().iter().flat_map(revisions));
            }
            collector.push(all[at..].to_vec(), Timestamp::UNIX_EPOCH);
            collector.progress(i64::MAX);
            found.extend(collector.cut().iter().flat_map(revisions));
            let expected: Vec<(i64, i64)> = sizes.iter().enumerate()
                .flat_map(|(n, size)| (0..*size as i64).map(move |sub| (n as i64 + 11, sub))).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
