//! What the lab's bench does at the operator's desk: it orders servers and waits for their sshd, and it reads the cloud's
//! API. One process for all of it: a loop of shells would take more of the processors than the machines that boot.

use std::time::{Duration, Instant};

use clap::Subcommand;
use futures::future::try_join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::failed;
use crate::cli::{CliError, Context, ExitKind};

/// Between two knocks at a server's door, so that a figure is late by no more.
const KNOCK: Duration = Duration::from_millis(20);
/// A knock without an answer. The kernel repeats a lost one after a second.
const KNOCK_PATIENCE: Duration = Duration::from_secs(3);
/// All that is waited for, as a whole.
const DEADLINE: Duration = Duration::from_secs(120);
/// Of one answer of the API.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// No answer is longer: fifty servers are some 150 kB.
const ANSWER_MAX: usize = 4 << 20;
/// Nobody has its other half. Who orders a server without a key gets a password, which takes the machine's time to hash.
const KEY_NAME: &str = "bench";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGpoUF6pdYM9neIeq9WKjVihoVvmBDF/ln9CZnFIZnWu";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Orders servers at once; ends when each has shown its SSH banner.
    Order { count: u32, prefix: String },
    /// Reads from so many connections that stay open, as fast as answers come.
    Read { connections: u32, requests: u32 },
}

/// How long reading took, as printed for the bench.
#[derive(Serialize)]
struct Reads {
    seconds: f64,
    p99_ms: f64,
}

/// Runs a task and prints what it measured as JSON.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let cloud = Cloud::of_environment()?;
    let work = async {
        match &args.task {
            Task::Order { count, prefix } => cloud.order(*count, prefix).await.map(|seconds| json!(seconds)),
            Task::Read { connections, requests } => cloud.read(*connections, *requests).await.map(|reads| json!(reads)),
        }
    };
    let measured = context.block_on(async { timeout(DEADLINE, work).await });
    let late = || failed(format!("not done within {} s", DEADLINE.as_secs()));
    println!("{}", measured.map_err(|_| late())??);
    Ok(())
}

/// The lab's API as a client finds it.
struct Cloud {
    /// Address and port.
    host: String,
    /// Before each path.
    base: String,
    token: String,
}

impl Cloud {
    fn of_environment() -> Result<Self, CliError> {
        let variable = |name: &str| {
            std::env::var(name)
                .map_err(|_| CliError::new(ExitKind::Usage, format!("{name} is not set: run this in a lab")))
        };
        let (endpoint, token) = (variable("HCLOUD_ENDPOINT")?, variable("HCLOUD_TOKEN")?);
        let address =
            endpoint.strip_prefix("http://").ok_or_else(|| failed(format!("{endpoint} is not plain HTTP")))?;
        let (host, path) = address.split_once('/').unwrap_or((address, ""));
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host, base: format!("/{path}"), token })
    }

    async fn connect(&self) -> Result<Connection<'_>, CliError> {
        let stream = TcpStream::connect(&self.host).await.map_err(|e| failed(format!("connect to the API: {e}")))?;
        stream.set_nodelay(true).map_err(|e| failed(format!("connect to the API: {e}")))?;
        Ok(Connection { cloud: self, stream: BufReader::new(stream) })
    }

    /// Seconds from the first order to the last banner.
    async fn order(&self, count: u32, prefix: &str) -> Result<f64, CliError> {
        // There from an earlier order is as good.
        self.connect()
            .await?
            .send("POST", "/ssh_keys", &json!({"name": KEY_NAME, "public_key": KEY}).to_string())
            .await?;
        let begun = Instant::now();
        try_join_all((1..=count).map(|n| self.order_one(format!("{prefix}-{n}")))).await?;
        Ok(begun.elapsed().as_secs_f64())
    }

    async fn order_one(&self, name: String) -> Result<(), CliError> {
        let wish = json!({
            "name": name, "server_type": "cx23", "image": "debian-12", "location": "fsn1", "ssh_keys": [KEY_NAME],
        });
        let made = self.connect().await?.json("POST", "/servers", &wish.to_string()).await?;
        let address = made["server"]["public_net"]["ipv4"]["ip"].as_str();
        let address = address.ok_or_else(|| failed(format!("{name} has no address")))?;
        while !shows_banner(address).await {
            sleep(KNOCK).await;
        }
        Ok(())
    }

    /// What a controller that looks after a cluster asks for, again and again.
    async fn read(&self, connections: u32, requests: u32) -> Result<Reads, CliError> {
        let servers = self.connect().await?.json("GET", "/servers?per_page=50", "").await?;
        let servers = servers["servers"].as_array().cloned().unwrap_or_default();
        let field = |server: &Value, name: &str| server[name].to_string().trim_matches('"').to_owned();
        let mut paths = Vec::new();
        for server in &servers {
            let (id, name) = (field(server, "id"), field(server, "name"));
            paths.extend([
                format!("/servers/{id}"),
                "/servers?per_page=50".to_owned(),
                format!("/servers?name={name}"),
                "/volumes".to_owned(),
                format!("/servers/{id}/actions"),
                "/networks".to_owned(),
                "/primary_ips".to_owned(),
                "/locations".to_owned(),
            ]);
        }
        if paths.is_empty() {
            return Err(failed("there are no servers to be read".to_owned()));
        }
        let each = requests / connections.max(1);
        let begun = Instant::now();
        let took = try_join_all((0..connections).map(|n| self.read_some(&paths, (n * each) as usize, each))).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut took: Vec<Duration> = took.into_iter().flatten().collect();
        took.sort_unstable();
        let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
        Ok(Reads { seconds, p99_ms: p99.as_secs_f64() * 1e3 })
    }

    /// Reads one path after the other, beginning with the one at `from`; how long each took.
    async fn read_some(&self, paths: &[String], from: usize, count: u32) -> Result<Vec<Duration>, CliError> {
        let mut connection = self.connect().await?;
        let mut took = Vec::new();
        for path in paths.iter().cycle().skip(from % paths.len()).take(count as usize) {
            let begun = Instant::now();
            let (status, _) = connection.send("GET", path, "").await?;
            took.push(begun.elapsed());
            if status != 200 {
                return Err(failed(format!("GET {path} was answered with {status}")));
            }
        }
        Ok(took)
    }
}

/// A connection that stays open. The least that speaks HTTP/1.1, so that the client's own work hardly counts.
struct Connection<'a> {
    cloud: &'a Cloud,
    stream: BufReader<TcpStream>,
}

impl Connection<'_> {
    async fn json(&mut self, method: &str, path: &str, body: &str) -> Result<Value, CliError> {
        let (status, answer) = self.send(method, path, body).await?;
        if !(200..300).contains(&status) {
            return Err(failed(format!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer))));
        }
        serde_json::from_slice(&answer).map_err(|e| failed(format!("{method} {path}: {e}")))
    }

    /// Status and body.
    async fn send(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>), CliError> {
        let Cloud { host, base, token } = self.cloud;
        let request = format!(
            "{method} {base}{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            self.stream.write_all(request.as_bytes()).await?;
            self.answer().await
        };
        let answer =
            timeout(ANSWER_DEADLINE, exchange).await.map_err(|_| failed(format!("{method} {path}: no answer")))?;
        answer.map_err(|e| failed(format!("{method} {path}: {e}")))
    }

    async fn answer(&mut self) -> std::io::Result<(u16, Vec<u8>)> {
        let wrong = |what: &str| std::io::Error::other(what.to_owned());
        let (mut line, mut status, mut length) = (String::new(), None, 0);
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(wrong("the API closed the connection"));
            }
            let text = line.trim_end();
            if status.is_none() {
                status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
            } else if text.is_empty() {
                break;
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(|_| wrong("the answer has no length"))?;
            }
        }
        if length > ANSWER_MAX {
            return Err(wrong("the answer is far too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status.ok_or_else(|| wrong("the answer has no status"))?, body))
    }
}

/// Whether sshd answers there now.
async fn shows_banner(address: &str) -> bool {
    let knock = async {
        let mut banner = [0; 4];
        TcpStream::connect((address, 22)).await?.read_exact(&mut banner).await?;
        Ok::<_, std::io::Error>(&banner == b"SSH-")
    };
    matches!(timeout(KNOCK_PATIENCE, knock).await, Ok(Ok(true)))
}
