//! What is handed on of drills: the chain that ties each piece of evidence to the one before, a report of one run that a
//! browser shows without anything else, and a report over a period. Pure: evidence in, verdicts and HTML out.

mod chain;
mod html;
mod period;
mod timeline;

pub use chain::{Broken, check_chain, digest};
pub use html::{period_page, run_page};
pub use period::{Period, Planned, RunbookTrend, period};
