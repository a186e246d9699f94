//! hk-dr builds a Kubernetes cluster on Hetzner Cloud from what Git declares, keeps encrypted offsite copies of all that
//! is needed to bring it back, and proves by rehearsal that it comes back.
//!
//! Direction of knowledge: `cli → engine → steps → ports ← adapters`. `config`, `plan` and the types of `journal` are
//! pure: they never await and never read a clock, a file or the environment. See `docs/ARCHITECTURE.md`.

pub mod artifacts;
pub mod backup;
pub mod bolt;
#[expect(
    clippy::disallowed_methods,
    reason = "the command line is where the clock is read and where a process ends with another's exit status"
)]
pub mod cli;
pub mod config;
pub mod demo;
pub mod distribution;
pub mod drawing;
pub mod drill;
pub mod engine;
pub mod etcd;
pub mod front;
pub mod hetzner;
pub mod journal;
pub mod kube;
pub mod lease;
pub mod machines;
pub mod observe;
pub mod plan;
pub mod ports;
pub mod report;
pub mod runs;
pub mod s3;
pub mod scan;
pub mod secrets;
pub mod serve;
pub mod sign;
pub mod ssh;
pub mod steps;
pub mod terraform;
pub mod volumes;
pub mod vpn;
