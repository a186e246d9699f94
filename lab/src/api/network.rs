//! Private networks, their subnets and routes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use futures::future::try_join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::address::Range;
use super::balancer::LoadBalancer;
use super::catalog;
use super::cloud::{Cloud, State, now, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::label::Labels;
use super::listing::{Listing, created, no_content, one};
use super::network_action;
use super::server::Server;

/// How many subnets a network may have.
pub const SUBNETS_MAX: usize = 50;
/// The gateway of every server's public interface; no private address may be the same.
const PUBLIC_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 1);

/// A private network. Which servers it has, the servers know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    pub id: u64,
    pub name: String,
    pub range: Range,
    pub subnets: Vec<Subnet>,
    pub routes: Vec<Route>,
    pub protected: bool,
    labels: Labels,
    expose_routes_to_vswitch: bool,
    created: Timestamp,
}

/// A part of a network that servers of one zone take addresses from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Subnet {
    pub range: Range,
    kind: String,
    pub zone: String,
}

/// A destination reached through a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: Range,
    pub gateway: Ipv4Addr,
}

impl State {
    pub fn network_json(&self, network: &Network) -> Value {
        let subnets: Vec<Value> = network
            .subnets
            .iter()
            .map(|s| {
                json!({
                    "type": s.kind, "ip_range": s.range.to_string(), "network_zone": s.zone,
                    "gateway": network.range.gateway(), "vswitch_id": null,
                })
            })
            .collect();
        let routes: Vec<Value> = network
            .routes
            .iter()
            .map(|r| json!({"destination": r.destination.to_string(), "gateway": r.gateway}))
            .collect();
        json!({
            "id": network.id, "name": network.name, "ip_range": network.range.to_string(), "subnets": subnets,
            "routes": routes, "servers": self.attached_servers(network.id),
            "load_balancers": self.attached_balancers(network.id),
            "protection": {"delete": network.protected}, "labels": network.labels,
            "created": time_json(network.created), "expose_routes_to_vswitch": network.expose_routes_to_vswitch,
        })
    }

    pub fn attached_servers(&self, network: u64) -> Vec<u64> {
        self.servers.values().filter(|s| s.private.iter().any(|p| p.network == network)).map(|s| s.id).collect()
    }

    fn attached_balancers(&self, network: u64) -> Vec<u64> {
        let attached = |b: &&LoadBalancer| b.private.is_some_and(|(id, _)| id == network);
        self.load_balancers.values().filter(attached).map(|b| b.tag.id).collect()
    }

    /// Chooses or checks the address of a server of this zone in the network.
    pub fn choose_address(
        &self,
        network: &Network,
        zone: &str,
        wanted: Option<Ipv4Addr>,
        within: Option<Range>,
    ) -> ApiResult<Ipv4Addr> {
        let subnets: Vec<&Subnet> = network
            .subnets
            .iter()
            .filter(|s| s.zone == zone && s.kind != "vswitch" && within.is_none_or(|w| w == s.range))
            .collect();
        if subnets.is_empty() {
            return Err(ApiError::new(
                "no_subnet_available",
                format!("network {} has no subnet for servers in network zone '{zone}'", network.id),
            ));
        }
        let taken = |a: Ipv4Addr| {
            self.servers
                .values()
                .flat_map(|s| &s.private)
                .any(|p| p.network == network.id && (p.ip == a || p.alias_ips.contains(&a)))
        };
        let taken = |a: Ipv4Addr| taken(a) || self.load_balancers.values().any(|b| b.private == Some((network.id, a)));
        let usable = |a: Ipv4Addr| a != network.range.gateway() && a != PUBLIC_GATEWAY && !taken(a);
        match wanted {
            Some(ip) => {
                let inside = |s: &&Subnet| s.range.has(ip) && ip != s.range.first() && ip != s.range.last();
                if !subnets.iter().any(inside) {
                    return Err(ApiError::field("ip", format!("{ip} is no host address of a subnet in zone '{zone}'")));
                }
                if usable(ip) {
                    Ok(ip)
                } else {
                    Err(ApiError::new(
                        "ip_not_available",
                        format!("IP {ip} is not available in network {}", network.id),
                    ))
                }
            }
            None => subnets.iter().flat_map(|s| s.range.hosts()).find(|a| usable(*a)).ok_or_else(|| {
                ApiError::new("no_subnet_available", format!("network {} has no free address", network.id))
            }),
        }
    }
}

impl Network {
    /// Reads a subnet and checks that it fits; without a range, the first free /24 is taken.
    pub fn fit_subnet(&self, input: &Input) -> ApiResult<Subnet> {
        let kind = input.required_string("type")?;
        match kind.as_str() {
            "cloud" | "server" => {}
            "vswitch" => return Err(ApiError::unsupported("the lab has no vSwitches")),
            _ => return Err(ApiError::field("type", "must be 'cloud', 'server' or 'vswitch'")),
        }
        let zone = input.required_string("network_zone")?;
        if !catalog::locations().iter().any(|l| l.network_zone == zone) {
            return Err(ApiError::field("network_zone", format!("network zone '{zone}' not found")));
        }
        if self.subnets.len() >= SUBNETS_MAX {
            return Err(ApiError::limit("network_subnet_limit"));
        }
        let free = |r: &Range| !self.subnets.iter().any(|s| s.range.overlaps(r));
        let range = match range(input, "ip_range")? {
            Some(range) if !self.range.contains(&range) => {
                return Err(ApiError::field("ip_range", format!("{range} is not inside the network's {}", self.range)));
            }
            Some(range) if range.prefix() > 30 => {
                return Err(ApiError::field("ip_range", "must not be smaller than a /30"));
            }
            Some(range) if !free(&range) => {
                return Err(ApiError::field("ip_range", format!("{range} overlaps another subnet")));
            }
            Some(range) => range,
            None => self.range.parts(self.range.prefix().max(24)).find(free).ok_or_else(|| {
                ApiError::new("no_subnet_available", format!("network {} has no room for a subnet", self.id))
            })?,
        };
        Ok(Subnet { range, kind, zone })
    }

    /// Reads a route and checks that it fits.
    pub fn fit_route(&self, input: &Input) -> ApiResult<Route> {
        let destination = range(input, "destination")?.ok_or_else(|| ApiError::field("destination", "is required"))?;
        let gateway = input.address("gateway")?.ok_or_else(|| ApiError::field("gateway", "is required"))?;
        // "Everything" is the way out through a NAT gateway: it overlaps all and may.
        let taken = |range: &Range| destination.prefix() > 0 && destination.overlaps(range);
        if self.subnets.iter().any(|s| taken(&s.range)) || taken(&Range::host(PUBLIC_GATEWAY)) {
            return Err(ApiError::field("destination", "overlaps a subnet or a reserved range"));
        }
        if !self.range.has(gateway) || gateway == self.range.gateway() {
            return Err(ApiError::field("gateway", "must be an address inside the network, other than its first"));
        }
        if self.routes.len() >= network_action::ROUTES_MAX {
            return Err(ApiError::limit("network_route_limit"));
        }
        let same = |r: &&Route| r.destination == destination || r.destination.prefix() > 0 && taken(&r.destination);
        if let Some(route) = self.routes.iter().find(same) {
            return Err(ApiError::field("destination", format!("overlaps the route to {}", route.destination)));
        }
        Ok(Route { destination, gateway })
    }
}

/// Reads a range.
pub fn range(input: &Input, name: &str) -> ApiResult<Option<Range>> {
    input.string(name)?.map(|s| s.parse().map_err(|e| ApiError::field(name, format!("{e}")))).transpose()
}

/// A range a network may have.
pub fn network_range(input: &Input) -> ApiResult<Range> {
    let range = range(input, "ip_range")?.ok_or_else(|| ApiError::field("ip_range", "is required"))?;
    if !range.is_private() || range.prefix() > 24 {
        return Err(ApiError::field("ip_range", "must be private (RFC 1918) and at least a /24"));
    }
    Ok(range)
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/networks", get(list).post(create))
        .route("/networks/{id}", get(read).put(update).delete(remove))
        .route("/networks/{id}/members", get(members))
        .route("/networks/{id}/actions/add_subnet", post(network_action::add_subnet))
        .route("/networks/{id}/actions/delete_subnet", post(network_action::delete_subnet))
        .route("/networks/{id}/actions/add_route", post(network_action::add_route))
        .route("/networks/{id}/actions/delete_route", post(network_action::delete_route))
        .route("/networks/{id}/actions/change_ip_range", post(network_action::change_ip_range))
        .route("/networks/{id}/actions/change_protection", post(network_action::change_protection))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    listing.reply("networks", state.networks.values().map(|n| state.network_json(n)).collect(), &[])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    let network = state.networks.get(&id).ok_or_else(|| ApiError::not_found("network", id))?;
    Ok(one("network", state.network_json(network)))
}

/// Who is attached, servers and load balancers. Came after the published document.
async fn members(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, listing: Listing) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.state();
    let network = state.networks.get(&id).ok_or_else(|| ApiError::not_found("network", id))?;
    let member = |kind: &str, id: u64, ip: Ipv4Addr, alias_ips: &[Ipv4Addr]| {
        let subnet = network.subnets.iter().find(|s| s.range.has(ip)).map_or(network.range, |s| s.range);
        let status = if state.is_locked(kind, id) { "updating" } else { "ok" };
        json!({
            "id": id, "type": kind, "ip": ip, "alias_ips": alias_ips, "subnet": subnet.to_string(), "status": status,
        })
    };
    let of_server = |s: &Server| {
        let private = s.private.iter().find(|p| p.network == network.id)?;
        Some(member("server", s.id, private.ip, &private.alias_ips))
    };
    let of_balancer = |b: &LoadBalancer| {
        let (_, ip) = b.private.filter(|(attached, _)| *attached == network.id)?;
        Some(member("load_balancer", b.tag.id, ip, &[]))
    };
    let servers = state.servers.values().filter_map(of_server);
    let members = servers.chain(state.load_balancers.values().filter_map(of_balancer)).collect();
    listing.reply("members", members, &["type", "status", "subnet"])
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let name = input.required_string("name")?;
    if name.is_empty() {
        return Err(ApiError::field("name", "must not be empty"));
    }
    let mut network = Network {
        id: 0,
        name,
        range: network_range(&input)?,
        subnets: Vec::new(),
        routes: Vec::new(),
        protected: false,
        labels: input.labels()?.unwrap_or_default(),
        expose_routes_to_vswitch: input.flag("expose_routes_to_vswitch")?.unwrap_or(false),
        created: now(),
    };
    for subnet in input.objects("subnets")? {
        let subnet = network.fit_subnet(&subnet)?;
        network.subnets.push(subnet);
    }
    for route in input.objects("routes")? {
        let route = network.fit_route(&route)?;
        network.routes.push(route);
    }
    let (id, waiting) = {
        let mut state = cloud.state();
        if state.networks.values().any(|n| n.name == network.name) {
            return Err(ApiError::uniqueness("name", "network with the same name already exists"));
        }
        if state.networks.len() >= cloud.options.limits.networks {
            return Err(ApiError::limit("network_limit"));
        }
        let id = state.next_id();
        network.id = id;
        let (range, hops) = (network.range.to_string(), network_action::hops(&network.routes));
        state.networks.insert(id, network);
        let action = state.begin("create_network", &[("network", id)]);
        let backend = Arc::clone(&cloud.backend);
        let effect = async move {
            backend.create_network(id, &range).await?;
            if hops.is_empty() { Ok(()) } else { backend.set_routes(id, &hops).await }
        };
        let waiting = cloud.run_hidden(action, effect, move |state, ok| {
            if !ok {
                state.networks.remove(&id);
            }
        });
        (id, waiting)
    };
    waiting.done().await?;
    let state = cloud.state();
    let network = state.networks.get(&id).ok_or_else(|| ApiError::not_found("network", id))?;
    Ok(created(json!({"network": state.network_json(network)})))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let (name, labels) = (input.string("name")?, input.labels()?);
    let expose = input.flag("expose_routes_to_vswitch")?;
    let mut state = cloud.state();
    if state.networks.values().any(|n| n.id != id && Some(&n.name) == name.as_ref()) {
        return Err(ApiError::uniqueness("name", "network with the same name already exists"));
    }
    let network = state.networks.get_mut(&id).ok_or_else(|| ApiError::not_found("network", id))?;
    network.name = name.unwrap_or_else(|| network.name.clone());
    network.labels = labels.unwrap_or_else(|| network.labels.clone());
    network.expose_routes_to_vswitch = expose.unwrap_or(network.expose_routes_to_vswitch);
    let network = network.clone();
    Ok(one("network", state.network_json(&network)))
}

/// Servers that are still attached get detached.
async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let waiting = {
        let mut state = cloud.state();
        if state.idle_network(id)?.protected {
            return Err(ApiError::protected("network"));
        }
        let servers = state.attached_servers(id);
        for server in &servers {
            state.idle_server(*server)?;
        }
        // They lose what they reach through it.
        for balancer in state.attached_balancers(id) {
            state.idle_balancer(balancer)?;
            if let Some(balancer) = state.load_balancers.get_mut(&balancer) {
                balancer.private = None;
                balancer.targets.retain(|t| !t.use_private_ip);
            }
        }
        let mut locked = vec![("network", id)];
        locked.extend(servers.iter().map(|s| ("server", *s)));
        let action = state.begin("delete_network", &locked);
        let (backend, runner) = (Arc::clone(&cloud.backend), Arc::clone(&cloud));
        let effect = async move {
            runner.settle_balancers(None).await?;
            try_join_all(servers.iter().map(|s| backend.detach_network(*s, id))).await?;
            backend.delete_network(id).await
        };
        cloud.run_hidden(action, effect, move |state, ok| {
            if ok {
                state.networks.remove(&id);
                for server in state.servers.values_mut() {
                    server.private.retain(|p| p.network != id);
                }
            }
        })
    };
    waiting.done().await.map(|()| no_content())
}
