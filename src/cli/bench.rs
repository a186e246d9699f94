mod burden;
mod drills;
mod front;
mod history;
mod lab;
mod once;
mod replace;
mod service;
mod sizes;
mod snapshot;
mod tethered;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args as ClapArgs;
use serde::Serialize;

pub use burden::{LoadArgs, load};
pub use lab::desk;
pub use once::{OnceArgs, once};

use super::{CliError, Context, ExitKind};

/// Measures what hk-dr's goals are about and prints each figure beside its goal.
#[derive(ClapArgs)]
#[command(hide = true)]
pub struct Args {
    /// Only benches whose name contains one of these. Default: all.
    names: Vec<String>,
    /// Also write the figures to this file, as a list of {name, value, unit, goal, ok}.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One run that yields figures. To add one, add it to [`benches`].
pub struct Bench {
    pub name: &'static str,
    /// What it yields, in the order of its values.
    pub figures: &'static [Goal],
    /// Runs it. Progress goes to standard error.
    pub run: fn(&Context) -> Result<Vec<f64>, CliError>,
}

/// A figure and the most it may be: a wall time, a size or a ratio, of which less is better.
pub struct Goal {
    pub name: &'static str,
    pub unit: &'static str,
    pub at_most: f64,
}

/// A measured figure, as written to the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    name: &'static str,
    /// None if it could not be measured.
    value: Option<f64>,
    unit: &'static str,
    goal: String,
    ok: bool,
}

/// All benches, in the order they run.
fn benches() -> Vec<Bench> {
    vec![
        DEMO,
        snapshot::SNAPSHOT,
        lab::LAB,
        history::HISTORY,
        drills::DRILLS,
        replace::REPLACE,
        front::FRONT,
        service::SERVICE,
        burden::BURDEN,
        sizes::SIZES,
    ]
}

const DEMO: Bench = Bench {
    name: "demo",
    figures: &[
        Goal { name: "build_until_pod_answers", unit: "s", at_most: 20.0 },
        Goal { name: "rebuild_until_pod_answers", unit: "s", at_most: 16.0 },
        Goal { name: "demo_warm", unit: "s", at_most: 90.0 },
    ],
    run: demo,
};

/// Runs the command.
///
/// # Errors
/// `Differs` if a figure misses its goal or could not be measured.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let wanted = |bench: &Bench| args.names.is_empty() || args.names.iter().any(|n| bench.name.contains(n.as_str()));
    let mut figures = Vec::new();
    for bench in benches().into_iter().filter(wanted) {
        eprintln!("{} …", bench.name);
        let measured = (bench.run)(context);
        if let Err(error) = &measured {
            eprintln!("{} could not be measured: {}", bench.name, error.message);
            error.hints.iter().for_each(|hint| eprintln!("  → {hint}"));
        }
        figures.extend(judge(&bench, measured.ok().as_deref().unwrap_or_default()));
    }
    if figures.is_empty() {
        return Err(CliError::new(ExitKind::Usage, format!("no bench is called {}", args.names.join(" or "))));
    }
    let text = serde_json::to_string_pretty(&figures)
        .map_err(|e| CliError::new(ExitKind::Failed, format!("the figures cannot be written as JSON: {e}")))?;
    if let Some(path) = &args.output {
        write(path, &text)?;
    }
    if context.global.json {
        println!("{text}");
    } else {
        figures.iter().for_each(|figure| println!("{}", line(figure)));
    }
    let missed: Vec<_> = figures.iter().filter(|f| !f.ok).map(|f| f.name).collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(CliError::new(ExitKind::Differs, format!("missed: {}", missed.join(", ")))
        .hint("figures mean something only on an otherwise idle machine"))
}

/// Values beside their goals; a missing value misses its goal.
fn judge(bench: &Bench, values: &[f64]) -> Vec<Figure> {
    let figure = |(index, goal): (usize, &Goal)| {
        let value = values.get(index).copied().filter(|v| v.is_finite());
        let ok = value.is_some_and(|v| v <= goal.at_most);
        Figure { name: goal.name, value, unit: goal.unit, goal: format!("<= {}", goal.at_most), ok }
    };
    bench.figures.iter().enumerate().map(figure).collect()
}

fn line(figure: &Figure) -> String {
    let value = figure.value.map_or_else(|| "not measured".to_owned(), |v| format!("{v:.2} {}", figure.unit));
    let verdict = if figure.ok { "ok" } else { "MISSED" };
    format!("{:<34} {value:>14}   goal {:>6} {:<5} {verdict}", figure.name, figure.goal, figure.unit)
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |e| CliError::new(ExitKind::Failed, format!("writing {}: {e}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::write(path, format!("{text}\n")).map_err(failed)
}

/// Runs `hk-dr demo` as a user would and takes the times it reports.
fn demo(context: &Context) -> Result<Vec<f64>, CliError> {
    let failed = |what: String| CliError::new(ExitKind::Failed, format!("hk-dr demo: {what}"));
    let folder = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
    let report = folder.path().join("demo.json");
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let started = Instant::now();
    let status = std::process::Command::new(program)
        .arg("--cache")
        .arg(context.cache_dir())
        .args(["--quiet", "demo", "--json"])
        .arg(&report)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status()
        .map_err(|e| failed(e.to_string()))?;
    let total = started.elapsed().as_secs_f64();
    if !status.success() {
        return Err(failed(format!("ended with {status}")).hint("run it by itself to see why"));
    }
    let text = std::fs::read(&report).map_err(|e| failed(format!("its report cannot be read: {e}")))?;
    let report: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| failed(format!("its report is not JSON: {e}")))?;
    let figure = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
    Ok(vec![figure("build_pod_seconds"), figure("rebuild_pod_seconds"), total])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BENCH: Bench = Bench {
        name: "test",
        figures: &[
            Goal { name: "held", unit: "s", at_most: 2.0 },
            Goal { name: "missed", unit: "s", at_most: 2.0 },
            Goal { name: "unmeasured", unit: "s", at_most: 2.0 },
        ],
        run: |_| Ok(Vec::new()),
    };

    #[test]
    fn a_figure_is_ok_only_if_it_was_measured_and_holds_its_goal() {
        let figures = judge(&BENCH, &[2.0, 2.1, f64::NAN]);
        assert_eq!(figures.iter().map(|f| f.ok).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(figures[2].value, None);
        let json = serde_json::to_value(&figures[0]).unwrap();
        assert_eq!(json, serde_json::json!({"name": "held", "value": 2.0, "unit": "s", "goal": "<= 2", "ok": true}));
    }

    #[test]
    fn names_of_figures_are_unique() {
        let mut names: Vec<_> = benches().iter().flat_map(|b| b.figures.iter().map(|f| f.name)).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
