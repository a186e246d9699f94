//! An etcd of one's own on loopback, without TLS, for tests and measurements.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::etcd::EtcdClient;
use crate::ports::{ErrorCode, Etcd, PortError, PortResult};
use crate::s3::versitygw::free_port;

/// How long the server may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running single-member etcd; dropping it ends the process.
pub struct LocalEtcd {
    process: Child,
    url: String,
}

impl LocalEtcd {
    /// The only member's name.
    pub const MEMBER: &'static str = "local";

    /// Starts the binary over a data directory, with further options, and waits until it serves.
    pub async fn start(binary: &Path, data: &Path, options: &[&str]) -> PortResult<Self> {
        let failed = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("start {}: {e}", binary.display()));
        let url = format!("http://{}", free_port().map_err(failed)?);
        let peer = format!("http://{}", free_port().map_err(failed)?);
        let process = Command::new(binary)
            .args(["--name", Self::MEMBER, "--log-level", "error", "--unsafe-no-fsync", "--data-dir"])
            .arg(data)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("{}={peer}", Self::MEMBER)])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut server = Self { process, url };
        let begun = Instant::now();
        let client = server.client().await?;
        while client.get(Self::MEMBER, b"ready?").await.is_err() {
            let ended = server.process.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START_DEADLINE {
                let message = format!("{} does not serve on {} (ended: {ended:?})", binary.display(), server.url);
                return Err(PortError::new(ErrorCode::Local, message));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// Where clients connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client for it.
    pub async fn client(&self) -> PortResult<EtcdClient> {
        EtcdClient::direct(&[(Self::MEMBER.to_owned(), self.url.clone())], None).await
    }
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
