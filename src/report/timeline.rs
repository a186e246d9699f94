use jiff::Timestamp;
use maud::{Markup, html};

use crate::drill::Evidence;

const WIDTH: f64 = 1000.0;
const ROW: f64 = 22.0;
/// Where bars begin: left of it stand titles.
const LEFT: f64 = 330.0;
const TITLE_MAX: usize = 46;

/// A bar for each step, and the time without an acknowledged write behind them.
pub fn timeline(evidence: &Evidence) -> Markup {
    let time = |text: &Option<String>| text.as_ref().and_then(|t| t.parse::<Timestamp>().ok());
    let (Some(begin), Some(end)) = (time(&evidence.began), time(&evidence.ended)) else {
        return html! { p { "The run did not begin or end: there is no timeline." } };
    };
    let whole = end.duration_since(begin).as_secs_f64().max(0.001);
    let x = |at: Timestamp| LEFT + at.duration_since(begin).as_secs_f64().clamp(0.0, whole) / whole * (WIDTH - LEFT);
    let rows = f64::from(u32::try_from(evidence.steps.len()).unwrap_or(u32::MAX));
    let height = rows * ROW + 40.0;
    let away = time(&evidence.recovery.from).zip(time(&evidence.recovery.to));
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="When each step ran" {
            @if let Some((from, to)) = away {
                rect .away x=(n(x(from))) y="0" width=(n((x(to) - x(from)).max(1.0))) height=(n(height - 24.0)) {
                    title { "from the first stop to an acknowledged write" }
                }
            }
            @for tenth in [0.0, 0.25, 0.5, 0.75, 1.0] {
                @let at = LEFT + tenth * (WIDTH - LEFT);
                line .grid x1=(n(at)) x2=(n(at)) y1="0" y2=(n(height - 24.0)) {}
                text .tick x=(n(at)) y=(n(height - 8.0)) text-anchor=(if tenth == 0.0 { "start" } else if tenth == 1.0 { "end" } else { "middle" }) {
                    (format!("{:.1} s", tenth * whole))
                }
            }
            @for (row, step) in (0u32..).zip(&evidence.steps) {
                @let y = f64::from(row) * ROW;
                text x="0" y=(n(y + 15.0)) { (short(&step.title)) }
                @if let (Some(from), Some(to)) = (time(&step.started), time(&step.ended)) {
                    rect .step .failed[step.error.is_some()] .found[step.found] x=(n(x(from))) y=(n(y + 4.0))
                        width=(n((x(to) - x(from)).max(2.0))) height=(n(ROW - 8.0)) {
                        title { (step.title) ": " (step.seconds.map_or_else(String::new, |s| format!("{s:.1} s"))) }
                    }
                }
            }
        }
    }
}

fn n(value: f64) -> String {
    format!("{value:.1}")
}

fn short(title: &str) -> String {
    if title.chars().count() <= TITLE_MAX {
        return title.to_owned();
    }
    title.chars().take(TITLE_MAX - 1).chain(['…']).collect()
}
