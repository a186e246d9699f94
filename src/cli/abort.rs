use std::collections::BTreeSet;

use super::connect::Connected;
use super::drive::{self, Manner};
use super::hold::{Held, hold};
use super::{CliError, Context, ExitKind};
use crate::drawing::{Course, Wanted};
use crate::engine::RunError;
use crate::journal::{RunStatus, StepState};
use crate::plan::{AbortChoice, Plan, Purpose, works_on_copy};
use crate::runs::{RunDir, Runs};

/// Give up a run that stopped midway: undo what can be undone, say what can't.
#[derive(clap::Args)]
pub struct Args {
    /// The run (default: the newest that has not ended).
    run: Option<String>,
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
    /// Show what would be undone and stop.
    #[arg(long)]
    dry_run: bool,
    /// Undo nothing, leave everything as it is, and record that the run is given up. Also for a run that another version of
    /// hk-dr began.
    #[arg(long)]
    abandon: bool,
    /// As for `hk-dr resume`.
    #[arg(long)]
    take_over: bool,
}

/// Aborts.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    context.block_on(async {
        let held = hold(context, &connected, "abort", args.take_over).await?;
        let result = abort(args, context, &connected, &held).await;
        held.release().await;
        result
    })
}

async fn abort(args: &Args, context: &Context, connected: &Connected, held: &Held) -> Result<(), CliError> {
    let found = super::resume::find(context, connected, args.run.as_deref()).await;
    let (dir, plan, status) = match (found, &args.run) {
        // A run that can't be read can be named and given up all the same.
        (Err(_), Some(run)) if args.abandon => {
            let dir = Runs::of(&context.state_dir(), &connected.declared.cluster.name).open(run);
            if !dir.file("plan.json").exists() {
                return Err(CliError::new(ExitKind::Data, format!("there is no run {run} on this machine"))
                    .hint("nothing was touched; `hk-dr runs` lists them"));
            }
            dir.give_up("a person gave it up; its journal is another version's")?;
            println!("Run {run} is given up; nothing was undone. `hk-dr plan` and `hk-dr status` show what there is.");
            return Ok(());
        }
        (found, _) => found?,
    };
    match status {
        RunStatus::New | RunStatus::Open => {}
        RunStatus::Finished | RunStatus::Abandoned => {
            let ended = if status == RunStatus::Finished { "has finished" } else { "was given up already" };
            return Err(CliError::new(ExitKind::Failed, format!("run {} {ended}: there is nothing to abort", plan.id))
                .hint("nothing was touched; `hk-dr status` shows how the cluster is"));
        }
    }
    if plan.purpose == Purpose::Abort && !args.abandon {
        return Err(CliError::new(ExitKind::Failed, format!("run {} is itself a way back", plan.id))
            .hint(format!("nothing was touched; `hk-dr resume {}` goes on with it", plan.id)));
    }
    if args.abandon {
        drive::abandon(connected, &plan, &dir, "a person gave it up").await?;
        println!(
            "Run {} is given up; nothing was undone. `hk-dr plan` and `hk-dr status` show what there is.",
            plan.id
        );
        return Ok(());
    }
    let back = draw_back(connected, &plan, &dir).await?;
    if args.dry_run {
        if context.global.json {
            println!("{}", serde_json::json!(back));
        } else {
            print!("{}", super::runbook::render(&back, &[]));
        }
        return Ok(());
    }
    if !back.steps.is_empty() || !args.yes {
        drive::confirm(context, &back, &Manner { yes: args.yes, step: false })?;
    }
    go_back(context, connected, held, &plan, &dir, &back).await?;
    if context.global.json {
        println!(
            "{}",
            serde_json::json!({"aborted": plan.id, "run": back.id, "steps": back.steps.len(), "findings": back.findings})
        );
    } else {
        for finding in &back.findings {
            println!("• {finding}");
        }
        println!("Run {} is given up; {} steps undid what it had done (run {}).", plan.id, back.steps.len(), back.id);
    }
    Ok(())
}

/// The way back from where a run stands.
async fn draw_back(connected: &Connected, plan: &Plan, dir: &RunDir) -> Result<Plan, CliError> {
    let (_, state) = dir.replay(plan)?;
    let begun: BTreeSet<String> = state
        .steps()
        .filter(|(_, s)| !matches!(s, StepState::Waiting | StepState::Finished { found: true, .. }))
        .map(|(id, _)| id.to_owned())
        .collect();
    let wanted = Wanted::Abort(Box::new(AbortChoice { plan: plan.clone(), begun }));
    let course = Course { parent: Some(plan.id.clone()), ..Course::default() };
    drive::draw(connected, &wanted, &course).await
}

/// Executes the way back as a run of its own: whenever this dies, one of the two can be resumed.
async fn go_back(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: &Plan,
    dir: &RunDir,
    back: &Plan,
) -> Result<(), CliError> {
    let reason = format!("aborted; undone by run {}", back.id);
    if back.steps.is_empty() {
        return drive::abandon(connected, plan, dir, &reason).await;
    }
    let runs = Runs::of(&context.state_dir(), &connected.declared.cluster.name);
    let back_dir = runs.create(back, &connected.declared.text)?;
    drive::abandon(connected, plan, dir, &reason).await?;
    let executed = drive::execute(context, connected, held, back, &back_dir, &Manner::default()).await;
    executed.map_err(|e| drive::stopped(back, e))
}

/// Undoes a run that failed, because its runbook says so. What it returns says how both ended.
pub(super) async fn unwind(
    context: &Context,
    connected: &Connected,
    held: &Held,
    plan: &Plan,
    dir: &RunDir,
    failed: RunError,
) -> CliError {
    drive::note(context, &format!("{failed}; going back to the state before"));
    let back = match draw_back(connected, plan, dir).await {
        Ok(back) => back,
        Err(no_way) => {
            let mut error = drive::stopped(plan, failed);
            error.hints.insert(0, format!("there is no way back by itself: {}", no_way.message));
            return error;
        }
    };
    match go_back(context, connected, held, plan, dir, &back).await {
        Ok(()) if plan.runbook.as_ref().is_some_and(|r| works_on_copy(&r.runbook)) => {
            let message = format!("run {} failed and its copy was deleted: {failed}", plan.id);
            CliError::new(ExitKind::Failed, message)
                .hint(format!("production was not touched; run {} deleted what the rehearsal had made", back.id))
                .hint("mend the cause and run it again; with --keep the copy stays for a look")
        }
        Ok(()) => CliError::new(ExitKind::Failed, format!("run {} failed and was undone: {failed}", plan.id))
            .hint(format!(
                "the state before is back (run {}), and every API server that was touched took a write",
                back.id
            ))
            .hint("what the run had made is kept under other names; mend the cause, then run it again"),
        Err(mut error) => {
            error.message = format!("run {} failed ({failed}), and undoing it stopped: {}", plan.id, error.message);
            error
        }
    }
}
