use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::backup::log::{CutRule, ShipEvent, ShipRequest, ship};
use crate::cli::connect::connect;
use crate::cli::members::FollowedEtcd;
use crate::cli::snapshot::{print_json, size, take::Takes};
use crate::cli::{CliError, Context};
use crate::ports::{ErrorCode, PortError};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Stop by itself after this time, such as 10m or 2h.
    #[arg(long = "for", value_name = "TIME")]
    duration: Option<jiff::SignedDuration>,
    /// How much may wait on this machine's disk, encrypted, while the bucket is away, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    spool_max: u64,
    /// A segment is closed at this size, in KiB …
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    segment_size: u32,
    /// … or after this time, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    segment_time: u64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster.name;
    let json = context.global.json;
    let quiet = context.global.quiet;
    let event = move |event: ShipEvent| match serde_json::to_string(&event) {
        Ok(line) if json => println!("{line}"),
        _ if quiet => {}
        _ => eprintln!("{}", tell(&event)),
    };
    let report = context.block_on(async {
        let etcd = FollowedEtcd::find(&connected).await?;
        let request = ShipRequest {
            cluster,
            etcd: &etcd,
            store: Arc::clone(&connected.store),
            recipients: &connected.declared.recipients,
            clock: Arc::clone(&connected.world.clock),
            new_base: &Takes(&connected),
            holder: holder(),
            spool: context.state_dir().join("spool").join(cluster),
            spool_limit_bytes: args.spool_max << 20,
            cut: CutRule { bytes: (args.segment_size as usize) << 10, after: Duration::from_millis(args.segment_time) },
            event: &event,
        };
        let failed = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("listen for signals: {e}"));
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        let limit = args.duration.and_then(|limit| Duration::try_from(limit).ok());
        let stop = async move {
            let over = async move {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
                () = over => {}
            }
        };
        ship(&request, stop).await
    })?;
    if json {
        return print_json(&report);
    }
    println!(
        "Stopped. Everything up to revision {} is in the bucket; this writer (epoch {}) added {} segments, {}.",
        report.covered_revision,
        report.epoch,
        report.segments,
        size(report.bytes)
    );
    if report.spooled_bytes > 0 {
        println!(
            "{} wait on this machine's disk; the next `hk-dr log ship` here brings them.",
            size(report.spooled_bytes)
        );
    }
    Ok(())
}

/// Machine and process, for people.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// An event in words.
pub(in crate::cli) fn tell(event: &ShipEvent) -> String {
    match event {
        ShipEvent::Started { epoch, covered_revision } => {
            format!("shipping as writer {epoch}, behind revision {covered_revision}")
        }
        ShipEvent::NewBase { snapshot, why } => format!("took snapshot {snapshot}: {why}"),
        ShipEvent::Watching { member } => format!("watching etcd member {member}"),
        ShipEvent::Lost { what } => format!("warning: {what}; trying again"),
        ShipEvent::BucketAway { why, spooled_bytes } => {
            format!("warning: the bucket cannot be written ({why}); {} wait on the disk", size(*spooled_bytes))
        }
        ShipEvent::BucketBack => "the bucket is back".to_owned(),
    }
}
