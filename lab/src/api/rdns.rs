//! Reverse DNS: recorded and told, not served.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::address::in_network6;
use super::error::{ApiError, ApiResult};
use super::input::Input;
use super::label::is_dns_label;

/// Names by address; an IPv4 address without one has the provider's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reverse(BTreeMap<IpAddr, String>);

impl Reverse {
    /// The name of an IPv4 address.
    pub fn name4(&self, ip: Ipv4Addr) -> String {
        let [a, b, c, d] = ip.octets();
        let default = || format!("static.{d}.{c}.{b}.{a}.clients.your-server.de");
        self.0.get(&IpAddr::V4(ip)).cloned().unwrap_or_else(default)
    }

    /// The name of an address of any family, if it has one.
    pub fn name(&self, ip: IpAddr) -> Option<String> {
        match ip {
            IpAddr::V4(ip) => Some(self.name4(ip)),
            ip => self.0.get(&ip).cloned(),
        }
    }

    /// The list the API shows: the IPv4 address with its name, or the named addresses of an IPv6 network.
    pub fn json(&self, ip: IpAddr) -> Value {
        match ip {
            IpAddr::V4(ip) => json!([{"ip": ip, "dns_ptr": self.name4(ip)}]),
            IpAddr::V6(_) => self.0.iter().map(|(ip, name)| json!({"ip": ip, "dns_ptr": name})).collect(),
        }
    }

    fn set(&mut self, ip: IpAddr, name: Option<String>) {
        match name {
            Some(name) => self.0.insert(ip, name),
            None => self.0.remove(&ip),
        };
    }
}

/// A wish for a name; none resets it.
pub struct Change {
    pub ip: IpAddr,
    name: Option<String>,
}

impl Change {
    /// Reads `ip` and `dns_ptr`, which must be there but may be null.
    pub fn read(input: &Input) -> ApiResult<Self> {
        let ip = input.required_string("ip")?;
        let ip = ip.parse().map_err(|_| ApiError::field("ip", format!("'{ip}' is not an address")))?;
        let name = input.string("dns_ptr")?;
        if let Some(name) = &name
            && (name.len() > 253 || !name.trim_end_matches('.').split('.').all(is_dns_label))
        {
            return Err(ApiError::field("dns_ptr", "must be a host name"));
        }
        Ok(Self { ip, name })
    }

    /// Whether it concerns this address, or an address of this IPv6 network.
    pub fn is_of(&self, owned: IpAddr) -> bool {
        match (owned, self.ip) {
            (IpAddr::V6(network), IpAddr::V6(ip)) => in_network6(network, ip),
            (owned, ip) => owned == ip,
        }
    }

    /// Records it with the first of the owned addresses that it concerns.
    pub fn apply<'a>(self, owned: impl IntoIterator<Item = (IpAddr, &'a mut Reverse)>) -> ApiResult<()> {
        let found = owned.into_iter().find(|(ip, _)| self.is_of(*ip));
        let (_, reverse) =
            found.ok_or_else(|| ApiError::field("ip", format!("{} is not one of its addresses", self.ip)))?;
        reverse.set(self.ip, self.name);
        Ok(())
    }
}
