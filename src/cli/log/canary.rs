use std::time::Duration;

use crate::backup::Identities;
use crate::backup::log::canary;
use crate::cli::connect::connect;
use crate::cli::members::etcd_of;
use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context};

#[derive(clap::Args)]
pub(super) struct Args {
    /// How many keys, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Longest wait for one of them, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let identities = context.global.identity.as_deref().map(Identities::load).transpose()?;
    let report = context.block_on(async {
        let etcd = etcd_of(&connected).await?;
        canary(
            etcd.as_ref(),
            connected.store.as_ref(),
            &connected.declared.cluster.name,
            identities.as_ref(),
            connected.world.clock.as_ref(),
            args.count.into(),
            Duration::from_secs(args.wait),
        )
        .await
    })?;
    if context.global.json {
        return print_json(&report);
    }
    println!(
        "Recovery point, measured with {} canaries: median {} ms, p99 {} ms, worst {} ms.",
        report.canaries, report.median_ms, report.p99_ms, report.max_ms
    );
    let how =
        if report.read_back { "found inside its segment" } else { "seen by its segment's name; --identity reads it" };
    println!("Each was written through etcd and {how}.");
    Ok(())
}
