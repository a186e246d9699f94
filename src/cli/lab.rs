//! `hk-dr lab`: a Hetzner Cloud in a box, to build against, rehearse in and test with.

use std::process::Command;

use clap::Subcommand;
use hk_lab::exec::Place;
use hk_lab::golden;
use hk_lab::{LabError, LabInfo, LabOptions, control};

use super::{CliError, Context, ExitKind, SourceOptions, lab_fault, lab_status, obtain};
use crate::artifacts::Cache;

/// The lab's S3 server.
const OBJECT_STORE: &str = "versitygw";

/// A Hetzner Cloud in a box: the cloud's API, servers that really boot, S3. Needs root.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Starts a lab, or brings back one that was ended; returns when its cloud API and S3 answer.
    Up(Up),
    /// Makes the image that servers start from, if it is not in the cache; `up` does so too.
    Image,
    /// Ends a lab. Its servers, disks and addresses are kept, and `up` brings them back.
    Down(Down),
    /// Shows all labs of this host, and what is in the running ones.
    Status,
    /// Runs a command at a place in the lab, or inside a server.
    Exec(Exec),
    /// Prints export lines for clients on this host: eval "$(hk-dr lab env)".
    Env(Name),
    Fault(lab_fault::Args),
    /// Becomes a lab (started by `up`).
    #[command(hide = true)]
    Daemon {
        launch: String,
    },
}

#[derive(clap::Args)]
struct Name {
    /// Several labs run side by side under different names.
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(clap::Args)]
struct Down {
    #[command(flatten)]
    lab: Name,
    /// Removes what is kept, too: all its servers, volumes, buckets and tokens. It need not run for that.
    #[arg(long)]
    delete: bool,
}

#[derive(clap::Args)]
struct Up {
    #[command(flatten)]
    lab: Name,
    /// Nothing of it is kept when it ends.
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    sources: SourceOptions,
}

#[derive(clap::Args)]
struct Exec {
    #[command(flatten)]
    lab: Name,
    /// A place that is no server: `operator` (the default) or `internet`.
    #[arg(long, value_name = "PLACE", value_parser = ["operator", "internet"])]
    from: Option<String>,
    /// [SERVER] -- CMD…: with a server's name or id, CMD runs inside it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "SERVER|--|CMD")]
    words: Vec<String>,
}

/// Runs `hk-dr lab …`.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        LabCommand::Up(args) => up(args, context),
        LabCommand::Image => {
            golden::ensure(&context.cache_dir(), &mut |line| say(context, line))?;
            Ok(())
        }
        LabCommand::Down(Down { lab: Name { name }, delete: true }) => {
            control::destroy(&name, &context.state_dir())?;
            say(context, &format!("lab {name}: nothing of it is left"));
            Ok(())
        }
        LabCommand::Down(Down { lab: Name { name }, delete: false }) => {
            let durable = control::find(&name).is_ok_and(|info| info.durable);
            control::down(&name)?;
            let left = if durable {
                format!("ended and kept; `hk-dr lab up --name {name}` brings it back, `down --delete` removes it")
            } else {
                "nothing of it is left".to_owned()
            };
            say(context, &format!("lab {name}: {left}"));
            Ok(())
        }
        LabCommand::Status => lab_status::run(context),
        LabCommand::Exec(exec) => run_at(exec),
        LabCommand::Env(Name { name }) => {
            environment(&control::find(&name)?, context);
            Ok(())
        }
        LabCommand::Fault(args) => {
            let info = control::find(&args.name)?;
            lab_fault::run(args, &format!("http://{}/v1", info.api_published), &info.token, context)
        }
        LabCommand::Daemon { launch } => std::process::exit(control::launched(&launch)),
    }
}

fn up(args: Up, context: &Context) -> Result<(), CliError> {
    let cache = Cache::new(context.cache_dir());
    let artifacts = [cache.lock().by_name(OBJECT_STORE)?];
    obtain(context, &cache, &artifacts, &args.sources)?;
    let options = LabOptions { name: args.lab.name, cache_dir: context.cache_dir(), state_dir: context.state_dir() };
    let program = std::env::current_exe()
        .map_err(|error| CliError::new(ExitKind::Failed, format!("cannot find this program: {error}")))?;
    let mut daemon = Command::new(program);
    daemon.args(["lab", "daemon"]);
    let start = if args.ephemeral { control::up } else { control::up_durable };
    let info = start(&options, daemon, &mut |line| say(context, line))?;
    let name = &info.name;
    say(
        context,
        &format!("lab {name} is up: cloud API http://{}/v1, S3 http://{}", info.api_published, info.s3_published),
    );
    say(context, &format!("  http://{}/_lab/   the cloud in a browser", info.api_published));
    say(context, &format!("  hk-dr lab exec --name {name} --from operator -- CMD   run CMD at the operator's desk"));
    if context.global.json {
        println!("{}", serde_json::json!({"name": name, "environment": pairs(&info)}));
    }
    Ok(())
}

fn run_at(exec: Exec) -> Result<(), CliError> {
    let (place, command) = destination(exec.from, exec.words)?;
    let status = hk_lab::exec::exec(&exec.lab.name, &place, &command)?;
    // The command's own status is this command's.
    std::process::exit(status)
}

/// `--from PLACE -- CMD`, `SERVER -- CMD`, or `-- CMD` at the operator's desk.
fn destination(from: Option<String>, mut words: Vec<String>) -> Result<(Place, Vec<String>), CliError> {
    let usage = || CliError::new(ExitKind::Usage, "say what to run: hk-dr lab exec [--from PLACE | SERVER] -- CMD");
    let place = match from {
        Some(place) => Place::Outside(place),
        None if words.get(1).is_some_and(|word| word == "--") => Place::Server(words.remove(0)),
        None => Place::Outside("operator".into()),
    };
    if words.first().is_some_and(|word| word == "--") {
        words.remove(0);
    }
    if words.is_empty() { Err(usage()) } else { Ok((place, words)) }
}

fn environment(info: &LabInfo, context: &Context) {
    if context.global.json {
        println!("{}", pairs(info));
        return;
    }
    for (name, value) in info.environment(false) {
        println!("export {name}='{value}'");
    }
}

fn pairs(info: &LabInfo) -> serde_json::Value {
    serde_json::Value::Object(
        info.environment(false).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect(),
    )
}

fn say(context: &Context, line: &str) {
    if !context.global.quiet {
        eprintln!("{line}");
    }
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> Self {
        let cli = Self::new(ExitKind::Failed, error.message);
        match error.hint {
            Some(hint) => cli.hint(hint),
            None => cli,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(from: Option<&str>, words: &[&str]) -> (Place, Vec<String>) {
        destination(from.map(str::to_owned), words.iter().map(|w| (*w).to_owned()).collect()).expect("a destination")
    }

    #[test]
    fn a_word_before_the_dashes_is_a_server() {
        let (place, command) = parse(None, &["demo-m1", "--", "ls", "-l", "--", "x"]);
        assert_eq!(place, Place::Server("demo-m1".into()));
        assert_eq!(command, ["ls", "-l", "--", "x"]);
    }

    #[test]
    fn without_a_server_it_is_the_operators_desk() {
        let (place, command) = parse(None, &["curl", "-v", "http://192.0.2.10"]);
        assert_eq!(place, Place::Outside("operator".into()));
        assert_eq!(command[0], "curl");
        assert_eq!(parse(Some("internet"), &["id"]).0, Place::Outside("internet".into()));
    }

    #[test]
    fn nothing_to_run_is_a_usage_error() {
        let error = destination(None, vec!["demo-m1".into(), "--".into()]).expect_err("no command");
        assert_eq!(error.kind, ExitKind::Usage);
    }
}
