//! SSH: commands, files and forwarded ports on machines whose host key hk-dr made itself and pins.
//!
//! - `key`: key pairs and fingerprints in OpenSSH's forms.
//! - `connection`: one authenticated connection, its limits, and what its errors mean.
//! - `shell`: [`SshShell`], which shares connections and implements the port.
//! - `put`: files, all in one round trip. `forward`: ports. `dial`: etcd and the Kubernetes API through them.
//! - `start`: commands whose output is followed. `member_file`: this program beside etcd's file.
//!
//! Architecture invariant: no secret and no script is ever part of a remote command line; they travel on standard input.

mod connection;
mod dial;
mod direct;
mod exec;
mod forward;
mod key;
pub mod local_sshd;
mod member_file;
mod put;
mod shell;
mod start;
#[cfg(test)]
mod tests;

pub use dial::SshDialer;
pub use direct::Direct;
pub use key::{KeyPair, fingerprint, keypair, public_key};
pub use member_file::SshMemberFile;
pub use shell::SshShell;
