//! A Hetzner Cloud in a box: an emulator of the cloud's API whose servers are really booted machines, whose volumes are
//! real block devices and whose networks really carry packets, all inside one namespace of one Linux host.
//!
//! Shares no code with hk-dr's own cloud client: a mistake would hide in both.

pub mod api;
pub mod backend;
mod balancer;
mod cgroup;
mod clock;
pub mod control;
mod daemon;
mod entrance;
mod error;
pub mod exec;
mod fabric;
pub mod golden;
mod link;
pub mod machine;
mod netns;
mod nspawn;
mod objectstore;
mod options;
mod outer;
pub mod registry;
mod run;
mod storefault;
mod volume;

pub use error::LabError;
pub use options::{LabInfo, LabOptions, Launch};
