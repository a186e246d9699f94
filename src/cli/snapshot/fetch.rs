use std::path::PathBuf;

use super::{Choice, print_json};
use crate::backup::log::Point;
use crate::backup::{Catalog, Identities, fetch, fetch_at};
use crate::cli::connect::connect;
use crate::cli::{CliError, Context};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// Directory for the two files; they are readable by their owner only.
    #[arg(long, value_name = "DIR", default_value = ".")]
    to: PathBuf,
    /// The state at a revision, a time, or `latest`, with the log's help, instead of a snapshot as it was taken.
    #[arg(long, value_name = "REVISION|TIME", conflicts_with = "snapshot")]
    at: Option<Point>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    let connected = connect(context)?;
    let store = connected.store.as_ref();
    let archive = connected.archive(context)?;
    let fetched = context.block_on(async {
        if let Some(at) = args.at {
            return fetch_at(&archive, at, &args.to).await;
        }
        let entry = Catalog::new(store, &connected.declared.cluster.name).find(&args.choice.snapshot).await?;
        fetch(store, &entry.manifest, &identities, &args.to).await
    })?;
    if context.global.json {
        return print_json(&fetched);
    }
    println!("{}    (etcdutl snapshot restore takes it)", fetched.etcd.display());
    println!("{}    (tar takes it; it holds the cluster's keys)", fetched.recovery.display());
    Ok(())
}
