//! The status page's own TLS, with certificates of clients where a CA for them is given.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes under way at once, and how long one may take.
const HANDSHAKES: usize = 64;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken, such as when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(500);

/// What the page shows itself with, and whom it knows.
pub struct Tls {
    /// Certificate chain, PEM.
    pub chain: String,
    /// Private key, PEM.
    pub key: SecretString,
    /// CA of those who may come in without a token, PEM.
    pub clients: Option<String>,
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// The other side has shown a certificate of the clients' CA.
    pub certified: bool,
}

/// Takes connections and hands over those whose handshake is done. A client that is slow holds up nobody else.
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    taking: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    /// Begins to take connections.
    ///
    /// # Errors
    /// What is wrong with certificate, key or CA, in a sentence.
    pub fn new(listener: TcpListener, tls: &Tls) -> Result<Self, String> {
        let acceptor = TlsAcceptor::from(Arc::new(config(tls)?));
        let address = listener.local_addr().map_err(|e| format!("the address is not known: {e}"))?;
        let (done, ready) = mpsc::channel(HANDSHAKES);
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        let taking = tokio::spawn(async move {
            while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                let Ok((stream, from)) = listener.accept().await else {
                    sleep(PAUSE).await;
                    continue;
                };
                let (acceptor, done) = (acceptor.clone(), done.clone());
                tokio::spawn(async move {
                    // Whoever speaks no TLS, or shows a certificate of somebody else's, is let go.
                    if let Ok(Ok(stream)) = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                        let _ = done.send((stream, from)).await;
                    }
                    drop(place);
                });
            }
        });
        Ok(Self { address, ready, taking })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.taking.abort();
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(taken) => taken,
            // The task that takes them ends with this value only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        // They were checked in the handshake: what was not of the CA did not get here.
        Self { certified: stream.io().get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty()) }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Self::default()
    }
}

fn config(tls: &Tls) -> Result<ServerConfig, String> {
    let certificates = |pem: &str, what: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| format!("{what} is not PEM: {e}"))?;
        if all.is_empty() { Err(format!("{what} holds no certificate")) } else { Ok(all) }
    };
    let chain = certificates(&tls.chain, "the page's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.expose_secret().as_bytes())
        .map_err(|_| "the page's private key is not PEM".to_owned())?;
    let builder = match &tls.clients {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem, "the clients' CA")? {
                roots.add(certificate).map_err(|e| format!("the clients' CA can't be used: {e}"))?;
            }
            // Without a certificate one gets as far as the probes, and the question for the token.
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
            ServerConfig::builder().with_client_cert_verifier(verifier.map_err(|e| format!("the clients' CA: {e}"))?)
        }
    };
    builder.with_single_cert(chain, key).map_err(|e| format!("the page's certificate and key don't fit: {e}"))
}
