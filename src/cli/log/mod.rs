mod canary;
mod ship;
mod status;

use clap::Subcommand;

pub(super) use ship::tell;

use super::{CliError, Context};

/// Ship every change of the cluster into the bucket, seconds behind it; see how far that is.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ship changes until stopped (Ctrl-C, SIGTERM). Takes a snapshot first if there is none to continue.
    Ship(ship::Args),
    /// Show what the log covers, who writes it, and its gaps. Exit code 2 if there is a gap behind the newest snapshot.
    Status,
    /// Measure the recovery point: write keys through etcd and wait until they are in the bucket.
    Canary(canary::Args),
}

impl Args {
    /// Whether it only reads.
    pub(super) fn may_look_back(&self) -> bool {
        matches!(self.command, Command::Status)
    }
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::Ship(args) => ship::run(&args, context),
        Command::Status => status::run(context),
        Command::Canary(args) => canary::run(&args, context),
    }
}
