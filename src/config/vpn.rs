use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Report;
use super::names::is_label;
use super::tree::Tree;
use super::{Cluster, Range};

/// Addresses at the beginning of the tunnel's range that are not for people: the VPN host's and hk-dr's own.
pub const OWN_ADDRESSES: u32 = 256;

/// The only way in: a server that runs WireGuard, and the way out of servers without a public address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VpnConfig {
    /// Short name; the server is called `<cluster>-<name>`.
    #[serde(default = "default_name")]
    pub name: String,
    pub location: String,
    #[serde(rename = "type")]
    pub server_type: String,
    /// Pinned private address.
    pub address: Ipv4Addr,
    /// The UDP port that the world may talk to.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Addresses inside the tunnel. The first 256 are the host's and hk-dr's own, the others are for people.
    #[serde(default = "default_range")]
    pub range: String,
    /// The name (or address) that people's configurations call; its public address if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Who may come in. `hk-dr vpn add` writes them.
    #[serde(default)]
    pub peers: Vec<VpnPeer>,
}

/// Someone who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VpnPeer {
    pub name: String,
    /// WireGuard's public key, base64. The private key never leaves its owner.
    pub public_key: String,
    /// Its address inside the tunnel.
    pub address: Ipv4Addr,
}

fn default_name() -> String {
    "vpn".into()
}
fn default_port() -> u16 {
    51820
}
fn default_range() -> String {
    "10.99.0.0/22".into()
}

/// Whether this is a WireGuard key in base64.
pub fn is_wireguard_key(text: &str) -> bool {
    text.len() == 44 && BASE64_STANDARD.decode(text).is_ok_and(|key| key.len() == 32)
}

pub(super) fn check(cluster: &Cluster, tree: &Tree, report: &mut Report) {
    let Some(vpn) = &cluster.vpn else {
        if !cluster.network.public_ipv4.workers() || !cluster.network.public_ipv4.masters() {
            let hint = "declare `vpn`: its host is the way in and out for servers without a public address";
            let message = "servers without a public address can't be reached";
            report.add(tree.place("network.publicIPv4"), message, Some(hint.into()));
        }
        return;
    };
    let mut wrong = |path: &str, message: String, hint: &str| {
        report.add(tree.place(path), message, Some(hint.into()));
    };
    let range = match vpn.range.parse::<Range>() {
        Ok(range) => range,
        Err(hint) => return wrong("vpn.range", format!("vpn.range is not a range: `{}`", vpn.range), &hint),
    };
    if range.bits() > 23 || range.bits() < 8 {
        wrong("vpn.range", format!("{range} is not between /8 and /23"), "take 10.99.0.0/22");
    }
    for (name, other) in [
        ("the private network", &cluster.network.range),
        ("the pod range", &cluster.kubernetes.pod_range),
        ("the service range", &cluster.kubernetes.service_range),
    ] {
        if other.parse::<Range>().is_ok_and(|other| other.overlaps(range)) {
            wrong("vpn.range", format!("{range} overlaps {name} {other}"), "ranges must not share an address");
        }
    }
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (index, peer) in vpn.peers.iter().enumerate() {
        let at = |field: &str| format!("vpn.peers.{index}.{field}");
        if !is_label(&peer.name) {
            wrong(
                &at("name"),
                format!("`{}` can't be a peer's name", peer.name),
                "lower-case letters, digits and dashes",
            );
        }
        if !is_wireguard_key(&peer.public_key) {
            let message = format!("`{}` is not a public key of WireGuard", peer.public_key);
            wrong(&at("publicKey"), message, "32 bytes in base64, as `wg pubkey` prints them");
        }
        let first = range.nth(OWN_ADDRESSES);
        if !range.contains(peer.address)
            || first.is_none_or(|first| peer.address < first)
            || peer.address == range.last()
        {
            let first = first.map_or_else(|| "none".to_owned(), |first| first.to_string());
            let message = format!("{} is not for people", peer.address);
            wrong(&at("address"), message, &format!("addresses of {range} for people begin at {first}"));
        }
        for (field, value) in
            [("name", peer.name.clone()), ("publicKey", peer.public_key.clone()), ("address", peer.address.to_string())]
        {
            if let Some(first) = seen.insert(value.clone(), &peer.name) {
                wrong(&at(field), format!("two peers have `{value}`"), &format!("`{first}` has it already"));
            }
        }
    }
}
