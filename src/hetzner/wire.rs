//! The API's JSON, as far as hk-dr reads it. Tolerant: unknown fields are ignored, absent or null ones have a default,
//! and states are text, so that a value added tomorrow does not stop a recovery.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer};

use crate::ports::{
    Balancer, Firewall, FloatingIp, Labels, Location, Network, PlacementGroup, PrivateAddress, Route, Server,
    ServerStatus, SshKey, Subnet, Volume,
};

/// Null counts as absent.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Action {
    pub(super) id: u64,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) command: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) status: String,
    #[serde(default)]
    pub(super) error: Option<ApiError>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ApiError {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) code: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) error: ApiError,
}

/// What follows from a request that starts something.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Started {
    #[serde(default)]
    pub(super) action: Option<Action>,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) next_actions: Vec<Action>,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) actions: Vec<Action>,
}

impl Started {
    pub(super) fn all(self) -> impl Iterator<Item = Action> {
        self.action.into_iter().chain(self.actions).chain(self.next_actions)
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Meta {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) pagination: Pagination,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Pagination {
    #[serde(default)]
    pub(super) next_page: Option<u32>,
}

/// A thing the API lists under one name and shows alone under another.
pub(super) trait Resource: serde::de::DeserializeOwned {
    type Model: Labelled;
    /// Path and name of the list.
    const LIST: &'static str;
    /// Name of a single one, also for messages with spaces instead of underscores.
    const ONE: &'static str;
    fn model(self) -> Self::Model;
}

/// What ownership is recognised by.
pub(super) trait Labelled {
    fn id(&self) -> u64;
    fn name(&self) -> &str;
    fn labels(&self) -> &Labels;
}

macro_rules! labelled {
    ($($model:ty),*) => {$(
        impl Labelled for $model {
            fn id(&self) -> u64 { self.id }
            fn name(&self) -> &str { &self.name }
            fn labels(&self) -> &Labels { &self.labels }
        }
    )*};
}
labelled!(Server, Volume, Network, PlacementGroup, SshKey, Firewall, Balancer, FloatingIp);

#[derive(Debug, Default, Deserialize)]
pub(super) struct Named {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireServer {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    status: String,
    #[serde(default, deserialize_with = "lenient")]
    location: Named,
    #[serde(default)]
    datacenter: Option<WireDatacenter>,
    #[serde(default, deserialize_with = "lenient")]
    server_type: Named,
    #[serde(default, deserialize_with = "lenient")]
    public_net: WirePublicNet,
    #[serde(default, deserialize_with = "lenient")]
    private_net: Vec<WirePrivateNet>,
    #[serde(default, deserialize_with = "lenient")]
    volumes: Vec<u64>,
    #[serde(default)]
    placement_group: Option<WireId>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

/// Left the API in July 2026; older answers have the location only here.
#[derive(Debug, Deserialize)]
struct WireDatacenter {
    #[serde(default, deserialize_with = "lenient")]
    location: Named,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct WirePublicNet {
    #[serde(default)]
    ipv4: Option<WireIp>,
}

impl WirePublicNet {
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.ipv4.as_ref()?.ip
    }
}

#[derive(Debug, Deserialize)]
struct WireIp {
    ip: Option<Ipv4Addr>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WirePrivateNet {
    pub(super) network: u64,
    pub(super) ip: Ipv4Addr,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireId {
    pub(super) id: u64,
}

impl Resource for WireServer {
    type Model = Server;
    const LIST: &'static str = "servers";
    const ONE: &'static str = "server";
    fn model(self) -> Server {
        let location = match (self.location.name, self.datacenter) {
            (name, Some(datacenter)) if name.is_empty() => datacenter.location.name,
            (name, _) => name,
        };
        Server {
            id: self.id,
            name: self.name,
            status: match self.status.as_str() {
                "running" => ServerStatus::Running,
                "off" => ServerStatus::Off,
                _ => ServerStatus::Changing,
            },
            location,
            server_type: self.server_type.name,
            public_ipv4: self.public_net.address(),
            private: self.private_net.iter().map(|p| PrivateAddress { network: p.network, address: p.ip }).collect(),
            volumes: self.volumes,
            placement_group: self.placement_group.map(|g| g.id),
            labels: self.labels,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WireVolume {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    location: Named,
    #[serde(default, deserialize_with = "lenient")]
    size: u32,
    #[serde(default)]
    server: Option<u64>,
    #[serde(default)]
    linux_device: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

impl Resource for WireVolume {
    type Model = Volume;
    const LIST: &'static str = "volumes";
    const ONE: &'static str = "volume";
    fn model(self) -> Volume {
        Volume {
            id: self.id,
            name: self.name,
            location: self.location.name,
            size_gb: self.size,
            server: self.server,
            device: self.linux_device.unwrap_or_else(|| format!("/dev/disk/by-id/scsi-0HC_Volume_{}", self.id)),
            labels: self.labels,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WireNetwork {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    ip_range: String,
    #[serde(default, deserialize_with = "lenient")]
    subnets: Vec<WireSubnet>,
    #[serde(default, deserialize_with = "lenient")]
    routes: Vec<WireRoute>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

#[derive(Debug, Deserialize)]
struct WireRoute {
    destination: String,
    gateway: Ipv4Addr,
}

#[derive(Debug, Deserialize)]
struct WireSubnet {
    #[serde(default, deserialize_with = "lenient")]
    ip_range: String,
    #[serde(default, deserialize_with = "lenient")]
    network_zone: String,
}

impl Resource for WireNetwork {
    type Model = Network;
    const LIST: &'static str = "networks";
    const ONE: &'static str = "network";
    fn model(self) -> Network {
        let subnet = |s: WireSubnet| Subnet { range: s.ip_range, zone: s.network_zone };
        Network {
            id: self.id,
            name: self.name,
            range: self.ip_range,
            subnets: self.subnets.into_iter().map(subnet).collect(),
            routes: self.routes.into_iter().map(|r| Route { destination: r.destination, gateway: r.gateway }).collect(),
            labels: self.labels,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WirePlacementGroup {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    servers: Vec<u64>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

impl Resource for WirePlacementGroup {
    type Model = PlacementGroup;
    const LIST: &'static str = "placement_groups";
    const ONE: &'static str = "placement_group";
    fn model(self) -> PlacementGroup {
        PlacementGroup { id: self.id, name: self.name, servers: self.servers, labels: self.labels }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WireSshKey {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    public_key: String,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

impl Resource for WireSshKey {
    type Model = SshKey;
    const LIST: &'static str = "ssh_keys";
    const ONE: &'static str = "ssh_key";
    fn model(self) -> SshKey {
        let public_key = self.public_key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        SshKey { id: self.id, name: self.name, public_key, labels: self.labels }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WireLocation {
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    network_zone: String,
}

impl From<WireLocation> for Location {
    fn from(wire: WireLocation) -> Self {
        Self { name: wire.name, network_zone: wire.network_zone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_api_adds_or_drops_does_not_break_reading() {
        let server: WireServer = serde_json::from_value(serde_json::json!({
            "id": 7, "name": "demo-m1", "status": "teleporting", "brand_new": {"deep": [1]}, "volumes": null,
            "public_net": {"ipv4": null, "ipv9": {}}, "location": null, "labels": null,
            "datacenter": {"location": {"name": "fsn1"}}
        }))
        .unwrap();
        let server = server.model();
        assert_eq!(server.status, ServerStatus::Changing);
        assert_eq!(server.location, "fsn1");
        assert_eq!(server.public_ipv4, None);
        let volume: WireVolume = serde_json::from_value(serde_json::json!({"id": 3, "name": "v"})).unwrap();
        assert_eq!(volume.model().device, "/dev/disk/by-id/scsi-0HC_Volume_3");
        let started: Started = serde_json::from_value(serde_json::json!({
            "action": {"id": 1, "status": "error", "error": {"code": "x", "message": null}}, "next_actions": null
        }))
        .unwrap();
        assert_eq!(started.all().count(), 1);
    }
}
