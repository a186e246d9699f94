use super::drive::{Manner, draw, draw_and_execute};
use super::{CliError, Context};
use crate::drawing::{Course, Wanted};
use crate::plan::ONLY_THE_WAY_IN;
use crate::runs::Runs;

/// Make true what Git declares; a second run changes nothing.
#[derive(clap::Args)]
pub struct Args {
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
    /// Show the plan and stop.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    workers: super::workers::Choice,
    #[command(flatten)]
    prober: super::scan::Prober,
}

/// Builds.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let wanted = args.workers.wanted();
    if args.dry_run {
        return dry_run(context, &wanted);
    }
    let manner = Manner { yes: args.yes, step: false };
    let mut run = draw_and_execute(context, &wanted, &manner)?;
    if run.as_deref().is_some_and(|id| only_the_way_in(context, id)) {
        run = draw_and_execute(context, &wanted, &manner)?.or(run);
    }
    super::scan::after_build(context, &args.prober)?;
    report(context, run.as_deref(), "the cluster is as Git declares it");
    Ok(())
}

/// Whether this run could not look at the cluster yet, and made the way to it.
fn only_the_way_in(context: &Context, run: &str) -> bool {
    let Ok(declared) = super::connect::declared(context) else { return false };
    let runs = Runs::of(&context.state_dir(), &declared.cluster.name);
    runs.open(run).plan().is_ok_and(|plan| plan.findings.iter().any(|f| f.starts_with(ONLY_THE_WAY_IN)))
}

/// Prints the plan only.
pub(super) fn dry_run(context: &Context, wanted: &Wanted) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let plan = context.block_on(draw(&connected, wanted, &Course::default()))?;
    if context.global.json {
        println!("{}", serde_json::json!(plan));
    } else {
        print!("{}", super::plan::render(&plan));
    }
    Ok(())
}

/// Says how it ended.
pub(super) fn report(context: &Context, run: Option<&str>, what: &str) {
    if context.global.json {
        let calls = crate::hetzner::requests();
        let reads: u64 = calls.iter().filter(|(call, _)| call.starts_with("GET ")).map(|(_, times)| times).sum();
        let writes = calls.values().sum::<u64>() - reads;
        let cloud = serde_json::json!({"reads": reads, "writes": writes, "calls": calls});
        println!("{}", serde_json::json!({"changed": run.is_some(), "run": run, "cloud": cloud}));
    } else {
        match run {
            None => println!("Nothing to do: {what}."),
            Some(run) => println!("Done: {what} (run {run})."),
        }
    }
}
