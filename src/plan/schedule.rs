//! Which runs of a policy's schedules are due. A schedule has a book in the bucket, which is only ever replaced on the
//! condition that it is still what was read: whoever replaces it has decided, and nobody else decides the same again.
//! So every scheduled instant is decided once, whatever clocks, crashes and further instances do.

mod book;
mod timing;

pub use book::{BOOK_FORMAT, Book, Current, Decision, Outcome, Past};
pub use timing::{Held, Timing, Turn, draw};
pub(super) use timing::{weekly_begin, weekly_end};

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
