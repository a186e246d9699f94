use super::drive::declared_then;
use super::{CliError, Context, ExitKind};
use crate::journal::RunStatus;
use crate::runs::Runs;

/// Continue a run that stopped midway, from where its journal ends.
#[derive(clap::Args)]
pub struct Args {
    /// The run (default: the newest that has not ended).
    run: Option<String>,
}

/// Resumes.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut connected = super::connect::connect(context)?;
    let runs = Runs::of(&context.state_dir(), &connected.world.cluster.name);
    let mut found = None;
    for id in runs.ids()?.into_iter().rev() {
        if args.run.as_ref().is_some_and(|wanted| *wanted != id) {
            continue;
        }
        let dir = runs.open(&id);
        let plan = dir.plan()?;
        let (_, state) = dir.replay(&plan)?;
        let open = matches!(state.status(), RunStatus::Open | RunStatus::New);
        if open || args.run.is_some() {
            found = Some((dir, plan, state.status()));
            break;
        }
    }
    let Some((dir, plan, status)) = found else {
        let what = args.run.map_or("no run has stopped midway".to_owned(), |id| format!("there is no run {id}"));
        return Err(
            CliError::new(ExitKind::Data, what).hint("`hk-dr runs` lists them; `hk-dr plan` shows what is missing")
        );
    };
    match status {
        RunStatus::Finished => println!("Run {} has finished already.", plan.id),
        RunStatus::Abandoned => {
            return Err(CliError::new(
                ExitKind::Failed,
                format!("run {} was given up or replaced by another plan", plan.id),
            )
            .hint("nothing was touched; `hk-dr runs` shows which"));
        }
        RunStatus::New | RunStatus::Open => {
            let (then, _) = declared_then(&dir.cluster_yaml())?;
            if then != connected.world.cluster && !context.global.quiet {
                eprintln!("note: cluster.yaml has changed since; run {} continues as it was planned", plan.id);
            }
            connected.world.cluster = then;
            context.block_on(super::drive::resume(context, &connected, plan, dir))?;
        }
    }
    Ok(())
}
