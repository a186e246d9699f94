//! Files on mounted volumes, backed up by restic, which runs where the files are; its repository lies in the bucket, behind
//! a relay of ours that keeps the bucket's credentials here and lets nothing be changed, and nothing removed but by pruning.

mod listing;
mod locks;
mod proof;
mod prune;
mod records;
mod relay;
mod restic;
mod restore;
#[cfg(test)]
mod tests;
mod turn;
mod whole;

pub use proof::{Level, Verified, VerifyRequest, verify};
pub use prune::{Decided, Pruned, Pruning, plan_pruning, prune};
pub use records::{Backup, Checked, Entry, Records};
pub use relay::Relay;
pub use restic::{BackupRequest, Repository, backup};
pub use restore::{RestoreRequest, Restored, restore};

/// Prefix of everything of a cluster's volumes in the bucket.
fn prefix(cluster: &str) -> String {
    format!("{cluster}/volumes")
}
