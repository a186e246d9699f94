//! Small objects, written a few times a second through whatever API server answers while a run is under way. What was
//! acknowledged and is not there afterwards was lost; what was not acknowledged was unavailable.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::distribution::server_name;
use crate::plan::OWNER_LABEL;
use crate::ports::{Collection, ErrorCode, Kube, PortError, PortResult};
use crate::steps::{ServerOutput, World};

const EVERY: Duration = Duration::from_millis(250);
/// A client that waits longer has given up.
const WITHIN: Duration = Duration::from_millis(2500);
/// Writes under way at once.
const AT_ONCE: usize = 12;
/// Between two looks at the cloud's list of servers, while nobody answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the first canary may take before the run goes on without.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// One write that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub name: String,
    pub at: Timestamp,
    /// None: nobody acknowledged it in time. It may be there all the same.
    pub acknowledged_at: Option<Timestamp>,
    /// The server whose API acknowledged it.
    pub through: Option<String>,
}

/// What a run knows of its canaries while it is under way.
#[derive(Clone)]
pub struct Pulse {
    /// Writes that were acknowledged since this process began.
    pub acknowledged: watch::Receiver<u64>,
    /// None are written yet: the run waits for a person before it begins.
    held: Arc<watch::Sender<bool>>,
}

impl Pulse {
    /// Of canaries that are written already.
    pub fn of(acknowledged: watch::Receiver<u64>) -> Self {
        Self { acknowledged, held: Arc::new(watch::Sender::new(false)) }
    }

    /// Lets those be written that were held back, and waits a moment for the first to be acknowledged.
    pub async fn begin(&self) {
        if self.held.send_if_modified(std::mem::take) {
            let mut acknowledged = self.acknowledged.clone();
            let _ = tokio::time::timeout(FIRST_WITHIN, acknowledged.wait_for(|count| *count > 0)).await;
        }
    }
}

/// A writer that is under way.
pub struct Canaries {
    stop: watch::Sender<bool>,
    acknowledged: watch::Receiver<u64>,
    held: Arc<watch::Sender<bool>>,
    task: tokio::task::JoinHandle<()>,
}

struct Writer {
    world: World,
    run: String,
    log: Mutex<File>,
    apis: tokio::sync::RwLock<Vec<(String, Arc<dyn Kube>)>>,
    acknowledged: watch::Sender<u64>,
}

fn collection() -> Collection {
    Collection { api_version: "v1".into(), plural: "configmaps".into(), namespace: Some("default".into()) }
}

fn prefix(run: &str) -> String {
    format!("hk-dr-canary-{run}-")
}

impl Canaries {
    /// Starts writing; every attempt is appended to the file, also over several processes of one run. `held`: not before
    /// [`Pulse::begin`].
    ///
    /// # Errors
    /// The file can't be written.
    pub fn start(world: &World, run: &str, log: &Path, held: bool) -> PortResult<Self> {
        let number = read(log).map_or(0, |attempts| attempts.len());
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .map_err(|e| PortError::new(ErrorCode::Local, format!("writing canaries to {}: {e}", log.display())))?;
        let (stop, stopped) = watch::channel(false);
        let (acknowledged, receiver) = watch::channel(0);
        let writer = Arc::new(Writer {
            world: world.clone(),
            run: run.to_owned(),
            log: Mutex::new(file),
            apis: tokio::sync::RwLock::default(),
            acknowledged,
        });
        let held = Arc::new(watch::Sender::new(held));
        let task = tokio::spawn(write(writer, number, held.subscribe(), stopped));
        Ok(Self { stop, acknowledged: receiver, held, task })
    }

    /// What the run is to know of them.
    pub fn pulse(&self) -> Pulse {
        Pulse { acknowledged: self.acknowledged.clone(), held: Arc::clone(&self.held) }
    }

    /// Whether a write was acknowledged before the deadline.
    pub async fn first(&mut self, deadline: Duration) -> bool {
        matches!(tokio::time::timeout(deadline, self.acknowledged.wait_for(|count| *count > 0)).await, Ok(Ok(_)))
    }

    /// Waits for one more acknowledged write, then ends.
    pub async fn stop(mut self) {
        let seen = *self.acknowledged.borrow_and_update();
        let _ = tokio::time::timeout(WITHIN, self.acknowledged.wait_for(|count| *count > seen)).await;
        // Only an ended task has no receiver.
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn write(
    writer: Arc<Writer>,
    mut number: usize,
    mut held: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    tokio::select! {
        _ = held.wait_for(|held| !*held) => {}
        _ = stopped.changed() => return,
    }
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut under_way = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<tokio::time::Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.changed() => break,
        }
        // Whoever answers is asked; when nobody does, there may be other servers now.
        let silent = writer.apis.read().await.is_empty();
        if silent && looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            looked = Some(tokio::time::Instant::now());
            writer.look().await;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        number += 1;
        let (writer, name) = (Arc::clone(&writer), format!("{}{number:06}", prefix(&writer.run)));
        under_way.spawn(async move {
            writer.attempt(name).await;
            drop(place);
        });
        while under_way.try_join_next().is_some() {}
    }
    // Each ends within its own deadline.
    while under_way.join_next().await.is_some() {}
}

impl Writer {
    async fn look(&self) {
        let world = &self.world;
        let Ok(servers) = world.cloud.servers(&format!("{OWNER_LABEL}=={}", world.cluster.name)).await else { return };
        let masters: BTreeSet<String> =
            world.cluster.masters.iter().map(|m| server_name(&world.cluster, &m.name)).collect();
        let mut apis = Vec::new();
        for server in servers.iter().filter(|s| masters.contains(&s.name)) {
            if let Ok(output) = ServerOutput::of(&world.cluster, server)
                && let Ok(kube) = world.kube(&output.host()).await
            {
                apis.push((server.name.clone(), kube));
            }
        }
        *self.apis.write().await = apis;
    }

    async fn attempt(&self, name: String) {
        let at = self.world.clock.now();
        let through = self.create(&name).await;
        let acknowledged_at = through.is_some().then(|| self.world.clock.now());
        if through.is_some() {
            self.acknowledged.send_modify(|count| *count += 1);
        } else {
            // The next tick looks for servers anew.
            self.apis.write().await.clear();
        }
        let attempt = Attempt { name, at, acknowledged_at, through };
        if let Ok(mut line) = serde_json::to_string(&attempt) {
            line.push('\n');
            // A canary that can't be noted is one less to measure by; it must not end the run.
            let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        }
    }

    /// Through all that are known at once: a client with a load balancer in front would be sent to one that serves.
    async fn create(&self, name: &str) -> Option<String> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", "labels": {"hk-dr/canary": self.run}},
        });
        let (apis, collection) = (self.apis.read().await.clone(), collection());
        let mut writes: FuturesUnordered<_> = apis
            .iter()
            .map(|(server, kube)| {
                let (object, collection) = (&object, &collection);
                async move {
                    match kube.create(collection, object).await {
                        Ok(_) => Some(server.clone()),
                        // Another one was quicker.
                        Err(error) if error.code == ErrorCode::Conflict => Some(server.clone()),
                        Err(_) => None,
                    }
                }
            })
            .collect();
        let first = async {
            while let Some(done) = writes.next().await {
                if done.is_some() {
                    return done;
                }
            }
            None
        };
        tokio::time::timeout(WITHIN, first).await.ok().flatten()
    }
}

/// What was tried, in the order in which it ended. A line that was cut off is no attempt.
///
/// # Errors
/// The file can't be read.
pub fn read(log: &Path) -> PortResult<Vec<Attempt>> {
    let text = std::fs::read_to_string(log)
        .map_err(|e| PortError::new(ErrorCode::Local, format!("reading canaries from {}: {e}", log.display())))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Names of the run's canaries that are in the cluster now.
///
/// # Errors
/// No API server answers.
pub async fn survivors(world: &World, run: &str) -> PortResult<BTreeSet<String>> {
    let kube = any_api(world).await?;
    let objects = kube.list(&collection()).await?;
    let names = objects.iter().filter_map(|o| o["metadata"]["name"].as_str());
    Ok(names.filter(|name| name.starts_with(&prefix(run))).map(str::to_owned).collect())
}

/// Deletes canaries.
///
/// # Errors
/// No API server answers, or it refuses.
pub async fn remove(world: &World, names: &BTreeSet<String>) -> PortResult<()> {
    let (kube, collection) = (any_api(world).await?, collection());
    let deletions = names.iter().map(|name| {
        let (kube, collection) = (&kube, &collection);
        async move { kube.delete(collection, name, None).await }
    });
    let mut deletions = futures::stream::iter(deletions).buffer_unordered(AT_ONCE);
    while let Some(deleted) = deletions.next().await {
        deleted?;
    }
    Ok(())
}

/// The first master's API that is ready.
///
/// # Errors
/// None is; the last one's reason.
pub async fn any_api(world: &World) -> PortResult<Arc<dyn Kube>> {
    let mut last = PortError::new(ErrorCode::NotFound, "the cluster has no master");
    for master in &world.cluster.masters {
        let ask = async {
            let name = server_name(&world.cluster, &master.name);
            let server = world.cloud.server_by_name(&name).await?;
            let server =
                server.ok_or_else(|| PortError::new(ErrorCode::NotFound, format!("server {name} does not exist")))?;
            let kube = world.kube(&ServerOutput::of(&world.cluster, &server)?.host()).await?;
            if kube.ready().await? { Ok(kube) } else { Err(PortError::new(ErrorCode::ServerError, "it is not ready")) }
        };
        match ask.await {
            Ok(kube) => return Ok(kube),
            Err(error) => last = error,
        }
    }
    Err(last)
}
