use clap::Subcommand;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::Serialize;

use super::drive::{Manner, draw_and_execute};
use super::{CliError, Context, ExitKind};
use crate::drawing::Wanted;
use crate::plan::{OWNER_LABEL, ROLE_LABEL};
use crate::ports::{CertificateFound, PortResult, Server};
use crate::steps::{ServerOutput, World};

/// Machines that are asked at once.
const AT_ONCE: usize = 8;

/// Show every certificate on the cluster's machines, in files and as services show them; renew them from the CA.
///
/// Exit code 2 if one ends within certificates.renewBeforeDays, or a machine did not answer.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Renew what ends soon, one machine after the other, while the others serve. A build does the same.
    Renew {
        /// Renew all, however long they hold.
        #[arg(long)]
        all: bool,
        /// Don't ask.
        #[arg(short, long)]
        yes: bool,
        /// Show the plan and stop.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Serialize)]
struct Row {
    server: String,
    /// A file, or `port N` for what a service shows.
    place: String,
    subject: String,
    until: Timestamp,
    days_left: i64,
    /// A build would renew it.
    due: bool,
}

/// Looks and prints, or renews.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        None => list(context),
        Some(Command::Renew { all, dry_run: true, .. }) => {
            super::build::dry_run(context, &Wanted::Certificates { all })
        }
        Some(Command::Renew { all, yes, dry_run: false }) => {
            let run = draw_and_execute(context, &Wanted::Certificates { all }, &Manner { yes, step: false })?;
            let what = if all { "all certificates are new" } else { "no certificate ends soon" };
            super::build::report(context, run.as_deref(), what);
            Ok(())
        }
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let world = super::connect::connect(context)?.world;
    let now = world.clock.now();
    let renew_before = i64::from(world.cluster.certificates.renew_before_days);
    let (mut rows, mut silent) = (Vec::new(), Vec::new());
    for (server, found) in context.block_on(ask(&world))? {
        match found {
            Err(error) => silent.push(format!("{server}: {error}")),
            Ok(found) => rows.extend(found.into_iter().map(|c| {
                let days_left = c.until.duration_since(now).as_hours().div_euclid(24);
                let due = c.until.duration_since(now).as_hours() < renew_before * 24;
                Row { server: server.clone(), place: c.place, subject: c.subject, until: c.until, days_left, due }
            })),
        }
    }
    rows.sort_by(|a, b| (a.until, &a.server, &a.place).cmp(&(b.until, &b.server, &b.place)));
    let due = rows.iter().filter(|r| r.due).count();
    if context.global.json {
        println!(
            "{}",
            serde_json::json!({"certificates": rows, "silent": silent, "due": due, "renew_before_days": renew_before})
        );
    } else {
        print(&rows, due, renew_before);
        silent.iter().for_each(|line| println!("! {line}"));
    }
    if due == 0 && silent.is_empty() {
        return Ok(());
    }
    Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None })
}

fn print(rows: &[Row], due: usize, renew_before: i64) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(["SERVER", "WHERE", "UNTIL", "DAYS LEFT", "SUBJECT"]);
    for row in rows {
        let days = if row.due { format!("{} !", row.days_left) } else { row.days_left.to_string() };
        let until = row.until.strftime("%Y-%m-%d %H:%M UTC").to_string();
        table.add_row([row.server.clone(), row.place.clone(), until, days, row.subject.clone()]);
    }
    println!("{table}");
    match due {
        0 => println!("None ends within {renew_before} days."),
        n => println!("{n} end within {renew_before} days: `hk-dr build` or `hk-dr certificates renew` renews them."),
    }
}

/// Every server of the cluster, with what it says or why it says nothing.
pub(super) async fn ask(world: &World) -> PortResult<Vec<(String, PortResult<Vec<CertificateFound>>)>> {
    let servers = world.cloud.servers(&format!("{OWNER_LABEL}=={}", world.cluster.name)).await?;
    let one = |server: Server| async move {
        let master = server.labels.get(ROLE_LABEL).is_some_and(|role| role == "master");
        let answer = match ServerOutput::of(&world.cluster, &server) {
            Ok(output) => world.machines.certificates(&output.host(), master).await,
            Err(error) => Err(error),
        };
        (server.name, answer)
    };
    Ok(stream::iter(servers).map(one).buffered(AT_ONCE).collect().await)
}
