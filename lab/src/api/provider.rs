//! The provider: the projects it has, whose tokens they are, and what all of them share.
//!
//! A project is a [`Cloud`] of its own, so nothing of one can be seen in another. They share the machines' room, the
//! numbering, the public addresses and the faults.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::address::{Pool, Pool6, Range};
use super::cloud::{Cloud, Options, State};
use super::error::{ApiError, ApiResult};
use super::fault::{Faults, Kind};
use super::input::Input;
use super::listing::{created, one};
use super::overview::Calls;
use super::store::Changes;
use crate::backend::{Backend, Effect, MachineEvent};

/// The project that is there from the start.
pub const DEFAULT_PROJECT: &str = "default";
/// How many projects a lab may have.
const PROJECTS_MAX: usize = 50;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    ReadWrite,
    /// Requests other than `GET` are refused with `token_readonly`.
    ReadOnly,
}

/// An API token of a project.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    pub secret: String,
    pub access: Access,
}

/// A project, its tokens, and the API as they see it.
#[derive(Clone)]
pub struct Project {
    pub name: String,
    pub tokens: Vec<Token>,
    pub cloud: Arc<Cloud>,
    pub(super) router: Router,
}

/// What all projects share. Its locks are taken after that of a project's state, never before.
pub struct Common {
    last_id: AtomicU64,
    addresses: Mutex<Pool>,
    networks6: Mutex<Pool6>,
    faults: Mutex<Faults>,
    pub changes: Arc<Changes>,
    /// Faults changed: who hangs because of one looks again.
    pub faults_changed: Notify,
    calls: Mutex<Calls>,
}

impl Default for Common {
    /// Of nobody: a state that is read finds its own afterwards.
    fn default() -> Self {
        Self::new(1, Range::PUBLIC)
    }
}

impl Common {
    fn new(first_id: u64, public_range: Range) -> Self {
        Self {
            last_id: AtomicU64::new(first_id.saturating_sub(1)),
            addresses: Mutex::new(Pool::new(public_range)),
            networks6: Mutex::new(Pool6::new()),
            faults: Mutex::default(),
            changes: Arc::default(),
            faults_changed: Notify::new(),
            calls: Mutex::default(),
        }
    }

    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The id that was given last.
    pub fn last_id(&self) -> u64 {
        self.last_id.load(Ordering::Relaxed)
    }

    /// The public addresses.
    pub fn addresses(&self) -> MutexGuard<'_, Pool> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The public IPv6 networks.
    pub fn networks6(&self) -> MutexGuard<'_, Pool6> {
        self.networks6.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last requests.
    pub fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The faults that are set.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The provider.
pub struct Provider {
    backend: Arc<dyn Backend>,
    options: Options,
    pub(super) common: Arc<Common>,
    projects: RwLock<Vec<Project>>,
}

impl Provider {
    /// With one project, whose token the options name.
    pub fn new(backend: Arc<dyn Backend>, options: Options) -> Arc<Self> {
        let common = Arc::new(Common::new(options.first_id, options.public_range));
        let token = Token { secret: options.token.clone(), access: Access::ReadWrite };
        let provider = Self { backend, options, common, projects: RwLock::default() };
        provider.add_project(DEFAULT_PROJECT.to_owned(), vec![token]);
        Arc::new(provider)
    }

    /// Without any project.
    pub(super) fn empty(
        backend: Arc<dyn Backend>,
        options: Options,
        last_id: u64,
        (addresses, networks6): (Pool, Pool6),
    ) -> Arc<Self> {
        let common = Common::new(last_id + 1, options.public_range);
        *common.addresses() = addresses;
        *common.networks6() = networks6;
        Arc::new(Self { backend, options, common: Arc::new(common), projects: RwLock::default() })
    }

    /// Adds a project as it was.
    pub(super) fn restore_project(&self, name: String, tokens: Vec<Token>, mut state: State) {
        state.common = Arc::clone(&self.common);
        let cloud = Cloud::with_state(Arc::clone(&self.backend), self.options.clone(), state);
        let router = super::project_router(Arc::clone(&cloud));
        let project = Project { name, tokens, cloud, router };
        self.projects.write().unwrap_or_else(PoisonError::into_inner).push(project);
    }

    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    fn add_project(&self, name: String, tokens: Vec<Token>) {
        let cloud = Cloud::new(Arc::clone(&self.backend), self.options.clone(), Arc::clone(&self.common));
        let router = super::project_router(Arc::clone(&cloud));
        let project = Project { name, tokens, cloud, router };
        self.projects.write().unwrap_or_else(PoisonError::into_inner).push(project);
        self.common.changes.note();
    }

    /// All projects, the default one first.
    pub fn projects(&self) -> Vec<Project> {
        self.projects.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The default project.
    ///
    /// # Panics
    /// Never: it is made with the provider, and no project is ever removed.
    pub fn default_project(&self) -> Project {
        self.projects().swap_remove(0)
    }

    /// The project a request's token belongs to, and what the token may do.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Option<(Project, Access)> {
        let given = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, secret) = given.split_once(' ')?;
        let secret = secret.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() {
            return None;
        }
        let projects = self.projects.read().unwrap_or_else(PoisonError::into_inner);
        projects.iter().find_map(|project| {
            let token = project.tokens.iter().find(|t| t.secret == secret)?;
            Some((project.clone(), token.access))
        })
    }

    /// Lets the machines' room suffer from the faults that are set, and from no others.
    pub async fn apply_faults(&self) -> Effect {
        let room = self.common.faults().of_the_room();
        self.common.faults_changed.notify_waiters();
        self.common.changes.note_unkept();
        self.backend.set_faults(&room).await
    }

    /// A server of any project by id or name.
    pub fn find_server(&self, reference: &str) -> Option<u64> {
        self.projects().iter().find_map(|project| {
            let state = project.cloud.state();
            state.servers.values().find(|s| s.name == reference || s.id.to_string() == reference).map(|s| s.id)
        })
    }

    /// A volume of any project by id or name.
    pub fn find_volume(&self, reference: &str) -> Option<u64> {
        self.projects().iter().find_map(|project| {
            let state = project.cloud.state();
            state.volumes.values().find(|v| v.name == reference || v.id.to_string() == reference).map(|v| v.id)
        })
    }

    /// What happens to a request to S3, if a fault strikes it.
    pub(crate) fn s3_fault(&self, method: &str, path: &str) -> Option<Kind> {
        self.common.faults().of_s3(method, path)
    }

    /// A machine changed its state by itself.
    pub fn machine_event(&self, event: MachineEvent) {
        for project in self.projects() {
            project.cloud.machine_event(event);
        }
    }
}

/// `/_lab/projects`
pub fn routes() -> Router<Arc<Provider>> {
    Router::new().route("/_lab/projects", get(list).post(create))
}

fn render(project: &Project) -> Value {
    let token = |access| project.tokens.iter().find(|t| t.access == access).map(|t| t.secret.as_str());
    json!({
        "name": project.name, "token": token(Access::ReadWrite), "token_readonly": token(Access::ReadOnly),
    })
}

async fn list(Shared(provider): Shared<Arc<Provider>>) -> Response {
    one("projects", provider.projects().iter().map(render).collect())
}

/// Makes a project with a token of each kind.
async fn create(Shared(provider): Shared<Arc<Provider>>, input: Input) -> ApiResult {
    let name = input.required_string("name")?;
    if name.is_empty() || name.len() > 64 {
        return Err(ApiError::field("name", "must be 1 to 64 characters"));
    }
    let projects = provider.projects();
    if projects.iter().any(|p| p.name == name) {
        return Err(ApiError::uniqueness("name", "project with the same name already exists"));
    }
    if projects.len() >= PROJECTS_MAX {
        return Err(ApiError::limit("project_limit"));
    }
    let tokens = vec![
        Token { secret: new_secret(), access: Access::ReadWrite },
        Token { secret: new_secret(), access: Access::ReadOnly },
    ];
    provider.add_project(name.clone(), tokens);
    let made = provider.projects().into_iter().find(|p| p.name == name);
    Ok(created(json!({"project": made.as_ref().map(render)})))
}

/// 64 letters and digits, as Hetzner's tokens.
fn new_secret() -> String {
    use rand::Rng as _;
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(64).map(char::from).collect()
}
