//! One segment of the log. All numbers are big endian, as etcd's own.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::{Change, Logged};
use crate::bolt::{Revision, revision, revision_key};
use crate::ports::{ErrorCode, PortError, PortResult};

/// The first bytes of a segment.
const MAGIC: &[u8; 8] = b"HKDRLOG1";
/// The format this version writes, and the newest it reads.
pub(super) const FORMAT: u32 = 1;
/// Largest head, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest segment after decompression, in bytes. One transaction of etcd's is far smaller.
pub(super) const PLAIN_BYTES_MAX: u64 = 256 << 20;
/// Largest segment as stored.
pub(super) const STORED_BYTES_MAX: u64 = 256 << 20;

const END: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const TIME: u8 = 3;
const LEASE: u8 = 4;

/// What a segment continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// A snapshot, by its name: the segment's first revision is the one behind the snapshot's, or earlier.
    Snapshot(String),
    /// Another segment, by its key in the bucket and the digest of the stored object.
    Segment { key: String, sha256: String },
}

/// What a segment says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    pub cluster: String,
    /// Hexadecimal, as in a snapshot's manifest: revisions mean something within one etcd cluster only.
    pub etcd_cluster_id: String,
    /// Number of the writer that made it.
    pub epoch: u64,
    /// First and last revision; every revision in between is in it.
    pub first: i64,
    pub last: i64,
    pub follows: Follows,
    pub written_at: Timestamp,
    pub hk_dr_version: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Logged(Logged),
    /// By then everything up to this revision had been seen.
    Time {
        at: Timestamp,
        revision: i64,
    },
}

/// Appends a change to a segment's records.
pub(super) fn push_change(records: &mut Vec<u8>, at: Revision, tombstone: bool, value: &[u8]) {
    let key = revision_key(at, tombstone);
    frame(records, if tombstone { DELETE } else { PUT }, &[&key, value]);
}

/// Appends when a revision was seen.
pub(super) fn push_time(records: &mut Vec<u8>, at: Timestamp, revision: i64) {
    frame(records, TIME, &[&at.as_millisecond().to_be_bytes(), &revision.to_be_bytes()]);
}

/// Appends a lease and its granted time to live.
pub(super) fn push_lease(records: &mut Vec<u8>, id: i64, ttl_seconds: i64) {
    frame(records, LEASE, &[&id.to_be_bytes(), &ttl_seconds.to_be_bytes()]);
}

fn frame(records: &mut Vec<u8>, kind: u8, content: &[&[u8]]) {
    let bytes: usize = content.iter().map(|part| part.len()).sum();
    records.push(kind);
    // Values are bounded by etcd's request limit, far below 4 GiB.
    records.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
    content.iter().for_each(|part| records.extend_from_slice(part));
}

/// The plain bytes of a segment.
pub(super) fn encode(head: &Head, records: &[u8]) -> PortResult<Vec<u8>> {
    let text = serde_json::to_vec(head)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write the head of a segment: {e}")))?;
    let mut plain = Vec::with_capacity(records.len() + text.len() + 64);
    plain.extend_from_slice(MAGIC);
    plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    plain.extend_from_slice(&text);
    plain.extend_from_slice(records);
    // The end tells a whole segment from one that was cut between two records.
    frame(&mut plain, END, &[&(records.len() as u64).to_be_bytes()]);
    Ok(plain)
}

/// Reads a segment's plain bytes. The error says what is wrong, without the segment's name.
pub(super) fn decode(plain: &[u8]) -> Result<(Head, Vec<Record>), String> {
    let rest = plain.strip_prefix(MAGIC).ok_or("it is no segment of a log")?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("it ends in its head")?;
    let length = u32::from_be_bytes(*length) as usize;
    let (text, mut rest) =
        rest.split_at_checked(length).filter(|_| length <= HEAD_BYTES_MAX).ok_or("it ends in its head")?;
    let head: Head = serde_json::from_slice(text).map_err(|e| format!("its head is damaged: {e}"))?;
    if head.format > FORMAT {
        return Err(format!("it has format {}; this hk-dr reads up to {FORMAT}", head.format));
    }
    let mut records = Vec::new();
    let content_bytes = rest.len();
    loop {
        let at = content_bytes - rest.len();
        let (kind, tail) = rest.split_first().ok_or("it was cut: its end is missing")?;
        let (length, tail) = tail.split_first_chunk::<4>().ok_or("it was cut in a record")?;
        let (content, tail) =
            tail.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or("it was cut in a record")?;
        rest = tail;
        if *kind == END {
            let whole = number(content, 0) == Some(at as i64) && rest.is_empty();
            return if whole { Ok((head, records)) } else { Err("its end does not fit its content".to_owned()) };
        }
        records.push(record(*kind, content).ok_or_else(|| format!("a record of kind {kind} does not decode"))?);
    }
}

fn record(kind: u8, content: &[u8]) -> Option<Record> {
    Some(match kind {
        PUT | DELETE => {
            let tombstone = kind == DELETE;
            let (key, value) = content.split_at_checked(17 + usize::from(tombstone))?;
            let (revision, marked) = revision(key)?;
            (marked == tombstone).then_some(())?;
            Record::Logged(Logged::Change(Change { revision, tombstone, value: value.to_vec() }))
        }
        TIME => {
            Record::Time { at: Timestamp::from_millisecond(number(content, 0)?).ok()?, revision: number(content, 8)? }
        }
        LEASE => Record::Logged(Logged::Lease { id: number(content, 0)?, ttl_seconds: number(content, 8)? }),
        _ => return None,
    })
}

fn number(content: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_be_bytes(content.get(at..at + 8)?.try_into().ok()?))
}

/// A segment as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SegmentName {
    pub epoch: u64,
    pub first: i64,
    pub last: i64,
}

const SUFFIX: &str = ".seg.zst.age";

impl SegmentName {
    /// `<epoch>/<first>-<last>.seg.zst.age` below the log's prefix; digits are filled up so that names sort.
    pub fn key(&self, cluster: &str) -> String {
        format!("{}{:016}/{}", prefix(cluster), self.epoch, self.file())
    }

    pub(super) fn file(&self) -> String {
        format!("{:020}-{:020}{SUFFIX}", self.first, self.last)
    }

    /// Reads `<epoch>/<first>-<last>.seg.zst.age`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (epoch, file) = name.split_once('/')?;
        let (first, last) = file.strip_suffix(SUFFIX)?.split_once('-')?;
        let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(epoch, 16) || !digits(first, 20) || !digits(last, 20) {
            return None;
        }
        let name = Self { epoch: epoch.parse().ok()?, first: first.parse().ok()?, last: last.parse().ok()? };
        (name.first <= name.last).then_some(name)
    }
}

/// Where the log lies.
pub(super) fn prefix(cluster: &str) -> String {
    format!("{cluster}/log/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Head, Vec<u8>) {
        let head = Head {
            format: FORMAT,
            cluster: "demo".to_owned(),
            etcd_cluster_id: "abc".to_owned(),
            epoch: 3,
            first: 7,
            last: 8,
            follows: Follows::Snapshot("20261123T101500Z-r6".to_owned()),
            written_at: "2026-11-23T10:15:00Z".parse().unwrap(),
            hk_dr_version: "0.1.0".to_owned(),
        };
        let mut records = Vec::new();
        push_time(&mut records, head.written_at, 7);
        push_change(&mut records, Revision { main: 7, sub: 0 }, false, b"\x0a\x01k");
        push_lease(&mut records, -5, 60);
        push_change(&mut records, Revision { main: 8, sub: 1 }, true, b"");
        (head, records)
    }

    #[test]
    fn a_segment_comes_back_as_it_was_and_no_cut_goes_unnoticed() {
        let (head, records) = sample();
        let plain = encode(&head, &records).unwrap();
        let (found, records) = decode(&plain).unwrap();
        assert_eq!(found, head);
        assert_eq!(records.len(), 4);
        assert_eq!(records[2], Record::Logged(Logged::Lease { id: -5, ttl_seconds: 60 }));
        for end in 0..plain.len() {
            assert!(decode(&plain[..end]).is_err(), "cut at {end}");
        }
        let longer = [&plain[..], b"x"].concat();
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn names_sort_by_epoch_and_revision_and_nothing_else_is_one() {
        let name = SegmentName { epoch: 12, first: 999, last: 1_000_000_007 };
        let key = name.key("demo");
        assert_eq!(key, "demo/log/0000000000000012/00000000000000000999-00000000001000000007.seg.zst.age");
        assert_eq!(SegmentName::parse(key.strip_prefix("demo/log/").unwrap()), Some(name));
        for wrong in ["lease.json", "0000000000000012/epoch.json", "12/1-2.seg.zst.age", ""] {
            assert_eq!(SegmentName::parse(wrong), None, "{wrong}");
        }
    }
}
