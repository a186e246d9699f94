use std::io::{IsTerminal, Write};

use super::drive::{Manner, draw, execute_drawn};
use super::{CliError, Context, ExitKind};
use crate::drawing::{Course, Wanted};
use crate::plan::DestroyChoice;

/// Delete the cluster's servers, load balancers and floating IPs with their addresses, firewalls, network, placement group and
/// SSH key. Volumes and backups stay unless told twice.
#[derive(clap::Args)]
pub struct Args {
    /// The cluster's name, instead of being asked for it.
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Delete the volumes with etcd's data too. Asks a second time.
    #[arg(long)]
    delete_volumes: bool,
    /// The cluster's name once more, instead of being asked about the volumes.
    #[arg(long, value_name = "NAME", requires = "delete_volumes")]
    confirm_volumes: Option<String>,
    /// Delete everything of the cluster in the bucket too: nothing can bring it back then. Asks a second time.
    #[arg(long)]
    delete_backups: bool,
    /// The cluster's name once more, instead of being asked about the backups.
    #[arg(long, value_name = "NAME", requires = "delete_backups")]
    confirm_backups: Option<String>,
    /// Show what would go and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Destroys.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let choice = DestroyChoice { volumes: args.delete_volumes, backups: args.delete_backups };
    let wanted = Wanted::Destroy(choice);
    let connected = super::connect::connect(context)?;
    let name = connected.world.cluster.name.clone();
    let plan = context.block_on(draw(&connected, &wanted, &Course::default()))?;
    if args.dry_run {
        if context.global.json {
            println!("{}", serde_json::json!(plan));
        } else {
            print!("{}", text(&plan));
        }
        return Ok(());
    }
    if plan.steps.is_empty() {
        super::build::report(context, None, &format!("nothing of cluster {name} is left in the cloud that was to go"));
        return Ok(());
    }
    if !context.global.json {
        eprint!("{}", text(&plan));
    }
    confirm(
        context,
        &name,
        args.confirm.as_deref(),
        "the servers are deleted with all that is on their disks",
        "--confirm",
    )?;
    if choice.volumes {
        let what = "the volumes are deleted: etcd's data is then only in the backups";
        confirm(context, &name, args.confirm_volumes.as_deref(), what, "--confirm-volumes")?;
    }
    if choice.backups {
        let what = "the backups are deleted: nothing can bring the cluster back then";
        confirm(context, &name, args.confirm_backups.as_deref(), what, "--confirm-backups")?;
    }
    let run = execute_drawn(context, &connected, &wanted, plan, &Manner::default())?;
    super::build::report(context, Some(&run), &format!("cluster {name} is destroyed"));
    Ok(())
}

fn text(plan: &crate::plan::Plan) -> String {
    let mut text = String::new();
    for finding in &plan.findings {
        text.push_str(&format!("• {finding}\n"));
    }
    for step in &plan.steps {
        text.push_str(&format!("  {}\n", step.title));
    }
    text
}

/// The cluster's name, from the command line or from a person.
fn confirm(context: &Context, name: &str, given: Option<&str>, what: &str, option: &str) -> Result<(), CliError> {
    let answer = match given {
        Some(given) => given.to_owned(),
        None if !std::io::stdin().is_terminal() || context.global.json => {
            let message = format!("nobody can be asked here: {what}");
            let hint = format!("nothing was touched; look at --dry-run, then pass {option} {name}");
            return Err(CliError::new(ExitKind::Usage, message).hint(hint));
        }
        None => {
            eprint!("{what}. Type the cluster's name to go on: ");
            let _ = std::io::stderr().flush();
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer).map_err(|e| CliError::new(ExitKind::Usage, e.to_string()))?;
            answer
        }
    };
    if answer.trim() == name {
        return Ok(());
    }
    let message = format!("{:?} is not the name of this cluster ({name})", answer.trim());
    Err(CliError::new(ExitKind::Usage, message).hint("nothing was touched"))
}
