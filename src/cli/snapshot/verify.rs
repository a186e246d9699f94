use super::{Choice, print_json};
use crate::backup::{BootRequest, Catalog, Identities, boot, check, verify};
use crate::cli::connect::connect;
use crate::cli::members::etcd_of;
use crate::cli::recovered::programs;
use crate::cli::{CliError, Context};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// How much is to be proven.
    #[arg(long, value_enum, default_value_t = Level::Read)]
    level: Level,
    /// Compare with the living cluster: every member is asked for its hash at the snapshot's revision.
    #[arg(long, requires = "level")]
    live: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// The objects are there and have their digests. Records nothing.
    Check,
    /// Decrypt, decompress, check every digest, walk the database, count keys by kind: then it is `verified`.
    Read,
    /// Start etcd and an API server on it, read every object, decrypt every Secret: then it is `proven`.
    Boot,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let store = connected.store.as_ref();
    let (scratch, clock) = (&connected.source.scratch, connected.world.clock.as_ref());
    let catalog = Catalog::new(store, &connected.declared.cluster.name);
    let manifest = context.block_on(catalog.find(&args.choice.snapshot))?.manifest;
    let id = &manifest.id;
    let identities = || Identities::load_given(context.global.identity.as_deref());
    let verification = match args.level {
        Level::Check => {
            context.block_on(check(store, &manifest))?;
            if context.global.json {
                return print_json(&serde_json::json!({"snapshot": id, "level": "check"}));
            }
            println!("The objects of snapshot {id} are there and have their digests; nobody opened them.");
            return Ok(());
        }
        Level::Read => context.block_on(verify(store, &manifest, &identities()?, scratch, clock))?,
        Level::Boot => {
            let identities = identities()?;
            context.block_on(async {
                let live = if args.live { Some(etcd_of(&connected).await?) } else { None };
                boot(&BootRequest {
                    store,
                    manifest: &manifest,
                    identities: &identities,
                    programs: &programs(&connected).await?,
                    cluster: &connected.world.cluster,
                    scratch,
                    clock,
                    live: live.as_deref(),
                })
                .await
            })?
        }
    };
    if context.global.json {
        return print_json(&verification);
    }
    println!(
        "Snapshot {id} reads back whole: revision {}, {} keys, {} files in the recovery set.",
        verification.revision,
        verification.keys,
        verification.recovery_files.len()
    );
    for (kind, count) in &verification.kinds {
        println!("{count:>8}  {kind}");
    }
    if args.level == Level::Read {
        println!("It is verified. Proven it is when something rose from it: --level boot, or a drill.");
        return Ok(());
    }
    println!("etcd and an API server rose from it and served every object: it is proven.");
    for (kind, count) in &verification.not_served {
        println!("{count:>8}  {kind}: kept by the API server for itself, or of a kind it does not serve");
    }
    if !verification.hash_agreed.is_empty() {
        println!("HashKV is that of {}.", verification.hash_agreed.join(", "));
    }
    Ok(())
}
