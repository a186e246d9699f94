use super::{CliError, Context};
use crate::journal::{RunStatus, StepState};
use crate::plan::Purpose;
use crate::runs::Runs;

/// List runs of builds, rebuilds and runbooks and where they stand.
#[derive(clap::Args)]
pub struct Args {}

/// Lists runs.
pub fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let declared = super::connect::declared(context)?;
    let runs = Runs::of(&context.state_dir(), &declared.cluster.name);
    let mut rows = Vec::new();
    for id in runs.ids()? {
        let dir = runs.open(&id);
        let plan = dir.plan()?;
        let (events, state) = dir.replay(&plan)?;
        let finished = state.steps().filter(|(_, s)| matches!(s, StepState::Finished { .. })).count();
        let trouble = state.steps().find_map(|(step, s)| match s {
            StepState::Failed { message, .. } => Some(format!("{step}: {message}")),
            _ => None,
        });
        let purpose = match plan.purpose {
            Purpose::Build => "build",
            Purpose::Rebuild => "rebuild",
            Purpose::Certificates => "certificates",
            Purpose::SshRotation => "ssh key",
            Purpose::Destroy => "destroy",
            Purpose::Abort => "abort",
            Purpose::Runbook => plan.runbook.as_ref().map_or("runbook", |r| r.runbook.name.as_str()),
        };
        rows.push(serde_json::json!({
            "id": id, "purpose": purpose, "status": state.status(), "steps": plan.steps.len(), "finished": finished,
            "began": events.first().map(|e| e.at), "last_event": events.last().map(|e| e.at), "trouble": trouble,
            "resumable": matches!(state.status(), RunStatus::Open | RunStatus::New),
        }));
    }
    if context.global.json {
        println!("{}", serde_json::json!(rows));
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(["RUN", "PURPOSE", "STATUS", "STEPS", "BEGAN", "TROUBLE"]);
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        table.add_row([
            text("id"),
            text("purpose"),
            text("status"),
            format!("{}/{}", row["finished"], row["steps"]),
            text("began"),
            text("trouble"),
        ]);
    }
    println!("{table}");
    Ok(())
}
