//! Policies: what the service does by itself, and when.

mod approve;
mod find;
mod next;

use clap::Subcommand;

use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};
use crate::config::{Cluster, Policy, RetentionConfig, SHIPPED_POLICIES};

use find::all;
pub(super) use find::load_all;

/// What `hk-dr serve` does by itself, and when: list, show, validate, next, approve.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the policies of the Git directory's policies/ and what each does.
    List,
    /// Show a policy's text; one that comes with hk-dr is there to be copied into policies/ and edited.
    Show { name: String },
    /// Check all policies; touches nothing and needs no network.
    Validate,
    /// Agree to the run of a schedule that waits for a person.
    Approve(approve::Args),
    /// Show when each schedule runs next, in its own time zone.
    Next(next::Args),
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::List => list(context),
        Command::Show { name } => show(&name, context),
        Command::Validate => {
            let policies = load_all(context)?;
            let shown = if policies.len() == 1 { "policy is" } else { "policies are" };
            if context.global.json {
                return print_json(&serde_json::json!({"ok": true, "policies": policies.len()}));
            }
            println!("{} {shown} right", policies.len());
            Ok(())
        }
        Command::Approve(args) => approve::run(&args, context),
        Command::Next(args) => next::run(&args, context),
    }
}

/// Which snapshots of a cluster stay: as a policy that holds for it says, otherwise as `cluster.yaml` does.
///
/// # Errors
/// Two policies say so: nobody could tell which one a person meant.
pub(super) fn retention<'p>(
    policies: impl Iterator<Item = &'p Policy>,
    cluster: &Cluster,
) -> Result<RetentionConfig, CliError> {
    let said = said(policies, cluster, "retention", "snapshots", |policy| policy.retention.as_ref())?;
    Ok(said.unwrap_or_else(|| cluster.backup.retention.clone()))
}

/// Which backups of volumes stay: as a policy says for them, otherwise as snapshots do.
///
/// # Errors
/// As [`retention`].
pub(super) fn volume_retention<'p>(
    policies: impl Iterator<Item = &'p Policy> + Clone,
    cluster: &Cluster,
) -> Result<RetentionConfig, CliError> {
    let own = |policy: &'p Policy| policy.volume_retention.as_ref();
    match said(policies.clone(), cluster, "volumeRetention", "backups of volumes", own)? {
        Some(said) => Ok(said),
        None => retention(policies, cluster),
    }
}

/// What one policy that holds for the cluster says in a field.
fn said<'p>(
    policies: impl Iterator<Item = &'p Policy>,
    cluster: &Cluster,
    field: &str,
    what: &str,
    value: impl Fn(&'p Policy) -> Option<&'p RetentionConfig>,
) -> Result<Option<RetentionConfig>, CliError> {
    let mut saying = policies.filter(|p| p.holds_for(&cluster.name)).filter_map(|p| Some((p, value(p)?)));
    match (saying.next(), saying.next()) {
        (None, _) => Ok(None),
        (Some((_, retention)), None) => Ok(Some(retention.clone())),
        (Some((one, _)), Some((other, _))) => {
            let message =
                format!("policies {} and {} both say which {what} of {} stay", one.name, other.name, cluster.name);
            Err(CliError::new(ExitKind::Usage, message)
                .hint(format!("nothing was touched; leave `{field}` in one of them")))
        }
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for found in all(context)? {
        // One that is wrong is listed all the same: who looks for it must find it.
        rows.push(match find::check(&found) {
            Ok(policy) => serde_json::json!({
                "name": found.name, "from": found.path, "summary": policy.summary, "clusters": policy.clusters,
                "log": policy.log.is_some(), "schedules": policy.schedules.iter()
                    .map(|s| format!("{}: {} at `{}` {}", s.name, s.action.name(), s.cron, policy.time_zone))
                    .collect::<Vec<_>>(),
            }),
            Err(error) => serde_json::json!({"name": found.name, "from": found.path, "problem": error.message}),
        });
    }
    if context.global.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        let names: Vec<&str> = SHIPPED_POLICIES.iter().map(|(name, _)| *name).collect();
        println!("No policies/ in {}. To begin with one of {}:", context.global.dir.display(), names.join(", "));
        println!("  hk-dr policy show backups > policies/backups.yaml");
    }
    for row in rows {
        println!("{}", row["name"].as_str().unwrap_or_default());
        match row["problem"].as_str() {
            Some(problem) => println!("    WRONG: {problem}"),
            None => {
                println!("    {}", row["summary"].as_str().unwrap_or_default());
                if row["log"] == true {
                    println!("    · log: shipped continuously");
                }
                for line in row["schedules"].as_array().into_iter().flatten().filter_map(|l| l.as_str()) {
                    println!("    · {line}");
                }
            }
        }
    }
    Ok(())
}

fn show(name: &str, context: &Context) -> Result<(), CliError> {
    let own = all(context)?.into_iter().find(|f| f.name == name);
    let shipped = SHIPPED_POLICIES.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| (*text).to_owned());
    let Some(text) = own.map(|f| f.text).or(shipped) else {
        let names: Vec<&str> = SHIPPED_POLICIES.iter().map(|(name, _)| *name).collect();
        return Err(CliError::new(ExitKind::Usage, format!("there is no policy {name}"))
            .hint(format!("with hk-dr come: {}; `hk-dr policy list` shows your own", names.join(", "))));
    };
    print!("{text}");
    Ok(())
}
