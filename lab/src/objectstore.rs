//! The lab's S3: versitygw over a directory, supervised. Chosen because its versions, object lock and conditional puts
//! hold (tested), and because it is one static binary.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::error::{Attempt, LabError};
use crate::{fabric, netns};

/// The only region.
pub const REGION: &str = "hel1";
/// From start to the first answer.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// After this many restarts something is wrong that a restart does not heal.
const RESTARTS_MAX: u32 = 20;

/// What the store needs.
#[derive(Clone)]
pub(crate) struct Store {
    pub program: PathBuf,
    /// Its data, below the lab's disks.
    pub dir: PathBuf,
    pub log: PathBuf,
    pub access_key: String,
    pub secret_key: String,
}

impl Store {
    /// Starts it, waits until it answers, and keeps it running from then on.
    pub(crate) async fn start(self) -> Result<(), LabError> {
        for dir in ["data", "versions"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).attempt(|| format!("make {}", dir.display()))?;
        }
        check_attributes(&self.dir)?;
        let mut child = self.spawn()?;
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(LabError::new(format!("versitygw ended at once ({status})"))
                    .hint(format!("its log: {}", self.log.display())));
            }
            let answers = netns::within(fabric::PUBLIC, || {
                TcpStream::connect_timeout(&SocketAddr::V4(fabric::S3), Duration::from_secs(1))
            });
            if answers.is_ok() {
                break;
            }
            if Instant::now() > end {
                return Err(LabError::new("versitygw does not answer after 20 s")
                    .hint(format!("its log: {}", self.log.display())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::spawn(self.keep(child));
        Ok(())
    }

    async fn keep(self, mut child: Child) {
        for _ in 0..RESTARTS_MAX {
            let status = child.wait().await;
            eprintln!("versitygw ended ({status:?}), starting it again");
            tokio::time::sleep(Duration::from_millis(500)).await;
            match self.spawn() {
                Ok(next) => child = next,
                Err(error) => eprintln!("{error}"),
            }
        }
        eprintln!("versitygw ended {RESTARTS_MAX} times: given up");
    }

    fn spawn(&self) -> Result<Child, LabError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .attempt(|| format!("open {}", self.log.display()))?;
        let errors = log.try_clone().attempt(|| "duplicate a log".into())?;
        let mut command = Command::new(&self.program);
        command
            .args(["--port", &fabric::S3.to_string(), "--region", REGION, "--quiet", "posix", "--versioning-dir"])
            .arg(self.dir.join("versions"))
            .arg(self.dir.join("data"))
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("ROOT_ACCESS_KEY_ID", &self.access_key)
            .env("ROOT_SECRET_ACCESS_KEY", &self.secret_key)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true);
        netns::enter_on_spawn(&mut command, fabric::PUBLIC)?;
        command.spawn().attempt(|| format!("start {}", self.program.display()))
    }
}

/// versitygw keeps what it knows about objects in extended attributes: try one where the objects will be.
fn check_attributes(dir: &Path) -> Result<(), LabError> {
    let probe = dir.join(".probe");
    File::create(&probe).attempt(|| format!("make {}", probe.display()))?;
    let path = std::ffi::CString::new(probe.as_os_str().as_encoded_bytes())
        .map_err(|_| LabError::new(format!("{} has a zero byte in its name", probe.display())))?;
    // SAFETY: all pointers are valid for the call; the value's length is given.
    let result = unsafe { libc::setxattr(path.as_ptr(), c"user.hk-dr".as_ptr(), c"x".as_ptr().cast(), 1, 0) };
    let error = std::io::Error::last_os_error();
    fs::remove_file(&probe).attempt(|| format!("remove {}", probe.display()))?;
    if result == 0 {
        return Ok(());
    }
    Err(LabError::new(format!("{} cannot hold extended attributes, which the lab's S3 needs: {error}", dir.display()))
        .hint("choose a state directory (--state) on ext4, XFS or btrfs"))
}

/// Carries connections from the host's loopback to the store. Runs in a thread of its own, in the public network.
pub(crate) fn publish(listener: TcpListener) -> Result<(), LabError> {
    std::thread::Builder::new()
        .name("s3-published".into())
        .spawn(move || {
            if let Err(error) = carry(listener) {
                eprintln!("S3 is no longer published on the host: {error}");
            }
        })
        .attempt(|| "start a thread".into())?;
    Ok(())
}

fn carry(listener: TcpListener) -> std::io::Result<()> {
    nix::sched::setns(File::open(netns::path(fabric::PUBLIC))?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut near, _) = listener.accept().await?;
            tokio::spawn(async move {
                // A refused connection closes the caller's: that is what it means.
                if let Ok(mut far) = tokio::net::TcpStream::connect(fabric::S3).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}
