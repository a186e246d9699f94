//! An S3 server of one's own on loopback, for tests and measurements: versitygw over a temporary directory.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::SecretString;

use super::S3Config;
use crate::ports::{ErrorCode, PortError, PortResult};

/// How long the server may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// The root credential of these servers, which live on loopback for the length of a test.
const ACCESS_KEY: &str = "test";
const SECRET_KEY: &str = "test-secret";

/// A running versitygw; dropping it ends the process.
pub struct VersityGw {
    process: Child,
    endpoint: String,
}

impl VersityGw {
    /// Starts the binary over two directories below `dir`, on a free loopback port, and waits until it listens.
    #[expect(clippy::disallowed_methods, reason = "for tests and measurements, outside any runtime")]
    pub fn start(binary: &Path, dir: &Path) -> PortResult<Self> {
        let (data, versions, users) = (dir.join("data"), dir.join("versions"), dir.join("users"));
        for path in [&data, &versions, &users] {
            std::fs::create_dir_all(path).map_err(|e| failed(binary, &e))?;
        }
        let address = free_port().map_err(|e| failed(binary, &e))?;
        let process = Command::new(binary)
            .args(["--quiet", "--keep-alive", "--port"])
            .arg(address.to_string())
            .arg("--iam-dir")
            .arg(users)
            .args(["posix", "--versioning-dir"])
            .arg(versions)
            .arg(data)
            .env("ROOT_ACCESS_KEY_ID", ACCESS_KEY)
            .env("ROOT_SECRET_ACCESS_KEY", SECRET_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(binary, &e))?;
        let mut server = Self { process, endpoint: format!("http://{address}") };
        let begun = Instant::now();
        while std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            let ended = server.process.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START_DEADLINE {
                let message = format!("{} does not listen on {address} (ended: {ended:?})", binary.display());
                return Err(PortError::new(ErrorCode::Local, message));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// A configuration for a bucket on this server, with its root credential.
    pub fn config(&self, bucket: &str) -> S3Config {
        config_for(&self.endpoint, bucket)
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for VersityGw {
    fn drop(&mut self) {
        // The process may be gone already; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A configuration for a bucket on a server that [`VersityGw::start`] started, perhaps in another process.
pub fn config_for(endpoint: &str, bucket: &str) -> S3Config {
    S3Config {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        bucket: bucket.to_owned(),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SecretString::from(SECRET_KEY),
        lock: None,
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Finds a pinned binary: `artifacts/<name>-<version>` below `HK_DR_CACHE`, or below the workspace's `.cache`.
pub fn pinned_binary(cache: Option<&Path>, name_and_version: &str) -> PortResult<PathBuf> {
    let base = cache.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), Path::to_owned);
    let path = base.join("artifacts").join(name_and_version);
    if path.is_file() {
        return Ok(path);
    }
    Err(PortError::new(ErrorCode::NotFound, format!("{} is not there", path.display()))
        .hint("`make artifacts` obtains the pinned binaries; HK_DR_CACHE says where they are"))
}

fn failed(binary: &Path, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("start {}: {error}", binary.display()))
}
