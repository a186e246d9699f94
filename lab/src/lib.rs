//! A Hetzner Cloud in a box: an emulator of the cloud's API whose servers are really booted machines, whose volumes are
//! real block devices and whose networks really carry packets, all inside one namespace of one Linux host.
//!
//! Shares no code with hk-dr's own cloud client: a mistake would hide in both.

pub mod api;
pub mod backend;
