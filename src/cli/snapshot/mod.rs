mod fetch;
mod list;
mod prune;
mod show;
pub(super) mod take;
mod verify;

use clap::Subcommand;

use super::{CliError, Context, ExitKind};

/// Take a snapshot of the cluster into the bucket, or work with those that are there.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Take a snapshot now (the same as no subcommand), and read it back.
    Take(take::Args),
    /// List the snapshots in the bucket, newest first.
    List,
    /// Show what is known about one snapshot.
    Show(Choice),
    /// Find out what a snapshot is worth, and record it.
    Verify(verify::Args),
    /// Remove what cluster.yaml says need not be kept, each decision with its reason.
    Prune(super::pruning::Args),
    /// Decrypt a snapshot into local files that etcdutl and tar take.
    Fetch(fetch::Args),
}

impl Args {
    /// Whether it only reads.
    pub(super) fn may_look_back(&self) -> bool {
        matches!(self.command, Some(Command::List | Command::Show(_) | Command::Fetch(_)))
    }
}

/// Which snapshot.
#[derive(clap::Args)]
struct Choice {
    /// Name of the snapshot, the beginning of one, or `latest`.
    #[arg(default_value = "latest")]
    snapshot: String,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        None => take::run(&take::Args::default(), context),
        Some(Command::Take(args)) => take::run(&args, context),
        Some(Command::Prune(args)) => prune::run(&args, context),
        Some(Command::List) => list::run(context),
        Some(Command::Show(choice)) => show::run(&choice, context),
        Some(Command::Verify(args)) => verify::run(&args, context),
        Some(Command::Fetch(args)) => fetch::run(&args, context),
    }
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| CliError::new(ExitKind::Failed, format!("the result cannot be written as JSON: {e}")))?;
    println!("{text}");
    Ok(())
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
