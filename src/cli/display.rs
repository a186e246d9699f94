use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::engine::Progress;
use crate::plan::{Plan, Step};
use crate::ports::PortError;

/// A line for each step that ends, and for a person a live line with what is under way.
pub struct StepLines {
    bar: Option<ProgressBar>,
    quiet: bool,
    /// Ask before each step.
    ask: bool,
    total: usize,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<String, (String, Instant)>,
    ended: usize,
}

impl StepLines {
    /// For this plan's execution.
    pub fn new(context: &Context, plan: &Plan, ask: bool) -> Self {
        let bar = (context.interactive() && !ask).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            quiet: context.global.quiet,
            ask,
            total: plan.steps.len(),
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.quiet => {}
            None => eprintln!("{text}"),
        }
    }

    fn show(&self, state: &State) {
        if let Some(bar) = &self.bar {
            let titles: Vec<&str> = state.running.values().map(|(title, _)| title.as_str()).collect();
            bar.set_message(format!("{}/{}  {}", state.ended, self.total, titles.join(" · ")));
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Progress for StepLines {
    fn started(&self, step: &Step) {
        if step.kind == "manual.wait" {
            self.line(&format!("           … waits for `hk-dr approve`: {}", step.title));
        }
        self.with(|state| {
            state.running.insert(step.id.clone(), (step.title.clone(), Instant::now()));
            self.show(state);
        });
    }

    fn finished(&self, step: &Step, found: bool) {
        let took = self.with(|state| {
            state.ended += 1;
            let took = state.running.remove(&step.id).map(|(_, since)| since.elapsed());
            self.show(state);
            took
        });
        let mark = if found { "=" } else { "✓" };
        let seconds = took.unwrap_or_default().as_secs_f64();
        self.line(&format!("{:7.1} s  {mark} {} ({seconds:.1} s)", self.began.elapsed().as_secs_f64(), step.title));
    }

    fn failed(&self, step: &Step, error: &PortError, will_retry: bool) {
        self.with(|state| {
            state.running.remove(&step.id);
            self.show(state);
        });
        let then = if will_retry { "; trying again" } else { "" };
        self.line(&format!("{:7.1} s  ✗ {}: {error}{then}", self.began.elapsed().as_secs_f64(), step.title));
    }

    fn one_by_one(&self) -> bool {
        self.ask
    }

    fn permits(&self, step: &Step) -> bool {
        if !self.ask {
            return true;
        }
        eprint!("           ? {} (because {}) [y/N] ", step.title, step.reason);
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    }
}

impl Drop for StepLines {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
