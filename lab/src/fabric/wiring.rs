//! Who is plugged in where: the addresses of machines and load balancers, which of them are live, and what is routed to
//! them. The kernel's interfaces and routes follow it.
//!
//! A machine's network exists from its boot to its end. What was configured inside is gone with the boot, and one that
//! is off answers nothing, not even an end of its connections.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::sync::Mutex;

use super::{FAR_TABLE, ip, ip_if_there, machine, make_network, network, private_cable, public_cable, routed};
use crate::error::LabError;
use crate::netns;

/// Private interfaces count from here, as at Hetzner.
const FIRST_PRIVATE_INTERFACE: u32 = 10;

/// All that is plugged in. One change at a time; each takes milliseconds.
#[derive(Default)]
pub(crate) struct Wiring {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Machines and load balancers by id, which is unique among both.
    ends: HashMap<u64, End>,
    networks: HashMap<u64, Network>,
    /// Floating addresses by what is routed for them.
    floating: BTreeMap<String, u64>,
}

/// What one machine or load balancer is plugged into.
#[derive(Default)]
struct End {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    /// By network.
    private: BTreeMap<u64, Interface>,
    live: bool,
}

/// A private interface: `ens<number>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub number: u32,
    pub address: Ipv4Addr,
    /// What the machine reaches through it, in CIDR form.
    pub range: String,
    pub aliases: Vec<Ipv4Addr>,
}

struct Network {
    /// In CIDR form.
    range: String,
    gateway: Ipv4Addr,
    /// Destination, and the address it is reached through.
    routes: Vec<(String, Ipv4Addr)>,
}

impl Wiring {
    /// Lets a machine or load balancer be plugged in, with these public addresses. Nothing is laid yet.
    pub(crate) async fn add(&self, id: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) {
        self.state.lock().await.ends.insert(id, End { ipv4, ipv6, ..End::default() });
    }

    /// Takes it off all networks for good.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        state.pull_out(id).await?;
        state.ends.remove(&id);
        state.floating.retain(|_, holder| *holder != id);
        Ok(())
    }

    /// Lays its namespace, interfaces, and all routes that lead to it or through it.
    pub(crate) async fn plug_in(&self, id: u64) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        if state.end(id)?.live {
            return Ok(());
        }
        state.end_mut(id)?.live = true;
        let laid = state.lay(id).await;
        if laid.is_err() {
            state.pull_out(id).await?;
        }
        laid
    }

    /// Takes it off all networks until it is plugged in again.
    pub(crate) async fn pull_out(&self, id: u64) -> Result<(), LabError> {
        self.state.lock().await.pull_out(id).await
    }

    /// Changes its public addresses; if it is live, its connections over the old ones break.
    pub(crate) async fn set_public(
        &self,
        id: u64,
        ipv4: Option<Ipv4Addr>,
        ipv6: Option<Ipv6Addr>,
    ) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let end = state.end_mut(id)?;
        if (end.ipv4, end.ipv6) == (ipv4, ipv6) {
            return Ok(());
        }
        (end.ipv4, end.ipv6) = (ipv4, ipv6);
        if !end.live {
            return Ok(());
        }
        ip(super::PUBLIC, &format!("link del p{id}\n")).await?;
        let (inside, outside) = public_cable(id, ipv4, ipv6);
        ip(&machine(id), &inside).await?;
        ip(super::PUBLIC, &(outside + &state.floating_routes(id))).await
    }

    /// Makes a private network; its gateway is the range's first address.
    pub(crate) async fn create_network(&self, id: u64, range: &str) -> Result<(), LabError> {
        let gateway = first_address(range)?;
        let mut state = self.state.lock().await;
        make_network(id, range).await?;
        state.networks.insert(id, Network { range: range.to_owned(), gateway, routes: Vec::new() });
        Ok(())
    }

    /// All private networks.
    pub(crate) async fn networks(&self) -> Vec<u64> {
        self.state.lock().await.networks.keys().copied().collect()
    }

    /// Removes a private network.
    pub(crate) async fn delete_network(&self, id: u64) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        netns::remove(&network(id))?;
        state.networks.remove(&id);
        Ok(())
    }

    /// Plugs a private interface in, hot if the machine is live. It reaches `range`; without one, the network.
    pub(crate) async fn attach(
        &self,
        id: u64,
        net: u64,
        address: Ipv4Addr,
        range: Option<&str>,
    ) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let Network { gateway, range: whole, .. } = state.network(net)?;
        let (gateway, range) = (*gateway, range.unwrap_or(whole).to_owned());
        let end = state.end_mut(id)?;
        let taken: Vec<u32> = end.private.values().map(|i| i.number).collect();
        let number = (FIRST_PRIVATE_INTERFACE..).find(|n| !taken.contains(n)).unwrap_or(FIRST_PRIVATE_INTERFACE);
        let interface = Interface { number, address, range, aliases: Vec::new() };
        if end.live {
            let (inside, outside) = private_cable(id, net, gateway, &interface);
            ip(&machine(id), &inside).await?;
            ip(&network(net), &outside).await?;
        }
        state.end_mut(id)?.private.insert(net, interface);
        state.route_through(id, net).await
    }

    /// Pulls a private interface out.
    pub(crate) async fn detach(&self, id: u64, net: u64) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let end = state.end_mut(id)?;
        if end.private.remove(&net).is_some() && end.live {
            ip(&network(net), &format!("link del v{id}\n")).await?;
        }
        Ok(())
    }

    /// Replaces the further addresses that a private network routes to a machine.
    pub(crate) async fn set_aliases(&self, id: u64, net: u64, aliases: &[Ipv4Addr]) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let end = state.end_mut(id)?;
        let live = end.live;
        let interface = end.private.get_mut(&net);
        let interface = interface.ok_or_else(|| LabError::new(format!("{id} is not in network {net}")))?;
        let old = std::mem::replace(&mut interface.aliases, aliases.to_vec());
        if live {
            let gone: String =
                old.iter().filter(|a| !aliases.contains(a)).map(|a| format!("route del {a}/32 dev v{id}\n")).collect();
            ip_if_there(&network(net), &gone).await;
            let new: String = aliases.iter().map(|a| format!("route replace {a}/32 dev v{id}\n")).collect();
            ip(&network(net), &new).await?;
        }
        state.route_through(id, net).await
    }

    /// Replaces a network's routes. One through an address that nobody has, or whose machine is off, leads nowhere.
    pub(crate) async fn set_routes(&self, net: u64, routes: &[(String, Ipv4Addr)]) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let held = state.networks.get_mut(&net).ok_or_else(|| no_network(net))?;
        let old = std::mem::replace(&mut held.routes, routes.to_vec());
        let gone: String = old
            .iter()
            .filter(|(range, _)| !routes.iter().any(|(kept, _)| kept == range))
            .map(|(range, _)| format!("route del {range} {FAR_TABLE}\n"))
            .collect();
        ip_if_there(&network(net), &gone).await;
        let mut unreachable = String::new();
        for (range, via) in routes {
            if state.holder(net, *via).is_none() {
                unreachable.push_str(&format!("route del {range} {FAR_TABLE}\n"));
            }
        }
        ip_if_there(&network(net), &unreachable).await;
        ip(&network(net), &state.far_routes(net, None)).await
    }

    /// Routes a floating address to a machine or nowhere.
    pub(crate) async fn route_floating(&self, address: IpAddr, holder: Option<u64>) -> Result<(), LabError> {
        let mut state = self.state.lock().await;
        let what = routed(address);
        let Some(id) = holder else {
            state.floating.remove(&what);
            ip_if_there(super::PUBLIC, &format!("route del {what}\n")).await;
            return Ok(());
        };
        let live = state.end(id)?.live;
        state.floating.insert(what.clone(), id);
        if live {
            return ip(super::PUBLIC, &format!("route replace {what} dev p{id}\n")).await;
        }
        ip_if_there(super::PUBLIC, &format!("route del {what}\n")).await;
        Ok(())
    }
}

impl State {
    fn end(&self, id: u64) -> Result<&End, LabError> {
        self.ends.get(&id).ok_or_else(|| LabError::new(format!("{id} has no network")))
    }

    fn end_mut(&mut self, id: u64) -> Result<&mut End, LabError> {
        self.ends.get_mut(&id).ok_or_else(|| LabError::new(format!("{id} has no network")))
    }

    fn network(&self, id: u64) -> Result<&Network, LabError> {
        self.networks.get(&id).ok_or_else(|| no_network(id))
    }

    /// The live machine that has this address in a network.
    fn holder(&self, net: u64, address: Ipv4Addr) -> Option<u64> {
        let has = |end: &End| {
            let interface = end.private.get(&net);
            end.live && interface.is_some_and(|i| i.address == address || i.aliases.contains(&address))
        };
        self.ends.iter().find(|(_, end)| has(end)).map(|(id, _)| *id)
    }

    /// The network's routes, or those of them that lead through one machine.
    fn far_routes(&self, net: u64, through: Option<u64>) -> String {
        let routes = self.networks.get(&net).map(|n| n.routes.as_slice()).unwrap_or_default();
        let line = |(range, via): &(String, Ipv4Addr)| {
            let holder = self.holder(net, *via)?;
            let wanted = through.is_none_or(|id| id == holder);
            wanted.then(|| format!("route replace {range} via {via} dev v{holder} onlink {FAR_TABLE}\n"))
        };
        routes.iter().filter_map(line).collect()
    }

    /// Routes may name an address before a machine has it.
    async fn route_through(&self, id: u64, net: u64) -> Result<(), LabError> {
        let routes = self.far_routes(net, Some(id));
        if routes.is_empty() { Ok(()) } else { ip(&network(net), &routes).await }
    }

    fn floating_routes(&self, id: u64) -> String {
        let mine = self.floating.iter().filter(|(_, holder)| **holder == id);
        mine.map(|(what, _)| format!("route replace {what} dev p{id}\n")).collect()
    }

    async fn lay(&self, id: u64) -> Result<(), LabError> {
        let end = self.end(id)?;
        let space = machine(id);
        netns::create(&space)?;
        super::calm_ipv6(&space)?;
        let (cable, public) = public_cable(id, end.ipv4, end.ipv6);
        let mut inside = "link set lo up\n".to_owned() + &cable;
        let mut private = Vec::new();
        for (net, interface) in &end.private {
            let (cable, outside) = private_cable(id, *net, self.network(*net)?.gateway, interface);
            inside.push_str(&cable);
            private.push((*net, outside + &self.far_routes(*net, Some(id))));
        }
        ip(&space, &inside).await?;
        ip(super::PUBLIC, &(public + &self.floating_routes(id))).await?;
        for (net, outside) in private {
            ip(&network(net), &outside).await?;
        }
        Ok(())
    }

    async fn pull_out(&mut self, id: u64) -> Result<(), LabError> {
        let Some(end) = self.ends.get_mut(&id).filter(|end| end.live) else { return Ok(()) };
        end.live = false;
        // Explicit, because interfaces of a removed namespace vanish some time later, and addresses may be reused at once.
        for net in end.private.keys() {
            ip_if_there(&network(*net), &format!("link del v{id}\n")).await;
        }
        ip_if_there(super::PUBLIC, &format!("link del p{id}\n")).await;
        netns::remove(&machine(id))
    }
}

fn no_network(id: u64) -> LabError {
    LabError::new(format!("there is no network {id}"))
}

/// The first usable address of a range, its gateway.
fn first_address(range: &str) -> Result<Ipv4Addr, LabError> {
    let address = range.split('/').next().and_then(|a| a.parse::<Ipv4Addr>().ok());
    let address = address.ok_or_else(|| LabError::new(format!("{range} is no IPv4 range")))?;
    Ok(Ipv4Addr::from_bits(address.to_bits().saturating_add(1)))
}
