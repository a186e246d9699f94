//! Offsite copies: taking a snapshot in one pass, listing, opening, verifying and fetching it.
//!
//! The format is documented byte for byte in `docs/BACKUP_FORMAT.md`; stock `age`, `zstd`, `tar` and `etcdutl` open it.

mod agree;
mod boot;
mod catalog;
mod compact;
mod copies;
mod doctor;
mod fetch;
mod fields;
mod frames;
mod in_place;
mod isolated;
mod keys;
mod kinds;
mod layout;
pub mod local_etcd;
pub mod log;
mod manifest;
mod materialize;
mod mirror;
mod now;
pub mod objects;
mod pace;
pub mod pages;
mod prune;
mod recall;
mod recovery;
mod recycled;
mod rehearsed;
mod seal;
mod signed;
mod take;
#[cfg(test)]
mod tests;
mod through_api;
mod unseal;
mod vault;
mod verify;

pub use agree::{Agreement, MemberView, agree};
pub use boot::{BootRequest, boot};
pub use catalog::{BucketBackups, Catalog, Entry, Proof};
pub use compact::{CompactRequest, compact};
pub use copies::Copies;
pub use doctor::{Probe, Verdict as DoctorVerdict, judge as judge_settings, judge_directory, try_out};
pub use fetch::{Fetched, fetch, fetch_at};
pub use fields::{FieldChange, HIDDEN, field_changes};
pub use isolated::{IsolatedApi, Programs};
pub use keys::{Ask, Identities, Recipients, ask_with};
pub use kinds::kind_of;
pub use manifest::{FORMAT, Finding, HashKvCheck, MadeFrom, Manifest, Sealed, Verification};
pub use materialize::{Change, Logged, Materialized, UNKNOWN_TTL_SECONDS, materialize, place};
pub use mirror::{Copied, MirrorRequest, Mirrored, mirror};
pub use now::Source;
pub use pace::Rate;
pub(crate) use prune::remove;
pub use prune::{Pruning, plan_pruning, prune};
pub use recall::{Archive, Opened, Recalled};
pub use recovery::{pack, require, unpack};
pub use seal::Compression;
pub(crate) use seal::hex;
pub use signed::{Adopted, SignedStore, adopt, is_signed_kind};
pub use take::{IN_PLACE_FROM_BYTES, Progress, TakeRequest, Taken, take};
pub use vault::BucketVault;
pub use verify::{check, verify};
