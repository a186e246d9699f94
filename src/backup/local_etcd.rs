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

    /// Starts the binary over a data directory, with further options, and waits until it serves. It syncs nothing to the disk.
    pub async fn start(binary: &Path, data: &Path, options: &[&str]) -> PortResult<Self> {
        Self::start_durable(binary, data, &[options, &["--unsafe-no-fsync"]].concat()).await
    }

    /// Starts it as clusters run it: what it acknowledges is on the disk.
    pub async fn start_durable(binary: &Path, data: &Path, options: &[&str]) -> PortResult<Self> {
        let failed = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("start {}: {e}", binary.display()));
        let url = format!("http://{}", free_port().map_err(failed)?);
        let peer = format!("http://{}", free_port().map_err(failed)?);
        let process = Command::new(binary)
            .args(["--name", Self::MEMBER, "--log-level", "error", "--data-dir"])
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

    /// Writes values like Kubernetes' own.
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

/// A value as Kubernetes stores: an object as text with managed fields, names, digests and times of its own, or, one in seven, a
/// Secret encrypted at rest, which no coder makes smaller.
pub fn value(n: usize, bytes: usize) -> Vec<u8> {
    use rand::{Rng, RngCore, SeedableRng};
    const NAMES: [&str; 16] = [
        "frontend", "backend", "payments", "cart", "checkout", "search", "index", "worker", "gateway", "auth",
        "session", "cache", "metrics", "exporter", "ingest", "billing",
    ];
    let mut random = rand::rngs::StdRng::seed_from_u64(n as u64);
    if n % 7 == 3 {
        let mut secret = b"k8s:enc:aescbc:v1:key1:".to_vec();
        secret.resize(bytes, 0);
        random.fill_bytes(&mut secret[23..]);
        return secret;
    }
    let mut text = String::with_capacity(bytes + 1024);
    let name = NAMES[random.random_range(0..NAMES.len())];
    text += &format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}-{:010x}-{:05x}","namespace":"team-{}","uid":"{:032x}","labels":{{"app.kubernetes.io/name":"{name}","app.kubernetes.io/instance":"{name}-prod"}},"annotations":{{"checksum/config":"{:064x}"}}}},"#,
        random.random_range(0..1_u64 << 38),
        random.random_range(0..1_u32 << 20),
        random.random_range(0..40),
        random.random::<u128>(),
        random.random::<u128>(),
    );
    while text.len() < bytes {
        let (name, other) = (NAMES[random.random_range(0..NAMES.len())], NAMES[random.random_range(0..NAMES.len())]);
        text += &format!(
            r#"{{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-{:02}-{:02}T{:02}:{:02}:{:02}Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:checksum/config":{{}}}},"f:generateName":{{}},"f:ownerReferences":{{".":{{}},"k:{{\\"uid\\":\\"{:032x}\\"}}":{{}}}}}},"f:spec":{{"f:containers":{{"k:{{\\"name\\":\\"{name}\\"}}":{{".":{{}},"f:image":{{}},"f:imagePullPolicy":{{}},"f:resources":{{".":{{}},"f:limits":{{".":{{}},"f:memory":{{}}}}}}}}}}}}}},"containers":[{{"name":"{name}","image":"registry.example.com/{other}/{name}:v{}.{}.{}","env":[{{"name":"UPSTREAM","value":"http://{other}.team-{}.svc:8080"}}],"resources":{{"limits":{{"memory":"{}Mi"}},"requests":{{"cpu":"{}m"}}}},"livenessProbe":{{"httpGet":{{"path":"/healthz","port":8080,"scheme":"HTTP"}},"timeoutSeconds":1,"periodSeconds":10,"failureThreshold":3}},"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}}],"status":{{"phase":"Running","podIP":"10.244.{}.{}","containerStatuses":[{{"ready":true,"restartCount":{},"imageID":"registry.example.com/{other}/{name}@sha256:{:064x}","containerID":"containerd://{:064x}"}}]}}"#,
            random.random_range(1..13),
            random.random_range(1..29),
            random.random_range(0..24),
            random.random_range(0..60),
            random.random_range(0..60),
            random.random::<u128>(),
            random.random_range(0..5),
            random.random_range(0..30),
            random.random_range(0..20),
            random.random_range(0..40),
            64 * random.random_range(1..32),
            50 * random.random_range(1..20),
            random.random_range(0..256),
            random.random_range(0..256),
            random.random_range(0..3),
            random.random::<u128>(),
            random.random::<u128>(),
        );
    }
    text.truncate(bytes);
    text.into_bytes()
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
