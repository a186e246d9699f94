//! What a client of the API notices while the three masters are replaced one after the other.

use std::path::Path;

use hk_lab::LabOptions;

use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};
use crate::demo::stage::{Stage, StageOptions};
use crate::drill::Evidence;

pub(super) const REPLACE: Bench = Bench {
    name: "replace",
    figures: &[
        Goal { name: "writes_refused_while_masters_replaced", unit: "%", at_most: 1.0 },
        Goal { name: "acknowledged_writes_lost", unit: "", at_most: 0.0 },
        Goal { name: "longest_gap_while_masters_replaced", unit: "s", at_most: 10.0 },
    ],
    run,
};

const MASTERS: [&str; 3] = ["m1", "m2", "m3"];

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let program = std::env::current_exe().map_err(|e| failed(format!("this program is not found: {e}")))?;
    let name = format!("bench-replace-{}", std::process::id());
    let lab = LabOptions { name, cache_dir: context.cache_dir(), state_dir: context.state_dir() };
    let stage = Stage::set(StageOptions { lab, program }, &mut |line| eprintln!("  {line}"))
        .map_err(|e| failed(e.to_string()))?;
    let measured = context.block_on(replace(&stage));
    let struck = stage.strike().map_err(|e| failed(e.to_string()));
    let figures = measured?;
    struck.map(|()| figures)
}

async fn replace(stage: &Stage) -> Result<Vec<f64>, CliError> {
    stage.make_git_directory().await.map_err(|e| failed(e.to_string()))?;
    stage.run(["build", "--yes"]).await.map_err(|e| failed(e.to_string()))?;
    for master in MASTERS {
        let ran = stage.run(["runbook", "run", "replace-master", "--server", master, "--yes"]).await;
        // One that missed a target of its own is measured all the same: its evidence is there.
        if let Err(error) = ran {
            eprintln!("  {master}: {error}");
        }
    }
    figures(&evidence(&stage.state())?)
}

/// Evidence of all runs on this machine.
fn evidence(state: &Path) -> Result<Vec<Evidence>, CliError> {
    let dir = state.join("demo/runs");
    let unreadable = |e: std::io::Error| failed(format!("{} cannot be read: {e}", dir.display()));
    let mut found = Vec::new();
    for run in std::fs::read_dir(&dir).map_err(unreadable)? {
        let path = run.map_err(unreadable)?.path().join("evidence.json");
        if path.exists() {
            let text = std::fs::read(&path).map_err(unreadable)?;
            found.push(serde_json::from_slice(&text).map_err(|e| failed(format!("{}: {e}", path.display())))?);
        }
    }
    Ok(found)
}

fn figures(runs: &[Evidence]) -> Result<Vec<f64>, CliError> {
    if runs.len() != MASTERS.len() {
        return Err(failed(format!("{} of {} masters were replaced to the end", runs.len(), MASTERS.len())));
    }
    let attempted: usize = runs.iter().map(|r| r.writes.attempted).sum();
    let acknowledged: usize = runs.iter().map(|r| r.writes.acknowledged).sum();
    let lost: Option<usize> = runs.iter().map(|r| r.recovery_point.lost).sum();
    let gap = runs.iter().filter_map(|r| r.writes.longest_gap_seconds).fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "counts of a few hundred")]
    let refused = (attempted - acknowledged) as f64 * 100.0 / attempted as f64;
    #[expect(clippy::cast_precision_loss, reason = "counts of a few hundred")]
    let lost = lost.map_or(f64::NAN, |lost| lost as f64);
    eprintln!("  {acknowledged} of {attempted} writes acknowledged");
    Ok(vec![refused, lost, gap])
}

fn failed(what: String) -> CliError {
    CliError::new(ExitKind::Failed, format!("replacing masters: {what}"))
}
