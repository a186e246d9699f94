//! Targets of load balancers: servers by id or label, and addresses outside of the cloud.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::balancer::LoadBalancer;
use super::cloud::State;
use super::error::{ApiError, ApiResult};
use super::firewall::selects;
use super::input::Input;
use super::selector::Selector;
use super::server::{Server, Status};

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub what: What,
    pub use_private_ip: bool,
}

/// What a target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Server(u64),
    Selector(String),
    Ip(Ipv4Addr),
}

/// Reads what a request names as a target.
pub fn read_what(input: &Input) -> ApiResult<What> {
    let kind = input.required_string("type")?;
    let part = |name: &str| input.object(name)?.ok_or_else(|| ApiError::field(name, "is required"));
    match kind.as_str() {
        "server" => Ok(What::Server(part("server")?.required_number("id")?)),
        "label_selector" => {
            let selector = part("label_selector")?.required_string("selector")?;
            Selector::parse(&selector)?;
            Ok(What::Selector(selector))
        }
        "ip" => {
            let ip = part("ip")?.address("ip")?;
            ip.map(What::Ip).ok_or_else(|| ApiError::field("ip", "is required"))
        }
        _ => Err(ApiError::field("type", "must be 'server', 'label_selector' or 'ip'")),
    }
}

/// Reads a target and checks that the load balancer can reach it.
pub fn read(state: &State, balancer: &LoadBalancer, input: &Input) -> ApiResult<Target> {
    let target = Target { what: read_what(input)?, use_private_ip: input.flag("use_private_ip")?.unwrap_or(false) };
    if balancer.targets.iter().any(|t| t.what == target.what) {
        return Err(ApiError::new("target_already_defined", "the target is already defined"));
    }
    if balancer.targets.len() >= balancer.kind.targets {
        return Err(ApiError::limit("load_balancer_target_limit"));
    }
    if target.use_private_ip && balancer.private.is_none() {
        let message = "the load balancer is not attached to a network";
        return Err(ApiError::new("load_balancer_not_attached_to_network", message));
    }
    if !target.use_private_ip && !balancer.public {
        let message = "the load balancer's public interface is disabled";
        return Err(ApiError::new("load_balancer_public_interface_disabled", message));
    }
    match &target.what {
        What::Server(id) => {
            let server =
                state.servers.get(id).ok_or_else(|| ApiError::field("server", format!("server {id} not found")))?;
            if address(balancer, server, target.use_private_ip).is_none() {
                return Err(if target.use_private_ip {
                    let message = format!("server {id} is not attached to the load balancer's network");
                    ApiError::new("server_not_attached_to_network", message)
                } else {
                    ApiError::new("missing_ipv4", format!("server {id} has no public IPv4 address"))
                });
            }
        }
        What::Ip(_) if target.use_private_ip => {
            return Err(ApiError::field("use_private_ip", "is not for targets of type 'ip'"));
        }
        What::Ip(ip) if state.common.addresses().range().has(*ip) => {
            let message = format!("{ip} belongs to a cloud resource");
            return Err(ApiError::new("cloud_resource_ip_not_allowed", message));
        }
        What::Ip(_) | What::Selector(_) => {}
    }
    Ok(target)
}

/// Where a server answers the load balancer, if it does.
fn address(balancer: &LoadBalancer, server: &Server, private: bool) -> Option<IpAddr> {
    if !private {
        return server.public_ipv4.map(|p| IpAddr::V4(p.ip));
    }
    let (network, _) = balancer.private?;
    server.private.iter().find(|p| p.network == network).map(|p| IpAddr::V4(p.ip))
}

impl State {
    /// The servers of a target.
    fn servers_of<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = &'a Server> {
        self.servers.values().filter(move |server| match &target.what {
            What::Server(id) => *id == server.id,
            What::Selector(text) => server.status != Status::Deleting && selects(text, server),
            What::Ip(_) => false,
        })
    }

    /// Where all targets of a load balancer answer, each once.
    pub fn target_addresses(&self, balancer: &LoadBalancer) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for target in &balancer.targets {
            let of_servers = self.servers_of(target).filter_map(|s| address(balancer, s, target.use_private_ip));
            let own = if let What::Ip(ip) = &target.what { Some(IpAddr::V4(*ip)) } else { None };
            for address in of_servers.chain(own) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses.truncate(balancer.kind.targets);
        addresses
    }

    pub fn target_json(&self, balancer: &LoadBalancer, target: &Target) -> Value {
        let of_server = |server: &Server| {
            let health = self.health_json(balancer, address(balancer, server, target.use_private_ip));
            json!({
                "type": "server", "server": {"id": server.id}, "health_status": health,
                "use_private_ip": target.use_private_ip,
            })
        };
        match &target.what {
            What::Server(id) => self.servers.get(id).map(of_server).unwrap_or_default(),
            What::Selector(text) => json!({
                "type": "label_selector", "label_selector": {"selector": text},
                "use_private_ip": target.use_private_ip,
                "targets": self.servers_of(target).map(of_server).collect::<Vec<_>>(),
            }),
            What::Ip(ip) => json!({
                "type": "ip", "ip": {"ip": ip}, "health_status": self.health_json(balancer, Some(IpAddr::V4(*ip))),
            }),
        }
    }

    /// What the health checks of each service saw of a target.
    fn health_json(&self, balancer: &LoadBalancer, target: Option<IpAddr>) -> Vec<Value> {
        let made = self.made();
        let seen = made.health.get(&balancer.tag.id).map(Vec::as_slice).unwrap_or_default();
        let status = |port: u16| {
            let found = seen.iter().find(|h| h.listen_port == port && Some(h.target) == target);
            match found.and_then(|h| h.healthy) {
                Some(true) => "healthy",
                Some(false) => "unhealthy",
                None => "unknown",
            }
        };
        let of = |port: u16| json!({"listen_port": port, "status": status(port)});
        balancer.services.iter().map(|s| of(s.listen_port)).collect()
    }
}
