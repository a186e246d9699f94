use std::path::Path;

use super::{CliError, Context, ExitKind};
use crate::artifacts::Lock;
use crate::config::{self, Cluster, Pinned};

/// Checks cluster.yaml; touches nothing and needs no network.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// See [`load_cluster`].
pub fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let cluster = load_cluster(context)?;
    let (masters, workers) = (cluster.masters.len(), cluster.workers.len());
    if context.global.json {
        println!(
            "{}",
            serde_json::json!({"ok": true, "cluster": cluster.name, "masters": masters, "workers": workers})
        );
    } else {
        println!("cluster.yaml is right: cluster {} with {masters} masters and {workers} workers", cluster.name);
    }
    Ok(())
}

/// Reads and checks the Git directory's cluster.yaml: what every command that works on a cluster does first.
///
/// # Errors
/// `Usage` with a report that shows each problem's place.
pub fn load_cluster(context: &Context) -> Result<Cluster, CliError> {
    let path = context.global.dir.join("cluster.yaml");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display()))
            .hint("name the Git directory that holds it with -C DIR")
    })?;
    check(&text, &path)
}

/// Checks the text of a cluster.yaml; `path` is its name in messages.
///
/// # Errors
/// `Usage` with a report that shows each problem's place.
pub fn check(text: &str, path: &Path) -> Result<Cluster, CliError> {
    config::load(text, &path.display().to_string(), &pinned(&Lock::embedded())).map_err(|error| CliError {
        kind: ExitKind::Usage,
        message: error.plain(),
        hints: vec!["nothing was touched".into()],
        report: Some(miette::Report::new(error)),
    })
}

/// What this binary can install.
fn pinned(lock: &Lock) -> Pinned {
    let mut pinned = Pinned::new();
    for artifact in &lock.artifacts {
        pinned.entry(artifact.name.clone()).or_default().push(artifact.version.clone());
    }
    pinned
}
