//! The network between machines: routed, as at Hetzner. The public part is one namespace, each private network another;
//! every machine has a namespace of its own, connected by a cable a network. A load balancer is one more machine here.
//!
//! This file says how the kernel is told; `wiring` remembers who is plugged in where, `firewall` what may pass.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener};

use crate::error::LabError;
use crate::{netns, run};

pub(crate) mod counters;
pub(crate) mod firewall;
pub(crate) mod wiring;

/// The public network's namespace.
pub const PUBLIC: &str = "fabric";
/// Where the public addresses are from.
const PUBLIC_RANGE: &str = "203.0.113.0/24";
/// Where the cloud API answers in the lab.
pub const API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), 80);
/// Where S3 answers in the lab.
pub const S3: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 20), 7070);
/// Where the metadata service answers machines.
pub const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
/// Places that are no servers: the operator's desk, and anybody on the internet. (name, first three octets, IPv6 /64
/// without the last group). Each place is host 2 of its networks.
pub const PLACES: [(&str, &str, &str); 2] =
    [("operator", "198.51.100", "2001:db8:ffff:100::"), ("internet", "198.51.101", "2001:db8:ffff:101::")];

/// Hetzner's gateway for everything, reached without a common subnet.
const GATEWAY: &str = "172.31.1.1";
/// The same for IPv6: a link-local address, so that no address of the machine's /64 is spent.
const GATEWAY6: &str = "fe80::1";
/// Room for the tunnel header that the real private networks need.
const PRIVATE_MTU: u32 = 1450;

/// Rules outside the machines. The maps send a machine's traffic to its firewall's chains, by the name of its cable; both
/// are asked when two machines speak, so a chain that lets something pass returns instead of accepting.
///
/// - IPv4 has strict reverse-path filters; IPv6 has no such setting, hence `spoofed`.
/// - `ct state` is asked of everything, so that connections are known before their machine gets its first firewall: they
///   survive it, as at Hetzner.
/// - The services of the cloud are outside a machine too, all but the metadata, which no firewall shuts off.
/// - The operator's desk is behind a router of its own: nobody on the internet starts a connection to it.
const RULES: &str = "
table inet cloud {
  map inbound { type ifname : verdict; }
  map outbound { type ifname : verdict; }
  chain spoofed {
    type filter hook prerouting priority raw; policy accept;
    iifname \"p*\" ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif missing drop
  }
  chain forwarding {
    type filter hook forward priority 0; policy accept;
    iifname \"internet\" oifname \"operator\" ct state new drop
    ct state established,related counter
    oifname vmap @inbound
    iifname vmap @outbound
  }
  chain services {
    type filter hook input priority 0; policy accept;
    ip daddr 169.254.169.254 accept
    iifname vmap @outbound
  }
}
";

/// Says at once that nobody has an address. The kernel does so by itself, but after some answers only once a second to
/// each who asks, by a limit that belongs to the whole host: who tries again and again until a machine is up would now and
/// then hear nothing, and lose a second until TCP repeats itself.
fn refusal(range: &str, answer: &str) -> String {
    format!(
        "table ip vacant {{\nchain arriving {{\ntype filter hook prerouting priority 0; policy accept;\n\
         ip daddr {range} fib daddr type != local fib daddr oif missing reject with icmp {answer}\n}}\n}}\n"
    )
}

/// Lays the public network, the two places, and the addresses of the services.
pub(crate) async fn lay() -> Result<(), LabError> {
    run::tool("ip", &["link", "set", "lo", "up"], "").await?;
    netns::create(PUBLIC)?;
    make_router(PUBLIC)?;
    let mut batch = String::from("link set lo up\n");
    for service in [API, S3, METADATA] {
        batch.push_str(&format!("addr add {}/32 dev lo\n", service.ip()));
    }
    for (place, net, _) in PLACES {
        netns::create(place)?;
        calm_ipv6(place)?;
        batch.push_str(&format!(
            "link add {place} type veth peer name eth0 netns {place}\naddr add {net}.1/24 dev {place}\n\
             link set {place} up\n"
        ));
    }
    if has_ipv6() {
        for (place, _, net) in PLACES {
            batch.push_str(&format!("addr add {net}1/64 dev {place} nodad\n"));
        }
    }
    ip(PUBLIC, &batch).await?;
    for (place, net, net6) in PLACES {
        let mut batch = format!(
            "link set lo up\naddr add {net}.2/24 dev eth0\nlink set eth0 up\nroute add default via {net}.1 dev eth0\n"
        );
        if has_ipv6() {
            batch.push_str(&format!("addr add {net6}2/64 dev eth0 nodad\nroute add default via {net6}1 dev eth0\n"));
        }
        ip(place, &batch).await?;
    }
    nft(&format!("{RULES}{}", refusal(PUBLIC_RANGE, "net-unreachable"))).await
}

/// A listener on the public network, as a service of the cloud.
pub(crate) fn listen(address: SocketAddrV4) -> Result<TcpListener, LabError> {
    netns::within(PUBLIC, move || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// The namespace of a machine or load balancer.
pub(crate) fn machine(id: u64) -> String {
    format!("s{id}")
}

/// The namespace of a private network.
fn network(id: u64) -> String {
    format!("n{id}")
}

/// The /64 an IPv6 address is in.
fn net64(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))
}

/// What is routed when an address is: an IPv4 address alone, of IPv6 the whole /64.
fn routed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{}/64", net64(address)),
    }
}

/// The address from which a machine without a public one asks for its metadata.
pub(crate) fn link_local(id: u64) -> Ipv4Addr {
    // 169.254.1.0 to 169.254.168.255: below the metadata service's own address. Ids repeat after 43008 machines.
    let place = (id % (168 * 256)) as u16 + 256;
    let [high, low] = place.to_be_bytes();
    Ipv4Addr::new(169, 254, high, low)
}

/// Milliseconds between two looks for who has an address: somebody who asks for it a moment before it is configured is
/// not made to wait a second. Set before the cable is up: the first look counts, and a machine's end of a cable that has
/// just come up may lose the answer to it.
const LOOK_MS: u32 = 50;

/// The public cable of a machine, from both ends: what to do in the machine, and in the public network.
///
/// A machine without an IPv4 address still reaches the metadata service, as at Hetzner, from a link-local address made
/// from its id. IPv6 is configured as Hetzner's images do it: host 1 of the /64, gateway fe80::1.
fn public_cable(id: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> (String, String) {
    let address = ipv4.unwrap_or_else(|| link_local(id));
    let route = if ipv4.is_some() { "default" } else { "169.254.169.254" };
    let mut inside = format!(
        "link add eth0 type veth peer name p{id} netns {PUBLIC}\n\
         ntable change name arp_cache dev eth0 retrans {LOOK_MS}\naddr add {address}/32 dev eth0\nlink set eth0 up\n\
         route add {route} via {GATEWAY} dev eth0 onlink\n"
    );
    let mut outside = format!(
        "ntable change name arp_cache dev p{id} retrans {LOOK_MS}\naddr add {GATEWAY}/32 dev p{id}\n\
         link set p{id} up\nroute replace {address}/32 dev p{id}\n"
    );
    if has_ipv6() {
        // Even without a /64 of its own: a floating one may be routed to it.
        outside.push_str(&format!(
            "ntable change name ndisc_cache dev p{id} retrans {LOOK_MS}\naddr add {GATEWAY6}/64 dev p{id} nodad\n"
        ));
        if let Some(net) = ipv6.map(net64) {
            inside.push_str(&format!("addr add {net}1/64 dev eth0 nodad\nroute add default via {GATEWAY6} dev eth0\n"));
            outside.push_str(&format!("route replace {net}/64 dev p{id}\n"));
        }
    }
    (inside, outside)
}

/// A private interface, from both ends: what to do in the machine, and in the private network.
fn private_cable(id: u64, net: u64, gateway: Ipv4Addr, interface: &wiring::Interface) -> (String, String) {
    let wiring::Interface { number, address, range, aliases } = interface;
    let inside = format!(
        "link add ens{number} mtu {PRIVATE_MTU} type veth peer name v{id} mtu {PRIVATE_MTU} netns {space}\n\
         addr add {address}/32 dev ens{number}\nlink set ens{number} up\n\
         route add {gateway} dev ens{number} scope link\nroute add {range} via {gateway} dev ens{number}\n",
        space = network(net)
    );
    let mut outside = format!(
        "ntable change name arp_cache dev v{id} retrans {LOOK_MS}\naddr add {gateway}/32 dev v{id}\n\
         link set v{id} up\n"
    );
    for address in [address].into_iter().chain(aliases) {
        outside.push_str(&format!("route replace {address}/32 dev v{id}\n"));
    }
    (inside, outside)
}

/// Routes beyond the machines' own addresses live in a table that is asked after them.
const FAR_TABLE: &str = "table 100";

/// Makes a private network. Addresses of it that no machine has are unreachable, whatever its routes say.
async fn make_network(id: u64, range: &str) -> Result<(), LabError> {
    let space = network(id);
    netns::create(&space)?;
    make_router(&space)?;
    let far = "link set lo up\nrule add priority 40000 ".to_owned();
    ip(&space, &format!("{far}{FAR_TABLE}\nroute add unreachable {range} {FAR_TABLE}\n")).await?;
    load(&space, &refusal(range, "host-unreachable")).await
}

async fn ip(space: &str, batch: &str) -> Result<(), LabError> {
    if batch.is_empty() {
        return Ok(());
    }
    run::tool("ip", &["-n", space, "-batch", "-"], batch).await.map(|_| ())
}

/// For what may be gone already: each line on its own, errors don't matter.
async fn ip_if_there(space: &str, batch: &str) {
    if batch.is_empty() {
        return;
    }
    let _ = run::tool("ip", &["-n", space, "-force", "-batch", "-"], batch).await;
}

/// Runs a script of rules in the public network: all of it or nothing.
pub(crate) async fn nft(script: &str) -> Result<(), LabError> {
    load(PUBLIC, script).await
}

async fn load(space: &str, script: &str) -> Result<(), LabError> {
    let space = format!("--net={}", netns::path(space).display());
    run::tool("nsenter", &[&space, "nft", "-f", "-"], script).await.map(|_| ())
}

/// A kernel may have been started without IPv6: then the lab has none.
pub(crate) fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

fn make_router(space: &str) -> Result<(), LabError> {
    netns::within(space, || {
        let base = "/proc/sys/net/ipv4";
        fs::write(format!("{base}/ip_forward"), "1")?;
        for conf in ["all", "default"] {
            // Strict: no machine speaks with another's address, and the metadata service may trust the sender.
            fs::write(format!("{base}/conf/{conf}/rp_filter"), "1")?;
            fs::write(format!("{base}/conf/{conf}/send_redirects"), "0")?;
        }
        // See `refusal`. The mask is of the host's limit on all answers together: none of these counts.
        fs::write(format!("{base}/icmp_ratelimit"), "0")?;
        fs::write(format!("{base}/icmp_ratemask"), "0")?;
        if has_ipv6() {
            fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    })?;
    calm_ipv6(space)
}

/// Addresses are usable at once instead of after a second of looking for duplicates, which the lab never makes.
fn calm_ipv6(space: &str) -> Result<(), LabError> {
    netns::within(space, || {
        if has_ipv6() {
            for conf in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/accept_dad"), "0")?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_stay_clear_of_the_metadata_service() {
        for id in [0, 1, 255, 256, 43_007, 43_008, u64::MAX] {
            let [a, b, c, _] = link_local(id).octets();
            assert_eq!([a, b], [169, 254]);
            assert!((1..=168).contains(&c));
        }
    }

    #[test]
    fn the_public_range_is_the_one_addresses_are_from() {
        assert_eq!(crate::api::Range::PUBLIC.to_string(), PUBLIC_RANGE);
    }

    #[test]
    fn an_ipv6_address_stands_for_its_64() {
        let address: IpAddr = "2001:db8:1:2::5".parse().expect("an address");
        assert_eq!(routed(address), "2001:db8:1:2::/64");
        assert_eq!(routed("203.0.113.7".parse().expect("an address")), "203.0.113.7/32");
    }
}
