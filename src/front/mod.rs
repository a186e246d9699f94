//! Watches over floating IPs: tries, as the world does, who answers at 443, and routes an address whose holder went silent to a
//! worker that answers.
//!
//! - `judge`: PURE, what was seen → who moves where.
//! - `watch`: the loop that looks, asks the judge, and moves.
//!
//! Architecture invariant: nothing is moved on account of what was seen once, and nothing where nobody answers.

mod judge;
#[cfg(test)]
mod tests;
mod watch;

pub use judge::{Candidate, Floating, Judge, Move, Verdict};
pub use watch::{Knock, ROUND, TcpKnock, Watch, Watched};
