use std::path::PathBuf;

use crate::cli::connect::connect;
use crate::cli::{CliError, Context, ExitKind};
use crate::drill::Evidence;
use crate::report::run_page;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The run, as `hk-dr runs` and the status page name it.
    run: String,
    /// The file to write (default: RUN.html here).
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let key = format!("{}/runs/{}/evidence.json", connected.declared.cluster.name, args.run);
    let document = context.block_on(connected.store.get(&key, super::EVIDENCE_BYTES_MAX))?;
    let evidence: Evidence = serde_json::from_slice(&document).map_err(|e| {
        CliError::new(ExitKind::Data, format!("{key} can't be read: {e}"))
            .hint("use the hk-dr that wrote it, or a newer one")
    })?;
    let path = args.html.clone().unwrap_or_else(|| PathBuf::from(format!("{}.html", args.run)));
    crate::secrets::write_file(&path, 0o644, run_page(&evidence, &document).as_bytes(), true)?;
    println!("{}", path.display());
    Ok(())
}
