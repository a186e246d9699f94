use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::connection::Login;
use super::shell::Slot;
use crate::ports::{ErrorCode, Forward, Host, PortError, PortResult};

/// Most connections through one forwarded port at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 64;
/// Bytes copied at a time, each way.
const COPY_BYTES: usize = 64 << 10;

/// Why the last connection through a forwarded port failed, for whoever sees only that it was closed.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<PortError>>>);

impl Trouble {
    pub(super) fn last(&self) -> Option<PortError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: Option<PortError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// Listens on loopback; each connection comes out at `remote` as seen from the host.
pub(super) async fn listen(login: Arc<Login>, host: Host, remote: SocketAddr) -> PortResult<(Forward, Trouble)> {
    let local = |e: std::io::Error| {
        PortError::new(ErrorCode::Local, format!("could not listen on loopback for a port of {}: {e}", host.name))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(local)?;
    let address = listener.local_addr().map_err(local)?;
    let trouble = Trouble::default();
    let task = tokio::spawn(accept(listener, login, host, remote, trouble.clone()));
    let guard = Box::new(Guard(task.abort_handle()));
    Ok((Forward { local: address, guard }, trouble))
}

/// Ends the listener and, with its task, all its connections.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, login: Arc<Login>, host: Host, remote: SocketAddr, trouble: Trouble) {
    let slot = Arc::new(Slot::default());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Reap what ended, so that the set does not grow.
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of descriptors, or the peer gave up: the next one may succeed.
                trouble.set(Some(PortError::new(ErrorCode::Local, format!("could not accept on loopback: {error}"))));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (login, host, slot, trouble) = (Arc::clone(&login), host.clone(), Arc::clone(&slot), trouble.clone());
        connections.spawn(async move {
            trouble.set(carry(socket, &login, &host, &slot, remote).await.err());
            drop(place);
        });
    }
}

async fn carry(mut socket: TcpStream, login: &Login, host: &Host, slot: &Slot, remote: SocketAddr) -> PortResult<()> {
    let channel = slot
        .open(login, host, |connection| async move { connection.tcp(host, remote).await })
        .await
        .map_err(|error| error.context(format!("forward to {remote}")))?;
    // A failure here only hurries; what is carried arrives in any case.
    let _ = socket.set_nodelay(true);
    let mut stream = channel.into_stream();
    // How a connection ends is for its two ends to judge.
    let _ = copy_bidirectional_with_sizes(&mut socket, &mut stream, COPY_BYTES, COPY_BYTES).await;
    Ok(())
}
