//! etcd over gRPC, member by member: status, hashes, snapshots, paged reads at one revision.
//!
//! - `client`: [`EtcdClient`], which implements the port.
//! - `snapshot`: a member's file as a stream, over a connection of its own.
//! - `watch`: all changes from a revision on.
//! - `error`: what etcd's and gRPC's codes mean here.
//!
//! Architecture invariant: every call names the member it goes to and has a deadline; nothing is balanced or retried here.

mod client;
mod error;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub use client::EtcdClient;
