use super::drive::{Manner, draw_and_execute};
use super::{CliError, Context};
use crate::drawing::Wanted;
use crate::plan::RebuildChoice;

/// Bring the cluster back from Git and the bucket onto new servers.
#[derive(clap::Args)]
pub struct Args {
    /// The snapshot to restore (default: the newest).
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Replace a cluster whose etcd still serves: its servers are deleted, and what was written since the snapshot is lost.
    #[arg(long)]
    even_if_alive: bool,
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
    /// Show the plan and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Rebuilds.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let wanted =
        Wanted::Rebuild(RebuildChoice { snapshot: args.snapshot, even_if_alive: args.even_if_alive || args.dry_run });
    if args.dry_run {
        return super::build::dry_run(context, &wanted);
    }
    let run = draw_and_execute(context, &wanted, &Manner { yes: args.yes, step: false })?;
    super::build::report(context, run.as_deref(), "the cluster is back");
    Ok(())
}
