//! An etcd of one's own on loopback, without TLS, for tests and measurements.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;

use crate::etcd::EtcdClient;
use crate::ports::{ErrorCode, Etcd, PortError, PortResult};
use crate::s3::versitygw::free_port;

/// Values written in one transaction; etcd takes 128 operations at most.
const FILL_BATCH: usize = 100;

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

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Writes values of which about a quarter is random and the rest compresses like configuration does.
    pub async fn fill(&self, values: usize, value_bytes: usize) -> PortResult<()> {
        let failed = |e: etcd_client::Error| PortError::new(ErrorCode::ServerError, format!("fill etcd: {e}"));
        let client = etcd_client::Client::connect([&self.url], None).await.map_err(failed)?;
        let batches = (0..values).step_by(FILL_BATCH).map(|first| {
            let mut client = client.clone();
            async move {
                let puts: Vec<etcd_client::TxnOp> = (first..values.min(first + FILL_BATCH))
                    .map(|n| etcd_client::TxnOp::put(format!("/registry/bench/{n:08}"), value(n, value_bytes), None))
                    .collect();
                client.txn(etcd_client::Txn::new().and_then(puts)).await
            }
        });
        let mut running = futures::stream::iter(batches).buffer_unordered(4);
        while let Some(done) = running.next().await {
            done.map_err(failed)?;
        }
        Ok(())
    }

    /// A client for it.
    pub async fn client(&self) -> PortResult<EtcdClient> {
        EtcdClient::direct(&[(Self::MEMBER.to_owned(), self.url.clone())], None).await
    }
}

/// A value like Kubernetes stores: words that repeat, with numbers and digests in between.
pub fn value(n: usize, bytes: usize) -> Vec<u8> {
    use rand::{Rng, RngCore, SeedableRng};
    const WORDS: [&[u8]; 8] = [
        b"metadata",
        b"annotations",
        b"kube-system",
        b"containers",
        b"resources",
        b"conditions",
        b"managedFields",
        b"serviceAccount",
    ];
    let mut random = rand::rngs::StdRng::seed_from_u64(n as u64);
    let mut value = Vec::with_capacity(bytes + 64);
    while value.len() < bytes {
        value.extend_from_slice(WORDS[random.random_range(0..WORDS.len())]);
        value.extend_from_slice(WORDS[random.random_range(0..WORDS.len())]);
        let mut digest = [0; 6];
        random.fill_bytes(&mut digest);
        value.extend_from_slice(&digest);
    }
    value.truncate(bytes);
    value
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
