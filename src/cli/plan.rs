use std::fmt::Write as _;

use super::drive::draw;
use super::{CliError, Context, ExitKind};
use crate::drawing::{Course, Wanted};
use crate::plan::{Plan, RebuildChoice};

/// Show what would be done and why; touches nothing. Exit code 2 if there is anything to do.
#[derive(clap::Args)]
pub struct Args {
    /// Which plan to draw.
    #[arg(value_enum, default_value = "build")]
    what: What,
    /// For a rebuild: the snapshot to restore (default: the newest).
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    #[command(flatten)]
    workers: super::workers::Choice,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum What {
    Build,
    Rebuild,
}

/// Draws and prints a plan.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let wanted = match args.what {
        What::Build => args.workers.wanted(),
        What::Rebuild => Wanted::Rebuild(RebuildChoice { snapshot: args.snapshot, even_if_alive: true }),
    };
    let connected = super::connect::connect(context)?;
    let plan = context.block_on(draw(&connected, &wanted, &Course::default()))?;
    if context.global.json {
        let text = serde_json::to_string_pretty(&plan).map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))?;
        println!("{text}");
    } else {
        print!("{}", render(&plan));
    }
    if plan.steps.is_empty() {
        return Ok(());
    }
    Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None })
}

/// The plan as a person reads it.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for finding in &plan.findings {
        let _ = writeln!(text, "• {finding}");
    }
    if plan.steps.is_empty() {
        text.push_str("Nothing to do: the cluster is as Git declares it.\n");
        return text;
    }
    let width = plan.steps.iter().map(|s| s.title.chars().count()).max().unwrap_or(0).min(72);
    for (number, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(text, "{:4}  {:width$}  because {}", number + 1, step.title, step.reason);
    }
    let _ = writeln!(text, "Plan: {} steps.", plan.steps.len());
    text
}
