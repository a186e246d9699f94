use comfy_table::{ContentArrangement, Table, presets};

use super::repository;
use crate::cli::connect::connect;
use crate::cli::pruning::{Args, warn};
use crate::cli::snapshot::{print_json, size};
use crate::cli::{CliError, Context};
use crate::volumes::{Pruning, plan_pruning, prune};

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster;
    let clock = &connected.world.clock;
    let retention = crate::cli::policy::volume_retention(crate::cli::policy::load_all(context)?.iter(), cluster)?;
    let (pruning, pruned) = context.block_on(async {
        let repository = repository(&connected, context, None).await?;
        let pruning = plan_pruning(&repository, &retention, clock.now()).await?;
        let pruned = match args.yes {
            true => Some(prune(&repository, &pruning, clock).await?),
            false => None,
        };
        Ok::<_, CliError>((pruning, pruned))
    })?;
    if context.global.json {
        print_json(&serde_json::json!({"pruning": pruning, "pruned": pruned}))?;
    } else {
        show(&pruning);
        match pruned {
            Some(pruned) => println!(
                "{} backups removed and {} left over from failed work; the repository is {} smaller.",
                pruned.backups,
                pruned.leftovers,
                size(pruned.freed_bytes)
            ),
            None => println!(
                "{} backups to be removed, and {} left over from failed work.{}",
                pruning.gone(),
                pruning.leftovers,
                if pruning.unfinished { " An earlier removal has not given back its space yet." } else { "" }
            ),
        }
        warn(&pruning.unreadable);
    }
    args.end(pruning.is_empty())
}

fn show(pruning: &Pruning) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["BACKUP", "VOLUME", "TAKEN (UTC)", "WORTH", "", "WHY"]);
    for decided in &pruning.decisions {
        let one = &decided.decision;
        table.add_row([
            one.id.clone(),
            decided.volume.clone(),
            one.taken_at.strftime("%Y-%m-%d %H:%M").to_string(),
            format!("{:?}", one.worth).to_lowercase(),
            if one.keep { "keep" } else { "REMOVE" }.to_owned(),
            one.reason.clone(),
        ]);
    }
    println!("{table}");
}
