//! Webhooks that a recovery relaxed.

use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::drill::any_api;
use crate::steps::{put_webhooks_back, relaxed_webhooks};

/// Webhooks that were relaxed for a recovery, because their backends did not run: show them, or put them back.
///
/// A recovery puts back those whose backends answer by its end; this is for the rest. Exit code 2 while some are relaxed.
#[derive(clap::Args)]
pub struct Args {
    /// Let those fail closed again whose backends answer.
    #[arg(long)]
    put_back: bool,
    /// With --put-back: all of them, whether anything answers or not. Until it does, what they guard is refused.
    #[arg(long, requires = "put_back")]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (put_back, left) = context.block_on(async {
        let kube = any_api(&connected.world).await?;
        if args.put_back {
            let done = put_webhooks_back(kube.as_ref(), args.force).await?;
            return Ok::<_, CliError>((done.put_back, done.left));
        }
        let relaxed = relaxed_webhooks(kube.as_ref()).await?;
        let place = |b: crate::plan::aftermath::Backend| format!("{}/{}:{}", b.namespace, b.service, b.port);
        Ok((Vec::new(), relaxed.into_iter().map(|(name, backend)| (name, place(backend))).collect()))
    })?;
    if context.global.json {
        println!("{}", serde_json::json!({"put_back": put_back, "relaxed": left}));
    } else {
        for name in &put_back {
            println!("{name} fails closed again.");
        }
        for (name, backend) in &left {
            println!("{name} is relaxed: it fails open, and was to fail closed; its backend is {backend}");
        }
        if put_back.is_empty() && left.is_empty() {
            println!("No webhook is relaxed.");
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let error = CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None };
    Err(error.hint(if args.put_back {
        "their backends do not answer; start them and run this again, or --force"
    } else {
        "nothing was changed; --put-back lets those fail closed again whose backends answer"
    }))
}
