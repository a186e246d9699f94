//! An sshd of one's own on loopback, for tests and measurements.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use secrecy::ExposeSecret;

use super::{KeyPair, SshShell, keypair};
use crate::ports::{ErrorCode, Host, PortError, PortResult};

const PROGRAM: &str = "/usr/sbin/sshd";

/// A running sshd with keys, configuration and authorized keys of its own; dropping it ends the process.
pub struct LocalSshd {
    child: Child,
    /// Where its files lie.
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub login: KeyPair,
    pub host_key: KeyPair,
}

impl LocalSshd {
    /// Starts one with new keys on a free port. It may take a moment until it answers.
    pub fn start() -> PortResult<Self> {
        Self::start_configured("")
    }

    /// The same with further lines of configuration.
    pub fn start_configured(more: &str) -> PortResult<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let port = free.map_err(|e| failed(&e))?.port();
        Self::begin(port, keypair()?, keypair()?, more)
    }

    /// The same with these keys at this port.
    pub fn start_with(port: u16, login: KeyPair, host_key: KeyPair) -> PortResult<Self> {
        Self::begin(port, login, host_key, "")
    }

    fn begin(port: u16, login: KeyPair, host_key: KeyPair, more: &str) -> PortResult<Self> {
        if !Path::new(PROGRAM).exists() {
            let message = format!("there is no {PROGRAM}: run `make setup`, which installs openssh-server");
            return Err(PortError::new(ErrorCode::Local, message));
        }
        Self::spawn(port, login, host_key, more).map_err(|e| failed(&e))
    }

    fn spawn(port: u16, login: KeyPair, host_key: KeyPair, more: &str) -> io::Result<Self> {
        // sshd refuses to start without it; booting makes it on ordinary machines.
        std::fs::create_dir_all("/run/sshd")?;
        let dir = tempfile::Builder::new().prefix("hk-dr-sshd-").tempdir()?;
        let secret = |name: &str, content: &str| {
            let path = dir.path().join(name);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(content.as_bytes())
        };
        secret("host_key", host_key.private.expose_secret())?;
        secret("authorized_keys", &format!("{}\n", login.public))?;
        let at = dir.path().display();
        // Whatever root's shell here does when it starts, machines' does not.
        secret(
            "config",
            &format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\nAuthorizedKeysFile {at}/authorized_keys\n\
                 SetEnv HOME={at}\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\n\
                 {more}\n"
            ),
        )?;
        let child = Command::new(PROGRAM)
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, dir, port, login, host_key })
    }

    /// A shell that may log in.
    pub fn shell(&self) -> PortResult<SshShell> {
        SshShell::with_port(&self.login.private, self.port)
    }

    /// The machine it is taken for.
    pub fn host(&self) -> Host {
        Host { name: "m1".into(), address: Ipv4Addr::LOCALHOST, host_key_sha256: self.host_key.fingerprint.clone() }
    }

    /// Ends the listener and the processes that serve connections.
    pub fn kill(&mut self) {
        // Each may be gone already.
        if let Ok(children) = Command::new("pgrep").args(["-P", &self.child.id().to_string()]).output() {
            for pid in String::from_utf8_lossy(&children.stdout).lines() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for LocalSshd {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(error: &io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("start {PROGRAM}: {error}"))
}
