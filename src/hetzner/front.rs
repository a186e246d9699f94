use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::HetznerCloud;
use super::create::{by_name, create};
use super::wire::{Named, Resource, WireId, WirePrivateNet, WirePublicNet, lenient};
use crate::ports::{
    Balancer, BalancerService, BalancerSpec, BalancerTarget, ErrorCode, FloatingIp, Front, HealthCheck, Labels,
    PortResult, PrivateAddress,
};

#[derive(Debug, Deserialize)]
struct WireBalancer {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    location: Named,
    #[serde(default, deserialize_with = "lenient")]
    load_balancer_type: Named,
    #[serde(default, deserialize_with = "lenient")]
    public_net: WireBalancerNet,
    #[serde(default, deserialize_with = "lenient")]
    private_net: Vec<WirePrivateNet>,
    #[serde(default, deserialize_with = "lenient")]
    services: Vec<WireService>,
    #[serde(default, deserialize_with = "lenient")]
    targets: Vec<WireTarget>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

#[derive(Debug, Default, Deserialize)]
struct WireBalancerNet {
    #[serde(default, deserialize_with = "lenient")]
    enabled: bool,
    #[serde(flatten)]
    addresses: WirePublicNet,
}

#[derive(Debug, Deserialize)]
struct WireService {
    #[serde(default, deserialize_with = "lenient")]
    protocol: String,
    #[serde(default, deserialize_with = "lenient")]
    listen_port: u16,
    #[serde(default, deserialize_with = "lenient")]
    destination_port: u16,
    #[serde(default, deserialize_with = "lenient")]
    proxyprotocol: bool,
    #[serde(default, deserialize_with = "lenient")]
    health_check: WireCheck,
}

#[derive(Debug, Default, Deserialize)]
struct WireCheck {
    #[serde(default, deserialize_with = "lenient")]
    protocol: String,
    #[serde(default, deserialize_with = "lenient")]
    port: u16,
    #[serde(default, deserialize_with = "lenient")]
    interval: u32,
    #[serde(default, deserialize_with = "lenient")]
    timeout: u32,
    #[serde(default, deserialize_with = "lenient")]
    retries: u32,
}

#[derive(Debug, Default, Deserialize)]
struct WireTarget {
    #[serde(default)]
    server: Option<WireId>,
    #[serde(default)]
    label_selector: Option<WireSelector>,
    #[serde(default)]
    ip: Option<WireAddress>,
    #[serde(default, deserialize_with = "lenient")]
    use_private_ip: bool,
}

#[derive(Debug, Deserialize)]
struct WireSelector {
    #[serde(default, deserialize_with = "lenient")]
    selector: String,
}

#[derive(Debug, Deserialize)]
struct WireAddress {
    #[serde(default, deserialize_with = "lenient")]
    ip: String,
}

#[derive(Debug, Deserialize)]
struct WireFloatingIp {
    id: u64,
    name: String,
    /// An address, or a network where it is of IPv6.
    ip: String,
    #[serde(default, deserialize_with = "lenient")]
    home_location: Named,
    #[serde(default)]
    server: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

impl WireTarget {
    fn model(self) -> Option<BalancerTarget> {
        let private = self.use_private_ip;
        let selector = self.label_selector.map(|s| BalancerTarget::Selector { selector: s.selector, private });
        selector
            .or(self.server.map(|s| BalancerTarget::Server { id: s.id, private }))
            .or(self.ip.map(|a| BalancerTarget::Address(a.ip)))
    }
}

impl Resource for WireBalancer {
    type Model = Balancer;
    const LIST: &'static str = "load_balancers";
    const ONE: &'static str = "load_balancer";
    fn model(self) -> Balancer {
        let service = |s: WireService| BalancerService {
            protocol: s.protocol,
            listen_port: s.listen_port,
            destination_port: s.destination_port,
            proxy_protocol: s.proxyprotocol,
            check: HealthCheck {
                protocol: s.health_check.protocol,
                port: s.health_check.port,
                interval: s.health_check.interval,
                timeout: s.health_check.timeout,
                retries: s.health_check.retries,
            },
        };
        Balancer {
            id: self.id,
            name: self.name,
            location: self.location.name,
            balancer_type: self.load_balancer_type.name,
            public_ipv4: self.public_net.addresses.address().filter(|_| self.public_net.enabled),
            private: self.private_net.iter().map(|p| PrivateAddress { network: p.network, address: p.ip }).collect(),
            services: self.services.into_iter().map(service).collect(),
            targets: self.targets.into_iter().filter_map(WireTarget::model).collect(),
            labels: self.labels,
        }
    }
}

impl Resource for WireFloatingIp {
    type Model = FloatingIp;
    const LIST: &'static str = "floating_ips";
    const ONE: &'static str = "floating_ip";
    fn model(self) -> FloatingIp {
        FloatingIp {
            id: self.id,
            name: self.name,
            // Those of IPv6 are none of hk-dr's.
            address: self.ip.parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
            location: self.home_location.name,
            server: self.server,
            labels: self.labels,
        }
    }
}

fn service_json(service: &BalancerService) -> Value {
    json!({
        "protocol": service.protocol, "listen_port": service.listen_port,
        "destination_port": service.destination_port, "proxyprotocol": service.proxy_protocol,
        "health_check": service.check,
    })
}

fn target_json(target: &BalancerTarget) -> Value {
    match target {
        BalancerTarget::Selector { selector, private } => {
            json!({"type": "label_selector", "label_selector": {"selector": selector}, "use_private_ip": private})
        }
        BalancerTarget::Server { id, private } => {
            json!({"type": "server", "server": {"id": id}, "use_private_ip": private})
        }
        BalancerTarget::Address(ip) => json!({"type": "ip", "ip": {"ip": ip}}),
    }
}

impl HetznerCloud {
    /// Changes a load balancer; where an answer was lost, `done` tells from the load balancer whether the change is there.
    async fn balance(
        &self,
        id: u64,
        action: &str,
        body: &Value,
        done: impl FnOnce(&Balancer) -> bool + Send,
    ) -> PortResult<()> {
        let path = format!("/load_balancers/{id}/actions/{action}");
        self.act_until(&path, body, || async { Ok(done(&self.one::<WireBalancer>(id).await?)) }).await
    }
}

#[async_trait]
impl Front for HetznerCloud {
    async fn balancers(&self, selector: &str) -> PortResult<Vec<Balancer>> {
        self.selected::<WireBalancer>(selector).await
    }

    async fn balancer_by_name(&self, name: &str) -> PortResult<Option<Balancer>> {
        by_name::<WireBalancer>(&self.http, name).await
    }

    async fn create_balancer(&self, spec: &BalancerSpec) -> PortResult<Balancer> {
        let body = json!({
            "name": spec.name, "load_balancer_type": spec.balancer_type, "location": spec.location,
            "algorithm": {"type": "round_robin"}, "public_interface": spec.public, "labels": spec.labels,
            "services": spec.services.iter().map(service_json).collect::<Vec<_>>(),
        });
        Ok(create::<WireBalancer>(&self.http, &self.actions, &spec.name, &spec.labels, &body).await?.model)
    }

    async fn attach_balancer(&self, id: u64, network: u64, address: Ipv4Addr) -> PortResult<()> {
        let body = json!({"network": network, "ip": address});
        let done = |b: &Balancer| b.private.iter().any(|p| p.network == network && p.address == address);
        self.balance(id, "attach_to_network", &body, done).await
    }

    async fn detach_balancer(&self, id: u64, network: u64) -> PortResult<()> {
        let done = |b: &Balancer| b.private.iter().all(|p| p.network != network);
        self.balance(id, "detach_from_network", &json!({"network": network}), done).await
    }

    async fn set_balancer_public(&self, id: u64, public: bool) -> PortResult<()> {
        let action = if public { "enable_public_interface" } else { "disable_public_interface" };
        self.balance(id, action, &json!({}), |b| b.public_ipv4.is_some() == public).await
    }

    async fn set_balancer_service(&self, id: u64, service: &BalancerService) -> PortResult<()> {
        let there = self.one::<WireBalancer>(id).await?.services.iter().any(|s| s.listen_port == service.listen_port);
        let action = if there { "update_service" } else { "add_service" };
        self.balance(id, action, &service_json(service), |b| b.services.contains(service)).await
    }

    async fn delete_balancer_service(&self, id: u64, listen_port: u16) -> PortResult<()> {
        let done = |b: &Balancer| b.services.iter().all(|s| s.listen_port != listen_port);
        self.balance(id, "delete_service", &json!({"listen_port": listen_port}), done).await
    }

    async fn add_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()> {
        self.balance(id, "add_target", &target_json(target), |b| b.targets.contains(target)).await
    }

    async fn remove_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()> {
        self.balance(id, "remove_target", &target_json(target), |b| !b.targets.contains(target)).await
    }

    async fn delete_balancer(&self, id: u64) -> PortResult<()> {
        self.delete::<WireBalancer>(id).await
    }

    async fn floating_ips(&self, selector: &str) -> PortResult<Vec<FloatingIp>> {
        self.selected::<WireFloatingIp>(selector).await
    }

    async fn floating_ip_by_name(&self, name: &str) -> PortResult<Option<FloatingIp>> {
        by_name::<WireFloatingIp>(&self.http, name).await
    }

    async fn create_floating_ip(&self, name: &str, location: &str, labels: &Labels) -> PortResult<FloatingIp> {
        let body = json!({"name": name, "type": "ipv4", "home_location": location, "labels": labels});
        Ok(create::<WireFloatingIp>(&self.http, &self.actions, name, labels, &body).await?.model)
    }

    async fn assign_floating_ip(&self, id: u64, server: u64) -> PortResult<()> {
        let path = format!("/floating_ips/{id}/actions/assign");
        let there = || async { Ok(self.one::<WireFloatingIp>(id).await?.server == Some(server)) };
        match self.act_until(&path, &json!({"server": server}), there).await {
            // The server has it already: someone was quicker.
            Err(error) if matches!(error.code, ErrorCode::Conflict | ErrorCode::Invalid) => {
                if there().await? {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }

    async fn delete_floating_ip(&self, id: u64) -> PortResult<()> {
        if self.one::<WireFloatingIp>(id).await?.server.is_some() {
            let path = format!("/floating_ips/{id}/actions/unassign");
            let done = || async { Ok(self.one::<WireFloatingIp>(id).await?.server.is_none()) };
            self.act_until(&path, &json!({}), done).await?;
        }
        self.delete::<WireFloatingIp>(id).await
    }
}
