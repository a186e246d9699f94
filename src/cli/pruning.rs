//! What the commands that remove old backups share.

use super::{CliError, ExitKind};

/// Whether they remove.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only show each decision and its reason.
    #[arg(long, conflicts_with = "yes")]
    pub(super) dry_run: bool,
    /// Remove. Without it the decisions are shown, and the exit code is 2 if something is to be removed.
    #[arg(long)]
    pub(super) yes: bool,
}

impl Args {
    /// How a command ends whose decisions were shown, and carried out with `--yes`.
    pub(super) fn end(&self, nothing_to_remove: bool) -> Result<(), CliError> {
        if self.yes || self.dry_run || nothing_to_remove {
            return Ok(());
        }
        let error = CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None };
        Err(error.hint("nothing was removed; --yes removes it"))
    }
}

/// What could not be read is never removed.
pub(super) fn warn(unreadable: &[String]) {
    for problem in unreadable {
        eprintln!("warning: {problem}; it is kept, and leftovers were not looked for");
    }
}
