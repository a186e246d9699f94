mod backup;
mod list;
mod prune;
mod restore;
mod verify;

pub(super) use backup::{BackedUp, back_up};
pub(super) use verify::chosen;

use clap::Subcommand;

use super::connect::Connected;
use super::{CliError, Context, ExitKind};
use crate::backup::{Identities, Recipients};
use crate::config::VolumeConfig;
use crate::distribution::server_name;
use crate::ports::Server;
use crate::volumes::Repository;

/// Back up the files of mounted volumes, and bring them back onto other volumes. restic opens the backups without hk-dr.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Back up the volumes that cluster.yaml declares (`volumes`), between the scripts that quiesce them.
    Backup(backup::Args),
    /// List the backups, newest first.
    List,
    /// Remove backups that retention does not keep; shows each decision and its reason first.
    Prune(super::pruning::Args),
    /// Restore a backup onto a new volume, at any server in any location.
    Restore(restore::Args),
    /// Find out what the backups are worth, and record it.
    Verify(verify::Args),
}

impl Args {
    /// Whether it only reads the bucket.
    pub(super) fn may_look_back(&self) -> bool {
        matches!(self.command, Command::List | Command::Restore(_))
    }
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    match &args.command {
        Command::Backup(args) => backup::run(args, context),
        Command::List => list::run(context),
        Command::Prune(args) => prune::run(args, context),
        Command::Restore(args) => restore::run(args, context),
        Command::Verify(args) => verify::run(args, context),
    }
}

/// A declared volume.
fn declared<'a>(connected: &'a Connected, name: &str) -> Result<&'a VolumeConfig, CliError> {
    let volumes = &connected.declared.cluster.volumes;
    volumes.iter().find(|volume| volume.name == name).ok_or_else(|| {
        let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        CliError::new(ExitKind::Usage, format!("cluster.yaml declares no volume {name}"))
            .hint(format!("nothing was touched; `volumes` declares: {known}"))
    })
}

/// A server of the cluster by its short name.
async fn server(connected: &Connected, short: &str) -> Result<Server, CliError> {
    let world = &connected.world;
    let name = server_name(&world.cluster, short);
    let found = world.cloud.server_by_name(&name).await?.filter(|server| world.owns(&server.labels));
    found.ok_or_else(|| {
        CliError::new(ExitKind::Failed, format!("cluster {} has no server {short} in the cloud", world.cluster.name))
            .hint("nothing was touched; `hk-dr status` shows the servers")
    })
}

/// The cluster's repository; with recipients it is made if there is none.
pub(super) async fn repository(
    connected: &Connected,
    context: &Context,
    recipients: Option<&Recipients>,
) -> Result<Repository, CliError> {
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    Ok(Repository::open(&connected.store, &connected.declared.cluster.name, &identities, recipients).await?)
}
