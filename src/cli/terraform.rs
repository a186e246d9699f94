use std::path::PathBuf;

use clap::Subcommand;

use super::{CliError, Context, ExitKind};
use crate::observe::{Depth, observe};
use crate::secrets::write_file;
use crate::terraform::export;

/// The infrastructure for teams that use Terraform or OpenTofu.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write what this cluster has in the cloud as HCL with import blocks. Touches nothing in the cloud.
    Export {
        /// The directory; it is made if it is missing.
        directory: PathBuf,
        /// Replace the files of an earlier export.
        #[arg(long)]
        force: bool,
    },
}

/// Writes it.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Command::Export { directory, force } = args.command;
    let world = super::connect::connect(context)?.world;
    let inventory = context.block_on(observe(&world, Depth::Cloud))?;
    if inventory.network.is_none() && inventory.servers.is_empty() {
        let message = format!("nothing of cluster {} exists in the cloud", world.cluster.name);
        return Err(CliError::new(ExitKind::Data, message).hint("nothing was written; `hk-dr build` makes it"));
    }
    let files = export(&world.cluster, &inventory);
    if let Some(there) = files.keys().map(|name| directory.join(name)).find(|path| !force && path.exists()) {
        return Err(CliError::new(ExitKind::Usage, format!("{} exists already", there.display()))
            .hint("nothing was written; choose another directory, or --force to replace an earlier export"));
    }
    std::fs::create_dir_all(&directory)
        .map_err(|e| CliError::new(ExitKind::Failed, format!("cannot make {}: {e}", directory.display())))?;
    for (name, text) in &files {
        write_file(&directory.join(name), 0o644, text.as_bytes(), true)?;
    }
    let resources = files["cluster.tf"].matches("\nresource ").count();
    if context.global.json {
        println!("{}", serde_json::json!({"directory": directory, "resources": resources}));
    } else {
        println!(
            "{resources} resources in {}: terraform init, then terraform plan shows what it would import",
            directory.display()
        );
    }
    Ok(())
}
