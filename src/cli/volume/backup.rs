use super::{declared, repository, server};
use crate::cli::connect::{Connected, connect};
use crate::cli::snapshot::{print_json, size};
use crate::cli::{CliError, Context, ExitKind};
use crate::config::VolumeConfig;
use crate::steps::ServerOutput;
use crate::volumes::{Backup, BackupRequest, backup};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Only these of the declared volumes.
    names: Vec<String>,
    /// Say what would be done, and stop.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let volumes: Vec<&VolumeConfig> = if args.names.is_empty() {
        connected.declared.cluster.volumes.iter().collect()
    } else {
        args.names.iter().map(|name| declared(&connected, name)).collect::<Result<_, _>>()?
    };
    if volumes.is_empty() {
        return Err(CliError::new(ExitKind::Usage, "cluster.yaml declares no volumes")
            .hint("nothing was touched; a list `volumes` names them: name, server, path, before, after"));
    }
    if args.dry_run {
        for volume in volumes {
            let quiesced = if volume.before.is_some() { "quiesced by `before`" } else { "not quiesced" };
            println!("{}: {} of {} would be backed up, {quiesced}", volume.name, volume.path, volume.server);
        }
        return Ok(());
    }
    let BackedUp { made, failed } = context.block_on(back_up(&connected, context, &volumes))?;
    connected.buckets.warn();
    if context.global.json {
        print_json(&made)?;
    } else {
        for backup in &made {
            println!(
                "{}: {} files, {}, {} of it new. It is unproven until `hk-dr volume verify` has read it.",
                backup.id,
                backup.files,
                size(backup.bytes),
                size(backup.added_bytes)
            );
        }
    }
    let all = failed.len() + made.len();
    let Some((first, error)) = failed.into_iter().next() else { return Ok(()) };
    let missing = all - made.len();
    Err(CliError { message: format!("{first}: {} ({missing} of {all} volumes failed)", error.message), ..error })
}

/// What came of backing up several volumes.
pub(in crate::cli) struct BackedUp {
    pub made: Vec<Backup>,
    /// Names of volumes, each with its error.
    pub failed: Vec<(String, CliError)>,
}

/// Backs up one after the other. One that fails stops no other.
pub(in crate::cli) async fn back_up(
    connected: &Connected,
    context: &Context,
    volumes: &[&VolumeConfig],
) -> Result<BackedUp, CliError> {
    connected.buckets.ensure().await?;
    let repository = repository(connected, context, Some(&connected.declared.recipients)).await?;
    let mut done = BackedUp { made: Vec::new(), failed: Vec::new() };
    for volume in volumes {
        let one = async {
            let host = ServerOutput::of(&connected.world.cluster, &server(connected, &volume.server).await?)?.host();
            let request = BackupRequest {
                repository: &repository,
                volume,
                host: &host,
                shell: &connected.shell,
                clock: &connected.world.clock,
                git_commit: connected.declared.git_commit.as_deref(),
            };
            Ok::<_, CliError>(backup(&request).await?)
        };
        match one.await {
            Ok(backup) => done.made.push(backup),
            Err(e) => done.failed.push((volume.name.clone(), e)),
        }
    }
    Ok(done)
}
