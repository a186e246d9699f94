use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, Context};
use crate::artifacts::{Artifact, Cache, Happening, Mirror, Progress, Sources};

/// Options of commands that need pinned files.
#[derive(Args, Debug, Clone)]
pub struct SourceOptions {
    /// A directory or URL that holds pinned files as <sha256> or <name>-<version>; asked before any other source.
    #[arg(long, value_name = "URL|DIR", env = "HK_DR_MIRROR", hide_env_values = true)]
    pub mirror: Option<String>,
    /// Where files that are neither in the cache nor in the mirror may come from.
    #[arg(long, value_name = "SOURCE,…", env = "HK_DR_SOURCES", value_delimiter = ',', default_values = ["release", "build"])]
    pub sources: Vec<Source>,
}

/// A source that needs no configuration.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Only the cache and the mirror.
    None,
    /// The projects' official releases.
    Release,
    /// Builds of Go modules.
    Build,
}

impl SourceOptions {
    /// What these options allow.
    pub fn sources(&self) -> Sources {
        let Ok(mirror) = self.mirror.as_deref().filter(|m| !m.is_empty()).map(str::parse::<Mirror>).transpose();
        Sources {
            mirror,
            release: self.sources.contains(&Source::Release),
            build: self.sources.contains(&Source::Build),
        }
    }
}

/// Obtains artifacts and shows how it goes on standard error.
pub fn obtain(
    context: &Context,
    cache: &Cache,
    artifacts: &[&Artifact],
    options: &SourceOptions,
) -> Result<(), CliError> {
    let display = Display::new(context, artifacts);
    let result = context.block_on(cache.ensure_all(artifacts, &options.sources(), &display));
    display.finish();
    result.map_err(CliError::from)
}

/// A line for each file that arrives, and while one is awaited a status line for a person or a line now and then for a
/// log.
struct Display {
    /// Set where a person watches.
    bar: Option<ProgressBar>,
    quiet: bool,
    width: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    building: BTreeMap<String, Duration>,
    said: Option<Instant>,
}

/// How often a log hears that work goes on.
const HEARTBEAT: Duration = Duration::from_secs(30);

impl Display {
    fn new(context: &Context, artifacts: &[&Artifact]) -> Self {
        let bar = context.interactive().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let width = artifacts.iter().map(|a| a.name.len()).max().unwrap_or(0);
        Self { bar, quiet: context.global.quiet, width, state: Mutex::default() }
    }

    fn line(&self, artifact: &str, text: &str) {
        let line = if artifact.is_empty() {
            text.to_owned()
        } else {
            format!("{artifact:<width$}  {text}", width = self.width)
        };
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// Shows that something goes on: at once to a person, now and then to a log.
    fn status(&self, state: &mut State, artifact: &str, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(if artifact.is_empty() { text } else { format!("{artifact}: {text}") });
        } else if state.said.is_none_or(|at| at.elapsed() >= HEARTBEAT) {
            state.said = Some(Instant::now());
            self.line(artifact, &text);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn report(&self, artifact: &str, happening: Happening) {
        let Ok(mut state) = self.state.lock() else { return };
        match happening {
            Happening::Cached => {}
            Happening::Discarded { reason } => self.line(artifact, &format!("removed from the cache: {reason}")),
            Happening::Skipped { source, reason } => self.line(artifact, &format!("not from the {source}: {reason}")),
            Happening::Downloading { source, received_bytes, total_bytes } => {
                let total = total_bytes.map(|t| format!(" of {}", megabytes(t))).unwrap_or_default();
                self.status(&mut state, artifact, format!("{}{total} from {source}", megabytes(received_bytes)));
            }
            Happening::Building { elapsed } => {
                state.building.insert(artifact.to_owned(), elapsed);
                let names: Vec<_> = state.building.keys().cloned().collect();
                let text = format!("building {} ({} s)", names.join(", "), elapsed.as_secs());
                self.status(&mut state, "", text);
            }
            Happening::Built { elapsed } => {
                state.building.remove(artifact);
                self.line(artifact, &format!("built after {} s", elapsed.as_secs()));
            }
            Happening::Ready { source, size_bytes, elapsed } => {
                state.building.remove(artifact);
                let seconds = elapsed.as_secs_f64();
                self.line(artifact, &format!("{} from {source} in {seconds:.1} s", megabytes(size_bytes)));
            }
            Happening::Waiting { elapsed } => {
                let text = format!("waiting for another process that fills the cache ({} s)", elapsed.as_secs());
                self.status(&mut state, "", text);
            }
        }
    }
}

/// A size for people.
fn megabytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rounded figure for display")]
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.1} MB")
}
