use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use secrecy::ExposeSecret;

use super::connect::SSH_PORT;
use super::{CliError, Context, ExitKind};
use crate::distribution::server_name;
use crate::ports::{Host, PortError};
use crate::steps::ServerOutput;
use crate::vpn::Door;

/// How long the agent keeps the key: enough to log in. It ends with the connection in any case.
const KEY_SECONDS: &str = "60";

/// Log in to a server as root, or run a command there. The server must show the host key that hk-dr gave it.
#[derive(clap::Args)]
pub struct Args {
    /// Its short name (m1) or its full one (demo-m1).
    server: String,
    /// A command instead of a shell; its exit status is passed on.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Connects.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let secrets = super::credentials::load_secrets(context)?;
    let keys = secrets.ssh_private_keys()?;
    let world = &connected.world;
    let host = context.block_on(async {
        let names = [args.server.clone(), server_name(&world.cluster, &args.server)];
        for name in &names {
            if let Some(server) = world.cloud.server_by_name(name).await?.filter(|s| world.owns(&s.labels)) {
                return Ok(ServerOutput::of(&world.cluster, &server)?.host());
            }
        }
        let known = world.cluster.masters.iter().map(|m| m.name.as_str());
        let known = known.chain(world.cluster.workers.iter().map(|w| w.name.as_str()));
        let known: Vec<&str> = known.chain(world.cluster.vpn.iter().map(|v| v.name.as_str())).collect();
        let message = format!("cluster {} has no server {}", world.cluster.name, args.server);
        Err::<Host, CliError>(
            CliError::new(ExitKind::Usage, message).hint(format!("declared are: {}", known.join(", "))),
        )
    })?;
    // The agent's socket: only we may enter the directory, and it goes with this command.
    let dir = tempfile::Builder::new().prefix("hk-dr-ssh-").tempdir().map_err(|e| failed("make a directory", &e))?;
    let socket = dir.path().join("agent");
    let mut agent = Agent::start(&socket)?;
    for key in keys {
        add_key(&socket, key.expose_secret())?;
    }
    let command = args.command.clone();
    let status = context.block_on(async {
        let to = SocketAddr::from((host.address, SSH_PORT));
        let door = match world.cluster.vpn {
            Some(_) => Some(Door::open(Arc::clone(&connected.reach), to).await.map_err(|e| failed("open a port", &e))?),
            None => None,
        };
        let to = door.as_ref().map_or(to, |door| door.local);
        let ended = tokio::task::spawn_blocking(move || connect(&host, to, &socket, &command)).await;
        ended.unwrap_or_else(|e| Err(failed("wait for ssh", &e)))
    });
    agent.end();
    drop(dir);
    let status = status?;
    if status.success() {
        return Ok(());
    }
    // A command's own status is for whoever asked for the command.
    std::process::exit(status.code().unwrap_or(255))
}

/// An ssh-agent of this command's own. The key is in its memory and on no disk.
struct Agent(Child);

impl Agent {
    fn start(socket: &Path) -> Result<Self, CliError> {
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| failed("start ssh-agent (package openssh-client)", &e))?;
        let agent = Self(child);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !socket.exists() {
            if std::time::Instant::now() > end {
                return Err(CliError::new(ExitKind::Failed, "ssh-agent did not open its socket within 5 s"));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(agent)
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

fn add_key(socket: &Path, key: &str) -> Result<(), CliError> {
    let mut add = Command::new("ssh-add")
        .args(["-q", "-t", KEY_SECONDS, "-"])
        .env("SSH_AUTH_SOCK", socket)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start ssh-add (package openssh-client)", &e))?;
    let written = add.stdin.take().map(|mut stdin| stdin.write_all(key.as_bytes()));
    let output = add.wait_with_output().map_err(|e| failed("wait for ssh-add", &e))?;
    if let (Some(Ok(())), true) = (written, output.status.success()) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CliError::new(ExitKind::Failed, format!("ssh-add did not take the cluster's key: {said}")))
}

fn connect(host: &Host, to: SocketAddr, socket: &Path, command: &[String]) -> Result<ExitStatus, CliError> {
    let program = std::env::current_exe().map_err(|e| failed("find this program", &e))?;
    // ssh asks this very program which keys it may believe, and gets the shown one back only if it is the pinned one.
    let known = format!("{} pinned-host-key {} %H %t %K %f", program.display(), host.host_key_sha256);
    let mut ssh = Command::new("ssh");
    ssh.env("SSH_AUTH_SOCK", socket)
        // Nothing of a person's own configuration: another key, another host key, a proxy.
        .args(["-F", "none", "-o", "UserKnownHostsFile=none", "-o", "GlobalKnownHostsFile=none"])
        .args(["-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlgorithms=ssh-ed25519", "-o", "LogLevel=ERROR"])
        .args(["-o", "ConnectTimeout=10", "-o", "PasswordAuthentication=no", "-o", "KbdInteractiveAuthentication=no"])
        .arg("-o")
        .arg(format!("KnownHostsCommand={known}"))
        .args(["-l", "root"]);
    if command.is_empty() {
        ssh.arg("-t");
    }
    ssh.arg("-p").arg(to.port().to_string()).arg(to.ip().to_string()).args(command);
    ssh.status().map_err(|e| failed("start ssh (package openssh-client)", &e))
}

fn failed(doing: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::from(PortError::new(crate::ports::ErrorCode::Local, format!("could not {doing}: {error}")))
}

/// Answers ssh's question about a host key: see [`run`].
#[derive(clap::Args)]
pub struct PinnedArgs {
    pinned: String,
    host: String,
    kind: String,
    key: String,
    fingerprint: String,
}

/// Prints a known_hosts line if the shown key is the pinned one, else nothing.
pub fn pinned(args: &PinnedArgs) -> Result<(), CliError> {
    if args.fingerprint.strip_prefix("SHA256:") == Some(args.pinned.as_str()) {
        println!("{} {} {}", args.host, args.kind, args.key);
    } else if args.key != "NONE" {
        eprintln!("the server shows the host key {}, pinned is SHA256:{}", args.fingerprint, args.pinned);
    }
    Ok(())
}
