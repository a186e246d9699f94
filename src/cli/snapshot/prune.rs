use comfy_table::{ContentArrangement, Table, presets};

use super::{print_json, size};
use crate::backup::{Pruning, plan_pruning, prune};
use crate::cli::connect::connect;
use crate::cli::{CliError, Context, ExitKind};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Only show each decision and its reason.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Remove. Without it the decisions are shown, and the exit code is 2 if something is to be removed.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (store, cluster) = (connected.store.as_ref(), &connected.declared.cluster);
    let now = connected.world.clock.now();
    let retention = crate::cli::policy::retention(crate::cli::policy::load_all(context)?.iter(), cluster)?;
    let pruning = context.block_on(plan_pruning(store, &cluster.name, &retention, now))?;
    let removed = if args.yes { context.block_on(prune(store, &pruning))? } else { 0 };
    if context.global.json {
        print_json(&serde_json::json!({"pruning": pruning, "objects": pruning.objects(), "removed": removed}))?;
    } else {
        show(&pruning);
        let (objects, bytes) = (pruning.objects(), size(pruning.bytes));
        let verb = if args.yes { "removed" } else { "to be removed" };
        println!(
            "{objects} objects, {bytes}, {verb}; {} of them segments of the log, {} left over from failed work.",
            pruning.segments, pruning.leftovers
        );
        for problem in &pruning.unreadable {
            eprintln!("warning: {problem}; it is kept, and leftovers were not looked for");
        }
    }
    if args.yes || args.dry_run || pruning.objects() == 0 {
        return Ok(());
    }
    let error = CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None };
    Err(error.hint("nothing was removed; --yes removes it"))
}

fn show(pruning: &Pruning) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["SNAPSHOT", "TAKEN (UTC)", "WORTH", "", "WHY"]);
    for one in &pruning.decisions {
        table.add_row([
            one.id.clone(),
            one.taken_at.strftime("%Y-%m-%d %H:%M").to_string(),
            format!("{:?}", one.worth).to_lowercase(),
            if one.keep { "keep" } else { "REMOVE" }.to_owned(),
            one.reason.clone(),
        ]);
    }
    println!("{table}");
}
