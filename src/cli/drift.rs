use super::{CliError, Context, ExitKind};
use crate::drawing::look_for_drift;

/// Compare Git with the cloud, the machines, etcd and the Kubernetes API; touches nothing. Exit code 2 if they differ.
#[derive(clap::Args)]
pub struct Args {}

/// Compares and prints.
pub fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let (_, drifts) = context.block_on(look_for_drift(&connected.world, &connected.ssh_public_key))?;
    if context.global.json {
        println!("{}", serde_json::json!({"drift": drifts}));
    } else if drifts.is_empty() {
        println!("No drift: the cluster is as Git declares it.");
    } else {
        for drift in &drifts {
            println!("{}: declared is {}, found was {}", drift.what, drift.declared, drift.found);
            println!("    → {}", drift.mend);
        }
        println!("{} difference{}.", drifts.len(), if drifts.len() == 1 { "" } else { "s" });
    }
    if drifts.is_empty() {
        return Ok(());
    }
    Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None })
}
