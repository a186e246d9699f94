//! The files hk-dr installs or runs that are not its own: pinned by version and SHA-256 in `artifacts.lock`, obtained
//! from the first source that has them (cache, mirror, official release, build), kept in the cache.
//!
//! Nothing enters the cache without a digest that `artifacts.lock` pins, or, for a build with another toolchain than the
//! pinned one, without `go.sum` having vouched for every source file it was made of.

mod cache;
mod download;
mod gobuild;
mod lock;
mod oci;
mod progress;
mod sources;
#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use lock::{Artifact, GoBuild, Kind, Lock, Release, Toolchain};
pub use oci::{PAUSE_IMAGE, WEB_IMAGE};
pub use progress::{Happening, Progress, Silent};
pub use sources::{Mirror, Sources};
