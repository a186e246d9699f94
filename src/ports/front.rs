use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Labels, PortResult, PrivateAddress};

/// A load balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    pub id: u64,
    pub name: String,
    pub location: String,
    pub balancer_type: String,
    /// Its public address, if its public interface is on.
    pub public_ipv4: Option<Ipv4Addr>,
    pub private: Vec<PrivateAddress>,
    pub services: Vec<BalancerService>,
    pub targets: Vec<BalancerTarget>,
    pub labels: Labels,
}

/// What a load balancer takes connections for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BalancerService {
    /// `tcp`, `http` or `https`.
    pub protocol: String,
    pub listen_port: u16,
    /// At the targets.
    pub destination_port: u16,
    pub proxy_protocol: bool,
    pub check: HealthCheck,
}

/// How a load balancer finds out which of its targets are well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `tcp` or `http`.
    pub protocol: String,
    pub port: u16,
    /// Seconds between two checks.
    pub interval: u32,
    /// Seconds.
    pub timeout: u32,
    /// So many checks in a row change its mind.
    pub retries: u32,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancerTarget {
    /// Every server with these labels.
    Selector { selector: String, private: bool },
    /// One server.
    Server { id: u64, private: bool },
    /// An address outside of the cloud.
    Address(String),
}

/// What a new load balancer must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerSpec {
    pub name: String,
    pub balancer_type: String,
    pub location: String,
    /// Whether it has a public interface.
    pub public: bool,
    pub services: Vec<BalancerService>,
    pub labels: Labels,
}

/// An address that is routed to one server at a time. The server has to have it configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    pub id: u64,
    pub name: String,
    pub address: Ipv4Addr,
    pub location: String,
    /// The server it is routed to.
    pub server: Option<u64>,
    pub labels: Labels,
}

/// Where clients arrive. The same promises as [`super::Cloud`].
#[async_trait]
pub trait Front: Send + Sync {
    async fn balancers(&self, selector: &str) -> PortResult<Vec<Balancer>>;
    async fn balancer_by_name(&self, name: &str) -> PortResult<Option<Balancer>>;
    /// Creates one without targets, attached to nothing.
    async fn create_balancer(&self, spec: &BalancerSpec) -> PortResult<Balancer>;
    async fn attach_balancer(&self, id: u64, network: u64, address: Ipv4Addr) -> PortResult<()>;
    async fn detach_balancer(&self, id: u64, network: u64) -> PortResult<()>;
    /// Switches its public interface on or off.
    async fn set_balancer_public(&self, id: u64, public: bool) -> PortResult<()>;
    /// Adds the service, or changes the one with the same listen port.
    async fn set_balancer_service(&self, id: u64, service: &BalancerService) -> PortResult<()>;
    async fn delete_balancer_service(&self, id: u64, listen_port: u16) -> PortResult<()>;
    async fn add_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()>;
    async fn remove_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()>;
    /// `NotFound` if it is gone already.
    async fn delete_balancer(&self, id: u64) -> PortResult<()>;

    async fn floating_ips(&self, selector: &str) -> PortResult<Vec<FloatingIp>>;
    async fn floating_ip_by_name(&self, name: &str) -> PortResult<Option<FloatingIp>>;
    /// Creates an IPv4 address that is routed nowhere.
    async fn create_floating_ip(&self, name: &str, location: &str, labels: &Labels) -> PortResult<FloatingIp>;
    /// Routes it to a server, whichever had it before.
    async fn assign_floating_ip(&self, id: u64, server: u64) -> PortResult<()>;
    /// Takes it from its server and deletes it. `NotFound` if it is gone already.
    async fn delete_floating_ip(&self, id: u64) -> PortResult<()>;
}
