use comfy_table::{ContentArrangement, Table, presets};

use super::{print_json, size};
use crate::backup::{Pruning, plan_pruning, prune};
use crate::cli::connect::connect;
use crate::cli::pruning::{Args, warn};
use crate::cli::{CliError, Context};

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
        warn(&pruning.unreadable);
    }
    args.end(pruning.objects() == 0)
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
