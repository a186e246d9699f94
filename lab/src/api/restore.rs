//! A lab that starts again: its state is read from disk, what was going on when it ended is finished or given up, and the
//! machine room is made to be what the state says.
//!
//! Whatever the API had acknowledged is there again, whole. What was being deleted is gone. What was being made is made.
//! Other actions end in error, because nobody knows how far they came.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use serde::{Deserialize, Serialize};

use super::address::{Pool, Pool6};
use super::cloud::{Cloud, Options, State};
use super::network_action::hops;
use super::provider::{Provider, Token};
use super::server::{Server, Status};
use crate::backend::{Backend, BackendError, Effect};
use crate::error::{Attempt, LabError};

/// The document's format. One that this program does not know is refused.
const FORMAT: u32 = 1;
const INTERRUPTED: &str = "the lab ended while this action ran";

/// Everything that is kept.
#[derive(Serialize)]
struct Kept<'a> {
    format: u32,
    last_id: u64,
    addresses: &'a Pool,
    networks6: &'a Pool6,
    projects: Vec<KeptProject<'a>>,
}

#[derive(Serialize)]
struct KeptProject<'a> {
    name: &'a str,
    tokens: &'a [Token],
    state: &'a State,
}

#[derive(Deserialize)]
struct Found {
    last_id: u64,
    addresses: Pool,
    networks6: Pool6,
    projects: Vec<FoundProject>,
}

#[derive(Deserialize)]
struct FoundProject {
    name: String,
    tokens: Vec<Token>,
    state: State,
}

/// All that is read before the rest can be understood.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

impl Provider {
    /// The provider as a file says it was, or a new one if there is no file. Nothing of it is made real yet.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or is of a format that this program does not know. It is left as it is.
    pub fn load(backend: Arc<dyn Backend>, options: Options, path: &Path) -> Result<Arc<Self>, LabError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(backend, options)),
            Err(error) => return Err(error).attempt(|| format!("read {}", path.display())),
        };
        let damaged = |error: serde_json::Error| {
            LabError::new(format!("{} is damaged: {error}", path.display()))
                .hint("it was left as it is; `hk-dr lab down --delete` removes the lab with all its disks")
        };
        let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
        if header.format != FORMAT {
            let message =
                format!("{} has format {}, this program knows format {FORMAT} only", path.display(), header.format);
            return Err(LabError::new(message).hint("it was left as it is; use the version of hk-dr that wrote it"));
        }
        let found: Found = serde_json::from_slice(&text).map_err(damaged)?;
        let provider = Self::empty(backend, options, found.last_id, (found.addresses, found.networks6));
        for project in found.projects {
            provider.restore_project(project.name, project.tokens, project.state);
        }
        Ok(provider)
    }

    /// The whole state as a file.
    ///
    /// # Errors
    /// Never in practice: everything in it can be written as JSON.
    fn document(&self) -> Result<Vec<u8>, LabError> {
        let projects = self.projects();
        // All at once, so that no address is taken by a server that the document does not know. Requests hold one lock at
        // a time, so that this order can't dead-lock.
        let held: Vec<_> = projects.iter().map(|project| project.cloud.state()).collect();
        let kept = Kept {
            format: FORMAT,
            last_id: self.common.last_id(),
            addresses: &self.common.addresses(),
            networks6: &self.common.networks6(),
            projects: projects
                .iter()
                .zip(&held)
                .map(|(project, state)| KeptProject { name: &project.name, tokens: &project.tokens, state })
                .collect(),
        };
        serde_json::to_vec(&kept).map_err(|error| LabError::new(format!("cannot write the state down: {error}")))
    }

    /// From now on every change is on disk before an answer tells of it.
    ///
    /// # Errors
    /// The file can't be written.
    pub async fn keep(self: &Arc<Self>, path: PathBuf) -> Result<(), LabError> {
        let provider = Arc::clone(self);
        Arc::clone(&self.common.changes).keep(path, move || provider.document()).await
    }

    /// Finishes or gives up what was going on, and makes the machine room what the state says. Servers that ran boot.
    ///
    /// # Errors
    /// Leftovers can't be removed. A server or volume that can't be had again is noted in the log and by its status.
    pub async fn restore(&self) -> Result<(), LabError> {
        let clouds: Vec<Arc<Cloud>> = self.projects().into_iter().map(|project| project.cloud).collect();
        let (mut machines, mut volumes, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for cloud in &clouds {
            let mut state = cloud.state();
            state.drop_what_was_going();
            machines.extend(state.servers.keys());
            volumes.extend(state.volumes.keys());
            images.extend(state.images.keys());
        }
        let kept = self.backend().keep_only(&machines, &volumes, &images).await;
        kept.map_err(|error| LabError::new(error.0))?;
        for cloud in &clouds {
            cloud.restore().await;
        }
        Ok(())
    }
}

impl State {
    /// Ids of what running actions of this command work on.
    fn targets_of(&self, command: &str) -> Vec<u64> {
        let running = self.actions.values().filter(|a| a.is_running() && a.command == command);
        running.filter_map(|a| a.resources.first().map(|(_, id)| *id)).collect()
    }

    /// Completes in the state what was being deleted, and images that were being made.
    fn drop_what_was_going(&mut self) {
        for id in self.targets_of("delete_volume") {
            self.volumes.remove(&id);
        }
        for id in self.targets_of("delete_image") {
            self.images.remove(&id);
        }
        for id in self.targets_of("delete_network") {
            self.networks.remove(&id);
            for server in self.servers.values_mut() {
                server.private.retain(|p| p.network != id);
            }
        }
        for id in self.targets_of("delete_server") {
            self.images.retain(|_, image| image.bound_to != Some(id));
            for floating in self.floating_ips.values_mut().filter(|f| f.server == Some(id)) {
                floating.server = None;
            }
            self.forget_server(id);
        }
        for id in self.targets_of("delete_load_balancer") {
            self.drop_balancer(id);
        }
        self.images.retain(|_, image| image.available);
        // Volumes that servers which were being made had been promised.
        let promised: Vec<(u64, u64)> = self
            .actions
            .values()
            .filter(|a| a.is_running() && a.command == "attach_volume")
            .filter_map(|a| {
                let of = |kind: &str| a.resources.iter().find(|(k, _)| k == kind).map(|(_, id)| *id);
                Some((of("server")?, of("volume")?))
            })
            .collect();
        for (server, volume) in promised {
            let new_server = self.servers.get(&server).is_some_and(|s| s.status == Status::Initializing);
            if let Some(volume) = self.volumes.get_mut(&volume)
                && (new_server || !volume.available)
                && self.servers.contains_key(&server)
            {
                volume.server = Some(server);
            }
        }
    }

    /// Whether a server is to run.
    fn should_run(&self, server: &Server) -> bool {
        match server.status {
            Status::Running | Status::Starting | Status::Rebuilding => true,
            Status::Initializing => self.targets_of("start_server").contains(&server.id),
            Status::Stopping | Status::Off | Status::Deleting | Status::Migrating | Status::Unknown => false,
        }
    }

    /// Whether a server is still to mount a volume when it boots: it was told to and has not run since, or the lab ended meanwhile.
    fn mount_is_due(&self, volume: u64, server: &Server) -> bool {
        let being_attached = || {
            let running = self.actions.values().filter(|a| a.is_running() && a.command == "attach_volume");
            running.flat_map(|a| &a.resources).any(|(kind, id)| kind == "volume" && *id == volume)
        };
        let ordered = self.volumes.get(&volume).is_some_and(|v| v.automount);
        ordered && (server.status != Status::Running || being_attached())
    }

    /// Ends the actions that ran when the lab ended.
    fn end_actions(&mut self) {
        let running: Vec<u64> = self.actions.values().filter(|a| a.is_running()).map(|a| a.id).collect();
        for id in running {
            let outcome = self.outcome(id);
            self.finish(id, outcome);
        }
        // Hidden ones were never told of.
        self.actions.retain(|_, a| a.command != "delete_volume" && a.command != "delete_image");
    }

    fn outcome(&self, action: u64) -> Effect {
        let interrupted = Err(BackendError(INTERRUPTED.into()));
        let Some(action) = self.actions.get(&action) else { return interrupted };
        let of = |kind: &str| action.resources.iter().find(|(k, _)| k == kind).map(|(_, id)| *id);
        let server = of("server").and_then(|id| self.servers.get(&id));
        let done = match &*action.command {
            "create_image" => false,
            "create_server" | "stop_server" => server.is_some_and(|s| s.status != Status::Unknown),
            "start_server" => server.is_some_and(|s| s.status == Status::Running),
            "attach_to_network" => of("network").is_some_and(|net| {
                server.is_some_and(|s| s.private.iter().any(|p| p.network == net)) || of("load_balancer").is_some()
            }),
            "attach_volume" => of("volume")
                .and_then(|id| self.volumes.get(&id))
                .is_some_and(|v| v.server.is_some() && v.server == of("server")),
            "create_volume" => of("volume").and_then(|id| self.volumes.get(&id)).is_some_and(|v| v.available),
            // What firewalls and load balancers are follows the state by itself.
            "set_firewall_rules" | "apply_firewall" | "remove_firewall" | "create_load_balancer" => true,
            command => command.starts_with("delete_"),
        };
        if done { Ok(()) } else { interrupted }
    }
}

impl Cloud {
    /// Makes the machine room what this project's state says.
    async fn restore(self: &Arc<Self>) {
        let (networks, volumes, mut servers, floating) = {
            let mut state = self.state();
            let networks: Vec<_> =
                state.networks.values().map(|n| (n.id, n.range.to_string(), hops(&n.routes))).collect();
            let volumes: Vec<_> = state.volumes.values().map(|v| (v.id, v.size_gb, v.format.clone())).collect();
            let servers: Vec<_> = state
                .servers
                .values()
                .filter(|s| s.status != Status::Unknown)
                .map(|s| (s.clone(), state.should_run(s), state.attached_volumes(s.id)))
                .collect();
            for (server, ..) in &servers {
                if let Some(server) = state.servers.get_mut(&server.id) {
                    server.has_machine = false;
                }
            }
            let floating: Vec<_> = state.floating_ips.values().filter_map(|f| Some((f.ip, f.server?))).collect();
            (networks, volumes, servers, floating)
        };
        for (id, range, _) in &networks {
            self.note(self.effect(self.backend.create_network(*id, range)).await, &format!("network {id}"));
        }
        for (id, size_gb, format) in volumes {
            let restored = self.effect(self.backend.restore_volume(id, size_gb, format.as_deref())).await;
            if self.note(restored, &format!("volume {id}"))
                && let Some(volume) = self.state().volumes.get_mut(&id)
            {
                volume.available = true;
            }
        }
        let mut there = Vec::new();
        for (server, runs, volumes) in servers.drain(..) {
            let furnished = self.furnish(&server, &volumes).await;
            if self.note(furnished, &format!("server {} ({})", server.id, server.name)) {
                there.push((server.id, runs));
            } else if let Some(server) = self.state().servers.get_mut(&server.id) {
                server.status = Status::Unknown;
            }
        }
        for (id, _, routes) in networks.iter().filter(|(_, _, routes)| !routes.is_empty()) {
            self.note(self.effect(self.backend.set_routes(*id, routes)).await, &format!("routes of network {id}"));
        }
        for (ip, server) in floating {
            let routed = self.effect(self.backend.route_floating_ip(ip, Some(server))).await;
            self.note(routed, &format!("floating IP {ip}"));
        }
        // Before they boot, so that nothing reaches them that should not.
        self.note(self.settle_firewalls(None).await, "firewalls");
        self.note(self.settle_balancers(None).await, "load balancers");
        join_all(there.into_iter().map(|(id, runs)| self.switch(id, runs))).await;
        self.state().end_actions();
    }

    async fn furnish(&self, server: &Server, volumes: &[u64]) -> Effect {
        let id = server.id;
        self.effect(self.backend.restore_machine(&server.spec(), &server.metadata())).await?;
        if let Some(server) = self.state().servers.get_mut(&id) {
            server.has_machine = true;
        }
        if let Some(rescue) = &server.rescue_system {
            self.effect(self.backend.set_rescue(id, Some(&server.rescue_metadata(rescue)))).await?;
        }
        for volume in volumes {
            let mount = self.look().mount_is_due(*volume, server);
            self.effect(self.attach_volume(*volume, id, mount)).await?;
        }
        for private in &server.private {
            let network = private.network;
            let range = self.state().networks.get(&network).map(|n| n.range.to_string()).unwrap_or_default();
            self.effect(self.backend.attach_network(id, network, private.ip, &range)).await?;
            if !private.alias_ips.is_empty() {
                self.effect(self.backend.set_alias_ips(id, network, &private.alias_ips)).await?;
            }
        }
        Ok(())
    }

    /// Boots a machine that ran.
    async fn switch(&self, id: u64, runs: bool) {
        let booted = runs && {
            let booted = self.effect(self.backend.power_on(id)).await;
            self.note(booted, &format!("server {id}"))
        };
        if let Some(server) = self.state().servers.get_mut(&id) {
            server.status = if booted { Status::Running } else { Status::Off };
            if booted {
                // The rescue system is for one boot.
                server.rescue_system = None;
            }
        }
    }

    /// Whether it went well; a failure goes to the log.
    fn note(&self, result: Effect, what: &str) -> bool {
        if let Err(error) = &result {
            eprintln!("{what} could not be brought back: {error}");
        }
        result.is_ok()
    }
}
