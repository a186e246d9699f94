use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::PortResult;

/// A byte stream to somewhere.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The way to machines: over the network as it is, or through a tunnel.
#[async_trait]
pub trait Reach: Send + Sync {
    /// Opens a TCP connection. `Unreachable` if there is none within `patience`.
    async fn connect(&self, to: SocketAddr, patience: Duration) -> PortResult<Box<dyn Stream>>;
}
