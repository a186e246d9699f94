use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelOpenFailure, MethodSet, Preferred, cipher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::key;
use crate::ports::{ErrorCode, Host, PortError, PortResult, Reach};

/// How long the version exchange, key exchange and authentication may take together once TCP is connected.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the other side may take to accept a channel. Longer means a dead connection that nobody noticed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a session that was refused is asked for again.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// sshd's `MaxSessions` is 10 unless configured; stay below, so that it never refuses.
const SESSIONS_MAX: usize = 8;
/// Silence after which the other side is asked whether it lives; after three unanswered questions it is dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// One authenticated connection to a machine that showed the pinned host key. Dropping it disconnects.
pub(super) struct Connection {
    handle: Handle<Pinned>,
    sessions: Arc<Semaphore>,
}

/// Where to connect and as whom.
pub(super) struct Login {
    /// Tried in this order: there are two while one takes the other's place.
    pub(super) keys: Vec<Arc<PrivateKey>>,
    pub(super) port: u16,
    pub(super) reach: Arc<dyn Reach>,
}

impl Connection {
    /// Connects, checks the host key against the pin, and authenticates as root.
    pub(super) async fn open(login: &Login, host: &Host, tcp_timeout: Duration) -> PortResult<Self> {
        Self::open_offering(login, host, tcp_timeout, None).await
    }

    /// The same; connections that come in through the machine go on to `offered`.
    pub(super) async fn open_offering(
        login: &Login,
        host: &Host,
        tcp_timeout: Duration,
        offered: Option<SocketAddr>,
    ) -> PortResult<Self> {
        let doing = || format!("connect to {} ({}) by SSH", host.name, host.address);
        let to = (host.address, login.port).into();
        let socket = login.reach.connect(to, tcp_timeout).await.map_err(|e| e.context(doing()))?;
        let seen = Arc::new(OnceLock::new());
        let pinned = Pinned { expected: host.host_key_sha256.clone(), seen: Arc::clone(&seen), offered };
        let handshake = async {
            let mut handle = client::connect_stream(config(), socket, pinned).await?;
            let mut auth = AuthResult::Failure { remaining_methods: MethodSet::empty(), partial_success: false };
            for key in &login.keys {
                let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
                auth = handle.authenticate_publickey("root", key).await?;
                if auth.success() {
                    break;
                }
            }
            Ok::<_, russh::Error>((handle, auth))
        };
        let (handle, auth) = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(handshake_error(host, &error, seen.get()).context(doing())),
            Err(_) => return Err(unreachable(format!("{}: no handshake within {HANDSHAKE_TIMEOUT:?}", doing()))),
        };
        if let AuthResult::Failure { .. } = auth {
            return Err(PortError::new(
                ErrorCode::Unauthorized,
                format!("{}: root's login with the cluster's SSH key was refused", doing()),
            )
            .hint("the server must have been created with the key that is in secrets.yaml.age"));
        }
        Ok(Self { handle, sessions: Arc::new(Semaphore::new(SESSIONS_MAX)) })
    }

    /// Has the machine listen at a port of its loopback, and returns which.
    pub(super) async fn listen(&self, host: &Host) -> PortResult<u16> {
        let refused = |why: String| {
            PortError::new(ErrorCode::Forbidden, format!("{}: sshd does not listen for us ({why})", host.name))
                .hint("AllowTcpForwarding in its sshd_config must be `yes` or `remote`")
        };
        match timeout(OPEN_TIMEOUT, self.handle.tcpip_forward("127.0.0.1", 0)).await {
            Ok(Ok(port)) => u16::try_from(port).map_err(|_| refused(format!("port {port}"))),
            Ok(Err(e)) => Err(refused(e.to_string())),
            Err(_) => Err(unreachable(format!("{} did not answer within {OPEN_TIMEOUT:?}", host.name))),
        }
    }

    /// Whether the connection is known to have ended.
    pub(super) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Opens a channel for one command; waits while the most that are allowed are open.
    pub(super) async fn session(&self, host: &Host) -> Result<Session, OpenError> {
        let permit = Arc::clone(&self.sessions).acquire_owned().await.map_err(|_| OpenError::Lost)?;
        let end = Instant::now() + OPEN_TIMEOUT;
        loop {
            match timeout_at(end, self.handle.channel_open_session()).await {
                Ok(Ok(channel)) => return Ok(Session { channel, permit }),
                // sshd counts a session until its process is reaped, a little longer than we do, and calls that a failed connection.
                Ok(Err(russh::Error::ChannelOpenFailure(
                    ChannelOpenFailure::ConnectFailed | ChannelOpenFailure::ResourceShortage,
                ))) if Instant::now() + REFUSED_PAUSE < end => sleep(REFUSED_PAUSE).await,
                Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                    return Err(OpenError::Refused(no_session(host, reason)));
                }
                Ok(Err(_)) | Err(_) => return Err(OpenError::Lost),
            }
        }
    }

    /// Opens a TCP connection from the machine to `remote`.
    pub(super) async fn tcp(&self, host: &Host, remote: SocketAddr) -> Result<Channel<client::Msg>, OpenError> {
        let open = self.handle.channel_open_direct_tcpip(remote.ip().to_string(), remote.port().into(), "127.0.0.1", 0);
        self.opened(host, open).await
    }

    async fn opened(
        &self,
        host: &Host,
        open: impl Future<Output = Result<Channel<client::Msg>, russh::Error>>,
    ) -> Result<Channel<client::Msg>, OpenError> {
        match timeout(OPEN_TIMEOUT, open).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(OpenError::Refused(refused(host, reason))),
            Ok(Err(_)) | Err(_) => Err(OpenError::Lost),
        }
    }
}

/// A channel on which one command runs.
pub(super) struct Session {
    pub(super) channel: Channel<client::Msg>,
    /// Frees the connection's place for another command.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Why no channel was opened.
pub(super) enum OpenError {
    /// The connection is dead. Nothing was started: a new connection may be tried.
    Lost,
    /// The other side lives and says no.
    Refused(PortError),
}

fn no_session(host: &Host, reason: ChannelOpenFailure) -> PortError {
    let message = format!("{}: sshd opens no session for a command ({reason:?})", host.name);
    PortError::new(ErrorCode::ServerError, message)
        .hint("nothing was started there; if this stays, MaxSessions in its sshd_config must be 10 or more")
}

fn refused(host: &Host, reason: ChannelOpenFailure) -> PortError {
    match reason {
        ChannelOpenFailure::ConnectFailed => {
            PortError::new(ErrorCode::Unreachable, format!("{}: nothing listens at the forwarded address", host.name))
        }
        ChannelOpenFailure::ResourceShortage => {
            PortError::new(ErrorCode::ServerError, format!("{}: sshd is short of resources", host.name))
        }
        other => PortError::new(ErrorCode::Forbidden, format!("{}: sshd refused a channel ({other:?})", host.name)),
    }
}

pub(super) fn unreachable(message: String) -> PortError {
    PortError::new(ErrorCode::Unreachable, message)
}

fn handshake_error(host: &Host, error: &russh::Error, seen: Option<&String>) -> PortError {
    if let Some(seen) = seen.filter(|s| **s != host.host_key_sha256) {
        return PortError::new(
            ErrorCode::Untrusted,
            format!("it shows the host key SHA256:{seen}, pinned is SHA256:{}", host.host_key_sha256),
        )
        .hint(
            "a fresh server shows another key until its first boot is done; if this stays, someone else answers there",
        );
    }
    unreachable(error.to_string())
}

fn config() -> Arc<client::Config> {
    static CONFIG: OnceLock<Arc<client::Config>> = OnceLock::new();
    let make = || {
        Arc::new(client::Config {
            // AES-GCM first: it runs in hardware on every server, four times as fast as ChaCha20 there.
            preferred: Preferred {
                cipher: Cow::Borrowed(&[
                    cipher::AES_128_GCM,
                    cipher::AES_256_GCM,
                    cipher::CHACHA20_POLY1305,
                    cipher::AES_256_CTR,
                ]),
                compression: Cow::Borrowed(&[russh::compression::NONE]),
                ..Preferred::DEFAULT
            },
            // What may be under way towards us: enough for 1 Gbit/s at 100 ms.
            window_size: 16 << 20,
            // Received and not yet consumed, in packets of 32 KiB: 2 MiB a channel at most.
            channel_buffer_size: 64,
            keepalive_interval: Some(KEEPALIVE_INTERVAL),
            keepalive_max: 3,
            nodelay: true,
            ..client::Config::default()
        })
    };
    Arc::clone(CONFIG.get_or_init(make))
}

/// Accepts one host key and remembers which one was shown.
pub(super) struct Pinned {
    expected: String,
    seen: Arc<OnceLock<String>>,
    /// Where connections go that come in through the machine; none: they are refused.
    offered: Option<SocketAddr>,
}

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let shown = key::of_key(key);
        let trusted = shown == self.expected;
        // A rekey shows the key again; the first one is what a person wants to know.
        let _ = self.seen.set(shown);
        Ok(trusted)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let Some(offered) = self.offered else { return Ok(()) };
        reply.accept().await;
        // Ends with its connections: the machine's when this connection does, ours when what is offered does.
        tokio::spawn(async move {
            if let Ok(mut socket) = tokio::net::TcpStream::connect(offered).await {
                let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut socket).await;
            }
        });
        Ok(())
    }
}
