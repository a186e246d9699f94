use clap::Subcommand;
use serde::Serialize;

use super::obtain::{SourceOptions, obtain};
use super::{CliError, Context};
use crate::artifacts::{Artifact, Cache};

/// The pinned binaries: what they are, whether they are here, and getting them.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows what is pinned and what of it is in the cache.
    List,
    /// Obtains what is not in the cache yet: from the mirror, the official releases, or by building it.
    Fetch {
        /// Only these, as NAME or NAME-VERSION. Default: all but those that are obtained on demand.
        names: Vec<String>,
        #[command(flatten)]
        sources: SourceOptions,
    },
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    path: String,
    /// None if it is not in the cache, or not what is pinned.
    sha256: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// See [`Cache::ensure`].
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let cache = Cache::new(context.cache_dir());
    match args.command {
        Command::List => list(&cache, context),
        Command::Fetch { names, sources } => {
            let artifacts = select(&cache, &names)?;
            obtain(context, &cache, &artifacts, &sources)?;
            cache.drop_build_caches();
            if context.global.json {
                return list_of(&cache, &artifacts, context);
            }
            if !context.global.quiet {
                eprintln!(
                    "{} pinned files are in {}",
                    artifacts.len(),
                    context.cache_dir().join("artifacts").display()
                );
            }
            Ok(())
        }
    }
}

fn list(cache: &Cache, context: &Context) -> Result<(), CliError> {
    let all: Vec<_> = cache.lock().artifacts.iter().collect();
    list_of(cache, &all, context)
}

fn list_of(cache: &Cache, artifacts: &[&Artifact], context: &Context) -> Result<(), CliError> {
    let mut rows = Vec::with_capacity(artifacts.len());
    for artifact in artifacts {
        let sha256 = context.block_on(cache.digest(&artifact.name, &artifact.version)).ok();
        let path = cache.path(artifact).display().to_string();
        rows.push(Row { name: &artifact.name, version: &artifact.version, path, sha256 });
    }
    if context.global.json {
        let text = serde_json::to_string_pretty(&rows)
            .map_err(|e| CliError::new(super::ExitKind::Failed, format!("the list cannot be written as JSON: {e}")))?;
        println!("{text}");
        return Ok(());
    }
    if context.global.quiet {
        return Ok(());
    }
    for row in rows {
        let state = row.sha256.unwrap_or_else(|| "not in the cache".to_owned());
        println!("{:<24} {:<8} {state}", row.name, row.version);
    }
    Ok(())
}

fn select<'a>(cache: &'a Cache, names: &[String]) -> Result<Vec<&'a Artifact>, CliError> {
    let lock = cache.lock();
    if names.is_empty() {
        return Ok(lock.artifacts.iter().filter(|a| !a.on_demand).collect());
    }
    let find = |name: &String| match lock.artifacts.iter().find(|a| a.file_name() == *name) {
        Some(artifact) => Ok(artifact),
        None => lock.by_name(name).map_err(|e| CliError { kind: super::ExitKind::Usage, ..e.into() }),
    };
    names.iter().map(find).collect()
}
