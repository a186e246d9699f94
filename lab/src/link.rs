//! What packets suffer between places: rules of their own in each network's namespace, beside the firewalls' and before
//! them. Machines are known by the names of their cables.

use std::time::Duration;

use crate::backend::{Impairment, LinkEnd, LinkFault};
use crate::error::LabError;
use crate::{fabric, netns, run};

mod delay;

pub(crate) use delay::Delays;

/// A machine or load balancer as the networks see it.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub machine: u64,
    pub location: String,
    /// Nothing leaves or reaches it: a load balancer whose location stands still or has no power.
    pub silent: bool,
}

/// Where the proxy that lets S3 fail listens, in the public network.
pub(crate) const PROXY_PORT: u16 = 7072;
const TABLE: &str = "table inet faults";

/// Replaces what the networks suffer from.
pub(crate) async fn impair(
    links: &[LinkFault],
    ports: &[Port],
    networks: &[u64],
    delays: &Delays,
) -> Result<(), LabError> {
    let lengths: Vec<Duration> = links.iter().filter_map(delayed).collect();
    if lengths.len() > delay::MAX {
        return Err(LabError::new(format!("at most {} faults delay packets at the same time", delay::MAX)));
    }
    let private = networks.iter().map(|network| (format!("n{network}"), Some(*network)));
    let spaces: Vec<_> = [(fabric::PUBLIC.to_owned(), None)].into_iter().chain(private).collect();
    for (space, network) in &spaces {
        let rules = rules(links, ports, *network);
        // Somebody waits for marked packets as long as there are rules that mark them.
        if !lengths.is_empty() {
            delays.hold(space, lengths.clone()).await?;
        }
        load(space, &rules).await?;
        if lengths.is_empty() {
            delays.let_go(space).await?;
        }
    }
    let names: Vec<String> = spaces.into_iter().map(|(space, _)| space).collect();
    delays.keep_only(&names).await;
    Ok(())
}

fn delayed(link: &LinkFault) -> Option<Duration> {
    match link.impairment {
        Impairment::Delay { milliseconds } => Some(Duration::from_millis(u64::from(milliseconds))),
        _ => None,
    }
}

/// Sends requests to S3 through the proxy, or no longer. Connections that are open are reset, so that no client goes on
/// around it.
pub(crate) async fn divert_object_store(divert: bool) -> Result<(), LabError> {
    let table = "table inet s3faults";
    let mut rules = format!("{table}\ndelete {table}\n");
    if divert {
        let (address, port) = (fabric::S3.ip(), fabric::S3.port());
        rules.push_str(&format!(
            "{table} {{\n\
             chain arriving {{ type nat hook prerouting priority -100; ip daddr {address} tcp dport {port} redirect to :{PROXY_PORT}; }}\n\
             chain own {{ type nat hook output priority -100; ip saddr != 127.0.0.1 ip daddr {address} tcp dport {port} redirect to :{PROXY_PORT}; }}\n\
             chain old {{ type filter hook input priority -10; ip saddr != 127.0.0.1 ip daddr {address} tcp dport {port} reject with tcp reset; }}\n\
             }}\n"
        ));
    }
    load(fabric::PUBLIC, &rules).await
}

async fn load(space: &str, rules: &str) -> Result<(), LabError> {
    let space = format!("--net={}", netns::path(space).display());
    run::tool("nsenter", &[&space, "nft", "-f", "-"], rules).await.map(|_| ())
}

/// The rules of one network: the public one, or a private one.
fn rules(links: &[LinkFault], ports: &[Port], network: Option<u64>) -> String {
    let mut forwarding = String::new();
    let (mut arriving, mut leaving) = (String::new(), String::new());
    let mut delays = 0;
    let silent = named(ports.iter().filter(|port| port.silent), network);
    if !silent.is_empty() {
        let silent = set(&silent);
        forwarding.push_str(&format!("iifname {silent} drop\noifname {silent} drop\n"));
        arriving.push_str(&format!("iifname {silent} drop\n"));
        leaving.push_str(&format!("oifname {silent} drop\n"));
    }
    for link in links {
        let near = names(ports, network, |location| location == link.location);
        let far = match &link.to {
            LinkEnd::Location(location) => names(ports, network, |l| l == location),
            LinkEnd::Others => names(ports, network, |l| l != link.location),
            LinkEnd::Internet if network.is_none() => {
                fabric::PLACES.iter().map(|(name, ..)| (*name).to_owned()).collect()
            }
            LinkEnd::Internet => Vec::new(),
        };
        let what = match link.impairment {
            Impairment::Cut => "counter drop".to_owned(),
            // In hundredths of a percent.
            Impairment::Loss { percent } => {
                format!("numgen random mod 10000 < {} counter drop", (percent * 100.0).round() as u32)
            }
            Impairment::Rate { kbit } => {
                let bytes = u64::from(kbit) * 1000 / 8;
                // A tenth of a second, but never less than some full packets.
                format!("limit rate over {bytes} bytes/second burst {} bytes counter drop", (bytes / 10).max(15_000))
            }
            Impairment::Delay { .. } => {
                delays += 1;
                format!("counter meta mark set meta mark or {:#x}", 1u64 << (delays - 1))
            }
        };
        if near.is_empty() {
            continue;
        }
        if !far.is_empty() {
            let (near, far) = (set(&near), set(&far));
            forwarding.push_str(&format!("iifname {near} oifname {far} {what}\niifname {far} oifname {near} {what}\n"));
        }
        if link.to == LinkEnd::Internet && network.is_none() {
            // The cloud's own public services, but not the metadata service, which is at home in the host. By the address
            // that was asked for: S3's requests may be on their way to the proxy.
            let (near, services) = (set(&near), format!("{{ {}, {} }}", fabric::API.ip(), fabric::S3.ip()));
            arriving.push_str(&format!("iifname {near} ct original ip daddr {services} {what}\n"));
            leaving.push_str(&format!("oifname {near} ct original ip daddr {services} {what}\n"));
        }
    }
    let mut text = format!("{TABLE}\ndelete {TABLE}\n");
    if !forwarding.is_empty() || !arriving.is_empty() {
        let chain = |name: &str, hook: &str, rules: &str| {
            format!("chain {name} {{\ntype filter hook {hook} priority -5; policy accept;\n{rules}}}\n")
        };
        text.push_str(&format!(
            "{TABLE} {{\n{}{}{}}}\n",
            chain("passing", "forward", &forwarding),
            chain("arriving", "input", &arriving),
            chain("leaving", "output", &leaving)
        ));
    }
    text
}

/// The cables of machines in locations, as this network names them. Not every machine is in each private network: a rule
/// for a cable that is not there strikes nothing.
fn names(ports: &[Port], network: Option<u64>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    named(ports.iter().filter(|port| wanted(&port.location)), network)
}

fn named<'a>(ports: impl Iterator<Item = &'a Port>, network: Option<u64>) -> Vec<String> {
    let prefix = if network.is_none() { 'p' } else { 'v' };
    ports.map(|port| format!("{prefix}{}", port.machine)).collect()
}

fn set(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Vec<Port> {
        let port = |machine, location: &str| Port { machine, location: location.into(), silent: machine == 3 };
        vec![port(1, "fsn1"), port(2, "nbg1"), port(3, "hel1")]
    }

    fn cut(to: LinkEnd) -> Vec<LinkFault> {
        vec![LinkFault { location: "fsn1".into(), to, impairment: Impairment::Cut }]
    }

    #[test]
    fn a_location_is_cut_off_in_every_network_it_shares() {
        let links = cut(LinkEnd::Others);
        let public = rules(&links, &ports(), None);
        assert!(public.contains("iifname { \"p1\" } oifname { \"p2\", \"p3\" } counter drop"), "{public}");
        assert!(public.contains("iifname { \"p2\", \"p3\" } oifname { \"p1\" } counter drop"), "{public}");
        let private = rules(&links, &ports(), Some(9));
        assert!(private.contains("iifname { \"v1\" } oifname { \"v2\", \"v3\" } counter drop"), "{private}");
    }

    #[test]
    fn the_internet_is_not_in_private_networks_and_metadata_is_not_in_the_internet() {
        let links = cut(LinkEnd::Internet);
        let public = rules(&links, &ports(), None);
        assert!(public.contains("oifname { \"operator\", \"internet\" }"), "{public}");
        assert!(!public.contains("169.254.169.254"), "{public}");
        assert!(!rules(&links, &ports()[..2], Some(9)).contains("drop"));
    }

    #[test]
    fn nothing_passes_one_that_is_silent() {
        let text = rules(&[], &ports(), Some(9));
        assert!(text.contains("iifname { \"v3\" } drop") && text.contains("oifname { \"v3\" } drop"), "{text}");
        assert!(!rules(&[], &ports()[..2], None).contains("drop"));
    }

    #[test]
    fn each_delay_has_a_bit_of_its_own() {
        let delay = |milliseconds| LinkFault {
            location: "fsn1".into(),
            to: LinkEnd::Others,
            impairment: Impairment::Delay { milliseconds },
        };
        let text = rules(&[delay(5), cut(LinkEnd::Others).remove(0), delay(7)], &ports(), Some(9));
        let marks: Vec<&str> = text.lines().filter_map(|l| l.split_once("mark or ")).map(|(_, bit)| bit).collect();
        assert_eq!(marks, ["0x1", "0x1", "0x2", "0x2"], "{text}");
    }
}
