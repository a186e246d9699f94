use std::net::Ipv4Addr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ByteStream, PortResult};

/// A machine to talk to, and the host key it must show.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Host {
    /// The server's name, for messages.
    pub name: String,
    /// The address to connect to.
    pub address: Ipv4Addr,
    /// SHA-256 fingerprint of the pinned host key, base64 without padding, as `ssh-keygen -l` prints behind `SHA256:`.
    pub host_key_sha256: String,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub status: i32,
    /// At most 4 MiB; more is an error.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// What a command prints while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Printed {
    /// Bytes of its standard output, in order.
    Data(Bytes),
    /// A line of its standard error, without its end.
    Line(String),
}

/// What a command prints, as it comes. Ends without an error only if the command ended with status 0; dropping it closes the
/// command's output.
pub type PrintedStream = std::pin::Pin<Box<dyn futures::Stream<Item = PortResult<Printed>> + Send>>;

/// A file to be put on a machine.
#[derive(Clone)]
pub struct RemoteFile {
    pub path: String,
    /// Unix mode; the file has it from its creation.
    pub mode: u32,
    pub content: zeroize::Zeroizing<Vec<u8>>,
}

/// Commands and files on machines. Connections are kept and shared; a lost one is made anew for the next call.
#[async_trait]
pub trait Shell: Send + Sync {
    /// Returns once a machine that may still be booting shows its pinned host key and accepts the login. Until then
    /// `Untrusted`, `Unreachable` and `Unauthorized` mean "not yet"; after the deadline the last of them is returned.
    async fn wait_ready(&self, host: &Host, deadline: Duration) -> PortResult<()>;
    /// Runs a POSIX shell script (sent on standard input, so nothing of it shows in a process list) and returns its
    /// output whatever its exit status.
    async fn run(&self, host: &Host, script: &str, deadline: Duration) -> PortResult<Output>;
    /// Writes files atomically (temporary name, fsync, rename), making parent directories (0755) where needed.
    async fn put_files(&self, host: &Host, files: &[RemoteFile]) -> PortResult<()>;
    /// Feeds a stream to the standard input of a command.
    async fn feed(&self, host: &Host, command: &str, input: ByteStream, deadline: Duration) -> PortResult<Output>;
    /// Starts a command, hands it `input` on standard input, and hands on what it prints while it runs. What is not read stays
    /// with the command.
    async fn start(&self, host: &Host, _: &str, _: Bytes, _: Duration) -> PortResult<PrintedStream> {
        let message = format!("the output of commands on {} cannot be followed this way", host.name);
        Err(super::PortError::new(super::ErrorCode::Invalid, message))
    }
    /// Whether a new login with exactly this key, of those at hand, is accepted.
    async fn accepts(&self, host: &Host, public_key: &str) -> PortResult<bool>;
    /// Lets what listens at `local`, here, be reached at a port of the host's own loopback. Lives as long as the value.
    async fn offer(&self, host: &Host, _: std::net::SocketAddr) -> PortResult<Offer> {
        let message = format!("nothing can be offered to {} this way", host.name);
        Err(super::PortError::new(super::ErrorCode::Invalid, message))
    }
    /// Lets go of kept connections to this machine.
    fn forget(&self, _: &Host) {}
    /// A local address whose connections come out at `remote` as seen from the host. Lives as long as the value.
    async fn forward(&self, host: &Host, remote: std::net::SocketAddr) -> PortResult<Forward>;
}

/// A forwarded port; dropping it closes the listener.
pub struct Forward {
    /// Where to connect, on loopback.
    pub local: std::net::SocketAddr,
    /// Keeps the listener alive.
    pub guard: Box<dyn std::any::Any + Send + Sync>,
}

/// Something of ours that can be reached from a host; dropping it ends that.
pub struct Offer {
    /// The port on the host's loopback.
    pub port: u16,
    /// Keeps it reachable.
    pub guard: Box<dyn std::any::Any + Send + Sync>,
}
