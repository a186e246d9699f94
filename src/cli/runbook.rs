//! Runbooks: rehearsals and recoveries as ordered steps.

mod conclude;
mod find;
mod show;

use clap::Subcommand;

use super::drive::{Manner, draw, draw_and_execute};
use super::{CliError, Context, ExitKind, keys};
use crate::backup::log::Point;
use crate::config::{Acts, Consent, Verb};
use crate::drawing::{Course, Wanted};
use crate::plan::schedule::Turn;
use crate::plan::{Plan, RunbookChoice};

pub(super) use conclude::{Measured, earlier_runs, on_copy, who};
pub(super) use show::render;

/// Rehearse or recover by a runbook: list, show, plan, run, validate.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List runbooks: those of the Git directory's runbooks/ and those that come with hk-dr.
    List,
    /// Show a runbook's text, to read or to copy into runbooks/ and edit.
    Show { name: String },
    /// Show each step, how it is undone and where there is no way back; touches nothing. Exit code 2 if a guard fails.
    Plan(Choice),
    /// Run it: shows the plan, asks, executes, measures, writes evidence.
    Run {
        #[command(flatten)]
        choice: Choice,
        /// Don't ask.
        #[arg(short, long)]
        yes: bool,
        /// Show the plan and stop.
        #[arg(long, alias = "plan")]
        dry_run: bool,
        /// Ask before each step.
        #[arg(long)]
        step: bool,
    },
    /// Check runbooks; without a name all of them.
    Validate { name: Option<String> },
}

/// Which runbook, on what.
#[derive(clap::Args)]
struct Choice {
    /// Its name, or the path of a file.
    name: String,
    /// A master to act on, by its short name. Repeatable.
    #[arg(long, value_name = "NAME")]
    server: Vec<String>,
    /// For masters.replace: a new, empty volume even where the old one could be attached again.
    #[arg(long)]
    fresh_volume: bool,
    /// For copies: leave the copy for a look, also if a step fails. It costs until `hk-dr runbook run discard-copy`.
    #[arg(long)]
    keep: bool,
    /// For masters.move and copies: the location, one of fallbackLocations (default: each master to the next of them).
    #[arg(long, value_name = "LOCATION")]
    to: Option<String>,
    /// For location.evacuate: the location to leave.
    #[arg(long, value_name = "LOCATION", conflicts_with = "to")]
    from: Option<String>,
    /// For masters.restore and copies: the snapshot (default: the newest).
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// For masters.restore and copies: the state at a revision, a time, or `latest`, with the log's help.
    #[arg(long, value_name = "REVISION|TIME", conflicts_with = "snapshot")]
    at: Option<Point>,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::List => show::list(context),
        Command::Show { name } => show::text(&name, context),
        Command::Plan(choice) => plan(&choice, context),
        Command::Run { choice, yes: _, dry_run: true, step: _ } => plan(&choice, context),
        Command::Run { choice, yes, dry_run: false, step } => {
            let wanted = wanted(&choice, false, context)?;
            let manner = Manner { yes, step };
            let run = match rotation(&wanted) {
                Some(choice) => Some(keys::rotate_by(choice, context, &manner)?),
                None => draw_and_execute(context, &wanted, &manner)?,
            };
            // What there is to say of a run that was made was said by its evidence.
            if run.is_none() {
                super::build::report(context, None, "the runbook has no steps for this cluster");
            }
            Ok(())
        }
        Command::Validate { name } => show::validate(name.as_deref(), context),
    }
}

/// What a policy's schedule orders. What its turn has come to counts only for runbooks that take it: servers for those that
/// act on chosen masters, a location for those that go to one or leave it, a snapshot for those that restore one.
/// `approved`: a person has agreed to this run of the schedule.
pub(super) fn scheduled(
    turn: &Turn,
    snapshot: Option<String>,
    approved: bool,
    context: &Context,
) -> Result<Wanted, CliError> {
    let runbook = find::load(turn.runbook.as_deref().unwrap_or_default(), context)?;
    let has = |verbs: &[Verb]| runbook.steps.iter().any(|step| verbs.contains(&step.verb));
    let servers = if runbook.masters == Acts::Chosen { turn.server.iter().cloned().collect() } else { Vec::new() };
    let location =
        turn.location.clone().filter(|_| has(&[Verb::MastersMove, Verb::CopyRestore, Verb::LocationEvacuate]));
    let snapshot = snapshot.filter(|_| has(&[Verb::MastersRestore, Verb::CopyRestore]));
    Ok(Wanted::Runbook(RunbookChoice { snapshot, location, approved, ..RunbookChoice::new(runbook, servers) }))
}

/// Whether a runbook exists and may be run by a schedule as it is.
///
/// # Errors
/// There is no such runbook, only a person can run it, or it asks for a person or takes the cluster back in time and nobody would be asked.
pub(super) fn may_be_scheduled(name: &str, asked: bool, context: &Context) -> Result<(), CliError> {
    let runbook = find::load(name, context)?;
    if runbook.steps.iter().any(|step| step.verb == Verb::SshKeyAuthorize) {
        let message = format!("runbook {name} needs a new SSH key, which a person makes and keeps");
        return Err(CliError::new(ExitKind::Usage, message).hint(format!(
            "nothing was begun; take it out of the schedule and run `hk-dr runbook run {name}` by hand"
        )));
    }
    if !asked && runbook.guards.approval == Consent::Required {
        let message = format!("runbook {name} asks for a person's agreement (guards.approval), and nobody is asked");
        return Err(CliError::new(ExitKind::Usage, message).hint(
            "nothing was begun; write `approval: required` to its schedule: `hk-dr policy approve` then counts for both",
        ));
    }
    if !asked && runbook.steps.iter().any(|step| step.verb == Verb::MastersRestore) {
        let message = format!("runbook {name} takes the living cluster back to an earlier state, and nobody is asked");
        return Err(CliError::new(ExitKind::Usage, message).hint(
            "nothing was begun; write `approval: required` to its schedule, or take a runbook that restores elsewhere",
        ));
    }
    Ok(())
}

fn wanted(choice: &Choice, dry_run: bool, context: &Context) -> Result<Wanted, CliError> {
    let mut runbook = find::load(&choice.name, context)?;
    if choice.fresh_volume {
        let mut replacing = runbook.steps.iter_mut().filter(|s| s.verb == Verb::MastersReplace).peekable();
        if replacing.peek().is_none() {
            let message = format!("runbook {} replaces no master: --fresh-volume has no meaning there", choice.name);
            return Err(CliError::new(ExitKind::Usage, message).hint("nothing was touched"));
        }
        replacing.for_each(|step| step.fresh_volume = true);
    }
    let snapshot = match choice.at {
        None => choice.snapshot.clone(),
        Some(at) => Some(crate::cli::rebuild::snapshot_at(at, dry_run, context)?),
    };
    let (servers, location) = (choice.server.clone(), choice.to.clone().or_else(|| choice.from.clone()));
    Ok(Wanted::Runbook(RunbookChoice { snapshot, location, keep: choice.keep, ..RunbookChoice::new(runbook, servers) }))
}

/// A runbook that rotates the SSH key: there must be a new one before it can be planned.
fn rotation(wanted: &Wanted) -> Option<&RunbookChoice> {
    let Wanted::Runbook(choice) = wanted else { return None };
    choice.runbook.steps.iter().any(|s| s.verb == Verb::SshKeyAuthorize).then_some(choice)
}

fn plan(choice: &Choice, context: &Context) -> Result<(), CliError> {
    let wanted = wanted(choice, true, context)?;
    let plan: Plan = match rotation(&wanted) {
        Some(choice) => keys::plan_rotation_by(choice, context)?,
        None => {
            let connected = super::connect::connect(context)?;
            context.block_on(draw(&connected, &wanted, &Course::default()))?
        }
    };
    show::plan(&plan, context)
}
