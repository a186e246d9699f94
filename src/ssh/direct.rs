use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ports::{ErrorCode, PortError, PortResult, Reach, Stream};

/// Over the network as it is.
pub struct Direct;

#[async_trait]
impl Reach for Direct {
    async fn connect(&self, to: SocketAddr, patience: Duration) -> PortResult<Box<dyn Stream>> {
        let unreachable = |why: String| PortError::new(ErrorCode::Unreachable, format!("{to}: {why}"));
        let socket = match timeout(patience, TcpStream::connect(to)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {patience:?}"))),
        };
        // Requests are small and wait for answers: Nagle's algorithm would delay each of them.
        socket.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
        Ok(Box::new(socket))
    }
}
