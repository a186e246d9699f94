//! The traits through which the engine and its steps reach the world.
//!
//! A port speaks of what hk-dr needs, not of how a provider spells it: no type here carries a provider's JSON. Every
//! port has a contract suite (`src/<port>/contract.rs` or `tests/`) that runs on each implementation, the in-memory
//! fake included.

mod cloud;
mod dial;
mod error;
mod etcd;
mod front;
mod kube;
mod machines;
mod objects;
mod perimeter;
mod reach;
mod shell;

pub use cloud::*;
pub use dial::*;
pub use error::*;
pub use etcd::*;
pub use front::*;
pub use kube::*;
pub use machines::*;
pub use objects::*;
pub use perimeter::*;
pub use reach::*;
pub use shell::*;

/// The only source of time outside the command line.
pub trait Clock: Send + Sync {
    /// Wall-clock time, for what people read.
    fn now(&self) -> jiff::Timestamp;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock that others are told to use")]
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}
