use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Front, Perimeter, PortResult, Route};

/// Labels of a cloud resource.
pub type Labels = BTreeMap<String, String>;

/// A server as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub id: u64,
    pub name: String,
    pub status: ServerStatus,
    pub location: String,
    pub server_type: String,
    pub public_ipv4: Option<Ipv4Addr>,
    /// Private addresses by network id.
    pub private: Vec<PrivateAddress>,
    /// Ids of attached volumes.
    pub volumes: Vec<u64>,
    pub placement_group: Option<u64>,
    pub labels: Labels,
}

/// A server's address in a private network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateAddress {
    pub network: u64,
    pub address: Ipv4Addr,
}

/// Power state, as far as hk-dr distinguishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    Running,
    Off,
    /// Starting, stopping, initializing, migrating, rebuilding, deleting, or a state this version does not know.
    Changing,
}

/// A block volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: u64,
    pub name: String,
    pub location: String,
    /// Size in GB as the provider counts them.
    pub size_gb: u32,
    /// The server it is attached to.
    pub server: Option<u64>,
    /// Device path inside the server, stable for the volume's life.
    pub device: String,
    pub labels: Labels,
}

/// A private network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: u64,
    pub name: String,
    pub range: String,
    pub subnets: Vec<Subnet>,
    #[serde(default)]
    pub routes: Vec<Route>,
    pub labels: Labels,
}

/// A subnet of a private network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub range: String,
    pub zone: String,
}

/// A group that keeps servers on different hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    pub id: u64,
    pub name: String,
    pub servers: Vec<u64>,
    pub labels: Labels,
}

/// A registered SSH public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    pub id: u64,
    pub name: String,
    /// OpenSSH form, without comment.
    pub public_key: String,
    pub labels: Labels,
}

/// Where resources can be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    pub name: String,
    pub network_zone: String,
}

/// What a new server must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    pub name: String,
    pub server_type: String,
    pub image: String,
    pub location: String,
    pub ssh_keys: Vec<u64>,
    pub placement_group: Option<u64>,
    pub labels: Labels,
    /// Whether it gets a public IPv4 address.
    pub public_ipv4: bool,
    /// Whether it is switched on at once. One without a public address must be attached to a network before.
    pub start: bool,
    /// Handed to the machine at first boot; may hold its host key, hence never logged and never serialised.
    #[serde(skip)]
    pub user_data: String,
}

/// What a new volume must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub name: String,
    pub size_gb: u32,
    pub location: String,
    /// Where it is attached as soon as it exists; a server of the same location.
    pub server: Option<u64>,
    pub labels: Labels,
}

/// What a new private network must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: String,
    pub range: String,
    pub subnet: Subnet,
    pub routes: Vec<Route>,
    pub labels: Labels,
}

/// The cloud. Every call that starts an action returns when the action has ended, within the adapter's deadline.
/// Creating calls are safe to repeat after an ambiguous answer: the adapter looks up the unique name before it posts
/// again, and answers `Conflict` when the name belongs to something that does not carry the given labels.
#[async_trait]
pub trait Cloud: Perimeter + Front {
    async fn locations(&self) -> PortResult<Vec<Location>>;

    /// All servers that match a label selector (empty: all of the project), over all pages.
    async fn servers(&self, selector: &str) -> PortResult<Vec<Server>>;
    async fn server_by_name(&self, name: &str) -> PortResult<Option<Server>>;
    async fn create_server(&self, spec: &ServerSpec) -> PortResult<Server>;
    /// Deletes a server; volumes are detached, not deleted. `NotFound` if it is gone already.
    async fn delete_server(&self, id: u64) -> PortResult<()>;
    async fn power_on(&self, id: u64) -> PortResult<()>;
    /// Cuts the power.
    async fn power_off(&self, id: u64) -> PortResult<()>;
    async fn attach_network(&self, server: u64, network: u64, address: Ipv4Addr) -> PortResult<()>;
    /// Replaces the labels of a server.
    async fn label_server(&self, id: u64, labels: &Labels) -> PortResult<()>;

    async fn volumes(&self, selector: &str) -> PortResult<Vec<Volume>>;
    async fn volume_by_name(&self, name: &str) -> PortResult<Option<Volume>>;
    /// Creates an unformatted volume. Where it exists already, it is attached to whatever it was attached to.
    async fn create_volume(&self, spec: &VolumeSpec) -> PortResult<Volume>;
    async fn attach_volume(&self, volume: u64, server: u64) -> PortResult<()>;
    async fn detach_volume(&self, volume: u64) -> PortResult<()>;
    async fn delete_volume(&self, id: u64) -> PortResult<()>;
    /// Changes name and labels of a volume.
    async fn update_volume(&self, id: u64, name: &str, labels: &Labels) -> PortResult<()>;

    async fn network_by_name(&self, name: &str) -> PortResult<Option<Network>>;
    /// Where it exists already, it has the routes that it had.
    async fn create_network(&self, spec: &NetworkSpec) -> PortResult<Network>;
    async fn delete_network(&self, id: u64) -> PortResult<()>;

    async fn placement_group_by_name(&self, name: &str) -> PortResult<Option<PlacementGroup>>;
    /// Creates a group of type `spread`.
    async fn create_placement_group(&self, name: &str, labels: &Labels) -> PortResult<PlacementGroup>;
    async fn delete_placement_group(&self, id: u64) -> PortResult<()>;

    async fn ssh_key_by_name(&self, name: &str) -> PortResult<Option<SshKey>>;
    async fn create_ssh_key(&self, name: &str, public_key: &str, labels: &Labels) -> PortResult<SshKey>;
    async fn delete_ssh_key(&self, id: u64) -> PortResult<()>;

    /// What things cost now.
    async fn prices(&self) -> PortResult<Prices>;
}

/// What things cost, tax included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices {
    pub currency: String,
    /// An hour of a server, by type and location.
    pub servers: BTreeMap<(String, String), f64>,
    /// An hour of a server's public IPv4 address, by location.
    pub ipv4: BTreeMap<String, f64>,
    /// A gigabyte of a volume for a month.
    pub volume_gb_month: f64,
}

impl Prices {
    pub fn server_hour(&self, server_type: &str, location: &str) -> Option<f64> {
        self.servers.get(&(server_type.to_owned(), location.to_owned())).copied()
    }

    pub fn ipv4_hour(&self, location: &str) -> Option<f64> {
        self.ipv4.get(location).copied()
    }
}
