//! Files on mounted volumes, backed up by restic, which runs where the files are; its repository lies in the bucket, behind
//! a relay of ours that keeps the bucket's credentials here and lets nothing be changed or removed.

mod records;
mod relay;
mod restic;
mod restore;
#[cfg(test)]
mod tests;

pub use records::{Backup, Checked, Entry, Records};
pub use relay::Relay;
pub use restic::{BackupRequest, CheckLevel, Repository, backup, check};
pub use restore::{RestoreRequest, Restored, restore};

/// Prefix of everything of a cluster's volumes in the bucket.
fn prefix(cluster: &str) -> String {
    format!("{cluster}/volumes")
}
