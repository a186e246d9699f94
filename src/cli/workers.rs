use clap::Subcommand;
use serde::Serialize;

use super::drive::{Manner, draw_and_execute};
use super::{CliError, Context};
use crate::config::POOL_LABEL;
use crate::distribution::server_name;
use crate::drawing::{Wanted, look_for_drift};
use crate::plan::{DRAIN_SECONDS, NAME_LABEL, ROLE_LABEL, WorkersChoice};

/// Workers: what is declared and what is there; make them anew one after the other.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the workers by pool.
    List,
    /// Make workers anew, one after the other: drained, deleted, created, ready.
    Replace {
        /// Short names; none: all.
        names: Vec<String>,
        #[command(flatten)]
        drain: Drain,
        /// Don't ask.
        #[arg(short, long)]
        yes: bool,
        /// Show the plan and stop.
        #[arg(long)]
        dry_run: bool,
    },
}

/// How long pods may take.
#[derive(clap::Args, Clone, Copy)]
pub struct Drain {
    /// Seconds for a worker's pods to leave; PodDisruptionBudgets are honoured. Then the run stops, the worker untouched.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_SECONDS)]
    pub drain_seconds: u32,
}

/// What a build may do to workers.
#[derive(clap::Args, Clone, Copy)]
pub struct Choice {
    /// Drain and delete workers that Git declares no more.
    #[arg(long)]
    remove_workers: bool,
    /// Drain and make anew workers whose type or location Git declares otherwise.
    #[arg(long)]
    replace_workers: bool,
    #[command(flatten)]
    drain: Drain,
}

impl Choice {
    /// What is wanted with it.
    pub fn wanted(self) -> Wanted {
        if !self.remove_workers && !self.replace_workers {
            return Wanted::Build;
        }
        Wanted::Workers(WorkersChoice {
            remove: self.remove_workers,
            replace_changed: self.replace_workers,
            replace: Vec::new(),
            drain_seconds: self.drain.drain_seconds,
        })
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    pool: Option<String>,
    server_type: String,
    location: String,
    address: Option<std::net::Ipv4Addr>,
    /// `ready`, `NOT ready`, `MISSING` or `UNDECLARED`
    state: &'static str,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::List => list(context),
        Command::Replace { names, drain, yes, dry_run } => {
            let replace = if names.is_empty() {
                super::load_cluster(context)?.workers.into_iter().map(|w| w.name).collect()
            } else {
                names
            };
            let wanted = Wanted::Workers(WorkersChoice {
                replace,
                drain_seconds: drain.drain_seconds,
                ..WorkersChoice::default()
            });
            if dry_run {
                return super::build::dry_run(context, &wanted);
            }
            let run = draw_and_execute(context, &wanted, &Manner { yes, step: false })?;
            super::build::report(context, run.as_deref(), "the workers are new");
            Ok(())
        }
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let (inventory, _) = context.block_on(look_for_drift(&connected.world, &connected.ssh_public_key))?;
    let cluster = &connected.world.cluster;
    let mut rows: Vec<Row> = cluster
        .workers
        .iter()
        .map(|worker| {
            let full = server_name(cluster, &worker.name);
            let server = inventory.server(&full);
            Row {
                pool: worker.labels.get(POOL_LABEL).cloned(),
                server_type: server.map_or(&worker.server_type, |s| &s.server_type).clone(),
                location: server.map_or(&worker.location, |s| &s.location).clone(),
                address: Some(worker.address),
                state: match server {
                    None => "MISSING",
                    Some(_) if inventory.ready_nodes.contains(&full) => "ready",
                    Some(_) => "NOT ready",
                },
                name: full,
            }
        })
        .collect();
    let is_worker = |labels: &crate::ports::Labels| labels.get(ROLE_LABEL).is_some_and(|role| role == "worker");
    for server in inventory.servers.iter().filter(|s| is_worker(&s.labels)) {
        if !rows.iter().any(|row| row.name == server.name) {
            rows.push(Row {
                name: server.name.clone(),
                pool: server.labels.get(NAME_LABEL).and_then(|n| Some(n.rsplit_once('-')?.0.to_owned())),
                server_type: server.server_type.clone(),
                location: server.location.clone(),
                address: server.private.first().map(|p| p.address),
                state: "UNDECLARED",
            });
        }
    }
    if context.global.json {
        println!("{}", serde_json::json!({"workers": rows}));
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["WORKER", "POOL", "STATE", "TYPE", "WHERE", "PRIVATE"]);
    for row in rows {
        table.add_row([
            row.name,
            row.pool.unwrap_or_else(|| "-".into()),
            row.state.to_owned(),
            row.server_type,
            row.location,
            row.address.map_or_else(|| "-".into(), |a| a.to_string()),
        ]);
    }
    println!("{table}");
    Ok(())
}
