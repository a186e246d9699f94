//! Load balancers: each is HAProxy in a network namespace of its own, plugged in like a machine.
//!
//! A change starts a new process beside the old one. The new one takes the listening sockets and what is known of the
//! targets' health over; the old one serves the connections it has to their end. Everything of a balancer, its certificates
//! too, lies in a directory only root may enter, on the lab's own /run: it never reaches a disk and ends with the lab.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};

use crate::backend::{BalancerSpec, Counters, TargetHealth};
use crate::error::{Attempt, LabError};
use crate::fabric::{self, counters, wiring::Wiring};
use crate::link::Port;
use crate::netns;

mod config;
mod stats;

/// Below the lab's own /run. Short, because a socket's path is: 108 bytes.
const HOME: &str = "/run/balancers";
/// From start to the first answer on the stats socket.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// A balancer that ends by itself is started again this often, with this pause.
const RESTARTS_MAX: u32 = 20;
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// All load balancers of a lab.
pub(crate) struct Balancers {
    wiring: Arc<Wiring>,
    all: std::sync::Mutex<HashMap<u64, Arc<Mutex<Balancer>>>>,
}

struct Balancer {
    spec: BalancerSpec,
    /// Counts the processes that were started.
    generation: u32,
    restarts: u32,
    running: Option<Running>,
    /// What the checks saw last of targets that are not checked again yet.
    known: HashMap<(u16, IpAddr), bool>,
    /// What processes before the running one have counted.
    past: stats::Load,
    /// Its end, or that of the lab, ends every process of the balancer.
    life: watch::Sender<()>,
}

struct Running {
    pid: u32,
    socket: PathBuf,
}

impl Balancers {
    pub(crate) fn new(wiring: Arc<Wiring>) -> Self {
        Self { wiring, all: std::sync::Mutex::default() }
    }

    /// Makes a balancer what the specification says. Returns when it serves so.
    pub(crate) async fn set(&self, spec: &BalancerSpec) -> Result<(), LabError> {
        let found = self.lock().get(&spec.id).cloned();
        let Some(held) = found else { return self.create(spec).await };
        let mut balancer = held.lock().await;
        self.wire(&balancer.spec, spec).await?;
        let changed = balancer.spec.services != spec.services
            || balancer.spec.targets != spec.targets
            || balancer.spec.least_connections != spec.least_connections
            || balancer.running.is_none();
        balancer.spec = spec.clone();
        if changed { balancer.start(&held).await } else { Ok(()) }
    }

    async fn create(&self, spec: &BalancerSpec) -> Result<(), LabError> {
        self.wiring.add(spec.id, spec.public_ipv4, spec.public_ipv6).await;
        let held = Arc::new(Mutex::new(Balancer {
            spec: spec.clone(),
            generation: 0,
            restarts: 0,
            running: None,
            known: HashMap::new(),
            past: stats::Load::default(),
            life: watch::channel(()).0,
        }));
        let mut balancer = held.lock().await;
        self.lock().insert(spec.id, Arc::clone(&held));
        let made = async {
            if let Some((network, address)) = spec.private {
                self.wiring.attach(spec.id, network, address, None).await?;
            }
            self.wiring.plug_in(spec.id).await?;
            balancer.start(&held).await
        };
        let made = made.await;
        drop(balancer);
        if made.is_err() {
            self.delete(spec.id).await?;
        }
        made
    }

    /// Moves its interfaces.
    async fn wire(&self, old: &BalancerSpec, new: &BalancerSpec) -> Result<(), LabError> {
        self.wiring.set_public(new.id, new.public_ipv4, new.public_ipv6).await?;
        if old.private == new.private {
            return Ok(());
        }
        if let Some((network, _)) = old.private {
            self.wiring.detach(new.id, network).await?;
        }
        if let Some((network, address)) = new.private {
            self.wiring.attach(new.id, network, address, None).await?;
        }
        Ok(())
    }

    /// Ends it with all its connections. One that is not there is fine.
    pub(crate) async fn delete(&self, id: u64) -> Result<(), LabError> {
        let Some(held) = self.lock().remove(&id) else { return Ok(()) };
        drop(held.lock().await.running.take());
        self.wiring.remove(id).await?;
        // The watch over its processes hears of the end and kills them.
        let balancer = held.lock().await;
        let _ = balancer.life.send(());
        match fs::remove_dir_all(home(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).attempt(|| format!("remove {}", home(id).display()))
            }
            _ => Ok(()),
        }
    }

    fn all(&self) -> Vec<(u64, Arc<Mutex<Balancer>>)> {
        self.lock().iter().map(|(id, balancer)| (*id, Arc::clone(balancer))).collect()
    }

    /// All of them as the networks see them. Those in locations that do not work are silent.
    pub(crate) async fn ports(&self, silent: &[String]) -> Vec<Port> {
        let mut ports = Vec::new();
        for (machine, balancer) in self.all() {
            let location = balancer.lock().await.spec.location.clone();
            ports.push(Port { machine, silent: silent.contains(&location), location });
        }
        ports
    }

    /// Lets those of a location start anew, as when power comes back: they know of no connection any more.
    pub(crate) async fn restart_in(&self, location: &str) {
        for (_, balancer) in self.all() {
            let mut balancer = balancer.lock().await;
            if balancer.spec.location == location
                && let Some(running) = &balancer.running
            {
                // The watch over it starts it again; that one was ordered. One that just ended is started again anyway.
                let _ = kill(Pid::from_raw(running.pid as i32), Signal::SIGKILL);
                balancer.restarts = balancer.restarts.saturating_sub(1);
            }
        }
    }

    /// What the checks saw last, for each service and target.
    pub(crate) async fn health(&self, id: u64) -> Result<Vec<TargetHealth>, LabError> {
        let held = self.find(id)?;
        let mut balancer = held.lock().await;
        balancer.look().await?;
        let Balancer { spec, known, .. } = &*balancer;
        let health = spec.services.iter().flat_map(|service| {
            spec.targets.iter().map(move |target| TargetHealth {
                listen_port: service.listen_port,
                target: *target,
                healthy: known.get(&(service.listen_port, *target)).copied(),
            })
        });
        Ok(health.collect())
    }

    /// What it did since it was made.
    pub(crate) async fn counters(&self, id: u64) -> Result<Counters, LabError> {
        let held = self.find(id)?;
        let mut balancer = held.lock().await;
        let now = balancer.look().await?;
        let traffic = counters::of(id)?;
        Ok(Counters {
            network_in_bytes: traffic.in_bytes,
            network_out_bytes: traffic.out_bytes,
            network_in_packets: traffic.in_packets,
            network_out_packets: traffic.out_packets,
            open_connections: now.open,
            connections: balancer.past.connections + now.connections,
            requests: balancer.past.requests + now.requests,
            ..Counters::default()
        })
    }

    fn find(&self, id: u64) -> Result<Arc<Mutex<Balancer>>, LabError> {
        self.lock().get(&id).cloned().ok_or_else(|| LabError::new(format!("there is no load balancer {id}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Mutex<Balancer>>>> {
        self.all.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Balancer {
    /// Starts a process with the present specification and lets it take over from the one before.
    async fn start(&mut self, held: &Arc<Mutex<Self>>) -> Result<(), LabError> {
        let id = self.spec.id;
        self.generation += 1;
        let dir = home(id).join(self.generation.to_string());
        private_dir(&dir)?;
        let mut state = String::new();
        if self.running.is_some() {
            // What cannot be asked any more is started from nothing.
            let now = self.look().await.unwrap_or_default();
            self.past.connections += now.connections;
            self.past.requests += now.requests;
            state = self.ask("show servers state").await.unwrap_or_default();
        }
        for ((port, index), pem) in config::certificates(&self.spec) {
            write_private(&dir.join(config::certificate_file(port, index)), pem)?;
        }
        write_private(&dir.join(config::STATE_FILE), &state)?;
        let file = dir.join("haproxy.cfg");
        write_private(&file, &config::render(&self.spec, &dir)?)?;
        let (child, pid) = self.spawn(&dir, &file)?;
        let socket = dir.join(config::SOCKET);
        let mut child = child;
        if let Err(error) = wait_for(&socket, &mut child, &dir).await {
            // The one before goes on with what it knew.
            let _ = child.kill().await;
            remove_dir(&dir);
            return Err(error);
        }
        let before = self.running.replace(Running { pid, socket });
        if before.is_some() {
            remove_dir(&home(id).join((self.generation - 1).to_string()));
        }
        tokio::spawn(watch_over(Arc::downgrade(held), child, pid, self.life.subscribe()));
        Ok(())
    }

    fn spawn(&self, dir: &Path, file: &Path) -> Result<(Child, u32), LabError> {
        let log = private_file(&dir.join("log")).attempt(|| "make a load balancer's log".into())?;
        let errors = log.try_clone().attempt(|| "duplicate a log".into())?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        if let Some(before) = &self.running {
            command.arg("-x").arg(&before.socket).arg("-sf").arg(before.pid.to_string());
        }
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true);
        netns::enter_on_spawn(&mut command, &fabric::machine(self.spec.id))?;
        let child = command.spawn().attempt(|| "start haproxy".into())?;
        let pid = child.id().ok_or_else(|| LabError::new("haproxy ended at once"))?;
        Ok((child, pid))
    }

    /// Asks the running process for what it has seen, remembers the targets' health and returns its load.
    async fn look(&mut self) -> Result<stats::Load, LabError> {
        let stats = stats::parse(&self.ask("show stat").await?);
        for (port, target, healthy) in stats.targets {
            if let Some(healthy) = healthy {
                self.known.insert((port, target), healthy);
            }
        }
        let spec = &self.spec;
        self.known.retain(|(port, target), _| {
            spec.services.iter().any(|s| s.listen_port == *port) && spec.targets.contains(target)
        });
        Ok(stats.load)
    }

    async fn ask(&self, question: &str) -> Result<String, LabError> {
        match &self.running {
            Some(running) => stats::ask(&running.socket, question).await,
            None => Err(LabError::new(format!("load balancer {} does not run", self.spec.id))),
        }
    }
}

/// Waits for a process's end: the balancer's own end kills it; one that ends by itself while it serves is replaced.
async fn watch_over(balancer: Weak<Mutex<Balancer>>, mut child: Child, pid: u32, mut life: watch::Receiver<()>) {
    tokio::select! {
        // A message or the end of the sender: the balancer is gone.
        _ = life.changed() => {
            let _ = child.kill().await;
        }
        status = child.wait() => {
            let Some(held) = balancer.upgrade() else { return };
            let mut balancer = held.lock().await;
            if balancer.running.as_ref().is_none_or(|running| running.pid != pid) {
                return;
            }
            eprintln!("load balancer {}: haproxy ended ({status:?})", balancer.spec.id);
            balancer.running = None;
            while balancer.running.is_none() && balancer.restarts < RESTARTS_MAX {
                balancer.restarts += 1;
                tokio::time::sleep(RESTART_PAUSE).await;
                if let Err(error) = start_again(&mut balancer, &held).await {
                    eprintln!("load balancer {}: {error}", balancer.spec.id);
                }
            }
        }
    }
}

/// Boxed, because a start makes a watch that may start again.
fn start_again<'a>(
    balancer: &'a mut Balancer,
    held: &'a Arc<Mutex<Balancer>>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<(), LabError>> + Send + 'a>> {
    Box::pin(balancer.start(held))
}

/// Until a new process answers on its own socket, which it opens when it has all others.
async fn wait_for(socket: &Path, child: &mut Child, dir: &Path) -> Result<(), LabError> {
    let end = Instant::now() + START_DEADLINE;
    let complaint = || {
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        let alerts: Vec<&str> = log.lines().filter(|l| l.contains("ALERT")).collect();
        alerts.join(" | ")
    };
    loop {
        if socket.exists() && stats::ask(socket, "show info").await.is_ok() {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(LabError::new(format!("haproxy did not start ({status}): {}", complaint())));
        }
        if Instant::now() > end {
            return Err(LabError::new(format!("haproxy does not answer after 20 s: {}", complaint())));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn home(id: u64) -> PathBuf {
    Path::new(HOME).join(id.to_string())
}

fn private_dir(dir: &Path) -> Result<(), LabError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).attempt(|| format!("make {}", dir.display()))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).attempt(|| format!("close {}", dir.display()))
}

fn private_file(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn write_private(path: &Path, text: &str) -> Result<(), LabError> {
    private_file(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .attempt(|| format!("write {}", path.display()))
}

/// Best effort: it goes with the balancer or the lab otherwise.
fn remove_dir(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
