//! Firewalls: rules, and the servers they are for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{Cloud, State};
use super::error::{ApiError, ApiResult};
use super::firewall_action;
use super::input::{Input, path_id};
use super::listing::{Listing, created, no_content, one};
use super::selector::Selector;
use super::server::{Server, Status};
use super::tag::{Tag, TagUpdate, check_unique};
use crate::backend::{Direction, FirewallRule, Protocol};

/// How many firewalls count for a server.
pub const PER_SERVER_MAX: usize = 5;
const RULES_MAX: usize = 50;
/// Rules times their networks.
const EFFECTIVE_MAX: usize = 500;
/// Networks a rule may name.
const NETWORKS_MAX: usize = 100;

/// A firewall.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Firewall {
    pub tag: Tag,
    pub rules: Vec<Rule>,
    pub applied_to: Vec<Applied>,
}

/// A rule as the API tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    direction: String,
    protocol: String,
    /// `80`, `80-85` or `any`; none for protocols without ports.
    port: Option<String>,
    source_ips: Vec<String>,
    destination_ips: Vec<String>,
    description: Option<String>,
}

/// What a firewall is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    Server(u64),
    Selector(String),
}

/// What the firewalls of a machine come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// Ids of the firewalls that count.
    pub firewalls: Vec<u64>,
    /// As the backend takes them; none: no firewall.
    pub rules: Option<Vec<FirewallRule>>,
}

impl Firewall {
    /// Whether it is for a server, by name or by label.
    pub fn is_for(&self, server: &Server) -> bool {
        self.applied_to.iter().any(|applied| match applied {
            Applied::Server(id) => *id == server.id,
            Applied::Selector(text) => selects(text, server),
        })
    }

    pub fn is_directly_for(&self, server: u64) -> bool {
        self.applied_to.contains(&Applied::Server(server))
    }
}

/// Selectors are checked when they are given, so that one that cannot be read selects nothing.
pub fn selects(selector: &str, server: &Server) -> bool {
    Selector::parse(selector).is_ok_and(|s| s.matches(&server.labels))
}

/// The rules of a machine: what any of its firewalls lets pass may pass. Firewalls beyond the limit do not count: those
/// that were named go before those that select by label, older before younger.
pub fn effective<'a>(server: &Server, firewalls: impl Iterator<Item = &'a Firewall>) -> Effective {
    let mut counting: Vec<&Firewall> = firewalls.filter(|f| f.is_for(server)).collect();
    if counting.is_empty() {
        return Effective::default();
    }
    counting.sort_by_key(|f| (!f.is_directly_for(server.id), f.tag.id));
    counting.truncate(PER_SERVER_MAX);
    let rules = counting.iter().flat_map(|f| &f.rules).filter_map(Rule::for_backend).collect();
    Effective { firewalls: counting.iter().map(|f| f.tag.id).collect(), rules: Some(rules) }
}

impl Rule {
    fn read(input: &Input, at: usize) -> ApiResult<Self> {
        let field = |name: &str| format!("rules.{at}.{name}");
        let wrong = |name: &str, message: &str| ApiError::field(&field(name), message);
        let direction = input.required_string("direction")?;
        let protocol = input.required_string("protocol")?;
        let with_ports = match protocol.as_str() {
            "tcp" | "udp" => true,
            "icmp" | "esp" | "gre" => false,
            _ => return Err(wrong("protocol", "must be 'tcp', 'udp', 'icmp', 'esp' or 'gre'")),
        };
        let port = input.string("port")?;
        match (&port, with_ports) {
            (None, true) => return Err(wrong("port", "is required for this protocol")),
            (Some(_), false) => return Err(wrong("port", "must not be given for this protocol")),
            (Some(port), true) if ports(port).is_none() => {
                return Err(wrong("port", "must be a port, a range such as '80-85', or 'any'"));
            }
            _ => {}
        }
        let (needed, other) = match direction.as_str() {
            "in" => ("source_ips", "destination_ips"),
            "out" => ("destination_ips", "source_ips"),
            _ => return Err(wrong("direction", "must be 'in' or 'out'")),
        };
        if !input.array(other)?.is_empty() {
            return Err(wrong(other, "must be empty for this direction"));
        }
        let mut networks = Vec::new();
        for value in input.array(needed)? {
            let text = value.as_str().ok_or_else(|| wrong(needed, "must be a list of networks"))?;
            networks
                .push(network(text).ok_or_else(|| wrong(needed, &format!("'{text}' is not a network in CIDR form")))?);
        }
        if networks.is_empty() || networks.len() > NETWORKS_MAX {
            return Err(wrong(needed, &format!("must name 1 to {NETWORKS_MAX} networks")));
        }
        let description = input.string("description")?;
        if description.as_ref().is_some_and(|d| d.chars().count() > 255) {
            return Err(wrong("description", "must not be longer than 255 characters"));
        }
        let (source_ips, destination_ips) =
            if direction == "in" { (networks, Vec::new()) } else { (Vec::new(), networks) };
        Ok(Self { direction, protocol, port, source_ips, destination_ips, description })
    }

    fn for_backend(&self) -> Option<FirewallRule> {
        let protocol = match self.protocol.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "esp" => Protocol::Esp,
            _ => Protocol::Gre,
        };
        let (direction, networks) = match self.direction.as_str() {
            "in" => (Direction::In, &self.source_ips),
            _ => (Direction::Out, &self.destination_ips),
        };
        let ports = match &self.port {
            Some(text) => Some(ports(text)?),
            None => None,
        };
        Some(FirewallRule { direction, protocol, ports, networks: networks.clone() })
    }

    fn networks(&self) -> usize {
        self.source_ips.len() + self.destination_ips.len()
    }
}

/// First and last of `80`, `80-85` or `any`.
fn ports(text: &str) -> Option<(u16, u16)> {
    if text == "any" {
        return Some((1, u16::MAX));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

/// A network in CIDR form without host bits, as the kernel writes it.
fn network(text: &str) -> Option<String> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    match address {
        IpAddr::V4(a) if prefix <= 32 => {
            let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
            (a.to_bits() & host == 0).then(|| format!("{}/{prefix}", Ipv4Addr::from_bits(a.to_bits())))
        }
        IpAddr::V6(a) if prefix <= 128 => {
            let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
            (a.to_bits() & host == 0).then(|| format!("{}/{prefix}", Ipv6Addr::from_bits(a.to_bits())))
        }
        _ => None,
    }
}

/// Reads `rules`.
pub fn rules(input: &Input) -> ApiResult<Vec<Rule>> {
    let given = input.objects("rules")?;
    if given.len() > RULES_MAX {
        return Err(ApiError::field("rules", format!("must not be more than {RULES_MAX}")));
    }
    let rules: Vec<Rule> = given.iter().enumerate().map(|(at, rule)| Rule::read(rule, at)).collect::<ApiResult<_>>()?;
    if rules.iter().map(Rule::networks).sum::<usize>() > EFFECTIVE_MAX {
        return Err(ApiError::field("rules", format!("must not come to more than {EFFECTIVE_MAX} effective rules")));
    }
    Ok(rules)
}

impl State {
    pub fn firewall_json(&self, firewall: &Firewall) -> Value {
        let applied: Vec<Value> = firewall
            .applied_to
            .iter()
            .map(|applied| match applied {
                Applied::Server(id) => json!({"type": "server", "server": {"id": id}}),
                Applied::Selector(text) => {
                    let matching = self.servers.values().filter(|s| selects(text, s));
                    let resources: Vec<Value> =
                        matching.map(|s| json!({"type": "server", "server": {"id": s.id}})).collect();
                    json!({
                        "type": "label_selector", "label_selector": {"selector": text},
                        "applied_to_resources": resources,
                    })
                }
            })
            .collect();
        firewall.tag.json(json!({"rules": firewall.rules, "applied_to": applied}))
    }

    pub fn firewall(&self, id: u64) -> ApiResult<&Firewall> {
        self.firewalls.get(&id).ok_or_else(|| ApiError::not_found("firewall", id))
    }

    /// What should filter a machine's traffic.
    pub fn wanted_rules(&self, server: &Server) -> Effective {
        effective(server, self.firewalls.values())
    }

    /// The firewalls of a server as its JSON tells them.
    pub fn firewalls_json(&self, server: &Server) -> Vec<Value> {
        let wanted = self.wanted_rules(server);
        let applied = self.made().filtering.get(&server.id) == Some(&wanted);
        let status = if applied { "applied" } else { "pending" };
        wanted.firewalls.iter().map(|id| json!({"id": id, "status": status})).collect()
    }

    /// The servers a firewall is for, by whatever way.
    pub fn servers_behind(&self, firewall: &Firewall) -> Vec<u64> {
        let there = self.servers.values().filter(|s| s.status != Status::Deleting);
        there.filter(|s| firewall.is_for(s)).map(|s| s.id).collect()
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/firewalls", get(list).post(create))
        .route("/firewalls/{id}", get(read).put(update).delete(remove))
        .route("/firewalls/{id}/actions/set_rules", post(firewall_action::set_rules))
        .route("/firewalls/{id}/actions/apply_to_resources", post(firewall_action::apply_to_resources))
        .route("/firewalls/{id}/actions/remove_from_resources", post(firewall_action::remove_from_resources))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    listing.reply("firewalls", state.firewalls.values().map(|f| state.firewall_json(f)).collect(), &[])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    Ok(one("firewall", state.firewall_json(state.firewall(id)?)))
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let mut tag = Tag::read(&input)?;
    let rules = rules(&input)?;
    let mut guard = cloud.state();
    let state = &mut *guard;
    check_unique("firewall", state.firewalls.values().map(|f| &f.tag), &tag.name, 0)?;
    if state.firewalls.len() >= cloud.options.limits.firewalls {
        return Err(ApiError::limit("firewall_limit"));
    }
    let applied_to = firewall_action::resources(state, &input, "apply_to", None)?;
    let id = state.next_id();
    tag.id = id;
    state.firewalls.insert(id, Firewall { tag, rules, applied_to: applied_to.clone() });
    let mut actions = vec![state.instant("set_firewall_rules", &[("firewall", id)])];
    actions.extend(firewall_action::spread(&cloud, state, "apply_firewall", id, &applied_to));
    let firewall = state.firewall_json(state.firewall(id)?);
    Ok(created(json!({"firewall": firewall, "actions": actions})))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let update = TagUpdate::read(&input)?;
    let mut state = cloud.state();
    if let Some(name) = &update.name {
        check_unique("firewall", state.firewalls.values().map(|f| &f.tag), name, id)?;
    }
    state.firewalls.get_mut(&id).ok_or_else(|| ApiError::not_found("firewall", id))?.tag.update(update);
    Ok(one("firewall", state.firewall_json(state.firewall(id)?)))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    if !state.firewall(id)?.applied_to.is_empty() {
        return Err(ApiError::new("resource_in_use", format!("firewall {id} is still applied to resources")));
    }
    state.firewalls.remove(&id);
    Ok(no_content())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_and_networks_are_checked() {
        assert_eq!(ports("80"), Some((80, 80)));
        assert_eq!(ports("80-85"), Some((80, 85)));
        assert_eq!(ports("any"), Some((1, 65535)));
        for bad in ["", "0", "85-80", "65536", "80-", "http"] {
            assert_eq!(ports(bad), None, "{bad}");
        }
        assert_eq!(network("0.0.0.0/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(network("2001:DB8::/32").as_deref(), Some("2001:db8::/32"));
        for bad in ["10.0.0.1/24", "10.0.0.0", "10.0.0.0/33", "::1/64", "::/129", "x/1"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_network_that_is_read_reads_back(bits in any::<u128>(), prefix in 0u32..=128) {
            let base = bits & !u128::MAX.checked_shr(prefix).unwrap_or(0);
            let text = format!("{}/{prefix}", Ipv6Addr::from_bits(base));
            prop_assert_eq!(network(&text), Some(text));
        }
    }
}
