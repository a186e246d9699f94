use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::ports::Reach;

/// How long the other side may take to take a connection.
const PATIENCE: Duration = Duration::from_secs(8);
/// Connections through one door at a time.
const CONNECTIONS_MAX: usize = 64;

/// A port on loopback that comes out somewhere else, for programs that know nothing of hk-dr's way.
pub struct Door {
    /// Where to connect.
    pub local: SocketAddr,
    task: AbortHandle,
}

impl Door {
    /// Opens it; it closes, with all that goes through it, when it is dropped.
    ///
    /// # Errors
    /// When loopback has no port.
    pub async fn open(reach: Arc<dyn Reach>, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let local = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                if connections.len() >= CONNECTIONS_MAX {
                    connections.join_next().await;
                }
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let reach = Arc::clone(&reach);
                connections.spawn(async move {
                    // A failure here only hurries.
                    let _ = socket.set_nodelay(true);
                    // Whoever connected sees that it was closed, and says so.
                    let Ok(mut far) = reach.connect(to, PATIENCE).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut socket, &mut far).await;
                });
            }
        });
        Ok(Self { local, task: task.abort_handle() })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}
