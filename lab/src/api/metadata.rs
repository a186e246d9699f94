//! The metadata service at 169.254.169.254: what a machine learns about itself, found by the address it asks from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::cloud::Cloud;
use super::provider::Provider;
use super::server::Server;
use crate::backend::Metadata;

impl Server {
    /// What the backend is told when it makes the machine.
    pub fn metadata(&self) -> Metadata {
        Metadata {
            hostname: self.name.clone(),
            instance_id: self.id,
            public_ipv4: self.public_ipv4.map(|p| p.ip),
            region: self.location.network_zone.to_owned(),
            availability_zone: format!("{}-dc1", self.location.name),
            public_keys: self.public_keys.clone(),
            user_data: self.user_data.clone(),
            root_password: None,
        }
    }
}

/// The service. Serve it with `into_make_service_with_connect_info::<SocketAddr>()`.
pub fn metadata_router(provider: Arc<Provider>) -> Router {
    Router::new()
        .route("/hetzner/v1/metadata", get(document))
        .route("/hetzner/v1/metadata/{item}", get(item))
        .route("/hetzner/v1/userdata", get(user_data))
        .with_state(provider)
}

type Peer = ConnectInfo<SocketAddr>;

/// Nothing to tell: no machine has the asking address, or there is no such item.
struct NotFound;

impl IntoResponse for NotFound {
    fn into_response(self) -> Response {
        (StatusCode::NOT_FOUND, "not found\n").into_response()
    }
}

/// The server that has the asking address, and its project.
fn find(provider: &Provider, peer: SocketAddr) -> Result<(Arc<Cloud>, Server), NotFound> {
    let IpAddr::V4(address) = peer.ip().to_canonical() else {
        return Err(NotFound);
    };
    let by = |fits: &dyn Fn(&Server) -> bool| {
        provider.projects().into_iter().find_map(|project| {
            let found = project.cloud.look().servers.values().find(|s| fits(s)).cloned();
            found.map(|server| (project.cloud, server))
        })
    };
    by(&|s| s.public_ipv4.is_some_and(|p| p.ip == address))
        // One without a public IPv4 address asks from an address that the lab makes from its id, or from a private one.
        .or_else(|| by(&|s| s.public_ipv4.is_none() && crate::fabric::link_local(s.id) == address))
        .or_else(|| by(&|s| s.private.iter().any(|p| p.ip == address)))
        .ok_or(NotFound)
}

fn text(body: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// A YAML document; JSON strings and lists are YAML too, so that no value needs escaping of another kind.
async fn document(State(provider): State<Arc<Provider>>, ConnectInfo(peer): Peer) -> Result<Response, NotFound> {
    let (_, server) = find(&provider, peer)?;
    let metadata = server.metadata();
    let mut lines = vec![
        format!("availability-zone: {}", metadata.availability_zone),
        format!("hostname: {}", json!(metadata.hostname)),
        format!("instance-id: {}", metadata.instance_id),
    ];
    if let Some(ip) = metadata.public_ipv4 {
        lines.push(format!("public-ipv4: {ip}"));
    }
    lines.push(format!("network-config: {}", network_config(&server)));
    lines.push(format!("public-keys: {}", json!(metadata.public_keys)));
    lines.push(format!("region: {}", metadata.region));
    Ok(text(lines.join("\n") + "\n"))
}

async fn item(
    State(provider): State<Arc<Provider>>,
    ConnectInfo(peer): Peer,
    Path(item): Path<String>,
) -> Result<Response, NotFound> {
    let (cloud, server) = find(&provider, peer)?;
    let metadata = server.metadata();
    let value = match item.as_str() {
        "hostname" => metadata.hostname,
        "instance-id" => metadata.instance_id.to_string(),
        "public-ipv4" => metadata.public_ipv4.map(|ip| ip.to_string()).unwrap_or_default(),
        "public-keys" => json!(metadata.public_keys).to_string(),
        "region" => metadata.region,
        "availability-zone" => metadata.availability_zone,
        "private-networks" => private_networks(&cloud, &server),
        "network-config" => network_config(&server).to_string(),
        _ => return Err(NotFound),
    };
    Ok(text(value))
}

/// The public interface, in cloud-init's words (version 1): its source for Hetzner wants it. The lab's machines have it
/// configured from outside.
fn network_config(server: &Server) -> Value {
    let ipv4 = server.public_ipv4.map(|_| json!({"ipv4": true, "type": "dhcp"}));
    let ipv6 = server.public_ipv6.map(|public| {
        let address = std::net::Ipv6Addr::from_bits(public.ip.to_bits() | 1);
        json!({"ipv6": true, "type": "static", "address": format!("{address}/64"), "gateway": "fe80::1"})
    });
    let subnets: Vec<Value> = ipv4.into_iter().chain(ipv6).collect();
    json!({"version": 1, "config": [{"type": "physical", "name": "eth0", "subnets": subnets}]})
}

fn private_networks(cloud: &Cloud, server: &Server) -> String {
    let state = cloud.state();
    let mut lines = Vec::new();
    for (index, private) in server.private.iter().enumerate() {
        let Some(network) = state.networks.get(&private.network) else { continue };
        let subnet = network.subnets.iter().find(|s| s.range.has(private.ip)).map_or(network.range, |s| s.range);
        lines.push(format!("- ip: {}", private.ip));
        lines.push(format!("  alias_ips: {}", json!(private.alias_ips)));
        lines.push(format!("  interface_num: {}", index + 1));
        lines.push(format!("  network_id: {}", network.id));
        lines.push(format!("  network_name: {}", json!(network.name)));
        lines.push(format!("  network: {}", network.range));
        lines.push(format!("  subnet: {subnet}"));
        lines.push(format!("  gateway: {}", network.range.gateway()));
    }
    if lines.is_empty() { "[]\n".to_owned() } else { lines.join("\n") + "\n" }
}

async fn user_data(State(provider): State<Arc<Provider>>, ConnectInfo(peer): Peer) -> Result<Response, NotFound> {
    let (_, server) = find(&provider, peer)?;
    // As Hetzner does it: none is an error that cloud-init expects.
    if server.user_data.is_empty() {
        return Err(NotFound);
    }
    Ok(text(server.user_data))
}
