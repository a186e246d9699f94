//! A backend without machines, for tests of the API and of what talks to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::cloud::Options;
use super::provider::Provider;
use crate::backend::{
    Backend, BackendError, BalancerSpec, Counters, Effect, FirewallRule, MachineSpec, Metadata, TargetHealth,
};

/// Records effects as lines such as `attach_volume 1002 to 1001`; takes its time; fails on demand.
#[derive(Debug, Default)]
pub struct FakeBackend {
    inner: Mutex<Inner>,
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    effects: Vec<String>,
    latency: Duration,
    /// Messages by the effect's first word; each fails once.
    failures: BTreeMap<String, String>,
    metadata: BTreeMap<u64, Metadata>,
    balancers: BTreeMap<u64, BalancerSpec>,
    /// Targets that health checks find sick.
    sick: BTreeSet<IpAddr>,
    /// What every machine and load balancer counted.
    counters: Counters,
    /// How many effects run now.
    running: usize,
}

impl FakeBackend {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// How long each effect takes from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.inner().latency = latency;
    }

    /// Makes the next effect of this name (such as `power_on`) fail.
    pub fn fail_next(&self, effect: &str, message: &str) {
        self.inner().failures.insert(effect.to_owned(), message.to_owned());
    }

    /// The effects that were asked for so far, in order.
    pub fn effects(&self) -> Vec<String> {
        self.inner().effects.clone()
    }

    /// Lets no effect end until `release`.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Lets effects end again.
    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// How many effects run now.
    pub fn running(&self) -> usize {
        self.inner().running
    }

    /// What the machine's metadata service was told.
    pub fn metadata(&self, machine: u64) -> Option<Metadata> {
        self.inner().metadata.get(&machine).cloned()
    }

    /// What the load balancer was last told to be.
    pub fn balancer(&self, id: u64) -> Option<BalancerSpec> {
        self.inner().balancers.get(&id).cloned()
    }

    /// Lets health checks find a target sick, or well again.
    pub fn set_sick(&self, target: IpAddr, sick: bool) {
        let mut inner = self.inner();
        if sick {
            inner.sick.insert(target)
        } else {
            inner.sick.remove(&target)
        };
    }

    /// What all machines and load balancers counted up to now.
    pub fn set_counters(&self, counters: Counters) {
        self.inner().counters = counters;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn record(&self, effect: &str, rest: String) -> Effect {
        let latency = {
            let mut inner = self.inner();
            inner.effects.push(format!("{effect} {rest}"));
            inner.running += 1;
            inner.latency
        };
        tokio::time::sleep(latency).await;
        // An error would mean that the sender is gone, but it lives as long as `self`.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let mut inner = self.inner();
        inner.running -= 1;
        inner.failures.remove(effect).map_or(Ok(()), |message| Err(BackendError(message)))
    }
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or("none".to_owned(), |v| v.to_string())
}

fn rule_line(rule: &FirewallRule) -> String {
    let ports = rule.ports.map_or(String::new(), |(first, last)| format!(" {first}-{last}"));
    format!("{:?} {:?}{ports} {}", rule.direction, rule.protocol, rule.networks.join("+")).to_lowercase()
}

#[async_trait]
impl Backend for FakeBackend {
    async fn create_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        self.inner().metadata.insert(spec.id, metadata.clone());
        self.record("create_machine", format!("{} {} in {}", spec.id, spec.name, spec.location)).await
    }
    async fn power_on(&self, id: u64) -> Effect {
        self.record("power_on", id.to_string()).await
    }
    async fn power_off(&self, id: u64) -> Effect {
        self.record("power_off", id.to_string()).await
    }
    async fn shutdown(&self, id: u64) -> Effect {
        self.record("shutdown", id.to_string()).await
    }
    async fn reset(&self, id: u64) -> Effect {
        self.record("reset", id.to_string()).await
    }
    async fn reboot(&self, id: u64) -> Effect {
        self.record("reboot", id.to_string()).await
    }
    async fn delete_machine(&self, id: u64) -> Effect {
        self.record("delete_machine", id.to_string()).await
    }
    async fn create_volume(&self, id: u64, size_gb: u32, format: Option<&str>) -> Effect {
        self.record("create_volume", format!("{id} of {size_gb} GB, {}", format.unwrap_or("unformatted"))).await
    }
    async fn attach_volume(&self, id: u64, machine: u64) -> Effect {
        self.record("attach_volume", format!("{id} to {machine}")).await
    }
    async fn automount_volume(&self, id: u64, machine: u64) -> Effect {
        self.record("automount_volume", format!("{id} in {machine}")).await
    }
    async fn detach_volume(&self, id: u64, machine: u64) -> Effect {
        self.record("detach_volume", format!("{id} from {machine}")).await
    }
    async fn delete_volume(&self, id: u64) -> Effect {
        self.record("delete_volume", id.to_string()).await
    }
    async fn resize_volume(&self, id: u64, size_gb: u32) -> Effect {
        self.record("resize_volume", format!("{id} to {size_gb} GB")).await
    }
    async fn create_network(&self, id: u64, range: &str) -> Effect {
        self.record("create_network", format!("{id} {range}")).await
    }
    async fn delete_network(&self, id: u64) -> Effect {
        self.record("delete_network", id.to_string()).await
    }
    async fn attach_network(&self, machine: u64, network: u64, address: Ipv4Addr, range: &str) -> Effect {
        self.record("attach_network", format!("{machine} to {network} as {address} in {range}")).await
    }
    async fn detach_network(&self, machine: u64, network: u64) -> Effect {
        self.record("detach_network", format!("{machine} from {network}")).await
    }
    async fn set_routes(&self, network: u64, routes: &[(String, Ipv4Addr)]) -> Effect {
        let routes: Vec<String> = routes.iter().map(|(to, via)| format!("{to} via {via}")).collect();
        self.record("set_routes", format!("{network} [{}]", routes.join(", "))).await
    }
    async fn set_firewall(&self, machine: u64, rules: Option<&[FirewallRule]>) -> Effect {
        let told: Option<Vec<String>> = rules.map(|rules| rules.iter().map(rule_line).collect());
        let told = told.map_or("off".to_owned(), |lines| format!("[{}]", lines.join(", ")));
        self.record("set_firewall", format!("{machine} {told}")).await
    }
    async fn route_floating_ip(&self, address: IpAddr, machine: Option<u64>) -> Effect {
        self.record("route_floating_ip", format!("{address} to {}", or_none(machine))).await
    }
    async fn set_public_addresses(&self, machine: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Effect {
        self.record("set_public_addresses", format!("{machine} {} {}", or_none(ipv4), or_none(ipv6))).await
    }
    async fn set_alias_ips(&self, machine: u64, network: u64, aliases: &[Ipv4Addr]) -> Effect {
        self.record("set_alias_ips", format!("{machine} in {network} {aliases:?}")).await
    }
    async fn set_balancer(&self, spec: &BalancerSpec) -> Effect {
        let targets: Vec<String> = spec.targets.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = spec.services.iter().map(|s| s.listen_port.to_string()).collect();
        self.inner().balancers.insert(spec.id, spec.clone());
        self.record("set_balancer", format!("{} ports [{}] to [{}]", spec.id, ports.join(", "), targets.join(", ")))
            .await
    }
    async fn delete_balancer(&self, id: u64) -> Effect {
        self.record("delete_balancer", id.to_string()).await?;
        self.inner().balancers.remove(&id);
        Ok(())
    }
    async fn balancer_health(&self, id: u64) -> Effect<Vec<TargetHealth>> {
        let inner = self.inner();
        let Some(spec) = inner.balancers.get(&id) else { return Ok(Vec::new()) };
        let of = |port: u16| {
            spec.targets.iter().map(move |target| TargetHealth { listen_port: port, target: *target, healthy: None })
        };
        let mut health: Vec<TargetHealth> = spec.services.iter().flat_map(|s| of(s.listen_port)).collect();
        for seen in &mut health {
            seen.healthy = Some(!inner.sick.contains(&seen.target));
        }
        Ok(health)
    }
    async fn balancer_counters(&self, _: u64) -> Effect<Counters> {
        Ok(self.inner().counters)
    }
    async fn create_image(&self, image: u64, machine: u64) -> Effect<f64> {
        self.record("create_image", format!("{image} of {machine}")).await.map(|()| 0.5)
    }
    async fn delete_image(&self, image: u64) -> Effect {
        self.record("delete_image", image.to_string()).await
    }
    async fn rebuild_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        self.inner().metadata.insert(spec.id, metadata.clone());
        let from = spec.snapshot.map_or_else(|| spec.image.clone(), |id| format!("image {id}"));
        self.record("rebuild_machine", format!("{} from {from}", spec.id)).await
    }
    async fn set_rescue(&self, machine: u64, rescue: Option<&Metadata>) -> Effect {
        let keys = rescue.map_or("off".to_owned(), |m| format!("with {} keys", m.public_keys.len()));
        self.record("set_rescue", format!("{machine} {keys}")).await
    }
    async fn set_root_password(&self, machine: u64, _: &str) -> Effect {
        self.record("set_root_password", machine.to_string()).await
    }
    async fn resize_machine(&self, machine: u64, cores: u32, memory_mb: u64, disk_gb: u32) -> Effect {
        let size = format!("{machine} to {cores} cores, {memory_mb} MB, disk of {disk_gb} GB");
        self.record("resize_machine", size).await
    }
    async fn machine_counters(&self, _: u64) -> Effect<Counters> {
        Ok(self.inner().counters)
    }
}

/// A cloud without machines behind a listener, and its handles. It is served until the runtime ends.
pub struct Served {
    /// For `HCLOUD_ENDPOINT`.
    pub endpoint: String,
    pub token: String,
    pub provider: Arc<Provider>,
    pub backend: Arc<FakeBackend>,
}

/// Serves the API over a fake backend, with a rate limit that no test reaches by accident.
///
/// # Errors
/// When the listener has no address.
pub fn serve_fake(listener: TcpListener) -> std::io::Result<Served> {
    let mut options = Options::new("lab-token");
    options.rate_limit.burst = 1_000_000;
    serve_fake_with(listener, options)
}

/// As [`serve_fake`], with options of the test's own.
///
/// # Errors
/// When the listener has no address.
pub fn serve_fake_with(listener: TcpListener, options: Options) -> std::io::Result<Served> {
    let endpoint = format!("http://{}/v1", listener.local_addr()?);
    let backend = FakeBackend::new();
    let token = options.token.clone();
    let provider = Provider::new(Arc::clone(&backend) as Arc<dyn Backend>, options);
    let router = super::router(Arc::clone(&provider));
    tokio::spawn(hk_lab_serve::serve(listener, router));
    Ok(Served { endpoint, token, provider, backend })
}
