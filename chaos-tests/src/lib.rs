//! Faults against hk-dr. The world in memory here lets a run die after every journal event in seconds; the tests in
//! `tests/` do the same to real machines at points drawn by a printed seed.

pub mod memory;
pub mod tethered;
