use std::net::Ipv4Addr;

use async_trait::async_trait;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::HetznerCloud;
use super::create::{by_name, create};
use super::wire::{Resource, WireNetwork, lenient};
use crate::ports::{ErrorCode, Firewall, FirewallRule, FirewallSpec, Labels, Perimeter, PortResult, Route};

#[derive(Debug, Deserialize)]
struct WireFirewall {
    id: u64,
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    rules: Vec<WireRule>,
    #[serde(default, deserialize_with = "lenient")]
    applied_to: Vec<WireApplied>,
    #[serde(default, deserialize_with = "lenient")]
    labels: Labels,
}

#[derive(Debug, Deserialize)]
struct WireRule {
    #[serde(default, deserialize_with = "lenient")]
    direction: String,
    #[serde(default, deserialize_with = "lenient")]
    protocol: String,
    #[serde(default)]
    port: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    source_ips: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    destination_ips: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    description: String,
}

#[derive(Debug, Deserialize)]
struct WireApplied {
    #[serde(default)]
    server: Option<WireId>,
    #[serde(default)]
    label_selector: Option<WireSelector>,
}

#[derive(Debug, Deserialize)]
struct WireId {
    id: u64,
}

#[derive(Debug, Deserialize)]
struct WireSelector {
    #[serde(default, deserialize_with = "lenient")]
    selector: String,
}

impl Resource for WireFirewall {
    type Model = Firewall;
    const LIST: &'static str = "firewalls";
    const ONE: &'static str = "firewall";
    fn model(self) -> Firewall {
        let rule = |r: WireRule| FirewallRule {
            networks: if r.direction == "out" { r.destination_ips } else { r.source_ips },
            direction: r.direction,
            protocol: r.protocol,
            port: r.port,
            description: r.description,
        };
        Firewall {
            id: self.id,
            name: self.name,
            rules: self.rules.into_iter().map(rule).collect(),
            servers: self.applied_to.iter().filter_map(|a| a.server.as_ref().map(|s| s.id)).collect(),
            selectors: self.applied_to.into_iter().filter_map(|a| a.label_selector.map(|s| s.selector)).collect(),
            labels: self.labels,
        }
    }
}

fn rules_json(rules: &[FirewallRule]) -> Value {
    let rule = |r: &FirewallRule| {
        let side = if r.direction == "out" { "destination_ips" } else { "source_ips" };
        let mut rule = json!({"direction": r.direction, "protocol": r.protocol, "description": r.description});
        rule[side] = json!(r.networks);
        if let Some(port) = &r.port {
            rule["port"] = json!(port);
        }
        rule
    };
    rules.iter().map(rule).collect()
}

fn by_selector(selector: &str) -> Value {
    json!([{"type": "label_selector", "label_selector": {"selector": selector}}])
}

#[async_trait]
impl Perimeter for HetznerCloud {
    async fn firewalls(&self, selector: &str) -> PortResult<Vec<Firewall>> {
        self.selected::<WireFirewall>(selector).await
    }

    async fn firewall_by_name(&self, name: &str) -> PortResult<Option<Firewall>> {
        by_name::<WireFirewall>(&self.http, name).await
    }

    async fn create_firewall(&self, spec: &FirewallSpec) -> PortResult<Firewall> {
        let body = json!({
            "name": spec.name, "labels": spec.labels, "rules": rules_json(&spec.rules),
            "apply_to": by_selector(&spec.selector),
        });
        Ok(create::<WireFirewall>(&self.http, &self.actions, &spec.name, &spec.labels, &body).await?.model)
    }

    async fn set_firewall_rules(&self, id: u64, rules: &[FirewallRule]) -> PortResult<()> {
        let path = format!("/firewalls/{id}/actions/set_rules");
        self.act(Method::POST, &path, Some(&json!({"rules": rules_json(rules)}))).await.0
    }

    async fn apply_firewall(&self, id: u64, selector: &str) -> PortResult<()> {
        let path = format!("/firewalls/{id}/actions/apply_to_resources");
        let done = || async { Ok(self.one::<WireFirewall>(id).await?.selectors.iter().any(|s| s == selector)) };
        self.act_until(&path, &json!({"apply_to": by_selector(selector)}), done).await
    }

    async fn delete_firewall(&self, id: u64) -> PortResult<()> {
        let firewall = self.one::<WireFirewall>(id).await?;
        let mut from: Vec<Value> = Vec::new();
        from.extend(firewall.selectors.iter().flat_map(|s| by_selector(s).as_array().cloned().unwrap_or_default()));
        from.extend(firewall.servers.iter().map(|s| json!({"type": "server", "server": {"id": s}})));
        if !from.is_empty() {
            let path = format!("/firewalls/{id}/actions/remove_from_resources");
            let done = || async {
                let firewall = self.one::<WireFirewall>(id).await?;
                Ok(firewall.selectors.is_empty() && firewall.servers.is_empty())
            };
            self.act_until(&path, &json!({"remove_from": from}), done).await?;
        }
        self.delete::<WireFirewall>(id).await
    }

    async fn add_route(&self, network: u64, route: &Route) -> PortResult<()> {
        self.route(network, route, "add_route", true).await
    }

    async fn delete_route(&self, network: u64, route: &Route) -> PortResult<()> {
        self.route(network, route, "delete_route", false).await
    }
}

impl HetznerCloud {
    async fn route(&self, network: u64, route: &Route, action: &str, wanted: bool) -> PortResult<()> {
        let path = format!("/networks/{network}/actions/{action}");
        let gateway: Ipv4Addr = route.gateway;
        let body = json!({"destination": route.destination, "gateway": gateway});
        let done = || async { Ok(self.one::<WireNetwork>(network).await?.routes.contains(route) == wanted) };
        match self.act_until(&path, &body, done).await {
            // It may be there already, or gone: what counts is how it is now.
            Err(error) if matches!(error.code, ErrorCode::Conflict | ErrorCode::NotFound | ErrorCode::Invalid) => {
                if self.one::<WireNetwork>(network).await?.routes.contains(route) == wanted {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }
}
