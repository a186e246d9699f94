//! An API server of one's own over a recovered state, on loopback, for as long as something is read from it. Only an API
//! server knows what stored objects mean: most are protobuf, some are encrypted.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use super::local_etcd::LocalEtcd;
use crate::config::Cluster;
use crate::distribution::pki::ClusterSecrets;
use crate::kube::KubeClient;
use crate::ports::{Clock, ErrorCode, Kube, PortError, PortResult};
use crate::s3::versitygw::free_port;

/// How long the API server may take to serve; on a slow machine it takes half a minute.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// How often its log is looked at meanwhile.
const LOG_EVERY: Duration = Duration::from_secs(2);
/// How kube-apiserver says that it can't decrypt what is stored: it never gets ready then.
const UNDECRYPTED: [&str; 2] = ["failed to decrypt", "unable to transform key"];

/// The programs it takes.
pub struct Programs {
    pub etcd: PathBuf,
    pub etcdutl: PathBuf,
    pub apiserver: PathBuf,
}

/// A running API server. When it is dropped, its processes end and its files are removed.
pub struct IsolatedApi {
    pub kube: KubeClient,
    _apiserver: Ended,
    /// Ends with this value.
    pub(super) etcd: LocalEtcd,
    _dir: tempfile::TempDir,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl IsolatedApi {
    /// Serves an etcd snapshot with a cluster's keys. All it writes lies in a directory of its own below `scratch`,
    /// which nobody else can read. Its controllers change only this copy.
    pub async fn start(
        programs: &Programs,
        snapshot: &Path,
        cluster: &Cluster,
        secrets: &ClusterSecrets,
        scratch: &Path,
        clock: &dyn Clock,
    ) -> PortResult<Self> {
        let failed = |doing: &str, e: &dyn std::fmt::Display| {
            PortError::new(ErrorCode::Local, format!("start an API server over the recovered state: {doing}: {e}"))
        };
        let dir = tempfile::Builder::new()
            .prefix("isolated-")
            .tempdir_in(scratch)
            .map_err(|e| failed("make a directory", &e))?;
        let at = |name: &str| dir.path().join(name);
        let restored = Command::new(&programs.etcdutl)
            .args(["snapshot", "restore", "--data-dir"])
            .args([at("etcd").as_path(), snapshot])
            .output()
            .map_err(|e| failed("run etcdutl", &e))?;
        if !restored.status.success() {
            return Err(failed("etcdutl", &String::from_utf8_lossy(&restored.stderr)));
        }
        let etcd = LocalEtcd::start(&programs.etcd, &at("etcd"), &["--force-new-cluster"]).await?;
        let now = clock.now();
        let master = cluster.masters.first().ok_or_else(|| failed("certificates", &"no master is declared"))?;
        let leaves = secrets.issue_master(cluster, master, now).map_err(|e| failed("certificates", &e))?;
        let tls = secrets.kube_client(cluster, now).map_err(|e| failed("certificates", &e))?;
        for (name, content) in [
            ("ca.crt", tls.ca_pem.as_str()),
            ("server.crt", &leaves.apiserver.cert_pem),
            ("server.key", leaves.apiserver.key_pem.expose_secret()),
            ("sa.key", secrets.service_account_key.expose_secret()),
            ("sa.pub", &secrets.service_account_public),
            ("encryption.yaml", secrets.encryption_config.expose_secret()),
        ] {
            let mut options = std::fs::File::options();
            let file = options.write(true).create_new(true).mode(0o600).open(at(name));
            file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|e| failed(name, &e))?;
        }
        let port = free_port().map_err(|e| failed("find a port", &e))?.port();
        let file = |flag: &str, name: &str| format!("--{flag}={}", at(name).display());
        let apiserver = Command::new(&programs.apiserver)
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--authorization-mode=RBAC"])
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--endpoint-reconciler-type=none"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--anonymous-auth=false", "--watch-cache=false"])
            .args([format!("--secure-port={port}"), format!("--etcd-servers={}", etcd.url())])
            .args([file("client-ca-file", "ca.crt"), file("cert-dir", "made")])
            .args([file("tls-cert-file", "server.crt"), file("tls-private-key-file", "server.key")])
            .args([file("service-account-key-file", "sa.pub"), file("service-account-signing-key-file", "sa.key")])
            .arg(file("encryption-provider-config", "encryption.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).map_err(|e| failed("make its log", &e))?)
            .spawn()
            .map_err(|e| failed("run kube-apiserver", &e))?;
        let mut apiserver = Ended(apiserver);
        let kube = KubeClient::direct(&format!("https://127.0.0.1:{port}"), &tls)?;
        let begun = Instant::now();
        let mut log_looked_at = Instant::now();
        while !matches!(kube.ready().await, Ok(true)) {
            if log_looked_at.elapsed() > LOG_EVERY {
                log_looked_at = Instant::now();
                if let Some(line) = undecrypted(&std::fs::read_to_string(at("log")).unwrap_or_default()) {
                    let message = format!("the encryption keys kept with it do not open its secrets: {line}");
                    return Err(PortError::new(ErrorCode::Corrupt, message)
                        .hint("do not restore it: no Secret would be readable; use another snapshot"));
                }
            }
            let ended = apiserver.0.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START_DEADLINE {
                let log = std::fs::read_to_string(at("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(3)..].join("; ");
                return Err(failed("kube-apiserver does not serve", &tail));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Self { kube, _apiserver: apiserver, etcd, _dir: dir })
    }
}

/// The first line that speaks of data which the keys do not open, cut short.
fn undecrypted(log: &str) -> Option<String> {
    let line = log.lines().find(|line| UNDECRYPTED.iter().any(|said| line.contains(said)))?;
    Some(line.chars().take(300).collect())
}
