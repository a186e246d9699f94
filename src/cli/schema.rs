use clap::ValueEnum;

use super::{CliError, Context};
use crate::config;

/// Prints the JSON Schema of a file, for editors that complete and check while one types.
#[derive(clap::Args)]
pub struct Args {
    /// Which file.
    file: File,
}

#[derive(Clone, Copy, ValueEnum)]
enum File {
    /// cluster.yaml
    Cluster,
    /// runbooks/NAME.yaml
    Runbook,
    /// policies/NAME.yaml
    Policy,
    /// evidence.json, which runs of runbooks leave
    Evidence,
}

/// Runs the command.
///
/// # Errors
/// None.
pub fn run(args: Args, _context: &Context) -> Result<(), CliError> {
    let schema = match args.file {
        File::Cluster => config::schema(),
        File::Runbook => config::runbook_schema(),
        File::Policy => config::policy_schema(),
        File::Evidence => crate::drill::evidence_schema(),
    };
    println!("{schema:#}");
    Ok(())
}
