//! The whole cloud at a glance, for people: what `lab status` and the live page show. It tells names, addresses and states,
//! and no secret.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::catalog;
use super::cloud::{State, now, time_json};
use super::fault_routes;
use super::firewall::Applied;
use super::listing::one;
use super::page;
use super::provider::Provider;

/// How many requests are remembered.
const CALLS_MAX: usize = 40;
/// How many actions that ended are shown.
const ACTIONS_MAX: usize = 12;

/// The last requests, newest first.
#[derive(Debug, Default)]
pub struct Calls(VecDeque<Call>);

#[derive(Debug)]
struct Call {
    at: Timestamp,
    project: String,
    method: String,
    path: String,
    status: u16,
    took: Duration,
}

impl Calls {
    pub fn note(&mut self, project: &str, method: &str, path: &str, status: u16, took: Duration) {
        // A path may be as long as a client likes.
        let path = path.chars().take(200).collect();
        let (project, method) = (project.to_owned(), method.to_owned());
        self.0.truncate(CALLS_MAX - 1);
        self.0.push_front(Call { at: now(), project, method, path, status, took });
    }

    fn json(&self) -> Vec<Value> {
        let show = |call: &Call| {
            json!({
                "at": time_json(call.at), "project": call.project, "method": call.method, "path": call.path,
                "status": call.status, "milliseconds": u64::try_from(call.took.as_millis()).unwrap_or(u64::MAX),
            })
        };
        self.0.iter().map(show).collect()
    }
}

/// `/_lab/` and what it is made of. These need no token: whoever sees the port may look, and only look.
pub fn routes() -> Router<Arc<Provider>> {
    Router::new()
        .route("/_lab/", get(page::whole))
        .route("/_lab/fragment", get(page::fragment))
        .route("/_lab/overview", get(tell))
}

/// Whether a path may be read without a token.
pub fn is_open(path: &str) -> bool {
    matches!(path, "/_lab/" | "/_lab/fragment" | "/_lab/overview")
}

async fn tell(Shared(provider): Shared<Arc<Provider>>) -> Response {
    one("overview", provider.overview())
}

impl Provider {
    /// Everything at a glance, as JSON.
    pub fn overview(&self) -> Value {
        let mut all = Lists::default();
        let projects = self.projects();
        for project in &projects {
            all.collect(&project.name, &project.cloud.look());
        }
        all.actions.sort_by_key(|a| std::cmp::Reverse((a["status"] == "running", a["id"].as_u64())));
        let running = all.actions.iter().filter(|a| a["status"] == "running").count();
        all.actions.truncate(running + ACTIONS_MAX);
        let faults: Vec<Value> = self.common.faults().all().iter().map(fault_routes::render).collect();
        let struck = |location: &str| {
            let about = faults.iter().filter(|f| f["location"] == location);
            about.filter_map(|f| f["kind"].as_str()).collect::<Vec<_>>()
        };
        let locations: Vec<Value> = catalog::locations()
            .iter()
            .map(|l| {
                let servers = all.servers.iter().filter(|s| s["location"] == l.name).count();
                let running =
                    all.servers.iter().filter(|s| s["location"] == l.name && s["status"] == "running").count();
                json!({
                    "name": l.name, "network_zone": l.network_zone, "servers": servers, "running": running,
                    "faults": struck(l.name),
                })
            })
            .collect();
        json!({
            "at": time_json(now()), "projects": projects.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
            "locations": locations, "servers": all.servers, "volumes": all.volumes, "networks": all.networks,
            "firewalls": all.firewalls, "load_balancers": all.balancers, "ips": all.ips, "actions": all.actions,
            "faults": faults, "calls": self.common.calls().json(),
        })
    }
}

#[derive(Default)]
struct Lists {
    servers: Vec<Value>,
    volumes: Vec<Value>,
    networks: Vec<Value>,
    firewalls: Vec<Value>,
    balancers: Vec<Value>,
    ips: Vec<Value>,
    actions: Vec<Value>,
}

impl Lists {
    fn collect(&mut self, project: &str, state: &State) {
        let name_of = |id: u64| state.servers.get(&id).map_or_else(|| id.to_string(), |s| s.name.clone());
        self.servers.extend(state.servers.values().map(|s| {
            let full = state.server_json(s);
            json!({
                "project": project, "id": s.id, "name": s.name, "status": full["status"], "location": s.location.name,
                "type": s.server_type.name, "ipv4": full["public_net"]["ipv4"]["ip"],
                "private": s.private.iter().map(|p| p.ip.to_string()).collect::<Vec<_>>(),
                "volumes": state.attached_volumes(s.id).len(), "locked": full["locked"],
            })
        }));
        self.volumes.extend(state.volumes.values().map(|v| {
            json!({
                "project": project, "id": v.id, "name": v.name, "size_gb": v.size_gb, "location": v.location.name,
                "server": v.server.map(name_of), "format": v.format, "status": if v.available { "available" } else { "creating" },
            })
        }));
        self.networks.extend(state.networks.values().map(|n| {
            let attached = state.servers.values().filter(|s| s.private.iter().any(|p| p.network == n.id));
            json!({
                "project": project, "id": n.id, "name": n.name, "range": n.range.to_string(), "subnets": n.subnets.len(),
                "routes": n.routes.len(), "servers": attached.count(),
            })
        }));
        self.firewalls.extend(state.firewalls.values().map(|f| {
            let to = f.applied_to.iter().map(|a| match a {
                Applied::Server(id) => name_of(*id),
                Applied::Selector(selector) => selector.clone(),
            });
            json!({
                "project": project, "id": f.tag.id, "name": f.tag.name, "rules": f.rules.len(),
                "applied_to": to.collect::<Vec<_>>(),
            })
        }));
        self.balancers.extend(state.load_balancers.values().map(|b| {
            json!({
                "project": project, "id": b.tag.id, "name": b.tag.name, "location": b.location.name, "ipv4": b.ipv4,
                "listens": b.services.iter().map(|s| s.listen_port).collect::<Vec<_>>(), "targets": b.targets.len(),
            })
        }));
        self.ips.extend(state.primary_ips.values().map(|p| {
            json!({
                "project": project, "id": p.tag.id, "kind": "primary", "ip": p.ip.to_string(), "location": p.location.name,
                "server": p.server.map(name_of),
            })
        }));
        self.ips.extend(state.floating_ips.values().map(|f| {
            json!({
                "project": project, "id": f.tag.id, "kind": "floating", "ip": f.ip.to_string(), "location": f.home.name,
                "server": f.server.map(name_of),
            })
        }));
        // The newest have the highest ids; those that run are never left out.
        let mut ended = 0;
        self.actions.extend(state.actions.values().rev().filter_map(|a| {
            ended += usize::from(!a.is_running());
            (a.is_running() || ended <= ACTIONS_MAX).then(|| {
                let mut action = a.json();
                action["project"] = json!(project);
                action
            })
        }));
    }
}
