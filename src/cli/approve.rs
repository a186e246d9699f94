use std::io::{IsTerminal, Write};

use super::connect::Connected;
use super::{CliError, Context, ExitKind};
use crate::journal::{RunState, RunStatus, StepState, mirrored_runs, read_mirrored};
use crate::plan::{APPROVAL, Plan, Step};
use crate::ports::ErrorCode;
use crate::steps::{Approval, approve};

/// Runs that are looked at for one that waits, newest first.
const LOOK_AT_MAX: usize = 20;

/// Say that a manual step is done for which a run waits, or that it may begin; from any machine.
#[derive(clap::Args)]
pub struct Args {
    /// The run (default: the newest that waits).
    run: Option<String>,
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
}

/// Approves.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let (plan, step) = context.block_on(waiting(&connected, args.run.as_deref()))?;
    let text = step.params["text"].as_str().unwrap_or_default();
    if !args.yes {
        if !std::io::stdin().is_terminal() || context.global.json {
            return Err(CliError::new(
                ExitKind::Usage,
                format!("nobody can be asked here whether this is done: {text}"),
            )
            .hint("nothing was touched; pass --yes when it is done, or when you agree"));
        }
        let question = if step.id == APPROVAL { "Do you agree?" } else { "Is it done?" };
        eprint!("Run {} waits for: {text}\n{question} [y/N] ", plan.id);
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|e| CliError::new(ExitKind::Usage, e.to_string()))?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(CliError::new(ExitKind::Failed, "not confirmed; the run goes on waiting"));
        }
    }
    let approval =
        Approval { format: 1, step: step.id.clone(), by: super::runbook::who(), at: connected.world.clock.now() };
    let (store, cluster) = (connected.world.store.as_ref(), &connected.declared.cluster.name);
    match context.block_on(approve(store, cluster, &plan.id, &approval)) {
        Ok(()) => {}
        // The other one's word is as good.
        Err(e) if e.code == ErrorCode::Conflict => {}
        Err(e) => return Err(e.into()),
    }
    if context.global.json {
        println!("{}", serde_json::json!({"run": plan.id, "approved": step.id}));
    } else {
        println!("Run {} goes on; if its process has died, `hk-dr resume {}` continues it.", plan.id, plan.id);
    }
    Ok(())
}

/// A run that waits for a person, and the step.
async fn waiting(connected: &Connected, wanted: Option<&str>) -> Result<(Plan, Step), CliError> {
    let (store, cluster) = (connected.world.store.as_ref(), &connected.declared.cluster.name);
    let ids = mirrored_runs(store, cluster).await?;
    for id in ids.into_iter().rev().filter(|id| wanted.is_none_or(|wanted| wanted == id)).take(LOOK_AT_MAX) {
        let Ok(mirrored) = read_mirrored(store, cluster, &id).await else { continue };
        let Ok(plan) = serde_json::from_slice::<Plan>(&mirrored.plan) else { continue };
        let Ok(state) = RunState::replay(&plan, &mirrored.events) else { continue };
        if state.status() != RunStatus::Open {
            continue;
        }
        let waits = |step: &&Step| {
            step.kind == "manual.wait"
                && matches!(state.step(&step.id), Some(StepState::Started { .. } | StepState::Failed { .. }))
        };
        if let Some(step) = plan.steps.iter().find(waits).cloned() {
            return Ok((plan, step));
        }
    }
    let what =
        wanted.map_or("no run waits for a person".to_owned(), |id| format!("run {id} does not wait for a person"));
    Err(CliError::new(ExitKind::Data, what).hint("nothing was touched; `hk-dr runs` shows where they stand"))
}
