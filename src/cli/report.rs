//! Reports over drills: a period, one run, and whether evidence is what it was when it was written.

mod check;
mod show;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;

use super::connect::{Connected, connect};
use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};
use crate::config::Action;
use crate::plan::schedule::Timing;
use crate::ports::{ErrorCode, ObjectStore, PortResult};
use crate::report::{Planned, check_chain, period, period_page};

/// Largest evidence that is read.
const EVIDENCE_BYTES_MAX: u64 = 8 << 20;

/// Report what was rehearsed over a period: drills done against planned, how recovery time goes, unproven backups.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Days to look back.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3660))]
    days: u16,
    /// From this time on instead, such as 2026-04-01T00:00:00Z.
    #[arg(long, value_name = "TIME", conflicts_with = "days")]
    since: Option<jiff::Timestamp>,
    /// Also write it as one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Write the HTML report of one run, with its timeline.
    Show(show::Args),
    /// Check evidence: its signature, its digest, and the chain that ties it to the runs before. Exit code 5 if it is broken.
    Verify(check::Args),
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    match &args.command {
        Some(Command::Show(args)) => show::run(args, context),
        Some(Command::Verify(args)) => check::run(args, context),
        None => over_a_period(args, context),
    }
}

fn over_a_period(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = connected.declared.cluster.name.clone();
    let until = connected.world.clock.now();
    let span = jiff::SignedDuration::from_hours(24 * i64::from(args.days));
    let since = args.since.unwrap_or_else(|| until.checked_sub(span).unwrap_or(jiff::Timestamp::MIN));
    let mut planned = Vec::new();
    for policy in super::policy::load_all(context)?.iter().filter(|p| p.holds_for(&cluster)) {
        for schedule in policy.schedules.iter().filter(|s| s.action == Action::RunbookRun) {
            let wrong =
                |why: String| CliError::new(ExitKind::Usage, format!("{}/{}: {why}", policy.name, schedule.name));
            let timing = Timing::of(&cluster, policy, schedule).map_err(wrong)?;
            planned.push(Planned {
                policy: policy.name.clone(),
                schedule: schedule.name.clone(),
                runbooks: schedule.runbooks.clone(),
                times: timing.after(since).take_while(|at| *at < until).count(),
            });
        }
    }
    let (documents, refused, snapshots, volumes) = context.block_on(async {
        let (documents, refused) = documents(&connected).await?;
        let (entries, _) = crate::backup::Catalog::new(connected.store.as_ref(), &cluster).list().await?;
        let proven = |proof: &crate::backup::Proof| matches!(proof, crate::backup::Proof::Proven { .. });
        let snapshots: Vec<(String, bool)> =
            entries.into_iter().map(|entry| (entry.manifest.id, proven(&entry.proof))).collect();
        let (volumes, _) =
            crate::volumes::Records { store: connected.store.as_ref(), cluster: &cluster }.list().await?;
        let volumes: Vec<(String, bool)> =
            volumes.into_iter().map(|entry| (entry.backup.id, proven(&entry.proof))).collect();
        PortResult::Ok((documents, refused, snapshots, volumes))
    })?;
    let (evidence, broken) = check_chain(&documents);
    let broken = refused.into_iter().chain(broken.iter().map(ToString::to_string)).collect();
    let found = period(&cluster, (since, until), &evidence, planned, &snapshots, &volumes, broken);
    if let Some(path) = &args.html {
        crate::secrets::write_file(path, 0o644, period_page(&found).as_bytes(), true)?;
    }
    if context.global.json {
        return print_json(&found);
    }
    let day = |at: jiff::Timestamp| at.strftime("%Y-%m-%d");
    println!("Rehearsals of {cluster}, {} to {}", day(since), day(until));
    println!(
        "Drills     {} done, {} planned: {} passed, {} failed, {} inconclusive",
        found.done, found.planned_total, found.passed, found.failed, found.inconclusive
    );
    for (runbook, trend) in &found.trends {
        let last = trend.seconds.last().map_or_else(|| "not measured".into(), |(_, s)| format!("{s:.1} s last"));
        let change = trend.change_per_month.map_or_else(String::new, |c| format!(", {c:+.1} s a month"));
        println!("Recovery   {runbook}: {} runs, {last}{change}", trend.runs);
    }
    println!("Snapshots  {} proven by a restore, {} unproven", found.proven.len(), found.unproven.len());
    if !volumes.is_empty() {
        let (proven, unproven) = (found.volumes_proven.len(), found.volumes_unproven.len());
        println!("Volumes    {proven} backups proven by a restore, {unproven} unproven");
    }
    for problem in &found.broken {
        println!("EVIDENCE   {problem}");
    }
    if let Some(path) = &args.html {
        println!("Report     {}", path.display());
    }
    Ok(())
}

/// All evidence in the bucket as it is stored, by run, and what is not believed, each with its reason.
async fn documents(connected: &Connected) -> PortResult<(BTreeMap<String, Vec<u8>>, Vec<String>)> {
    let (store, cluster): (&dyn ObjectStore, _) = (connected.store.as_ref(), &connected.declared.cluster.name);
    let prefix = format!("{cluster}/runs/");
    let (mut documents, mut refused) = (BTreeMap::new(), Vec::new());
    for object in store.list(&prefix).await? {
        let run = object.key.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("/evidence.json"));
        let Some(run) = run else { continue };
        match store.get(&object.key, EVIDENCE_BYTES_MAX).await {
            Ok(text) => {
                documents.insert(run.to_owned(), text.to_vec());
            }
            Err(e) if matches!(e.code, ErrorCode::Unsigned | ErrorCode::LimitExceeded) => refused.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok((documents, refused))
}
