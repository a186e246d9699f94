use super::{repository, server};
use crate::cli::connect::connect;
use crate::cli::snapshot::{print_json, size};
use crate::cli::{CliError, Context};
use crate::ports::{Labels, VolumeSpec};
use crate::steps::ServerOutput;
use crate::volumes::{Records, RestoreRequest, restore};

/// Says of which volume a restored one is. It carries no label of ownership: hk-dr never deletes data of others.
const LABEL: &str = "hk-dr/restored-volume";
/// The smallest that Hetzner makes.
const SIZE_GB_MIN: u64 = 10;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume that was backed up.
    volume: String,
    /// Which of its backups.
    #[arg(long, value_name = "ID", default_value = "latest")]
    backup: String,
    /// Short name of the server that gets it; a new volume is made in that server's location.
    #[arg(long)]
    server: String,
    /// Where it is mounted there (default: where it was).
    #[arg(long, value_name = "PATH")]
    to: Option<String>,
    /// Size of the new volume in GB (default: half as much again as the files, at least 10).
    #[arg(long, value_name = "GB")]
    size: Option<u32>,
    /// Don't make a volume: an empty one is mounted there already.
    #[arg(long, conflicts_with = "size")]
    mounted: bool,
    /// Say what would be done, and stop.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let world = &connected.world;
    let (cloud, cluster) = (&world.cloud, &world.cluster.name);
    let restored = context.block_on(async {
        let backup =
            Records { store: connected.store.as_ref(), cluster }.find(&args.volume, &args.backup).await?.backup;
        let server = server(&connected, &args.server).await?;
        let host = ServerOutput::of(&world.cluster, &server)?.host();
        let path = args.to.as_deref().unwrap_or(&backup.path);
        let wanted_gb = (backup.bytes * 3 / 2).div_ceil(1_000_000_000).max(SIZE_GB_MIN);
        let size_gb = args.size.unwrap_or(u32::try_from(wanted_gb).unwrap_or(u32::MAX));
        let name = format!("{cluster}-{}-{}", args.volume, world.clock.now().strftime("%Y%m%d%H%M%S"));
        if args.dry_run {
            let onto = if args.mounted {
                "what is mounted there".to_owned()
            } else {
                format!("a new volume {name}, {size_gb} GB")
            };
            println!(
                "{} ({}, {} files) would be restored to {path} of {} in {}, onto {onto}.",
                backup.id,
                size(backup.bytes),
                backup.files,
                server.name,
                server.location
            );
            return Ok(None);
        }
        let repository = repository(&connected, context, None).await?;
        let device = if args.mounted {
            None
        } else {
            let labels = Labels::from([(LABEL.to_owned(), args.volume.clone())]);
            let spec = VolumeSpec { name, size_gb, location: server.location.clone(), server: None, labels };
            let volume = cloud.create_volume(&spec).await?;
            cloud.attach_volume(volume.id, server.id).await?;
            Some(volume.device)
        };
        let request = RestoreRequest {
            repository: &repository,
            backup: &backup,
            host: &host,
            shell: &connected.shell,
            clock: world.clock.as_ref(),
            device: device.as_deref(),
            path,
            // Nothing is recorded about the past.
            record: context.global.as_of.is_none(),
        };
        Ok::<_, CliError>(Some(restore(&request).await?))
    })?;
    let Some(restored) = restored else { return Ok(()) };
    if context.global.json {
        return print_json(&restored);
    }
    let proven = if context.global.as_of.is_none() { " It is proven." } else { "" };
    println!(
        "{} is restored to {} of {}: {} files and directories, each compared with the backup.{proven}",
        restored.backup, restored.path, restored.server, restored.entries
    );
    Ok(())
}
