use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indicatif::{ProgressBar, ProgressStyle};

use super::{print_json, size};
use crate::backup::log::NewBase;
use crate::backup::{Identities, Manifest, Progress, Rate, Taken, verify};
use crate::cli::connect::{Connected, connect};
use crate::cli::members::etcd_of;
use crate::cli::{CliError, Context};
use crate::config::BYTES_PER_MB;
use crate::ports::{PortResult, Reading};

/// How.
#[derive(clap::Args, Default)]
pub(super) struct Args {
    /// Don't read it back. It stays unproven until `hk-dr snapshot verify` does.
    #[arg(long)]
    no_verify: bool,
    /// Read at most so many MB (10⁶ bytes) a second from the member, so that the cluster's writes notice less. Default: as fast
    /// as it goes.
    #[arg(long, value_name = "MB")]
    megabytes_per_second: Option<NonZeroU32>,
    /// Read through etcd's API whatever the size, and put nothing on the member's machine. Default: from 64 MiB on, read the member's
    /// file beside it.
    #[arg(long)]
    through_api: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let mut connected = connect(context)?;
    let reading = match args.megabytes_per_second {
        Some(mb) => {
            connected.source.rate = Rate::either(NonZeroU64::from(mb).saturating_mul(BYTES_PER_MB));
            Reading::Unhurried
        }
        None => Reading::AtOnce,
    };
    if args.through_api {
        connected.source.in_place_from_bytes = u64::MAX;
    }
    let progress = Arc::default();
    let taken = context.block_on(async {
        let show = show_progress(context, &progress);
        tokio::select! {
            taken = take_now(&connected, reading, &progress) => taken,
            () = show => unreachable!("showing progress has no end"),
        }
    })?;
    let manifest = &taken.manifest;
    if !args.no_verify {
        let identities = Identities::load_given(context.global.identity.as_deref())?;
        let (store, source) = (connected.store.as_ref(), &connected.source);
        let scratch = &source.scratch;
        context
            .block_on(verify(store, manifest, &identities, scratch, source.clock.as_ref()))
            .map_err(|e| e.context(format!("snapshot {} was taken, but it cannot be relied on", manifest.id)))?;
    }
    connected.buckets.warn();
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
    if let Some(why) = &manifest.not_in_place {
        println!(
            "It came through etcd's API, which is as good but costs etcd more: {why}. Where that cannot be mended, \
             `hk-dr snapshot take --through-api` does not try."
        );
    }
    if args.no_verify {
        println!("It is unproven: nobody has read it back (`hk-dr snapshot verify`).");
    } else {
        println!(
            "It was read back whole. Proven it is when something rose from it (`hk-dr snapshot verify --level boot`)."
        );
    }
    Ok(())
}

/// Takes a snapshot of the declared cluster: finds its masters, connects, and adds to the cluster's secrets what else a
/// recovery needs.
pub(in crate::cli) async fn take_now(
    connected: &Connected,
    reading: Reading,
    progress: &Arc<Progress>,
) -> PortResult<Taken> {
    let etcd = etcd_of(connected).await?;
    connected.source.take(etcd.as_ref(), connected.world.store.as_ref(), reading, progress).await
}

/// Takes what the log continues from: until it is whole, nothing is covered.
pub(in crate::cli) struct Takes<'a>(pub(in crate::cli) &'a Connected);

#[async_trait]
impl NewBase for Takes<'_> {
    async fn take(&self) -> PortResult<Manifest> {
        take_now(self.0, Reading::Awaited, &Arc::default()).await.map(|taken| taken.manifest)
    }
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
