use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Labels, PortResult};

/// What may pass a firewall. What no rule lets in is dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FirewallRule {
    /// `in` or `out`.
    pub direction: String,
    /// `tcp`, `udp`, `icmp`, `esp` or `gre`.
    pub protocol: String,
    /// `443`, `80-85` or `any`; none for protocols without ports.
    pub port: Option<String>,
    /// Where it comes from (or goes to), in CIDR form.
    pub networks: Vec<String>,
    /// For people; says nothing about what passes.
    pub description: String,
}

/// A stateful firewall in front of servers' public addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    pub id: u64,
    pub name: String,
    pub rules: Vec<FirewallRule>,
    /// Label selectors of the servers it is for.
    pub selectors: Vec<String>,
    /// Servers it was applied to by their ids.
    pub servers: Vec<u64>,
    pub labels: Labels,
}

/// What a firewall must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallSpec {
    pub name: String,
    /// Servers with these labels are behind it as soon as they exist.
    pub selector: String,
    pub rules: Vec<FirewallRule>,
    pub labels: Labels,
}

/// A route of a private network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// In CIDR form.
    pub destination: String,
    /// The private address of the server that takes it further.
    pub gateway: Ipv4Addr,
}

/// What stands between the world and the servers. The same promises as [`super::Cloud`].
#[async_trait]
pub trait Perimeter: Send + Sync {
    async fn firewalls(&self, selector: &str) -> PortResult<Vec<Firewall>>;
    async fn firewall_by_name(&self, name: &str) -> PortResult<Option<Firewall>>;
    async fn create_firewall(&self, spec: &FirewallSpec) -> PortResult<Firewall>;
    /// Replaces all rules.
    async fn set_firewall_rules(&self, id: u64, rules: &[FirewallRule]) -> PortResult<()>;
    /// Puts all servers that match a selector behind a firewall.
    async fn apply_firewall(&self, id: u64, selector: &str) -> PortResult<()>;
    /// Takes a firewall from what it is applied to and deletes it. `NotFound` if it is gone already.
    async fn delete_firewall(&self, id: u64) -> PortResult<()>;

    async fn add_route(&self, network: u64, route: &Route) -> PortResult<()>;
    async fn delete_route(&self, network: u64, route: &Route) -> PortResult<()>;
}
