use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context, ExitKind};
use crate::config::time_zone;
use crate::plan::schedule::Timing;
use crate::ports::{Clock, SystemClock};

#[derive(clap::Args)]
pub(super) struct Args {
    /// How many runs of each schedule.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// From this time on instead of now, such as 2026-10-24T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<jiff::Timestamp>,
}

#[derive(Serialize)]
struct Row {
    /// When it may begin, with its jitter.
    due: jiff::Timestamp,
    local: String,
    policy: String,
    schedule: String,
    action: &'static str,
    /// The blackout that it falls into.
    held_by: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let cluster = crate::cli::load_cluster(context)?.name;
    let from = args.from.unwrap_or_else(|| SystemClock.now());
    let mut rows = Vec::new();
    for policy in super::load_all(context)?.iter().filter(|p| p.holds_for(&cluster)) {
        for schedule in &policy.schedules {
            let wrong =
                |why: String| CliError::new(ExitKind::Usage, format!("{}/{}: {why}", policy.name, schedule.name));
            let timing = Timing::of(&cluster, policy, schedule).map_err(wrong)?;
            let zone = time_zone(&policy.time_zone).unwrap_or(jiff::tz::TimeZone::UTC);
            // One whose jitter still moves it ahead of now counts.
            let begin = from.checked_sub(timing.jitter).unwrap_or(from);
            for at in timing.after(begin).take(args.count.into()) {
                let due = timing.due(at);
                rows.push(Row {
                    due,
                    local: due.to_zoned_datetime(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %Z").to_string(),
                    policy: policy.name.clone(),
                    schedule: schedule.name.clone(),
                    action: schedule.action.name(),
                    held_by: timing.held(due).map(|held| held.name),
                });
            }
        }
    }
    rows.sort_by_key(|row| row.due);
    if context.global.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        println!("No schedule holds for cluster {cluster}: `hk-dr policy list` shows what there is.");
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["WHEN", "POLICY", "SCHEDULE", "ACTION", "HELD BY"]);
    for row in rows {
        table.add_row([row.local, row.policy, row.schedule, row.action.into(), row.held_by.unwrap_or_default()]);
    }
    println!("{table}");
    Ok(())
}
