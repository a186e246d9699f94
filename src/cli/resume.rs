use super::connect::Connected;
use super::drive::declared_then;
use super::{CliError, Context, ExitKind};
use crate::journal::{RunStatus, mirrored_runs, read_mirrored};
use crate::plan::Plan;
use crate::ports::ErrorCode;
use crate::runs::{RunDir, Runs};

/// Runs that are looked at for one that has not ended, newest first.
const LOOK_AT_MAX: usize = 50;

/// Continue a run that stopped midway, from where its journal ends: here, or one that another machine began.
#[derive(clap::Args)]
pub struct Args {
    /// The run (default: the newest that has not ended).
    run: Option<String>,
    /// Take the cluster over from another operator at once, instead of waiting until its lease runs out. Only if you know
    /// that its process is dead.
    #[arg(long)]
    take_over: bool,
}

impl Args {
    /// For one run.
    pub(super) fn of(run: String) -> Self {
        Self { run: Some(run), take_over: false }
    }
}

/// Resumes.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut connected = super::connect::connect(context)?;
    context.block_on(async {
        let held = super::hold::hold(context, &connected, "resume", args.take_over).await?;
        let result = match find(context, &connected, args.run.as_deref()).await {
            Ok((dir, plan, status)) => go_on(context, &mut connected, &held, dir, plan, status).await,
            Err(error) => Err(error),
        };
        held.release().await;
        result
    })
}

/// The run that is meant, as this machine and the bucket know it together.
pub(super) async fn find(
    context: &Context,
    connected: &Connected,
    wanted: Option<&str>,
) -> Result<(RunDir, Plan, RunStatus), CliError> {
    let cluster = &connected.declared.cluster.name;
    let runs = Runs::of(&context.state_dir(), cluster);
    let store = connected.world.store.as_ref();
    let mirrored = mirrored_runs(store, cluster).await?;
    let mut ids = runs.ids()?;
    ids.extend(mirrored.iter().cloned());
    ids.sort();
    ids.dedup();
    for id in ids.into_iter().rev().filter(|id| wanted.is_none_or(|wanted| wanted == id)).take(LOOK_AT_MAX) {
        let dir = if mirrored.contains(&id) {
            match read_mirrored(store, cluster, &id).await {
                Ok(there) => runs.adopt(&id, &there)?,
                // Removed since it was listed: what is here counts.
                Err(e) if e.code == ErrorCode::NotFound => runs.open(&id),
                Err(e) => return Err(e.into()),
            }
        } else {
            runs.open(&id)
        };
        if let Some(reason) = dir.given_up()? {
            if wanted.is_some() {
                let message = format!("run {id} was given up: {reason}");
                return Err(
                    CliError::new(ExitKind::Failed, message).hint("nothing was touched; `hk-dr runs` lists all")
                );
            }
            continue;
        }
        let plan = dir.plan()?;
        let (_, state) = dir.replay(&plan)?;
        if wanted.is_some() || matches!(state.status(), RunStatus::Open | RunStatus::New) {
            return Ok((dir, plan, state.status()));
        }
    }
    let what = wanted.map_or("no run has stopped midway".to_owned(), |id| format!("there is no run {id}"));
    Err(CliError::new(ExitKind::Data, what).hint("`hk-dr runs` lists them; `hk-dr plan` shows what is missing"))
}

async fn go_on(
    context: &Context,
    connected: &mut Connected,
    held: &super::hold::Held,
    dir: RunDir,
    plan: Plan,
    status: RunStatus,
) -> Result<(), CliError> {
    match status {
        RunStatus::Finished => println!("Run {} has finished already.", plan.id),
        RunStatus::Abandoned => {
            let message = format!("run {} was given up or replaced by another plan", plan.id);
            return Err(CliError::new(ExitKind::Failed, message).hint("nothing was touched; `hk-dr runs` shows which"));
        }
        RunStatus::New | RunStatus::Open => {
            let (then, _) = declared_then(&dir.cluster_yaml())?;
            if then != connected.world.cluster && !context.global.quiet {
                eprintln!("note: cluster.yaml has changed since; run {} continues as it was planned", plan.id);
            }
            connected.world.cluster = then;
            super::drive::resume(context, connected, held, plan, dir).await?;
        }
    }
    Ok(())
}
