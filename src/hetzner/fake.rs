use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::ports::{
    Balancer, Cloud, ErrorCode, Firewall, FloatingIp, Labels, Location, Network, NetworkSpec, PlacementGroup,
    PortError, PortResult, Prices, PrivateAddress, Server, ServerSpec, ServerStatus, SshKey, Volume, VolumeSpec,
};

/// A change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The port's method: `create_server`.
    pub what: &'static str,
    /// The thing's name.
    pub name: String,
    /// Whether something new came into being (not: was found to exist already).
    pub created: bool,
}

/// The cloud in memory, for tests: everything hk-dr relies on (unique names, locations of volumes, addresses, capacity,
/// what deleting a server leaves behind) and nothing else. Everything happens at once. Clones share one state.
#[derive(Clone, Default)]
pub struct FakeCloud {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(super) struct State {
    last_id: u64,
    servers: BTreeMap<u64, Server>,
    volumes: BTreeMap<u64, Volume>,
    pub(super) networks: BTreeMap<u64, Network>,
    pub(super) firewalls: BTreeMap<u64, Firewall>,
    pub(super) balancers: BTreeMap<u64, Balancer>,
    pub(super) floating: BTreeMap<u64, FloatingIp>,
    groups: BTreeMap<u64, PlacementGroup>,
    keys: BTreeMap<u64, SshKey>,
    user_data: BTreeMap<u64, String>,
    without_capacity: BTreeSet<String>,
    failures: Vec<(&'static str, PortError)>,
    calls: Vec<Call>,
}

const LOCATIONS: [(&str, &str); 6] = [
    ("fsn1", "eu-central"),
    ("nbg1", "eu-central"),
    ("hel1", "eu-central"),
    ("ash", "us-east"),
    ("hil", "us-west"),
    ("sin", "ap-southeast"),
];

impl FakeCloud {
    /// An empty project.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that was asked to change, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// How often each thing came into being, by method and name: a value above 1 means that something was made again,
    /// which is right only if it was deleted in between.
    pub fn creations(&self) -> BTreeMap<(&'static str, String), usize> {
        let mut count = BTreeMap::new();
        for call in self.lock().calls.iter().filter(|c| c.created) {
            *count.entry((call.what, call.name.clone())).or_default() += 1;
        }
        count
    }

    /// From now on (`false`) or again (`true`) servers and volumes can be created in a location.
    pub fn set_capacity(&self, location: &str, available: bool) {
        let mut state = self.lock();
        if available {
            state.without_capacity.remove(location);
        } else {
            state.without_capacity.insert(location.to_owned());
        }
    }

    /// The next call of a method fails before it has any effect.
    pub fn fail_next(&self, what: &'static str, error: PortError) {
        self.lock().failures.push((what, error));
    }

    /// Deletes all servers and volumes behind hk-dr's back; nothing is logged.
    pub fn lose_servers_and_volumes(&self) {
        let mut state = self.lock();
        state.servers.clear();
        state.floating.values_mut().for_each(|f| f.server = None);
        state.volumes.clear();
    }

    /// What a server was given for its first boot.
    pub fn user_data(&self, server: u64) -> Option<String> {
        self.lock().user_data.get(&server).cloned()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn begin(&mut self, what: &'static str) -> PortResult<()> {
        match self.failures.iter().position(|(failing, _)| *failing == what) {
            Some(at) => Err(self.failures.remove(at).1),
            None => Ok(()),
        }
    }

    pub(super) fn log(&mut self, what: &'static str, name: &str, created: bool) {
        self.calls.push(Call { what, name: name.to_owned(), created });
    }

    pub(super) fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn has_server(&self, id: u64) -> bool {
        self.servers.contains_key(&id)
    }

    pub(super) fn capacity(&self, location: &str) -> PortResult<()> {
        if !LOCATIONS.iter().any(|(name, _)| *name == location) {
            return Err(PortError::new(ErrorCode::Invalid, format!("there is no location {location}")));
        }
        if self.without_capacity.contains(location) {
            return Err(PortError::new(ErrorCode::NoCapacity, format!("{location} has no capacity")));
        }
        Ok(())
    }

    /// Of a group: what hangs on its servers is computed, as the real one does.
    fn group(&self, group: &PlacementGroup) -> PlacementGroup {
        let members = self.servers.values().filter(|s| s.placement_group == Some(group.id)).map(|s| s.id);
        PlacementGroup { servers: members.collect(), ..group.clone() }
    }

    fn server(&self, server: &Server) -> Server {
        let volumes = self.volumes.values().filter(|v| v.server == Some(server.id)).map(|v| v.id);
        Server { volumes: volumes.collect(), ..server.clone() }
    }
}

/// What has the name already: ours by its labels, or somebody else's.
pub(super) fn existing<T: Clone>(
    found: Option<(&T, &Labels)>,
    labels: &Labels,
    what: &str,
    name: &str,
) -> PortResult<Option<T>> {
    match found {
        None => Ok(None),
        Some((thing, has)) if labels.iter().all(|(k, v)| has.get(k) == Some(v)) => Ok(Some(thing.clone())),
        Some(_) => {
            Err(PortError::new(ErrorCode::Conflict, format!("a {what} called {name} exists without our labels")))
        }
    }
}

pub(super) fn gone(what: &str, id: u64) -> PortError {
    PortError::new(ErrorCode::NotFound, format!("there is no {what} {id}"))
}

/// The selectors that hk-dr uses: `k=v`, `k==v`, `k!=v`, `k`, `!k`, joined by commas.
pub(super) fn selects(selector: &str, labels: &Labels) -> bool {
    selector.split(',').map(str::trim).filter(|term| !term.is_empty()).all(|term| {
        if let Some((key, value)) = term.split_once("!=") {
            return labels.get(key.trim()).map(String::as_str) != Some(value.trim());
        }
        if let Some((key, value)) = term.split_once('=') {
            return labels.get(key.trim()).map(String::as_str) == Some(value.trim_start_matches('=').trim());
        }
        match term.strip_prefix('!') {
            Some(key) => !labels.contains_key(key.trim()),
            None => labels.contains_key(term),
        }
    })
}

#[async_trait]
impl Cloud for FakeCloud {
    async fn locations(&self) -> PortResult<Vec<Location>> {
        let location = |(name, zone): &(&str, &str)| Location { name: (*name).into(), network_zone: (*zone).into() };
        Ok(LOCATIONS.iter().map(location).collect())
    }

    async fn servers(&self, selector: &str) -> PortResult<Vec<Server>> {
        let mut state = self.lock();
        state.begin("servers")?;
        Ok(state.servers.values().filter(|s| selects(selector, &s.labels)).map(|s| state.server(s)).collect())
    }

    async fn server_by_name(&self, name: &str) -> PortResult<Option<Server>> {
        let mut state = self.lock();
        state.begin("server_by_name")?;
        Ok(state.servers.values().find(|s| s.name == name).map(|s| state.server(s)))
    }

    async fn create_server(&self, spec: &ServerSpec) -> PortResult<Server> {
        let mut state = self.lock();
        state.begin("create_server")?;
        let found = state.servers.values().find(|s| s.name == spec.name).map(|s| (s, &s.labels));
        let found = existing(found, &spec.labels, "server", &spec.name)?;
        state.log("create_server", &spec.name, found.is_none());
        if let Some(server) = found {
            return Ok(state.server(&server));
        }
        state.capacity(&spec.location)?;
        if let Some(key) = spec.ssh_keys.iter().find(|key| !state.keys.contains_key(key)) {
            return Err(PortError::new(ErrorCode::Invalid, format!("there is no SSH key {key}")));
        }
        if let Some(group) = spec.placement_group {
            let Some(group) = state.groups.get(&group) else {
                return Err(PortError::new(ErrorCode::Invalid, format!("there is no placement group {group}")));
            };
            if state.group(group).servers.len() >= 10 {
                return Err(PortError::new(ErrorCode::NoCapacity, "a placement group takes ten servers"));
            }
        }
        let id = state.id();
        let taken: BTreeSet<Ipv4Addr> = state.servers.values().filter_map(|s| s.public_ipv4).collect();
        let free = (10..=250).map(|last| Ipv4Addr::new(203, 0, 113, last)).find(|a| !taken.contains(a));
        let server = Server {
            id,
            name: spec.name.clone(),
            status: if spec.start { ServerStatus::Running } else { ServerStatus::Off },
            location: spec.location.clone(),
            server_type: spec.server_type.clone(),
            public_ipv4: match spec.public_ipv4 {
                true => {
                    Some(free.ok_or_else(|| PortError::new(ErrorCode::LimitExceeded, "no public address is left"))?)
                }
                false => None,
            },
            private: Vec::new(),
            volumes: Vec::new(),
            placement_group: spec.placement_group,
            labels: spec.labels.clone(),
        };
        state.user_data.insert(id, spec.user_data.clone());
        state.servers.insert(id, server.clone());
        Ok(server)
    }

    async fn delete_server(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_server")?;
        let server = state.servers.remove(&id).ok_or_else(|| gone("server", id))?;
        for volume in state.volumes.values_mut().filter(|v| v.server == Some(id)) {
            volume.server = None;
        }
        state.floating.values_mut().filter(|f| f.server == Some(id)).for_each(|f| f.server = None);
        state.log("delete_server", &server.name, false);
        Ok(())
    }

    async fn power_on(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("power_on")?;
        let server = state.servers.get_mut(&id).ok_or_else(|| gone("server", id))?;
        if server.public_ipv4.is_none() && server.private.is_empty() {
            return Err(PortError::new(ErrorCode::Invalid, "a server needs a network to be switched on"));
        }
        server.status = ServerStatus::Running;
        Ok(())
    }

    async fn power_off(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("power_off")?;
        state.servers.get_mut(&id).ok_or_else(|| gone("server", id))?.status = ServerStatus::Off;
        Ok(())
    }

    async fn attach_network(&self, server: u64, network: u64, address: Ipv4Addr) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("attach_network")?;
        if !state.networks.contains_key(&network) {
            return Err(gone("network", network));
        }
        let used = |s: &Server| s.private.iter().any(|p| p.network == network && p.address == address);
        if state.servers.values().any(used) {
            return Err(PortError::new(ErrorCode::Conflict, format!("{address} is in use")));
        }
        let target = state.servers.get_mut(&server).ok_or_else(|| gone("server", server))?;
        if target.private.iter().any(|p| p.network == network) {
            return Err(PortError::new(ErrorCode::Conflict, "the server is in this network already"));
        }
        target.private.push(PrivateAddress { network, address });
        let name = target.name.clone();
        state.log("attach_network", &name, false);
        Ok(())
    }

    async fn label_server(&self, id: u64, labels: &Labels) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("label_server")?;
        state.servers.get_mut(&id).ok_or_else(|| gone("server", id))?.labels = labels.clone();
        Ok(())
    }

    async fn volumes(&self, selector: &str) -> PortResult<Vec<Volume>> {
        let mut state = self.lock();
        state.begin("volumes")?;
        Ok(state.volumes.values().filter(|v| selects(selector, &v.labels)).cloned().collect())
    }

    async fn volume_by_name(&self, name: &str) -> PortResult<Option<Volume>> {
        let mut state = self.lock();
        state.begin("volume_by_name")?;
        Ok(state.volumes.values().find(|v| v.name == name).cloned())
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> PortResult<Volume> {
        let mut state = self.lock();
        state.begin("create_volume")?;
        let found = state.volumes.values().find(|v| v.name == spec.name).map(|v| (v, &v.labels));
        let found = existing(found, &spec.labels, "volume", &spec.name)?;
        state.log("create_volume", &spec.name, found.is_none());
        if let Some(volume) = found {
            return Ok(volume);
        }
        let server = spec.server.map(|id| state.servers.get(&id).ok_or_else(|| gone("server", id))).transpose()?;
        let location = server.map_or(&spec.location, |s| &s.location).clone();
        state.capacity(&location)?;
        if !(10..=10240).contains(&spec.size_gb) {
            return Err(PortError::new(ErrorCode::Invalid, "a volume has 10 to 10240 GB"));
        }
        let id = state.id();
        let volume = Volume {
            id,
            name: spec.name.clone(),
            location,
            size_gb: spec.size_gb,
            server: spec.server,
            device: format!("/dev/disk/by-id/scsi-0HC_Volume_{id}"),
            labels: spec.labels.clone(),
        };
        state.volumes.insert(id, volume.clone());
        Ok(volume)
    }

    async fn attach_volume(&self, volume: u64, server: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("attach_volume")?;
        let location = state.servers.get(&server).ok_or_else(|| gone("server", server))?.location.clone();
        let target = state.volumes.get_mut(&volume).ok_or_else(|| gone("volume", volume))?;
        if target.server.is_some() {
            return Err(PortError::new(ErrorCode::Conflict, "the volume is attached already"));
        }
        if target.location != location {
            return Err(PortError::new(ErrorCode::Invalid, "volume and server are in different locations"));
        }
        target.server = Some(server);
        let name = target.name.clone();
        state.log("attach_volume", &name, false);
        Ok(())
    }

    async fn detach_volume(&self, volume: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("detach_volume")?;
        let target = state.volumes.get_mut(&volume).ok_or_else(|| gone("volume", volume))?;
        if target.server.take().is_none() {
            return Err(PortError::new(ErrorCode::Conflict, "the volume is not attached"));
        }
        Ok(())
    }

    async fn delete_volume(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_volume")?;
        let volume = state.volumes.get(&id).ok_or_else(|| gone("volume", id))?;
        if volume.server.is_some() {
            return Err(PortError::new(ErrorCode::Conflict, "the volume is attached"));
        }
        let name = volume.name.clone();
        state.volumes.remove(&id);
        state.log("delete_volume", &name, false);
        Ok(())
    }

    async fn update_volume(&self, id: u64, name: &str, labels: &Labels) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("update_volume")?;
        if state.volumes.values().any(|v| v.name == name && v.id != id) {
            return Err(PortError::new(ErrorCode::Conflict, format!("a volume called {name} exists")));
        }
        let volume = state.volumes.get_mut(&id).ok_or_else(|| gone("volume", id))?;
        volume.name = name.to_owned();
        volume.labels = labels.clone();
        Ok(())
    }

    async fn network_by_name(&self, name: &str) -> PortResult<Option<Network>> {
        let mut state = self.lock();
        state.begin("network_by_name")?;
        Ok(state.networks.values().find(|n| n.name == name).cloned())
    }

    async fn create_network(&self, spec: &NetworkSpec) -> PortResult<Network> {
        let mut state = self.lock();
        state.begin("create_network")?;
        let found = state.networks.values().find(|n| n.name == spec.name).map(|n| (n, &n.labels));
        let found = existing(found, &spec.labels, "network", &spec.name)?;
        state.log("create_network", &spec.name, found.is_none());
        if let Some(network) = found {
            return Ok(network);
        }
        let id = state.id();
        let NetworkSpec { name, range, subnet, routes, labels } = spec.clone();
        let network = Network { id, name, range, subnets: vec![subnet], routes, labels };
        state.networks.insert(id, network.clone());
        Ok(network)
    }

    async fn delete_network(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_network")?;
        let network = state.networks.remove(&id).ok_or_else(|| gone("network", id))?;
        for server in state.servers.values_mut() {
            server.private.retain(|p| p.network != id);
        }
        state.log("delete_network", &network.name, false);
        Ok(())
    }

    async fn placement_group_by_name(&self, name: &str) -> PortResult<Option<PlacementGroup>> {
        let mut state = self.lock();
        state.begin("placement_group_by_name")?;
        Ok(state.groups.values().find(|g| g.name == name).map(|g| state.group(g)))
    }

    async fn create_placement_group(&self, name: &str, labels: &Labels) -> PortResult<PlacementGroup> {
        let mut state = self.lock();
        state.begin("create_placement_group")?;
        let found = state.groups.values().find(|g| g.name == name).map(|g| (g, &g.labels));
        let found = existing(found, labels, "placement group", name)?;
        state.log("create_placement_group", name, found.is_none());
        if let Some(group) = found {
            return Ok(state.group(&group));
        }
        let id = state.id();
        let group = PlacementGroup { id, name: name.to_owned(), servers: Vec::new(), labels: labels.clone() };
        state.groups.insert(id, group.clone());
        Ok(group)
    }

    async fn delete_placement_group(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_placement_group")?;
        let group = state.groups.remove(&id).ok_or_else(|| gone("placement group", id))?;
        for server in state.servers.values_mut().filter(|s| s.placement_group == Some(id)) {
            server.placement_group = None;
        }
        state.log("delete_placement_group", &group.name, false);
        Ok(())
    }

    async fn ssh_key_by_name(&self, name: &str) -> PortResult<Option<SshKey>> {
        let mut state = self.lock();
        state.begin("ssh_key_by_name")?;
        Ok(state.keys.values().find(|k| k.name == name).cloned())
    }

    async fn create_ssh_key(&self, name: &str, public_key: &str, labels: &Labels) -> PortResult<SshKey> {
        let mut state = self.lock();
        state.begin("create_ssh_key")?;
        let found = state.keys.values().find(|k| k.name == name).map(|k| (k, &k.labels));
        let found = existing(found, labels, "SSH key", name)?;
        state.log("create_ssh_key", name, found.is_none());
        if let Some(key) = found {
            return Ok(key);
        }
        if state.keys.values().any(|k| k.public_key == public_key) {
            return Err(PortError::new(ErrorCode::Conflict, "this SSH key is registered under another name"));
        }
        let id = state.id();
        let key = SshKey { id, name: name.to_owned(), public_key: public_key.to_owned(), labels: labels.clone() };
        state.keys.insert(id, key.clone());
        Ok(key)
    }

    async fn delete_ssh_key(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_ssh_key")?;
        let key = state.keys.remove(&id).ok_or_else(|| gone("SSH key", id))?;
        state.log("delete_ssh_key", &key.name, false);
        Ok(())
    }

    async fn prices(&self) -> PortResult<Prices> {
        let everywhere = LOCATIONS.iter().map(|(location, _)| (*location).to_owned());
        let types = ["cx23", "cx33", "cx43"];
        Ok(Prices {
            currency: "EUR".into(),
            servers: types
                .iter()
                .flat_map(|t| LOCATIONS.iter().map(move |(l, _)| (((*t).to_owned(), (*l).to_owned()), 0.01)))
                .collect(),
            ipv4: everywhere.map(|location| (location, 0.001)).collect(),
            volume_gb_month: 0.073,
        })
    }
}
