use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{print_json, size};
use crate::backup::{Progress, Taken};
use crate::cli::connect::{Connected, connect};
use crate::cli::members::etcd_of;
use crate::cli::{CliError, Context};
use crate::ports::PortResult;

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let progress = Arc::default();
    let taken = context.block_on(async {
        let show = show_progress(context, &progress);
        tokio::select! {
            taken = take_now(&connected, &progress) => taken,
            () = show => unreachable!("showing progress has no end"),
        }
    })?;
    let manifest = &taken.manifest;
    if context.global.json {
        return print_json(manifest);
    }
    let keys = manifest.keys.map_or_else(|| "?".to_owned(), |keys| keys.to_string());
    println!(
        "Snapshot {} taken from {}: revision {}, {keys} keys, {} in the bucket as {}.",
        manifest.id,
        manifest.source_member,
        manifest.revision,
        size(manifest.etcd.plain_bytes),
        size(manifest.etcd.stored_bytes + manifest.recovery.stored_bytes),
    );
    println!("It is unproven until it has been restored; `hk-dr snapshot verify` reads it back.");
    Ok(())
}

/// Takes a snapshot of the declared cluster: finds its masters, connects, and adds to the cluster's secrets what else a
/// recovery needs.
pub(in crate::cli) async fn take_now(connected: &Connected, progress: &Arc<Progress>) -> PortResult<Taken> {
    let etcd = etcd_of(connected).await?;
    connected.source.take(etcd.as_ref(), connected.world.store.as_ref(), progress).await
}

/// Shows how far it is, until it is dropped.
async fn show_progress(context: &Context, progress: &Progress) {
    let bar = if context.interactive() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}") {
        bar.set_style(style);
    }
    let bar = Cleared(bar);
    loop {
        bar.0.set_length(progress.expected_bytes().max(progress.read_bytes()));
        bar.0.set_position(progress.read_bytes());
        bar.0.set_message(format!("stored {}", size(progress.stored_bytes())));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A bar that is gone when nobody drives it any more.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
