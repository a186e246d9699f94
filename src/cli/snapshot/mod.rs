mod fetch;
mod list;
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
    /// Take a snapshot now (the same as no subcommand).
    Take,
    /// List the snapshots in the bucket, newest first.
    List,
    /// Show what is known about one snapshot.
    Show(Choice),
    /// Read a snapshot back: decrypt, decompress, check every digest, walk the database, count keys by kind.
    Verify(Choice),
    /// Decrypt a snapshot into local files that etcdutl and tar take.
    Fetch(fetch::Args),
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
        None | Some(Command::Take) => take::run(context),
        Some(Command::List) => list::run(context),
        Some(Command::Show(choice)) => show::run(&choice, context),
        Some(Command::Verify(choice)) => verify::run(&choice, context),
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
