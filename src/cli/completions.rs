use clap::{CommandFactory, ValueEnum};

use super::{Cli, CliError, Context};

/// Prints a completion script for a shell.
#[derive(clap::Args)]
pub struct Args {
    /// The shell to complete in.
    shell: Shell,
}

/// Shells that hk-dr's users have.
#[derive(ValueEnum, Debug, Clone, Copy)]
enum Shell {
    /// `source <(hk-dr completions bash)`
    Bash,
    /// `hk-dr completions zsh > "${fpath[1]}/_hk-dr"`
    Zsh,
    /// `hk-dr completions fish > ~/.config/fish/completions/hk-dr.fish`
    Fish,
}

/// Runs the command.
///
/// # Errors
/// None.
pub fn run(args: Args, _context: &Context) -> Result<(), CliError> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut Cli::command(), "hk-dr", &mut std::io::stdout());
    Ok(())
}
