//! The demo: builds a cluster in a lab, uses it, snapshots it, loses all of it, brings it back, and proves that it is the
//! same cluster.
//!
//! What the demo does to the cluster it does with the ordinary commands; what it measures and proves it finds out without
//! them. Half of it runs on the host ([`story`]) and half at the operator's place in the lab (the probes: [`uses`],
//! [`canary`], [`recovery`], [`proofs`]), because no route of the host leads into the lab.
//!
//! Architecture invariant: nothing here prints or reads the environment; all results are values, and every check can fail.

pub mod canary;
pub mod compare;
pub mod disk;
mod error;
pub mod front;
pub mod loss;
pub mod objects;
pub mod proofs;
pub mod recovery;
pub mod report;
pub mod stage;
pub mod story;
pub mod uses;
pub mod web;

use serde::{Deserialize, Serialize};

pub use error::DemoError;

/// Something that was looked at and held, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What must hold, in a few words.
    pub name: String,
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

impl Check {
    /// A check with what was seen.
    pub fn new(name: impl Into<String>, ok: bool, detail: impl Into<String>) -> Self {
        Self { name: name.into(), ok, detail: detail.into() }
    }

    /// A check that ends with an error does not hold.
    pub fn of<E: std::fmt::Display>(name: impl Into<String>, result: Result<(bool, String), E>) -> Self {
        match result {
            Ok((ok, detail)) => Self::new(name, ok, detail),
            Err(error) => Self::new(name, false, format!("could not be checked: {error}")),
        }
    }
}
