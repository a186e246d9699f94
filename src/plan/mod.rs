//! Decisions: from what Git declares and what was observed to a plan with its reasons. Pure: nothing here awaits, reads
//! a clock, a file or the environment; the time is a parameter.

pub mod params;
mod types;

pub use types::*;
