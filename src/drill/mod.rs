//! What a rehearsal or a real recovery is measured by: canaries that are written while it runs, and the evidence of it.

mod canaries;
mod evidence;
mod vigil;

pub use canaries::{Attempt, Canaries, Pulse, any_api, read as read_canaries, remove as remove_canaries, survivors};
pub use evidence::*;
pub use vigil::{Say, Vigil};
