use std::path::PathBuf;
use std::time::Instant;

use hk_lab::LabOptions;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Context, ExitKind, SourceOptions, obtain};
use crate::artifacts::Cache;
use crate::demo::DemoError;
use crate::demo::report::{Phase, Report, render};
use crate::demo::stage::{Stage, StageOptions};
use crate::demo::story::{Watcher, tell};

/// Build a cluster in a lab, lose all of it together with a location, bring it back, and prove it. Needs root.
#[derive(clap::Args)]
pub struct Args {
    /// With --json: write everything measured and checked to this file, and show it to people on standard output.
    #[arg(value_name = "FILE")]
    report: Option<PathBuf>,
    /// Leave the lab up afterwards and say how to look around.
    #[arg(long)]
    keep: bool,
    /// The lab's name. Default: one that nobody else uses.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    sources: SourceOptions,
}

/// Plays the demo. Whatever happens, the lab and the scratch directory are removed, unless they are to be kept.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.report.is_some() && !context.global.json {
        return Err(CliError::new(ExitKind::Usage, "a file was named, but not what to write into it")
            .hint("nothing was touched; it is hk-dr demo --json FILE"));
    }
    let cache = Cache::new(context.cache_dir());
    let all: Vec<_> = cache.lock().artifacts.iter().filter(|a| a.name != "kubectl" && !a.on_demand).collect();
    obtain(context, &cache, &all, &args.sources)?;
    let program = std::env::current_exe()
        .map_err(|e| CliError::new(ExitKind::Failed, format!("cannot find this program: {e}")))?;
    let name = args.name.unwrap_or_else(|| format!("demo-{}", std::process::id()));
    let options = StageOptions {
        lab: LabOptions { name, cache_dir: absolute(context.cache_dir())?, state_dir: absolute(context.state_dir())? },
        program,
    };
    let report = context.block_on(play(context, options, args.keep))?;
    if let Some(path) = &args.report {
        let text = serde_json::to_vec_pretty(&report).map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))?;
        std::fs::write(path, text)
            .map_err(|e| CliError::new(ExitKind::Failed, format!("cannot write {}: {e}", path.display())))?;
    }
    if context.global.json && args.report.is_none() {
        println!("{}", serde_json::json!(report));
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stdout()) && std::env::var_os("NO_COLOR").is_none();
        print!("{}", render(&report, colour));
    }
    if report.ok {
        return Ok(());
    }
    Err(CliError::new(ExitKind::Differs, "the demo ran to its end, but not every check holds"))
}

async fn play(context: &Context, options: StageOptions, keep: bool) -> Result<Report, CliError> {
    let failed = |e: std::io::Error| CliError::new(ExitKind::Failed, format!("cannot watch for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let lines = Lines::new(context);
    let began = Instant::now();

    lines.begin("lab", "a Hetzner Cloud in a box");
    let bar = lines.bar.clone();
    let setting = tokio::task::spawn_blocking(move || {
        Stage::set(options, &mut |line| {
            if let Some(bar) = &bar {
                bar.set_message(line.to_owned())
            }
        })
    });
    // Not interrupted: a lab is ended only once it is up, and it is up in a moment or fails.
    let stage = setting.await.map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))??;
    let story = async {
        stage.make_git_directory().await?;
        let seconds = began.elapsed().as_secs_f64();
        lines.end("lab", seconds);
        let lab = Phase { name: "lab".into(), started_seconds: 0.0, seconds };
        tell(&stage, &lines, began, vec![lab]).await
    };
    let told = tokio::select! {
        told = story => told.map_err(CliError::from),
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
        _ = hangup.recv() => Err(interrupted()),
    };
    lines.finish();
    if keep {
        for line in stage.keep() {
            eprintln!("{line}");
        }
        return told;
    }
    let struck = tokio::task::spawn_blocking(move || stage.strike()).await;
    let struck = struck.map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))?;
    let report = told?;
    struck?;
    Ok(report)
}

fn interrupted() -> CliError {
    CliError::new(ExitKind::Failed, "interrupted; nothing of the demo was left on this machine")
}

fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(&path)
        .map_err(|e| CliError::new(ExitKind::Usage, format!("{} is no usable path: {e}", path.display())))
}

impl From<DemoError> for CliError {
    fn from(error: DemoError) -> Self {
        let mut cli = Self::new(ExitKind::Failed, error.message);
        cli.hints = error.hints;
        cli
    }
}

/// A line for each phase, and for a person something that moves while it lasts.
struct Lines {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Lines {
    fn new(context: &Context) -> Self {
        let bar = context.interactive().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix:<9} {elapsed:>4}  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            bar
        });
        Self { bar, quiet: context.global.quiet }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watcher for Lines {
    fn begin(&self, phase: &str, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_prefix(phase.to_owned());
                bar.set_message(what.to_owned());
            }
            None if self.quiet => {}
            None => eprintln!("  {phase:<9}           {what}"),
        }
    }

    fn end(&self, phase: &str, seconds: f64) {
        match &self.bar {
            Some(bar) => bar.println(format!("  ✓ {phase:<9} {seconds:>5.1} s  {}", bar.message())),
            None if self.quiet => {}
            None => eprintln!("  {phase:<9} {seconds:>6.1} s"),
        }
    }
}
