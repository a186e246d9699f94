use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::actions::Actions;
use super::create::{by_name, create};
use super::http::{Http, parsed, query_value};
use super::prices;
use super::wire::{
    Resource, Started, WireLocation, WireNetwork, WirePlacementGroup, WireServer, WireSshKey, WireVolume,
};
use crate::ports::{
    Cloud, ErrorCode, Labels, Location, Network, NetworkSpec, PlacementGroup, PortResult, Prices, Route, Server,
    ServerSpec, ServerStatus, SshKey, Volume, VolumeSpec,
};

/// The public API.
pub const DEFAULT_ENDPOINT: &str = "https://api.hetzner.cloud/v1";

/// [`Cloud`] over Hetzner's API. Cheap to clone; clones share the rate limit's budget and the poller of actions.
#[derive(Clone)]
pub struct HetznerCloud {
    pub(super) http: Arc<Http>,
    pub(super) actions: Arc<Actions>,
}

impl HetznerCloud {
    /// A client for an endpoint (with its `/v1`, as `HCLOUD_ENDPOINT` has it) and a project's token. Connects to nothing
    /// yet. Must be used within one runtime.
    pub fn new(endpoint: &str, token: &SecretString) -> PortResult<Self> {
        let http = Arc::new(Http::new(endpoint, token)?);
        Ok(Self { actions: Actions::new(Arc::clone(&http)), http })
    }

    /// How many requests the API still grants this project, roughly: others share it.
    pub fn requests_left(&self) -> f64 {
        self.http.budget.left()
    }

    pub(super) async fn server(&self, id: u64) -> PortResult<Server> {
        self.one::<WireServer>(id).await
    }

    pub(super) async fn one<R: Resource>(&self, id: u64) -> PortResult<R::Model> {
        let path = format!("/{}/{id}", R::LIST);
        let mut value: Value = self.http.get(&path).await?;
        Ok(parsed::<R>(value[R::ONE].take(), &path)?.model())
    }

    pub(super) async fn selected<R: Resource>(&self, selector: &str) -> PortResult<Vec<R::Model>> {
        let query =
            if selector.is_empty() { String::new() } else { format!("&label_selector={}", query_value(selector)) };
        Ok(self.http.list::<R>(R::LIST, &query).await?.into_iter().map(Resource::model).collect())
    }

    /// Sends what may happen twice and waits for its actions. Also tells whether an earlier attempt was ambiguous.
    pub(super) async fn act(&self, method: Method, path: &str, body: Option<&Value>) -> (PortResult<()>, bool) {
        let (answer, ambiguous) = self.http.call(method, path, body).await;
        let result = async {
            let value = answer?;
            let started: Started = if value.is_null() { Started::default() } else { parsed(value, path)? };
            self.actions.all(started.all()).await
        };
        (result.await, ambiguous)
    }

    /// Like `act`. If an attempt was lost and a later one is refused, `done` decides whether the lost one had its effect.
    pub(super) async fn act_until<F>(&self, path: &str, body: &Value, done: impl FnOnce() -> F) -> PortResult<()>
    where
        F: Future<Output = PortResult<bool>>,
    {
        match self.act(Method::POST, path, Some(body)).await {
            (Err(error), true) => {
                if done().await? {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            (result, _) => result,
        }
    }

    pub(super) async fn delete<R: Resource>(&self, id: u64) -> PortResult<()> {
        match self.act(Method::DELETE, &format!("/{}/{id}", R::LIST), None).await {
            // Gone because the attempt whose answer was lost has deleted it.
            (Err(error), true) if error.code == ErrorCode::NotFound => Ok(()),
            (result, _) => result.map_err(|e| e.context(format!("delete {} {id}", R::ONE.replace('_', " ")))),
        }
    }

    async fn update<R: Resource>(&self, id: u64, body: &Value) -> PortResult<()> {
        self.act(Method::PUT, &format!("/{}/{id}", R::LIST), Some(body)).await.0
    }
}

#[async_trait]
impl Cloud for HetznerCloud {
    async fn locations(&self) -> PortResult<Vec<Location>> {
        let found: Vec<WireLocation> = self.http.list("locations", "").await?;
        Ok(found.into_iter().map(Location::from).collect())
    }

    async fn servers(&self, selector: &str) -> PortResult<Vec<Server>> {
        self.selected::<WireServer>(selector).await
    }

    async fn server_by_name(&self, name: &str) -> PortResult<Option<Server>> {
        by_name::<WireServer>(&self.http, name).await
    }

    async fn create_server(&self, spec: &ServerSpec) -> PortResult<Server> {
        let mut body = json!({
            "name": spec.name, "server_type": spec.server_type, "image": spec.image, "location": spec.location,
            "ssh_keys": spec.ssh_keys, "labels": spec.labels, "user_data": spec.user_data,
            "start_after_create": spec.start, "public_net": {"enable_ipv4": spec.public_ipv4, "enable_ipv6": false},
        });
        if let Some(group) = spec.placement_group {
            body["placement_group"] = group.into();
        }
        let created = create::<WireServer>(&self.http, &self.actions, &spec.name, &spec.labels, &body).await?;
        if created.waited {
            // The answer had all but how its actions ended.
            let status = if spec.start { ServerStatus::Running } else { ServerStatus::Off };
            return Ok(Server { status, ..created.model });
        }
        let server = self.running(created.model.id).await?;
        if server.status == ServerStatus::Off && spec.start {
            self.power_on(server.id).await?;
            return self.server(server.id).await;
        }
        Ok(server)
    }

    async fn delete_server(&self, id: u64) -> PortResult<()> {
        self.delete::<WireServer>(id).await
    }

    async fn power_on(&self, id: u64) -> PortResult<()> {
        self.act(Method::POST, &format!("/servers/{id}/actions/poweron"), Some(&json!({}))).await.0
    }

    async fn power_off(&self, id: u64) -> PortResult<()> {
        self.act(Method::POST, &format!("/servers/{id}/actions/poweroff"), Some(&json!({}))).await.0
    }

    async fn attach_network(&self, server: u64, network: u64, address: Ipv4Addr) -> PortResult<()> {
        let path = format!("/servers/{server}/actions/attach_to_network");
        let body = json!({"network": network, "ip": address});
        let done = || async {
            let server = self.server(server).await?;
            Ok(server.private.iter().any(|p| p.network == network && p.address == address))
        };
        self.act_until(&path, &body, done).await
    }

    async fn label_server(&self, id: u64, labels: &Labels) -> PortResult<()> {
        self.update::<WireServer>(id, &json!({"labels": labels})).await
    }

    async fn volumes(&self, selector: &str) -> PortResult<Vec<Volume>> {
        self.selected::<WireVolume>(selector).await
    }

    async fn volume_by_name(&self, name: &str) -> PortResult<Option<Volume>> {
        by_name::<WireVolume>(&self.http, name).await
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> PortResult<Volume> {
        let mut body = json!({"name": spec.name, "size": spec.size_gb, "labels": spec.labels});
        match spec.server {
            // It comes to be where the server is: naming a location too is refused.
            Some(server) => (body["server"], body["automount"]) = (server.into(), false.into()),
            None => body["location"] = spec.location.as_str().into(),
        }
        let created = create::<WireVolume>(&self.http, &self.actions, &spec.name, &spec.labels, &body).await?;
        // The answer is from before it was attached, which has been waited for.
        let server = if created.waited { spec.server } else { created.model.server };
        Ok(Volume { server, ..created.model })
    }

    async fn attach_volume(&self, volume: u64, server: u64) -> PortResult<()> {
        let path = format!("/volumes/{volume}/actions/attach");
        let done = || async { Ok(self.one::<WireVolume>(volume).await?.server == Some(server)) };
        self.act_until(&path, &json!({"server": server, "automount": false}), done).await
    }

    async fn detach_volume(&self, volume: u64) -> PortResult<()> {
        let path = format!("/volumes/{volume}/actions/detach");
        let done = || async { Ok(self.one::<WireVolume>(volume).await?.server.is_none()) };
        self.act_until(&path, &json!({}), done).await
    }

    async fn delete_volume(&self, id: u64) -> PortResult<()> {
        self.delete::<WireVolume>(id).await
    }

    async fn update_volume(&self, id: u64, name: &str, labels: &Labels) -> PortResult<()> {
        self.update::<WireVolume>(id, &json!({"name": name, "labels": labels})).await
    }

    async fn network_by_name(&self, name: &str) -> PortResult<Option<Network>> {
        by_name::<WireNetwork>(&self.http, name).await
    }

    async fn create_network(&self, spec: &NetworkSpec) -> PortResult<Network> {
        let subnets = json!([{"type": "cloud", "ip_range": spec.subnet.range, "network_zone": spec.subnet.zone}]);
        let route = |r: &Route| json!({"destination": r.destination, "gateway": r.gateway});
        let body = json!({
            "name": spec.name, "ip_range": spec.range, "subnets": subnets, "labels": spec.labels,
            "routes": spec.routes.iter().map(route).collect::<Vec<_>>(),
        });
        Ok(create::<WireNetwork>(&self.http, &self.actions, &spec.name, &spec.labels, &body).await?.model)
    }

    async fn delete_network(&self, id: u64) -> PortResult<()> {
        self.delete::<WireNetwork>(id).await
    }

    async fn placement_group_by_name(&self, name: &str) -> PortResult<Option<PlacementGroup>> {
        by_name::<WirePlacementGroup>(&self.http, name).await
    }

    async fn create_placement_group(&self, name: &str, labels: &Labels) -> PortResult<PlacementGroup> {
        let body = json!({"name": name, "type": "spread", "labels": labels});
        Ok(create::<WirePlacementGroup>(&self.http, &self.actions, name, labels, &body).await?.model)
    }

    async fn delete_placement_group(&self, id: u64) -> PortResult<()> {
        self.delete::<WirePlacementGroup>(id).await
    }

    async fn ssh_key_by_name(&self, name: &str) -> PortResult<Option<SshKey>> {
        by_name::<WireSshKey>(&self.http, name).await
    }

    async fn create_ssh_key(&self, name: &str, public_key: &str, labels: &Labels) -> PortResult<SshKey> {
        let body = json!({"name": name, "public_key": public_key, "labels": labels});
        Ok(create::<WireSshKey>(&self.http, &self.actions, name, labels, &body).await?.model)
    }

    async fn delete_ssh_key(&self, id: u64) -> PortResult<()> {
        self.delete::<WireSshKey>(id).await
    }

    async fn prices(&self) -> PortResult<Prices> {
        prices::prices(self).await
    }
}
