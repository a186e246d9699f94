//! A machine's firewall: two chains outside of it, entered by the name of its public cable.
//!
//! Stateful: what belongs to a known connection passes without being asked again. So a rule that is taken away ends no
//! connection that it once let in; it only lets no new one in. That is how Hetzner's firewalls behave too.

use std::net::IpAddr;

use super::nft;
use crate::backend::{Direction, FirewallRule, Protocol};
use crate::error::LabError;

/// Replaces a machine's rules at once; `None` lets everything pass. The machine need not be plugged in.
pub(crate) async fn set(machine: u64, rules: Option<&[FirewallRule]>) -> Result<(), LabError> {
    nft(&script(machine, rules)?).await
}

/// The transaction that makes the chains what the rules say, whatever they were before.
fn script(machine: u64, rules: Option<&[FirewallRule]>) -> Result<String, LabError> {
    let mut script = String::new();
    for (direction, map, chain) in [(Direction::In, "inbound", "in"), (Direction::Out, "outbound", "out")] {
        let chain = format!("{chain}-{machine}");
        let element = format!("element inet cloud {map} {{ \"p{machine}\" : jump {chain} }}");
        // What exists may be added again, so that the rest holds in any case.
        script.push_str(&format!("add chain inet cloud {chain}\nadd {element}\nflush chain inet cloud {chain}\n"));
        let mine = || rules.into_iter().flatten().filter(move |rule| rule.direction == direction);
        // Incoming is closed unless opened, outgoing open unless a rule speaks of it.
        let closed = rules.is_some() && (direction == Direction::In || mine().next().is_some());
        if !closed {
            script.push_str(&format!("delete element inet cloud {map} {{ \"p{machine}\" }}\n"));
            script.push_str(&format!("delete chain inet cloud {chain}\n"));
            continue;
        }
        let mut add = |rule: &str| script.push_str(&format!("add rule inet cloud {chain} {rule}\n"));
        add("ct state established,related return");
        for rule in mine() {
            for network in &rule.networks {
                add(&format!("{} return", condition(rule, network)?));
            }
        }
        add("drop");
    }
    Ok(script)
}

/// One rule for one network.
fn condition(rule: &FirewallRule, network: &str) -> Result<String, LabError> {
    let (address, prefix) = parse(network)?;
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let side = if rule.direction == Direction::In { "saddr" } else { "daddr" };
    let place = match prefix {
        0 if address.is_ipv4() => "meta nfproto ipv4".to_owned(),
        0 => "meta nfproto ipv6".to_owned(),
        _ => format!("{family} {side} {address}/{prefix}"),
    };
    let protocol = match rule.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp if address.is_ipv4() => "icmp",
        Protocol::Icmp => "ipv6-icmp",
        Protocol::Esp => "esp",
        Protocol::Gre => "gre",
    };
    let what = match (rule.protocol, rule.ports) {
        (Protocol::Tcp | Protocol::Udp, Some((first, last))) => format!("{protocol} dport {first}-{last}"),
        _ => format!("meta l4proto {protocol}"),
    };
    Ok(format!("{place} {what}"))
}

/// An address with its prefix; host bits become zero. A bare address is that address alone.
fn parse(network: &str) -> Result<(IpAddr, u8), LabError> {
    let wrong = || LabError::new(format!("{network:?} is no network in CIDR form"));
    let (address, prefix) = network.split_once('/').map_or((network, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(longest), |text| text.parse::<u8>().map_err(|_| wrong()))?;
    let host = u32::from(longest.checked_sub(prefix).ok_or_else(wrong)?);
    let masked = match address {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits() & u32::MAX.checked_shl(host).unwrap_or(0)).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() & u128::MAX.checked_shl(host).unwrap_or(0)).into()),
    };
    Ok((masked, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(direction: Direction, protocol: Protocol, ports: Option<(u16, u16)>, networks: &[&str]) -> FirewallRule {
        FirewallRule { direction, protocol, ports, networks: networks.iter().map(|n| (*n).to_owned()).collect() }
    }

    fn lines(rules: Option<&[FirewallRule]>, about: &str) -> Vec<String> {
        let script = script(7, rules).expect("the rules are fine");
        script.lines().filter(|l| l.contains(about)).map(str::to_owned).collect()
    }

    #[test]
    fn a_rule_stands_for_each_of_its_networks() {
        let rules =
            [rule(Direction::In, Protocol::Tcp, Some((80, 90)), &["0.0.0.0/0", "::/0", "10.1.2.3/8", "fd00::1"])];
        let added = lines(Some(&rules), "add rule inet cloud in-7");
        assert_eq!(
            added.iter().map(|l| l.trim_start_matches("add rule inet cloud in-7 ")).collect::<Vec<_>>(),
            [
                "ct state established,related return",
                "meta nfproto ipv4 tcp dport 80-90 return",
                "meta nfproto ipv6 tcp dport 80-90 return",
                "ip saddr 10.0.0.0/8 tcp dport 80-90 return",
                "ip6 saddr fd00::1/128 tcp dport 80-90 return",
                "drop",
            ]
        );
    }

    #[test]
    fn outgoing_traffic_is_free_until_a_rule_speaks_of_it() {
        assert!(lines(Some(&[]), "add rule inet cloud out-7").is_empty());
        assert_eq!(lines(Some(&[]), "add rule inet cloud in-7").len(), 2, "incoming is closed");
        let rules = [rule(Direction::Out, Protocol::Icmp, None, &["::/0"])];
        assert_eq!(
            lines(Some(&rules), "add rule inet cloud out-7")[1],
            "add rule inet cloud out-7 meta nfproto ipv6 meta l4proto ipv6-icmp return"
        );
    }

    #[test]
    fn without_a_firewall_nothing_of_it_is_left() {
        assert!(lines(None, "add rule").is_empty());
        assert_eq!(lines(None, "delete chain").len(), 2);
        assert_eq!(lines(None, "delete element").len(), 2);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in ["", "10.0.0.0/33", "::/129", "example", "10.0.0.0/x"] {
            assert!(script(1, Some(&[rule(Direction::In, Protocol::Esp, None, &[wrong])])).is_err(), "{wrong:?}");
        }
    }
}
