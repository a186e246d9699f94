use super::connect::connect;
use super::snapshot::{print_json, size};
use super::{CliError, Context};
use crate::backup::log::Point;
use crate::backup::{CompactRequest, Compression, compact};

/// Make a new whole snapshot in the bucket from a snapshot and the log behind it. The cluster is not touched.
#[derive(clap::Args)]
pub struct Args {
    /// A revision, a time, or `latest`.
    #[arg(long, value_name = "REVISION|TIME", default_value = "latest")]
    at: Point,
    /// Say what would be read, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Compacts.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let archive = connected.archive(context)?;
    if args.dry_run {
        let way = context.block_on(archive.way(args.at))?;
        if context.global.json {
            return print_json(&serde_json::json!({"snapshot": way.base.manifest.id, "path": way.path}));
        }
        println!(
            "A snapshot of {} would be made from {} and {} segments; nothing would be removed.",
            args.at,
            way.base.manifest.id,
            way.path.segments.len()
        );
        return Ok(());
    }
    let made = context.block_on(compact(&CompactRequest {
        archive: &archive,
        point: args.at,
        recipients: &connected.declared.recipients,
        clock: connected.world.clock.as_ref(),
        compression: Compression::default(),
    }))?;
    match made {
        Err(id) if context.global.json => print_json(&serde_json::json!({"made": false, "snapshot": id})),
        Err(id) => {
            println!("Nothing to do: snapshot {id} holds exactly that state.");
            Ok(())
        }
        Ok(manifest) if context.global.json => print_json(&manifest),
        Ok(manifest) => {
            println!(
                "Snapshot {} made: revision {}, {} in the bucket as {}. Nothing was removed.",
                manifest.id,
                manifest.revision,
                size(manifest.etcd.plain_bytes),
                size(manifest.etcd.stored_bytes)
            );
            println!("It is unproven: nobody has read it back (`hk-dr snapshot verify`).");
            Ok(())
        }
    }
}
