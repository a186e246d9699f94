//! Serves a router over HTTP.
//!
//! A crate of its own because a server's machinery is generic: it is compiled where it is used, with the options of that
//! crate. This small one is optimised in every profile, as libraries are, and costs seconds; the whole lab would cost minutes.

use std::net::SocketAddr;

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

/// Serves until the listener fails. Handlers may ask for the client's address (`ConnectInfo<SocketAddr>`).
///
/// # Errors
/// The listener fails in a way that another attempt does not mend.
pub async fn serve(listener: TcpListener, router: Router) -> std::io::Result<()> {
    // An answer of several packets must not wait until the client has acknowledged the first. Who is gone needs none.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}
