//! Buckets: the adapter for S3 and its compatible servers, a directory that behaves like a bucket, and one in memory
//! with faults on request. One contract suite runs on all three.

mod as_of;
mod config;
#[cfg(test)]
pub(crate) mod contract;
mod dir;
mod error;
mod lock;
mod memory;
mod settings;
mod store;
mod upload;
pub mod versitygw;

pub use as_of::AsOfStore;
pub use config::{ObjectLock, S3Config};
pub use dir::DirStore;
pub use memory::{Fault, MemoryStore, Operation};
pub use settings::{BucketSettings, LockRule, OldVersions};
pub use store::S3Store;

/// Size of the parts that uploads are made of, in bytes: the least that S3 takes. It allows 10,000 parts: 48 GiB an object.
pub const PART_BYTES: usize = 5 << 20;

/// Keys hk-dr uses are relative paths of plain segments: anything else could leave a directory store's root, or name
/// two different objects on servers that normalise paths.
fn check_key(key: &str) -> crate::ports::PortResult<()> {
    let plain = !key.is_empty()
        && key.len() <= 900
        && key.split('/').all(|segment| !segment.is_empty() && segment != "." && segment != "..")
        && !key.contains(['\\', '\0', '\n']);
    if plain {
        return Ok(());
    }
    Err(crate::ports::PortError::new(
        crate::ports::ErrorCode::Invalid,
        format!("{key:?} is not a usable object key (segments separated by single slashes, none empty or dots)"),
    ))
}
