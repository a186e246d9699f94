use comfy_table::{ContentArrangement, Table, presets};

use super::{print_json, size};
use crate::backup::Catalog;
use crate::cli::connect::connect;
use crate::cli::{CliError, Context};
use crate::ports::Vouched;

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster.name;
    let (entries, unreadable) = context.block_on(Catalog::new(connected.store.as_ref(), cluster).list())?;
    if context.global.json {
        print_json(&entries)?;
    } else if entries.is_empty() {
        println!("No snapshot of cluster {cluster} in the bucket. `hk-dr snapshot` takes one.");
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "SNAPSHOT",
            "TAKEN (UTC)",
            "REVISION",
            "KEYS",
            "DATABASE",
            "STORED",
            "FROM",
            "SIGNED",
            "PROOF",
        ]);
        for entry in &entries {
            let manifest = &entry.manifest;
            table.add_row([
                manifest.id.clone(),
                manifest.taken_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                manifest.revision.to_string(),
                manifest.keys.map_or_else(|| "?".to_owned(), |keys| keys.to_string()),
                size(manifest.etcd.plain_bytes),
                size(manifest.etcd.stored_bytes + manifest.recovery.stored_bytes),
                manifest.source_member.clone(),
                signed(&entry.signature),
                entry.proof.to_string(),
            ]);
        }
        println!("{table}");
    }
    for problem in unreadable {
        eprintln!("warning: {problem}");
    }
    Ok(())
}

fn signed(by: &Vouched) -> String {
    match by {
        Vouched::Unsigned => "no".to_owned(),
        Vouched::Signed { key } => key.clone(),
        Vouched::Accepted { .. } => "NOT TRUSTED".to_owned(),
    }
}
