use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;
use tokio::time::Instant;

use super::connection::{Connection, Login, OpenError, Session, unreachable};
use super::direct::Direct;
use super::exec::{execute, input};
use super::{forward, key, put, start};
use crate::ports::{
    ByteStream, ErrorCode, Forward, Host, Offer, Output, PortError, PortResult, PrintedStream, Reach, RemoteFile, Shell,
};

/// How long a machine may take to answer a TCP connection. Linux repeats a lost first packet after 1 and 3 seconds.
const TCP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long `put_files` may take for all its files.
const PUT_DEADLINE: Duration = Duration::from_secs(60);
/// How long connecting and listening on the machine may take.
const OFFER_DEADLINE: Duration = Duration::from_secs(30);
/// Reads the whole script before it runs any of it, so that a command in it that reads standard input gets nothing
/// instead of the script's rest.
const RUN_COMMAND: &str = r#"s=$(cat) && exec </dev/null && eval "$s""#;

/// [`Shell`] over SSH, as root, with the cluster's key.
///
/// Commands and files of one machine share one connection, which is made when first needed, kept alive, and made anew
/// when it was lost. Every forwarded port, every `feed` and every `start` has a connection of its own, because a slow reader of one
/// channel holds up all channels of its connection.
#[derive(Clone)]
pub struct SshShell {
    pub(super) login: Arc<Login>,
    pool: Arc<Mutex<HashMap<Host, Arc<Slot>>>>,
}

/// A place for one shared connection. Its lock is held while connecting, so that concurrent callers share the attempt.
#[derive(Default)]
pub(super) struct Slot {
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

impl SshShell {
    /// A shell that logs in with this private key (OpenSSH's format, without passphrase). Connects to nothing yet.
    pub fn new(private_key: &SecretString) -> PortResult<Self> {
        Self::with_port(private_key, 22)
    }

    /// Like [`SshShell::new`], for an sshd on another port.
    pub fn with_port(private_key: &SecretString, port: u16) -> PortResult<Self> {
        Self::through(&[private_key], port, Arc::new(Direct))
    }

    /// Like [`SshShell::with_port`], by another way than the network as it is, and with several keys, of which a machine may
    /// accept any.
    pub fn through(private_keys: &[&SecretString], port: u16, reach: Arc<dyn Reach>) -> PortResult<Self> {
        let keys = private_keys.iter().map(|k| Ok(Arc::new(key::private_key(k)?))).collect::<PortResult<_>>()?;
        Ok(Self { login: Arc::new(Login { keys, port, reach }), pool: Arc::default() })
    }

    /// Returns once the machine shows its pinned host key and accepts the login. Until then everything that a booting
    /// server may answer is tried again: nothing, a refused connection, another host key, a refused login.
    async fn knock(&self, host: &Host, deadline: Duration) -> PortResult<()> {
        let end = Instant::now() + deadline;
        let mut pause = Duration::from_millis(50);
        // A first packet that is lost while the machine's interface comes up is repeated by the kernel only after a
        // second; a new attempt finds out sooner. It grows, for machines that are far away.
        let mut patience = Duration::from_millis(500);
        loop {
            let error = match self.shared(host, patience).await {
                Ok((_, true)) => return Ok(()),
                // The machine may have gone without a word since this connection was made: a command tells.
                Ok((_, false)) => match self.run(host, "true", TCP_TIMEOUT).await {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let booting = matches!(
                error.code,
                ErrorCode::Unreachable | ErrorCode::Untrusted | ErrorCode::Unauthorized | ErrorCode::Timeout
            );
            if !booting || Instant::now() + pause >= end {
                return Err(error.context(format!(
                    "{} did not become ready within {} s",
                    host.name,
                    deadline.as_secs()
                )));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 9 / 8).min(Duration::from_millis(500));
            patience = (patience * 3 / 2).min(TCP_TIMEOUT);
        }
    }

    /// The shared connection to a machine, and whether it is a new one.
    async fn shared(&self, host: &Host, tcp_timeout: Duration) -> PortResult<(Arc<Connection>, bool)> {
        self.slot(host).get(&self.login, host, tcp_timeout).await
    }

    fn slot(&self, host: &Host) -> Arc<Slot> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = pool.get(host) {
            return Arc::clone(slot);
        }
        // The address belongs to a new machine: what was connected to the old one is of no use.
        pool.retain(|other, _| other.address != host.address);
        Arc::clone(pool.entry(host.clone()).or_default())
    }

    async fn session(&self, host: &Host) -> PortResult<Session> {
        self.slot(host).open(&self.login, host, |connection| async move { connection.session(host).await }).await
    }

    /// A connection of its own, and a channel for one command.
    async fn apart(&self, host: &Host) -> PortResult<(Connection, Session)> {
        let connection = Connection::open(&self.login, host, TCP_TIMEOUT).await?;
        match connection.session(host).await {
            Ok(session) => Ok((connection, session)),
            Err(OpenError::Refused(error)) => Err(error),
            Err(OpenError::Lost) => Err(unreachable(format!("the connection to {} was lost at once", host.name))),
        }
    }

    /// Forwards a port without connecting to the machine before the first connection to the local port.
    pub(super) async fn forward_lazily(
        &self,
        host: &Host,
        remote: SocketAddr,
    ) -> PortResult<(Forward, forward::Trouble)> {
        forward::listen(Arc::clone(&self.login), host.clone(), remote).await
    }
}

impl Slot {
    /// The connection, made now if there is none that lives, and whether it is a new one.
    async fn get(&self, login: &Login, host: &Host, tcp_timeout: Duration) -> PortResult<(Arc<Connection>, bool)> {
        let mut place = self.connection.lock().await;
        if let Some(connection) = place.as_ref().filter(|c| !c.is_closed()) {
            return Ok((Arc::clone(connection), false));
        }
        *place = None;
        let connection = Arc::new(Connection::open(login, host, tcp_timeout).await?);
        *place = Some(Arc::clone(&connection));
        Ok((connection, true))
    }

    /// Opens a channel. A kept connection that turns out to be dead is replaced once: nothing was sent over it yet.
    pub(super) async fn open<T, F>(
        &self,
        login: &Login,
        host: &Host,
        open: impl Fn(Arc<Connection>) -> F,
    ) -> PortResult<T>
    where
        F: Future<Output = Result<T, OpenError>>,
    {
        loop {
            let (connection, fresh) = self.get(login, host, TCP_TIMEOUT).await?;
            match open(Arc::clone(&connection)).await {
                Ok(channel) => return Ok(channel),
                Err(OpenError::Refused(error)) => return Err(error),
                Err(OpenError::Lost) => {
                    self.discard(&connection).await;
                    if fresh {
                        return Err(unreachable(format!(
                            "the connection to {} ({}) was lost before anything was sent",
                            host.name, host.address
                        )));
                    }
                }
            }
        }
    }

    async fn discard(&self, dead: &Arc<Connection>) {
        let mut place = self.connection.lock().await;
        if place.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, dead)) {
            *place = None;
        }
    }
}

/// Bounds connecting, waiting for a free place and running together.
async fn within<T>(host: &Host, deadline: Duration, work: impl Future<Output = PortResult<T>>) -> PortResult<T> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(PortError::new(
            ErrorCode::Timeout,
            format!("{} ({}) did not answer within {} s", host.name, host.address, deadline.as_secs_f32()),
        )),
    }
}

#[async_trait]
impl Shell for SshShell {
    async fn wait_ready(&self, host: &Host, deadline: Duration) -> PortResult<()> {
        within(host, deadline + TCP_TIMEOUT, self.knock(host, deadline)).await
    }

    async fn run(&self, host: &Host, script: &str, deadline: Duration) -> PortResult<Output> {
        let start = Instant::now();
        let session = within(host, deadline, self.session(host)).await?;
        let script = input(script.as_bytes().to_vec());
        execute(session, host, RUN_COMMAND, script, deadline.saturating_sub(start.elapsed())).await
    }

    async fn put_files(&self, host: &Host, files: &[RemoteFile]) -> PortResult<()> {
        if files.is_empty() {
            return Ok(());
        }
        let request = put::Request::new(files)?;
        let session = within(host, PUT_DEADLINE, self.session(host)).await?;
        let output = execute(session, host, &request.command(), request.into_input(), PUT_DEADLINE).await?;
        put::check(host, &output)
    }

    async fn feed(&self, host: &Host, command: &str, data: ByteStream, deadline: Duration) -> PortResult<Output> {
        let start = Instant::now();
        // The connection must live until the command has ended.
        let (_connection, session) = within(host, deadline, self.apart(host)).await?;
        execute(session, host, command, data, deadline.saturating_sub(start.elapsed())).await
    }

    async fn start(&self, host: &Host, command: &str, data: Bytes, deadline: Duration) -> PortResult<PrintedStream> {
        let start = Instant::now();
        let (connection, session) = within(host, deadline, self.apart(host)).await?;
        start::start(connection, session, host, command, data, deadline.saturating_sub(start.elapsed())).await
    }

    async fn accepts(&self, host: &Host, public_key: &str) -> PortResult<bool> {
        let wanted = key::fingerprint(public_key)?;
        let key = self.login.keys.iter().find(|k| key::of_key(k.public_key()) == wanted).ok_or_else(|| {
            let message = format!("the private part of the SSH key SHA256:{wanted} is not at hand");
            PortError::new(ErrorCode::Invalid, message).hint("it is in secrets.yaml.age until its rotation has ended")
        })?;
        let login = Login { keys: vec![Arc::clone(key)], port: self.login.port, reach: Arc::clone(&self.login.reach) };
        match Connection::open(&login, host, TCP_TIMEOUT).await {
            Ok(_) => Ok(true),
            Err(error) if error.code == ErrorCode::Unauthorized => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn offer(&self, host: &Host, local: SocketAddr) -> PortResult<Offer> {
        let open = async {
            let connection = Connection::open_offering(&self.login, host, TCP_TIMEOUT, Some(local)).await?;
            let port = connection.listen(host).await?;
            Ok(Offer { port, guard: Box::new(connection) })
        };
        within(host, OFFER_DEADLINE, open).await
    }

    fn forget(&self, host: &Host) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    async fn forward(&self, host: &Host, remote: SocketAddr) -> PortResult<Forward> {
        // Connect first, so that a machine that is down or not the pinned one is reported here and by its name.
        self.shared(host, TCP_TIMEOUT).await?;
        Ok(self.forward_lazily(host, remote).await?.0)
    }
}
