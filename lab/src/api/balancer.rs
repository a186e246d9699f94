//! Load balancers: what they are, reading, making and deleting them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::balancer_service::{self, Service};
use super::balancer_target::{self, Target};
use super::balancer_type::{self, BalancerType};
use super::catalog::{self, Location};
use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::{Listing, created, one};
use super::rdns::Reverse;
use super::tag::{Tag, TagUpdate, check_unique};
use super::{balancer_action, metrics};
use crate::backend::BalancerSpec;

/// How long a read waits for what the health checks saw.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);

/// A load balancer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadBalancer {
    pub tag: Tag,
    pub kind: &'static BalancerType,
    pub location: &'static Location,
    pub least_connections: bool,
    /// Whether it answers at its public addresses.
    pub public: bool,
    pub ipv4: Ipv4Addr,
    /// The first address of its /64.
    pub network6: Ipv6Addr,
    /// The network it is attached to, and its address there.
    pub private: Option<(u64, Ipv4Addr)>,
    pub services: Vec<Service>,
    pub targets: Vec<Target>,
    pub reverse: Reverse,
}

impl LoadBalancer {
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network6.to_bits() | 1)
    }

    /// Whether one of its services shows the certificate.
    pub fn uses(&self, certificate: u64) -> bool {
        self.services.iter().any(|s| s.certificates().contains(&certificate))
    }
}

impl State {
    pub fn balancer_json(&self, balancer: &LoadBalancer) -> Value {
        let private: Vec<Value> =
            balancer.private.iter().map(|(network, ip)| json!({"network": network, "ip": ip})).collect();
        let targets: Vec<Value> = balancer.targets.iter().map(|t| self.target_json(balancer, t)).collect();
        let algorithm = if balancer.least_connections { "least_connections" } else { "round_robin" };
        balancer.tag.json(json!({
            "public_net": {
                "enabled": balancer.public,
                "ipv4": {"ip": balancer.ipv4, "dns_ptr": balancer.reverse.name(IpAddr::V4(balancer.ipv4))},
                "ipv6": {"ip": balancer.ipv6(), "dns_ptr": balancer.reverse.name(IpAddr::V6(balancer.ipv6()))},
            },
            "private_net": private, "location": balancer.location.json(), "load_balancer_type": balancer.kind.json(),
            "protection": {"delete": balancer.tag.protected}, "algorithm": {"type": algorithm},
            "services": balancer.services.iter().map(Service::json).collect::<Vec<_>>(), "targets": targets,
            "included_traffic": catalog::included_traffic(balancer.location), "outgoing_traffic": 0,
            "ingoing_traffic": 0,
        }))
    }

    pub fn balancer(&self, id: u64) -> ApiResult<&LoadBalancer> {
        self.load_balancers.get(&id).ok_or_else(|| ApiError::not_found("load_balancer", id))
    }

    /// A load balancer no action runs on.
    pub fn idle_balancer(&self, id: u64) -> ApiResult<&LoadBalancer> {
        let balancer = self.balancer(id)?;
        if self.is_locked("load_balancer", id) { Err(ApiError::changing("load_balancer", id)) } else { Ok(balancer) }
    }

    /// What it should be, as the machine room takes it.
    pub fn wanted_balancer(&self, balancer: &LoadBalancer) -> BalancerSpec {
        BalancerSpec {
            id: balancer.tag.id,
            location: balancer.location.name.to_owned(),
            public_ipv4: balancer.public.then_some(balancer.ipv4),
            public_ipv6: balancer.public.then(|| balancer.ipv6()),
            private: balancer.private,
            least_connections: balancer.least_connections,
            services: balancer.services.iter().map(|s| s.for_backend(&self.certificates)).collect(),
            targets: self.target_addresses(balancer),
        }
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/load_balancers", get(list).post(create))
        .route("/load_balancers/{id}", get(read).put(update).delete(remove))
        .route("/load_balancers/{id}/metrics", get(metrics::of_balancer))
        .route("/load_balancers/{id}/actions/add_service", post(balancer_action::add_service))
        .route("/load_balancers/{id}/actions/update_service", post(balancer_action::update_service))
        .route("/load_balancers/{id}/actions/delete_service", post(balancer_action::delete_service))
        .route("/load_balancers/{id}/actions/add_target", post(balancer_action::add_target))
        .route("/load_balancers/{id}/actions/remove_target", post(balancer_action::remove_target))
        .route("/load_balancers/{id}/actions/change_algorithm", post(balancer_action::change_algorithm))
        .route("/load_balancers/{id}/actions/change_type", post(balancer_action::change_type))
        .route("/load_balancers/{id}/actions/change_protection", post(balancer_action::change_protection))
        .route("/load_balancers/{id}/actions/change_dns_ptr", post(balancer_action::change_dns_ptr))
        .route("/load_balancers/{id}/actions/attach_to_network", post(balancer_action::attach_to_network))
        .route("/load_balancers/{id}/actions/detach_from_network", post(balancer_action::detach_from_network))
        .route("/load_balancers/{id}/actions/enable_public_interface", post(balancer_action::enable_public_interface))
        .route("/load_balancers/{id}/actions/disable_public_interface", post(balancer_action::disable_public_interface))
}

impl Cloud {
    /// Asks what the health checks saw last. Who does not answer in time keeps its last answer.
    async fn look_at_health(&self, only: Option<u64>) {
        let ids: Vec<u64> = self.state().load_balancers.keys().copied().collect();
        for id in ids.into_iter().filter(|id| only.is_none_or(|o| o == *id)) {
            let seen = tokio::time::timeout(HEALTH_PATIENCE, self.backend.balancer_health(id)).await;
            if let Ok(Ok(seen)) = seen {
                self.state().made().health.insert(id, seen);
            }
        }
    }
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    cloud.look_at_health(None).await;
    let state = cloud.look();
    let balancers = state.load_balancers.values().map(|b| state.balancer_json(b)).collect();
    listing.reply("load_balancers", balancers, &[])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    cloud.look_at_health(Some(id)).await;
    let state = cloud.look();
    Ok(one("load_balancer", state.balancer_json(state.balancer(id)?)))
}

fn choose_location(input: &Input) -> ApiResult<&'static Location> {
    match (input.reference("location")?, input.string("network_zone")?) {
        (Some(_), Some(_)) => Err(ApiError::field("location", "must not be given together with 'network_zone'")),
        (None, None) => Err(ApiError::field("location", "is required when 'network_zone' is not given")),
        (Some(name), None) => {
            catalog::location(&name).ok_or_else(|| ApiError::field("location", format!("location '{name}' not found")))
        }
        (None, Some(zone)) => catalog::locations()
            .iter()
            .find(|l| l.network_zone == zone)
            .ok_or_else(|| ApiError::field("network_zone", format!("network zone '{zone}' not found"))),
    }
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let tag = Tag::read(&input)?;
    let kind = input.reference("load_balancer_type")?;
    let kind = kind.ok_or_else(|| ApiError::field("load_balancer_type", "is required"))?;
    let kind = balancer_type::find(&kind)
        .ok_or_else(|| ApiError::field("load_balancer_type", format!("load balancer type '{kind}' not found")))?;
    let location = choose_location(&input)?;
    let least_connections = match input.object("algorithm")? {
        Some(algorithm) => balancer_action::algorithm(&algorithm)?,
        None => false,
    };
    if input.get("public_net").is_some() {
        return Err(ApiError::unsupported("the lab's load balancers have no Primary IPs: leave 'public_net' out"));
    }
    let mut guard = cloud.state();
    let state = &mut *guard;
    check_unique("load balancer", state.load_balancers.values().map(|b| &b.tag), &tag.name, 0)?;
    if state.load_balancers.len() >= cloud.options.limits.load_balancers {
        return Err(ApiError::limit("load_balancer_limit"));
    }
    let private = match input.number("network")? {
        Some(network) => Some((network, balancer_action::choose_address(state, network, location, &Input::default())?)),
        None => None,
    };
    let mut balancer = LoadBalancer {
        tag,
        kind,
        location,
        least_connections,
        public: input.flag("public_interface")?.unwrap_or(true),
        ipv4: Ipv4Addr::UNSPECIFIED,
        network6: Ipv6Addr::UNSPECIFIED,
        private,
        services: Vec::new(),
        targets: Vec::new(),
        reverse: Reverse::default(),
    };
    for service in input.objects("services")? {
        let service = balancer_service::read(state, &balancer, &service)?;
        balancer.services.push(service);
    }
    for target in input.objects("targets")? {
        let target = balancer_target::read(state, &balancer, &target)?;
        balancer.targets.push(target);
    }
    if state.common.faults().unavailable(location.name) {
        return Err(ApiError::unavailable(location.name));
    }
    let none_free = || ApiError::new("resource_unavailable", "no public address is free");
    balancer.ipv4 = state.common.addresses().take().ok_or_else(none_free)?;
    balancer.network6 = state.common.networks6().take().ok_or_else(none_free)?;
    let id = state.next_id();
    balancer.tag.id = id;
    let body = state.balancer_json(&balancer);
    state.load_balancers.insert(id, balancer);
    let action = state.begin("create_load_balancer", &[("load_balancer", id)]);
    let body = json!({"load_balancer": body, "action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    cloud.run(action, async move { runner.settle_balancers(Some(id)).await }, |_, _| {});
    Ok(created(body))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let update = TagUpdate::read(&input)?;
    let mut state = cloud.state();
    if let Some(name) = &update.name {
        check_unique("load balancer", state.load_balancers.values().map(|b| &b.tag), name, id)?;
    }
    state.load_balancers.get_mut(&id).ok_or_else(|| ApiError::not_found("load_balancer", id))?.tag.update(update);
    Ok(one("load_balancer", state.balancer_json(state.balancer(id)?)))
}

impl State {
    /// Removes a load balancer that is no longer in the machine room.
    pub(super) fn drop_balancer(&mut self, id: u64) {
        if let Some(gone) = self.load_balancers.remove(&id) {
            self.common.addresses().give_back(gone.ipv4);
            self.common.networks6().give_back(gone.network6);
        }
        self.made().forget_balancer(id);
    }
}

/// It is listed until it is gone.
async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    state.idle_balancer(id)?.tag.check_unprotected("load_balancer")?;
    let action = state.begin("delete_load_balancer", &[("load_balancer", id)]);
    let body = json!({"action": state.action_json(action)});
    let runner = Arc::clone(&cloud);
    let effect = async move {
        // Nobody may make it again while it goes.
        let _turn = runner.upkeep.balancers.lock().await;
        runner.backend.delete_balancer(id).await?;
        runner.state().drop_balancer(id);
        Ok(())
    };
    cloud.run(action, effect, |_, _| {});
    Ok(axum::response::IntoResponse::into_response(axum::Json(body)))
}
