//! The cloud's state behind one lock, and how effects run as actions.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::action::Action;
use super::address::Range;
use super::answers::Answers;
use super::balancer::LoadBalancer;
use super::certificate::Certificate;
use super::error::{ApiError, ApiResult};
use super::fault::Fate;
use super::firewall::Firewall;
use super::floating_ip::FloatingIp;
use super::gate::{Bucket, RateLimit};
use super::image::Image;
use super::network::Network;
use super::placement_group::PlacementGroup;
use super::primary_ip::PrimaryIp;
use super::provider::Common;
use super::server::{Server, Status};
use super::ssh_key::SshKey;
use super::upkeep::{Made, Upkeep};
use super::volume::Volume;
use crate::backend::{Backend, BackendError, Effect, MachineEvent};

/// How many actions are remembered; those that ended longest ago are forgotten first.
const ACTIONS_MAX: usize = 5000;

/// How a cloud behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The API token of the default project.
    pub token: String,
    /// Where public IPv4 addresses come from.
    pub public_range: Range,
    pub rate_limit: RateLimit,
    pub limits: Limits,
    /// How long one effect of the backend may take before its action fails.
    pub effect_timeout: Duration,
    /// How long an enabled rescue system waits for a boot.
    pub rescue_lifetime: Duration,
    /// Where ids start; a lab that is started anew may want ids that differ from the last one's.
    pub first_id: u64,
}

impl Options {
    pub fn new(token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            public_range: Range::PUBLIC,
            rate_limit: RateLimit::default(),
            limits: Limits::default(),
            effect_timeout: Duration::from_secs(120),
            rescue_lifetime: Duration::from_secs(3600),
            first_id: 1001,
        }
    }
}

/// How many of each a project may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub servers: usize,
    pub volumes: usize,
    pub networks: usize,
    pub placement_groups: usize,
    pub ssh_keys: usize,
    pub primary_ips: usize,
    pub floating_ips: usize,
    pub firewalls: usize,
    pub images: usize,
    pub load_balancers: usize,
    pub certificates: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            servers: 100,
            volumes: 100,
            networks: 50,
            placement_groups: 50,
            ssh_keys: 100,
            primary_ips: 100,
            floating_ips: 20,
            firewalls: 50,
            images: 50,
            load_balancers: 20,
            certificates: 50,
        }
    }
}

/// One project's cloud. Handlers decide under the lock and never hold it while an effect runs.
pub struct Cloud {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) options: Options,
    state: RwLock<State>,
    bucket: Mutex<Bucket>,
    pub(super) answers: Answers,
    pub(super) upkeep: Upkeep,
}

impl Cloud {
    pub(super) fn new(backend: Arc<dyn Backend>, options: Options, common: Arc<Common>) -> Arc<Self> {
        Self::with_state(backend, options, State { common, ..State::default() })
    }

    pub(super) fn with_state(backend: Arc<dyn Backend>, options: Options, state: State) -> Arc<Self> {
        let bucket = Mutex::new(Bucket::new(options.rate_limit));
        let cloud = Arc::new(Self {
            backend,
            options,
            state: RwLock::new(state),
            bucket,
            answers: Answers::default(),
            upkeep: Upkeep::default(),
        });
        cloud.keep_up();
        cloud
    }

    /// A machine changed its state by itself.
    pub fn machine_event(&self, event: MachineEvent) {
        match event {
            MachineEvent::Stopped(id) => {
                if let Some(server) = self.state().servers.get_mut(&id)
                    && matches!(server.status, Status::Initializing | Status::Starting | Status::Running)
                {
                    server.status = Status::Off;
                }
            }
            MachineEvent::Started(id) => {
                if let Some(server) = self.state().servers.get_mut(&id)
                    && server.status == Status::Off
                {
                    (server.status, server.rescue_system) = (Status::Running, None);
                }
            }
            // The rescue system is for one boot, also for one that was ordered inside.
            MachineEvent::Rebooted(id) => {
                if let Some(server) = self.state().servers.get_mut(&id) {
                    server.rescue_system = None;
                }
            }
        }
    }

    /// The state. A panic while it was held cannot have left it half changed in a way that matters to a test bed, and
    /// refusing all further requests would hide the panic's cause.
    pub(super) fn state(&self) -> Held<'_> {
        Held { state: self.state.write().unwrap_or_else(PoisonError::into_inner), changed: false }
    }

    /// The state for who only reads it, beside others who do.
    pub(super) fn look(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with_bucket<T>(&self, f: impl FnOnce(&mut Bucket) -> T) -> T {
        f(&mut self.bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs an effect with the deadline; a panic in the backend is an error like another.
    pub(super) async fn effect<T>(&self, effect: impl Future<Output = Effect<T>>) -> Effect<T> {
        // What is about to happen is on disk first: a lab that dies half way knows what it was about.
        let changes = Arc::clone(&self.state().common.changes);
        changes.settled().await?;
        let limit = self.options.effect_timeout;
        match tokio::time::timeout(limit, AssertUnwindSafe(effect).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BackendError("the lab's machine room panicked; see its log".into())),
            Err(_) => Err(BackendError(format!("not done within {} s", limit.as_secs()))),
        }
    }

    /// What the faults that are set make of an action: it may run, has to fail, or hangs until the fault is lifted.
    pub(super) async fn fate(&self, action: u64) -> Effect {
        let (common, command) = {
            let state = self.state();
            let command = state.actions.get(&action).map(|a| a.command.to_string()).unwrap_or_default();
            (Arc::clone(&state.common), command)
        };
        let fate = common.faults().fate(&command);
        match fate {
            Fate::Runs => Ok(()),
            Fate::Fails(message) => Err(BackendError(message)),
            Fate::Hangs { fault } => loop {
                // Registered before the look, so that no lifting is missed.
                let changed = common.faults_changed.notified();
                let is_set = common.faults().all().iter().any(|f| f.id == fault);
                if !is_set {
                    return Ok(());
                }
                changed.await;
            },
        }
    }

    /// Runs the rest of an action: `effect` first, then `settle` and the end of the action under one lock.
    pub(super) fn run(
        self: &Arc<Self>,
        action: u64,
        effect: impl Future<Output = Effect> + Send + 'static,
        settle: impl FnOnce(&mut State, bool) + Send + 'static,
    ) {
        let cloud = Arc::clone(self);
        tokio::spawn(async move {
            let result = match cloud.fate(action).await {
                Ok(()) => cloud.effect(effect).await,
                Err(error) => Err(error),
            };
            let mut state = cloud.state();
            settle(&mut state, result.is_ok());
            state.finish(action, result);
            cloud.changed();
        });
    }

    /// As `run`, for requests the API answers only when all is done: the action serves as the lock and is forgotten. The
    /// effect runs to its end even if the client hangs up.
    pub(super) fn run_hidden(
        self: &Arc<Self>,
        action: u64,
        effect: impl Future<Output = Effect> + Send + 'static,
        settle: impl FnOnce(&mut State, bool) + Send + 'static,
    ) -> Hidden {
        let cloud = Arc::clone(self);
        Hidden(tokio::spawn(async move {
            let result = cloud.effect(effect).await;
            let mut state = cloud.state();
            settle(&mut state, result.is_ok());
            state.actions.remove(&action);
            cloud.changed();
            result
        }))
    }
}

/// The state under its lock. Whoever could have changed it is noted before others see it.
pub(super) struct Held<'a> {
    state: RwLockWriteGuard<'a, State>,
    changed: bool,
}

impl std::ops::Deref for Held<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.changed = true;
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.state.common.changes.note();
        }
    }
}

/// An effect that runs whether somebody waits for it or not.
#[must_use]
pub(super) struct Hidden(tokio::task::JoinHandle<Effect>);

impl Hidden {
    pub async fn done(self) -> ApiResult<()> {
        match self.0.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(ApiError::new("service_error", e.0)),
            Err(e) => Err(ApiError::new("server_error", format!("the lab's API failed: {e}"))),
        }
    }
}

/// Everything the project has. All of it is kept, unless it says otherwise.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    #[serde(skip)]
    pub common: Arc<Common>,
    pub servers: BTreeMap<u64, Server>,
    pub volumes: BTreeMap<u64, Volume>,
    pub networks: BTreeMap<u64, Network>,
    pub placement_groups: BTreeMap<u64, PlacementGroup>,
    pub ssh_keys: BTreeMap<u64, SshKey>,
    /// Snapshots and backups.
    pub images: BTreeMap<u64, Image>,
    pub primary_ips: BTreeMap<u64, PrimaryIp>,
    pub floating_ips: BTreeMap<u64, FloatingIp>,
    pub firewalls: BTreeMap<u64, Firewall>,
    pub load_balancers: BTreeMap<u64, LoadBalancer>,
    pub certificates: BTreeMap<u64, Certificate>,
    /// What the machine room was made to do and what it told. Not to be kept: it ends with the machine room.
    #[serde(skip)]
    made: Mutex<Made>,
    pub actions: BTreeMap<u64, Action>,
}

impl State {
    pub fn next_id(&mut self) -> u64 {
        self.common.next_id()
    }

    pub fn server(&self, id: u64) -> ApiResult<&Server> {
        self.servers.get(&id).ok_or_else(|| ApiError::not_found("server", id))
    }

    pub fn server_mut(&mut self, id: u64) -> ApiResult<&mut Server> {
        self.servers.get_mut(&id).ok_or_else(|| ApiError::not_found("server", id))
    }

    /// A server no action runs on.
    pub fn idle_server(&self, id: u64) -> ApiResult<&Server> {
        let server = self.server(id)?;
        if self.is_locked("server", id) { Err(ApiError::locked("server", id)) } else { Ok(server) }
    }

    /// A volume no action runs on.
    pub fn idle_volume(&self, id: u64) -> ApiResult<&Volume> {
        let volume = self.volumes.get(&id).ok_or_else(|| ApiError::not_found("volume", id))?;
        if self.is_locked("volume", id) { Err(ApiError::locked("volume", id)) } else { Ok(volume) }
    }

    /// A network no action runs on. Servers may be attached to one network at the same time: that locks the servers.
    pub fn idle_network(&self, id: u64) -> ApiResult<&Network> {
        let network = self.networks.get(&id).ok_or_else(|| ApiError::not_found("network", id))?;
        if self.is_locked("network", id) { Err(ApiError::changing("network", id)) } else { Ok(network) }
    }

    pub fn exists(&self, kind: &str, id: u64) -> bool {
        match kind {
            "server" => self.servers.contains_key(&id),
            "volume" => self.volumes.contains_key(&id),
            "network" => self.networks.contains_key(&id),
            "image" => self.image_exists(id),
            "firewall" => self.firewalls.contains_key(&id),
            "floating_ip" => self.floating_ips.contains_key(&id),
            "primary_ip" => self.primary_ips.contains_key(&id),
            "load_balancer" => self.load_balancers.contains_key(&id),
            "certificate" => self.certificates.contains_key(&id),
            _ => false,
        }
    }

    /// What the machine room was made to do and what it told. Its lock is the last to be taken.
    pub fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a running action holds the resource.
    pub fn is_locked(&self, kind: &str, id: u64) -> bool {
        self.actions.values().any(|a| a.locks(kind, id))
    }

    /// Starts an action; `Action::locks` tells which of the resources it locks.
    pub fn begin(&mut self, command: &'static str, resources: &[(&'static str, u64)]) -> u64 {
        let id = self.next_id();
        if self.actions.len() >= ACTIONS_MAX
            && let Some(oldest) = self.actions.values().find(|a| !a.is_running()).map(|a| a.id)
        {
            self.actions.remove(&oldest);
        }
        self.actions.insert(id, Action::new(id, command, resources));
        id
    }

    /// Starts and ends an action that has no effect outside the state.
    pub fn instant(&mut self, command: &'static str, resources: &[(&'static str, u64)]) -> Value {
        let id = self.begin(command, resources);
        self.finish(id, Ok(()));
        self.action_json(id)
    }

    pub fn progress(&mut self, action: u64, percent: u8) {
        if let Some(action) = self.actions.get_mut(&action) {
            action.progress = percent;
        }
    }

    pub fn finish(&mut self, action: u64, result: Effect) {
        if let Some(action) = self.actions.get_mut(&action) {
            action.finish(result);
        }
    }

    pub fn action_json(&self, id: u64) -> Value {
        self.actions.get(&id).map_or(Value::Null, Action::json)
    }
}

/// The only place where the API reads the wall clock; what it decides never depends on it.
#[expect(
    clippy::disallowed_methods,
    reason = "a cloud tells when things happened; the lab is the world, not a decision"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A time as the API writes it.
pub fn time_json(time: Timestamp) -> Value {
    json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
