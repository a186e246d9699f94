//! From the bucket back to changes: which snapshot and which segments, and then every byte of them checked.

use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;

use super::segment::{self, Follows, Head, PLAIN_BYTES_MAX, Record, STORED_BYTES_MAX};
use super::{Index, Path, SegmentName, coverage};
use crate::backup::seal::hex;
use crate::backup::{Entry, Identities, Logged};
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};

/// Segments that are fetched ahead.
const READS: usize = 4;
/// Records handed over at once: one segment's, of which a few wait.
const QUEUE: usize = 2;

/// A point that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// The newest there is.
    Latest,
    Revision(i64),
    /// The last state that is known to have existed at that time.
    Time(Timestamp),
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(revision) = text.parse() {
            return if revision > 0 { Ok(Self::Revision(revision)) } else { Err("revisions begin at 1".to_owned()) };
        }
        text.parse()
            .map(Self::Time)
            .map_err(|_| "neither a revision, nor a time such as 2026-11-23T10:15:00Z, nor `latest`".to_owned())
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("the newest state"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
            Self::Time(at) => write!(f, "{at}"),
        }
    }
}

/// A snapshot and the segments that lead from it to a point.
#[derive(Debug, Clone)]
pub struct Way {
    pub base: Entry,
    pub path: Path,
}

/// Finds the shortest way to a point: the newest snapshot at or before it, then segments; or a later snapshot that still
/// has the revision. `entries` come newest first.
pub(crate) fn way(entries: &[Entry], index: &Index, point: Point) -> PortResult<Way> {
    let path = |entry: &Entry, to| {
        let segments = index.segments_of(&entry.manifest.etcd_cluster_id);
        coverage::path(entry.manifest.revision, to, &segments)
    };
    let Some(newest) = newest(entries) else {
        return Err(PortError::new(ErrorCode::NotFound, "the bucket holds no snapshot of this cluster")
            .hint("nothing can be materialized without one: check the cluster's name and backup.bucket"));
    };
    match point {
        Point::Latest => Ok(Way { path: path(newest, None), base: newest.clone() }),
        Point::Revision(revision) => {
            let before = entries.iter().filter(|entry| entry.manifest.revision <= revision).find_map(|entry| {
                let path = path(entry, Some(revision));
                (path.reaches >= revision).then(|| Way { base: entry.clone(), path })
            });
            let inside = || {
                let has =
                    |entry: &&Entry| (entry.manifest.compact_revision..=entry.manifest.revision).contains(&revision);
                entries.iter().rev().find(has).map(|entry| Way {
                    base: entry.clone(),
                    path: Path { segments: Vec::new(), reaches: entry.manifest.revision },
                })
            };
            before.or_else(inside).ok_or_else(|| {
                let reaches = path(newest, None).reaches;
                PortError::new(ErrorCode::NotFound, format!("no snapshot and no segment has revision {revision}"))
                    .hint(format!("nothing was written; the newest is {reaches} (`hk-dr log status` shows gaps)"))
            })
        }
        Point::Time(at) => entries
            .iter()
            .find(|entry| entry.manifest.finished_at <= at)
            .map(|entry| Way { path: path(entry, None), base: entry.clone() })
            .ok_or_else(|| {
                let oldest = entries.last().map_or(at, |entry| entry.manifest.finished_at);
                PortError::new(ErrorCode::NotFound, format!("no snapshot is as old as {at}"))
                    .hint(format!("nothing was written; the oldest was finished at {oldest}"))
            }),
    }
}

/// The snapshot with the newest data. Names alone don't tell within one second.
pub(super) fn newest(entries: &[Entry]) -> Option<&Entry> {
    entries.iter().max_by_key(|entry| (entry.manifest.taken_at, entry.manifest.revision))
}

/// Hands the changes of segments to a blocking reader, in order and checked. Stops behind what was seen at `until`; the
/// error is the last item.
pub fn read_changes(
    store: Arc<dyn ObjectStore>,
    cluster: String,
    etcd_cluster_id: String,
    index: &Index,
    segments: Vec<SegmentName>,
    identities: Identities,
    until: Option<Timestamp>,
) -> Changes {
    let (out, queue) = mpsc::channel(QUEUE);
    let recipients: Vec<Vec<String>> = segments.iter().map(|name| index.recipients_of(name.epoch)).collect();
    tokio::spawn(async move {
        let reads: Vec<_> = segments
            .iter()
            .map(|name| {
                let (key, store) = (name.key(&cluster), Arc::clone(&store));
                async move { store.get(&key, STORED_BYTES_MAX).await }.boxed()
            })
            .collect();
        let mut reads = futures::stream::iter(reads).buffered(READS);
        let mut checker = Checker { cluster: cluster.clone(), etcd_cluster_id, previous: None };
        for (name, recipients) in segments.iter().zip(recipients) {
            let Some(sealed) = reads.next().await else { return };
            let key = name.key(&cluster);
            let identities = identities.clone();
            let opened = match sealed {
                Ok(sealed) => tokio::task::spawn_blocking(move || {
                    let opened = open(&key, &sealed, &recipients, &identities);
                    opened.map(|(head, records)| (head, records, sealed))
                })
                .await
                .unwrap_or_else(|e| Err(PortError::new(ErrorCode::Local, format!("opening a segment died: {e}")))),
                Err(e) => Err(e),
            };
            let checked = opened.and_then(|(head, records, sealed)| {
                checker.check(name, &head, &sealed)?;
                Ok(records)
            });
            let failed = checked.is_err();
            if out.send(checked).await.is_err() || failed {
                return;
            }
        }
    });
    Changes { queue, records: Vec::new().into_iter(), until, passed: false, seen: None }
}

/// Changes in order, for a thread that may block.
pub struct Changes {
    queue: mpsc::Receiver<PortResult<Vec<Record>>>,
    records: std::vec::IntoIter<Record>,
    until: Option<Timestamp>,
    passed: bool,
    seen: Option<Timestamp>,
}

impl Changes {
    /// Whether something was seen later than what was asked for: then nothing before it is missing.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// When the last change that was given out had been seen.
    pub fn seen(&self) -> Option<Timestamp> {
        self.seen
    }
}

impl Iterator for Changes {
    type Item = PortResult<Logged>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.passed {
            match self.records.next() {
                Some(Record::Logged(logged)) => return Some(Ok(logged)),
                Some(Record::Time { at, .. }) if self.until.is_some_and(|until| at > until) => self.passed = true,
                Some(Record::Time { at, .. }) => self.seen = Some(at),
                None => match self.queue.blocking_recv()? {
                    Ok(records) => self.records = records.into_iter(),
                    Err(e) => return Some(Err(e)),
                },
            }
        }
        None
    }
}

/// Each segment must be what its name says and continue the one before.
struct Checker {
    cluster: String,
    etcd_cluster_id: String,
    /// Epoch, key and digest.
    previous: Option<(u64, String, String)>,
}

impl Checker {
    fn check(&mut self, name: &SegmentName, head: &Head, sealed: &Bytes) -> PortResult<()> {
        let key = name.key(&self.cluster);
        let named = (head.epoch, head.first, head.last) == (name.epoch, name.first, name.last);
        if !named || head.cluster != self.cluster || head.etcd_cluster_id != self.etcd_cluster_id {
            return Err(damaged(&key, "it is another segment than its name says"));
        }
        if let (Some((epoch, before, digest)), Follows::Segment { key: follows, sha256 }) =
            (&self.previous, &head.follows)
        {
            if follows == before && sha256 != digest {
                return Err(damaged(before, "it is not what was written: the segment behind it knows another digest"));
            }
            // Where a writer took over from another, both may have the same revisions, in other pieces.
            if *epoch == head.epoch && follows != before {
                return Err(damaged(&key, &format!("it continues {follows}, which is not there")));
            }
        }
        self.previous = Some((head.epoch, key, digest(sealed)));
        Ok(())
    }
}

fn digest(sealed: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(sealed))
}

/// Decrypts, decompresses and decodes one segment.
pub(super) fn open(
    key: &str,
    sealed: &[u8],
    recipients: &[String],
    identities: &Identities,
) -> PortResult<(Head, Vec<Record>)> {
    let decryptor = age::Decryptor::new(sealed).map_err(|e| damaged(key, &format!("its age header ({e})")))?;
    let plain = decryptor.decrypt(identities.keys()).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys if !identities.open_one_of(recipients) => identities.refused(key, recipients),
        other => damaged(key, &format!("its age header ({other})")),
    })?;
    let bad = |e: std::io::Error| damaged(key, &format!("it does not decrypt and decompress ({e})"));
    let mut bytes = Vec::new();
    let mut decoder = zstd::Decoder::new(plain).map_err(bad)?;
    Read::take(&mut decoder, PLAIN_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(bad)?;
    if bytes.len() as u64 > PLAIN_BYTES_MAX {
        return Err(damaged(key, "it is larger than any segment"));
    }
    segment::decode(&bytes).map_err(|what| damaged(key, &what))
}

fn damaged(key: &str, what: &str) -> PortError {
    PortError::new(ErrorCode::Corrupt, format!("{key} cannot be used: {what}")).hint(
        "nothing was written; states before it, and behind the next snapshot, can still be had (`hk-dr log status`)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_revisions_times_or_latest() {
        assert_eq!("latest".parse(), Ok(Point::Latest));
        assert_eq!("17".parse(), Ok(Point::Revision(17)));
        let time = "2026-11-23T10:15:00Z";
        assert_eq!(time.parse(), Ok(Point::Time(time.parse().unwrap())));
        for wrong in ["0", "-3", "yesterday", ""] {
            assert!(wrong.parse::<Point>().is_err(), "{wrong}");
        }
    }
}
