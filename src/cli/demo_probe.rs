use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::demo::front::start_behind_front;
use crate::demo::proofs::{Before, prove};
use crate::demo::recovery::await_recovery;
use crate::demo::uses::{Notes, start_web, use_cluster};
use crate::demo::{DemoError, canary, disk};
use crate::ssh::SshShell;

/// The half of the demo that runs at the operator's place in the lab. Each prints its findings as JSON.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Subcommand)]
enum Probe {
    /// Puts a web pod into the cluster that is being built and waits for its answer.
    Web,
    /// Puts pods at 443 of every worker into the cluster that is being built and waits for their answer through its front.
    Front,
    /// Writes what the team would miss and notes what must survive.
    Use {
        #[arg(long)]
        notes: PathBuf,
    },
    /// Writes canaries until it is ended.
    Canaries {
        #[arg(long)]
        log: PathBuf,
    },
    /// Copies the etcd data of the last master.
    KeepDisk {
        #[arg(long)]
        to: PathBuf,
    },
    /// Waits for the first write and the first answer of a pod.
    Await,
    /// Proves that the cluster is the one that was lost.
    Prove {
        #[arg(long)]
        notes: PathBuf,
        #[arg(long)]
        canaries: PathBuf,
        #[arg(long)]
        snapshot: PathBuf,
        #[arg(long)]
        lost_at: Timestamp,
        #[arg(long)]
        lost_location: String,
    },
    /// Starts the member whose disk was kept; it must be refused.
    ForgottenDisk {
        #[arg(long)]
        disk: PathBuf,
    },
}

/// Nothing the demo waits for takes longer.
const RECOVERY_WITHIN: Duration = Duration::from_secs(300);

/// Runs one probe.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (world, secrets) = (&connected.world, super::load_secrets(context)?);
    let shell = || SshShell::new(secrets.ssh_private_key()?);
    let last =
        world.cluster.masters.last().ok_or_else(|| CliError::from(DemoError::new("the cluster has no master")))?;
    context.block_on(async {
        match args.probe {
            Probe::Web => print(&start_web(world).await?),
            Probe::Front => print(&start_behind_front(world).await?),
            Probe::Use { notes } => print(&use_cluster(world, &notes).await?),
            Probe::Canaries { log } => Ok(canary::write_canaries(world, &log).await?),
            Probe::KeepDisk { to } => Ok(disk::keep(world, &shell()?, last, &to).await?),
            Probe::Await => print(&await_recovery(world, RECOVERY_WITHIN).await?),
            Probe::Prove { notes, canaries, snapshot, lost_at, lost_location } => {
                let before = Before {
                    notes: &Notes::read(&notes)?,
                    canaries: &canary::read(&canaries)?,
                    snapshot: &snapshot,
                    lost_at,
                    lost_location: &lost_location,
                };
                print(&prove(world, &before).await?)
            }
            Probe::ForgottenDisk { disk } => print(&disk::try_to_return(world, &shell()?, last, &disk).await?),
        }
    })
}

fn print(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))?;
    println!("{text}");
    Ok(())
}
