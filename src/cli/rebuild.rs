use super::connect::connect;
use super::drive::{Manner, draw_and_execute};
use super::{CliError, Context};
use crate::backup::log::Point;
use crate::backup::{CompactRequest, Compression, compact};
use crate::drawing::Wanted;
use crate::plan::RebuildChoice;

/// Bring the cluster back from Git and the bucket onto new servers.
#[derive(clap::Args)]
pub struct Args {
    /// The snapshot to restore (default: the newest).
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Restore the state at a revision, a time, or `latest`, with the log's help: a snapshot of it is made first.
    #[arg(long, value_name = "REVISION|TIME", conflicts_with = "snapshot")]
    at: Option<Point>,
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
    let snapshot = match args.at {
        None => args.snapshot,
        Some(at) => Some(snapshot_at(at, args.dry_run, context)?),
    };
    let wanted = Wanted::Rebuild(RebuildChoice { snapshot, even_if_alive: args.even_if_alive || args.dry_run });
    if args.dry_run {
        return super::build::dry_run(context, &wanted);
    }
    let run = draw_and_execute(context, &wanted, &Manner { yes: args.yes, step: false })?;
    super::build::report(context, run.as_deref(), "the cluster is back");
    Ok(())
}

/// The name of a snapshot that holds the state at a point; made in the bucket if there is none. With `--dry-run` it is the
/// one that it would be made from.
pub(super) fn snapshot_at(at: Point, dry_run: bool, context: &Context) -> Result<String, CliError> {
    let connected = connect(context)?;
    let archive = connected.archive(context)?;
    if dry_run {
        let way = context.block_on(archive.way(at))?;
        let (base, segments) = (way.base.manifest.id, way.path.segments.len());
        eprintln!(
            "{at} would be made from snapshot {base} and {segments} segments; the plan below names that snapshot."
        );
        return Ok(base);
    }
    let made = context.block_on(compact(&CompactRequest {
        archive: &archive,
        point: at,
        recipients: &connected.declared.recipients,
        clock: connected.world.clock.as_ref(),
        compression: Compression::default(),
    }))?;
    Ok(match made {
        Ok(manifest) => manifest.id,
        Err(existing) => existing,
    })
}
