//! Controllers that a recovery suspended.

use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::drill::any_api;
use crate::steps::{resume_suspended, suspended_workloads};

/// GitOps controllers and autoscalers that a recovery suspended: show them, or let them act again.
///
/// A recovery does that itself when everything else is done; this is for one that was given up. Exit code 2 while some are
/// suspended.
#[derive(clap::Args)]
pub struct Args {
    /// Let all of them run as before.
    #[arg(long)]
    resume: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (resumed, left) = context.block_on(async {
        let kube = any_api(&connected.world).await?;
        match args.resume {
            true => Ok::<_, CliError>((resume_suspended(kube.as_ref()).await?, Vec::new())),
            false => Ok((Vec::new(), suspended_workloads(kube.as_ref()).await?)),
        }
    })?;
    if context.global.json {
        println!("{}", serde_json::json!({"resumed": resumed, "suspended": left}));
    } else {
        for name in &resumed {
            println!("{name} runs again.");
        }
        for name in &left {
            println!("{name} is suspended: it has no replica until it is resumed");
        }
        if resumed.is_empty() && left.is_empty() {
            println!("Nothing is suspended.");
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let error = CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None };
    Err(error.hint("nothing was changed; look at the cluster, then --resume lets them apply what Git has now"))
}
