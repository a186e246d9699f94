use std::sync::Arc;

use super::buckets::Bucket;
use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::backup::{MirrorRequest, mirror};
use crate::ports::ObjectStore;
use crate::sign::Trust;

/// Bring all declared buckets to hold the same: copy what one lacks or has damaged, and read it back.
#[derive(clap::Args)]
pub struct Args {
    /// Only say what would be copied.
    #[arg(long)]
    dry_run: bool,
    /// Read every object in every bucket, instead of believing lengths.
    #[arg(long)]
    deep: bool,
}

/// Compares and copies.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster;
    let bare = &connected.buckets.bare;
    if bare.len() < 2 {
        return Err(CliError::new(ExitKind::Usage, "cluster.yaml declares one bucket only")
            .hint("nothing was touched; `backup.copies` declares further ones"));
    }
    let stores: Vec<Arc<dyn ObjectStore>> = bare.iter().map(Bucket::store).collect();
    let trust = Trust::parse(&cluster.backup.signed_by)?;
    let (deep, dry_run) = (args.deep, args.dry_run);
    if !dry_run {
        context.block_on(connected.buckets.ensure())?;
    }
    let request = MirrorRequest { stores: &stores, cluster: &cluster.name, trust: &trust, deep, dry_run };
    let done = context.block_on(mirror(&request))?;
    if context.global.json {
        println!("{}", serde_json::json!(done));
    } else {
        let verb = if dry_run { "would copy" } else { "copied" };
        for copied in &done.copied {
            let over = if copied.replaced { ", over a bad one" } else { "" };
            println!("{verb} {} from {} to {}{over}", copied.key, copied.from, copied.to);
        }
        println!("{} objects were the same everywhere, {} {verb}.", done.same, done.copied.len());
    }
    let mut open: Vec<String> = done.away.iter().map(|away| format!("away: {away}")).collect();
    open.extend(done.unresolved.iter().map(|(key, why)| format!("{key}: {why}")));
    if open.is_empty() {
        return Ok(());
    }
    let mut error = CliError::new(ExitKind::Data, "the buckets do not hold the same");
    error.hints = open;
    Err(error.hint("what is named was left as it is; run it again when it has been seen to"))
}
