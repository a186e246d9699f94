//! The Kubernetes API, by untyped objects.
//!
//! Architecture invariant: no kind is interpreted here, nothing is retried here, and every call has a deadline.

mod client;
mod error;
#[cfg(test)]
pub(crate) mod tests;

pub use client::KubeClient;
