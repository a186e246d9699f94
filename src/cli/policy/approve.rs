use std::sync::Arc;

use crate::cli::connect::connect;
use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context, ExitKind};
use crate::ports::PortResult;
use crate::serve::{Books, book_key};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The policy.
    policy: String,
    /// Its schedule.
    schedule: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let policies = super::load_all(context)?;
    let known = policies
        .iter()
        .find(|p| p.name == args.policy)
        .is_some_and(|p| p.schedules.iter().any(|schedule| schedule.name == args.schedule));
    let name = format!("{}/{}", args.policy, args.schedule);
    if !known {
        return Err(CliError::new(ExitKind::Usage, format!("there is no schedule {name}"))
            .hint("nothing was approved; `hk-dr policy list` shows what there is"));
    }
    let connected = connect(context)?;
    let key = book_key(&connected.declared.cluster.name, &args.policy, &args.schedule);
    let mut books = Books::new(Arc::clone(&connected.store), key);
    let now = connected.world.clock.now();
    let approved = context.block_on(async {
        let book = books.read(now).await?;
        let (at, next) = (book.asked.as_ref().map(|asked| asked.at), book.approve(&crate::cli::runbook::who()));
        let done = match next {
            Some(next) => books.replace(next).await?,
            None => false,
        };
        PortResult::Ok(at.filter(|_| done))
    })?;
    match approved {
        Some(at) if context.global.json => print_json(&serde_json::json!({"approved": name, "scheduled_at": at})),
        Some(at) => {
            println!("Approved: {name} of {at}. A running `hk-dr serve` begins it within seconds.");
            Ok(())
        }
        None => Err(CliError::new(ExitKind::Failed, format!("{name} does not wait for approval"))
            .hint("nothing was approved: it was not asked for yet, has begun, or its time has passed")
            .hint("`hk-dr policy next` shows when it is due; the status page shows what waits")),
    }
}
