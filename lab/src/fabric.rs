//! The network between machines: routed, as at Hetzner. The public part is one namespace, each private network another;
//! every machine has a namespace of its own, connected by a cable a network.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use crate::error::LabError;
use crate::{netns, run};

/// The public network's namespace.
pub const PUBLIC: &str = "fabric";
/// Where the cloud API answers in the lab.
pub const API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), 80);
/// Where S3 answers in the lab.
pub const S3: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 20), 7070);
/// Where the metadata service answers machines.
pub const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
/// Places that are no servers: the operator's desk, and anybody on the internet. (name, first three octets)
pub const PLACES: [(&str, &str); 2] = [("operator", "198.51.100"), ("internet", "198.51.101")];

/// Hetzner's gateway for everything, reached without a common subnet.
const GATEWAY: &str = "172.31.1.1";
/// Room for the tunnel header that the real private networks need.
const PRIVATE_MTU: u32 = 1450;

/// Rules outside the machines. The map sends a machine's traffic to its firewall's chain, by the name of its cable.
const RULES: &str = "
table inet cloud {
  map inbound { type ifname : verdict; }
  map outbound { type ifname : verdict; }
  chain forwarding {
    type filter hook forward priority 0; policy accept;
    oifname vmap @inbound
    iifname vmap @outbound
  }
}
";

/// Lays the public network, the two places, and the addresses of the services.
pub(crate) async fn lay() -> Result<(), LabError> {
    run::tool("ip", &["link", "set", "lo", "up"], "").await?;
    netns::create(PUBLIC)?;
    make_router(PUBLIC)?;
    let mut batch = String::from("link set lo up\n");
    for service in [API, S3, METADATA] {
        batch.push_str(&format!("addr add {}/32 dev lo\n", service.ip()));
    }
    for (place, net) in PLACES {
        netns::create(place)?;
        batch.push_str(&format!(
            "link add {place} type veth peer name eth0 netns {place}\naddr add {net}.1/24 dev {place}\n\
             link set {place} up\n"
        ));
    }
    ip(PUBLIC, &batch).await?;
    for (place, net) in PLACES {
        let batch = format!(
            "link set lo up\naddr add {net}.2/24 dev eth0\nlink set eth0 up\nroute add default via {net}.1 dev eth0\n"
        );
        ip(place, &batch).await?;
    }
    let rules = RULES.to_owned();
    let path = netns::path(PUBLIC);
    run::tool("nsenter", &[&format!("--net={}", path.display()), "nft", "-f", "-"], &rules).await?;
    Ok(())
}

/// A listener on the public network, as a service of the cloud.
pub(crate) fn listen(address: SocketAddrV4) -> Result<TcpListener, LabError> {
    netns::within(PUBLIC, move || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// The namespace of a machine.
pub(crate) fn machine(id: u64) -> String {
    format!("s{id}")
}

/// The namespace of a private network.
fn network(id: u64) -> String {
    format!("n{id}")
}

/// Plugs a machine in: interface eth0 with its public address, if it has one.
///
/// A machine without one still reaches the metadata service, as at Hetzner, from a link-local address made from its id.
pub(crate) async fn plug_machine(id: u64, public: Option<Ipv4Addr>) -> Result<(), LabError> {
    let space = machine(id);
    netns::create(&space)?;
    let address = public.unwrap_or_else(|| link_local(id));
    let route = if public.is_some() { "default" } else { "169.254.169.254" };
    ip(
        &space,
        &format!(
            "link set lo up\nlink add eth0 type veth peer name p{id} netns {PUBLIC}\naddr add {address}/32 dev eth0\n\
             link set eth0 up\nroute add {route} via {GATEWAY} dev eth0 onlink\n"
        ),
    )
    .await?;
    ip(PUBLIC, &format!("addr add {GATEWAY}/32 dev p{id}\nlink set p{id} up\nroute replace {address}/32 dev p{id}\n"))
        .await
}

/// The address from which a machine without a public one asks for its metadata.
pub(crate) fn link_local(id: u64) -> Ipv4Addr {
    // 169.254.1.0 to 169.254.168.255: below the metadata service's own address. Ids repeat after 43008 machines.
    let place = (id % (168 * 256)) as u16 + 256;
    let [high, low] = place.to_be_bytes();
    Ipv4Addr::new(169, 254, high, low)
}

/// Takes a machine off all networks.
pub(crate) async fn unplug_machine(id: u64, networks: &[u64]) -> Result<(), LabError> {
    // Explicit, because interfaces of a removed namespace vanish some time later, and addresses may be reused at once.
    for network in networks {
        unplug_private(id, *network).await?;
    }
    ip(PUBLIC, &format!("link del p{id}\n")).await?;
    netns::remove(&machine(id))
}

/// Makes a private network.
pub(crate) async fn create_network(id: u64) -> Result<(), LabError> {
    let space = network(id);
    netns::create(&space)?;
    make_router(&space)?;
    ip(&space, "link set lo up\nrule add priority 40000 table 100\n").await
}

/// Removes a private network.
pub(crate) fn delete_network(id: u64) -> Result<(), LabError> {
    netns::remove(&network(id))
}

/// A cable between a machine and a private network.
pub(crate) struct Cable {
    pub machine: u64,
    pub network: u64,
    /// The interface's name in the machine.
    pub interface: String,
    pub address: Ipv4Addr,
    /// In CIDR form.
    pub range: String,
    pub gateway: Ipv4Addr,
}

/// Hot-plugs a private interface.
pub(crate) async fn plug_private(cable: &Cable) -> Result<(), LabError> {
    let Cable { machine: id, network: net, interface, address, range, gateway } = cable;
    let space = network(*net);
    ip(
        &machine(*id),
        &format!(
            "link add {interface} mtu {PRIVATE_MTU} type veth peer name v{id} mtu {PRIVATE_MTU} netns {space}\n\
             addr add {address}/32 dev {interface}\nlink set {interface} up\n\
             route add {gateway} dev {interface} scope link\nroute add {range} via {gateway} dev {interface}\n"
        ),
    )
    .await?;
    ip(&space, &format!("addr add {gateway}/32 dev v{id}\nlink set v{id} up\nroute replace {address}/32 dev v{id}\n"))
        .await
}

/// Replaces a private network's routes: (range, through this address, of this machine).
pub(crate) async fn set_routes(net: u64, routes: &[(String, Ipv4Addr, u64)]) -> Result<(), LabError> {
    // Machines' own addresses are in the main table: these in one of their own can be flushed as a whole.
    let space = network(net);
    let mut batch = String::from("route flush table 100\n");
    for (range, via, machine) in routes {
        batch.push_str(&format!("route add {range} via {via} dev v{machine} onlink table 100\n"));
    }
    ip(&space, &batch).await
}

/// Pulls a private interface out.
pub(crate) async fn unplug_private(machine: u64, net: u64) -> Result<(), LabError> {
    ip(&network(net), &format!("link del v{machine}\n")).await
}

async fn ip(space: &str, batch: &str) -> Result<(), LabError> {
    run::tool("ip", &["-n", space, "-batch", "-"], batch).await.map(|_| ())
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
}
