use comfy_table::{ContentArrangement, Table, presets};

use crate::cli::connect::connect;
use crate::cli::snapshot::{print_json, size};
use crate::cli::{CliError, Context};
use crate::volumes::Records;

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let records = Records { store: connected.store.as_ref(), cluster: &connected.declared.cluster.name };
    let (entries, unreadable) = context.block_on(records.list())?;
    if context.global.json {
        print_json(&entries)?;
    } else if entries.is_empty() {
        println!("No backup of a volume in the bucket. `hk-dr volume backup` makes one.");
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["BACKUP", "VOLUME", "FROM", "FILES", "SIZE", "QUIESCED", "SNAPSHOT", "SIGNATURE", "PROOF"]);
        for entry in &entries {
            let backup = &entry.backup;
            table.add_row([
                backup.id.clone(),
                backup.volume.clone(),
                format!("{}:{}", backup.server, backup.path),
                backup.files.to_string(),
                size(backup.bytes),
                if backup.quiesced { "yes" } else { "no" }.to_owned(),
                backup.snapshot.chars().take(8).collect(),
                entry.signature.to_string(),
                entry.proof.to_string(),
            ]);
        }
        println!("{table}");
    }
    unreadable.iter().for_each(|problem| eprintln!("warning: {problem}"));
    Ok(())
}
