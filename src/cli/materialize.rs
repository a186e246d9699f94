use std::fs::File;
use std::path::PathBuf;

use super::connect::connect;
use super::snapshot::{print_json, size};
use super::{CliError, Context};
use crate::backup::log::Point;
use crate::backup::{Materialized, materialize, place};
use crate::bolt::Backend;
use crate::ports::{ErrorCode, PortError};

/// Write the state at a revision or time as an ordinary etcd snapshot, from the bucket's snapshots and log. No etcd runs.
#[derive(clap::Args)]
pub struct Args {
    /// A revision, a time such as 2026-11-23T10:15:00Z, or `latest`.
    #[arg(long, value_name = "REVISION|TIME")]
    at: Point,
    /// The file to write; it must not exist. It holds the cluster's data in plain, readable by its owner only.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Use this etcd snapshot on the disk instead of the bucket. It has no log, so only revisions can be asked for.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Say what would be read, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Materializes.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    if let Some(from) = &args.from {
        return from_file(args, from, context);
    }
    let connected = connect(context)?;
    let archive = connected.archive(context)?;
    if args.dry_run {
        let way = context.block_on(archive.way(args.at))?;
        let (base, path) = (&way.base.manifest, &way.path);
        if context.global.json {
            return print_json(&serde_json::json!({"snapshot": base.id, "path": path}));
        }
        println!(
            "{} would be made from snapshot {} (revision {}) and {} segments of the log, which end at revision {}.",
            args.at,
            base.id,
            base.revision,
            path.segments.len(),
            path.reaches
        );
        return Ok(());
    }
    let recalled = context.block_on(archive.materialize(args.at, &args.out))?;
    if context.global.json {
        return print_json(&recalled);
    }
    report(args, &recalled.made);
    match recalled.seen_at {
        Some(seen) => println!(
            "Made from snapshot {} and {} segments; its newest change was seen at {seen}.",
            recalled.snapshot, recalled.segments
        ),
        None => println!("Made from snapshot {} alone.", recalled.snapshot),
    }
    Ok(())
}

fn from_file(args: &Args, from: &PathBuf, context: &Context) -> Result<(), CliError> {
    let at = match args.at {
        Point::Revision(revision) => Some(revision),
        Point::Latest => None,
        Point::Time(_) => {
            let error = PortError::new(ErrorCode::Invalid, "a snapshot on the disk knows no times, only revisions");
            return Err(error.hint("nothing was written; use --at REVISION, or leave --from away").into());
        }
    };
    let file =
        File::open(from).map_err(|e| PortError::new(ErrorCode::Invalid, format!("read {}: {e}", from.display())))?;
    let base = Backend::open(file).map_err(PortError::from)?;
    if args.dry_run {
        let (info, newest) = (base.info().map_err(PortError::from)?, base.newest_revision().map_err(PortError::from)?);
        println!("{} has revisions {} to {newest}.", from.display(), info.finished_compact_revision.max(1));
        return Ok(());
    }
    let (made, _) = place(&args.out, |out| materialize(&base, &mut std::iter::empty(), at, out))?;
    if context.global.json {
        return print_json(&made);
    }
    report(args, &made);
    Ok(())
}

fn report(args: &Args, made: &Materialized) {
    println!(
        "{}: revision {}, {} versions of keys, {}    (etcdutl snapshot restore takes it)",
        args.out.display(),
        made.revision,
        made.versions,
        size(made.size_bytes)
    );
}
