//! The continuous log: every change since a snapshot, in sealed segments, a few seconds behind the cluster.
//!
//! - `segment`: one segment, byte for byte (docs/BACKUP_FORMAT.md).
//! - `collect`: what a watch delivers → whole revisions → segments. Pure.
//! - `coverage`: which revisions snapshots and segments cover together, and where there are gaps. Pure.
//! - `lease`: one writer at a time, by conditional puts.
//! - `spool`: sealed segments on disk while the bucket is away.
//! - `upload`: segments into the bucket, or the spool.
//! - `order`: what is to be shipped, and what is told of it.
//! - `ship`: the loop that holds them together.
//! - `read`: from the bucket back to changes.
//! - `status`, `canary`: how far it is, and how long a change takes to be safe, measured.

mod canary;
mod collect;
mod coverage;
mod index;
mod lease;
mod order;
mod read;
mod segment;
mod ship;
mod spool;
mod status;
#[cfg(test)]
mod tests;
mod upload;

pub use canary::{CANARY_KEY, CanaryReport, canary};
pub use coverage::{Gap, Path};
pub use index::Index;
pub use lease::LeaseDocument;
pub use order::{CutRule, NewBase, ShipEvent, ShipReport, ShipRequest};
pub(crate) use read::way;
pub use read::{Changes, Point, Way, read_changes};
pub use segment::{Follows, Head, SegmentName};
pub use ship::ship;
pub use status::{Status, status};
