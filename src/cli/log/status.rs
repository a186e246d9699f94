use crate::backup::log::status;
use crate::cli::connect::connect;
use crate::cli::snapshot::{print_json, size};
use crate::cli::{CliError, Context, ExitKind};

/// A writer renews its lease every few seconds; one that is silent for longer than this has gone.
const SILENT_SECONDS: f64 = 60.0;

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster.name;
    let now = connected.world.clock.now();
    let status = context.block_on(status(connected.store.as_ref(), cluster, now))?;
    let behind = status.gaps.iter().any(|gap| gap.closed_by.is_none());
    if context.global.json {
        print_json(&status)?;
    } else {
        println!(
            "Covered    revision {} · everything before {} · {:.1} s ago",
            status.covered_revision,
            status.covered_at.strftime("%Y-%m-%d %H:%M:%SZ"),
            status.lag_seconds
        );
        println!("Snapshot   {} · revision {}", status.snapshot, status.snapshot_revision);
        println!(
            "Log        {} segments, {} · {} behind the snapshot · {} writers so far",
            status.segments,
            size(status.bytes),
            status.segments_behind_snapshot,
            status.epochs
        );
        match (&status.writer, status.writer_silent_seconds) {
            (Some(writer), silent) => {
                let silent = silent.unwrap_or_default();
                let state = if writer.stopped {
                    "stopped on purpose"
                } else if silent > SILENT_SECONDS {
                    "gone: start `hk-dr log ship` again"
                } else {
                    "shipping"
                };
                println!("Writer     {} (epoch {}) · {state} · heard {silent:.0} s ago", writer.holder, writer.epoch);
                if writer.spooled_bytes > 0 {
                    println!("Spool      {} wait on its disk", size(writer.spooled_bytes));
                }
                if let Some(problem) = &writer.problem {
                    println!("Problem    {problem}");
                }
            }
            (None, _) => println!("Writer     none yet: `hk-dr log ship` starts one"),
        }
        for gap in &status.gaps {
            match &gap.closed_by {
                Some(snapshot) => println!(
                    "Gap        revisions {} to {} cannot be had one by one; closed by snapshot {snapshot}",
                    gap.after + 1,
                    gap.before - 1
                ),
                None => println!(
                    "Gap        revisions {} to {} are missing and no snapshot closes it",
                    gap.after + 1,
                    gap.before - 1
                ),
            }
        }
    }
    if behind {
        return Err(CliError::new(ExitKind::Differs, String::new())
            .hint("take a snapshot now (`hk-dr snapshot`): the log continues behind it"));
    }
    Ok(())
}
