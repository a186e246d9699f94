//! Peers of the VPN in the text of `cluster.yaml`: added and removed without touching anything else in it, comments above all.

use std::net::Ipv4Addr;

use super::{Cluster, OWN_ADDRESSES, Range, VpnConfig, VpnPeer, parse};

/// The first free address for a person. `None` if the range is full or malformed.
pub fn free_address(vpn: &VpnConfig) -> Option<Ipv4Addr> {
    let range: Range = vpn.range.parse().ok()?;
    let taken = |address: Ipv4Addr| vpn.peers.iter().any(|p| p.address == address);
    (OWN_ADDRESSES..).map_while(|n| range.nth(n)).find(|a| !taken(*a) && *a != range.last())
}

/// The text with one more peer; none if it is written in a way that can't be changed safely.
pub fn with_peer(text: &str, peer: &VpnPeer) -> Option<String> {
    let before = parse(text, "cluster.yaml").ok()?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let vpn = section(&lines, 0..lines.len(), "vpn")?;
    let item = format!("{{name: {}, publicKey: {}, address: {}}}", peer.name, peer.public_key, peer.address);
    let indent = child_indent(&lines, vpn.clone())?;
    match section(&lines, vpn.clone(), "peers") {
        None => {
            let end = last_content(&lines, vpn) + 1;
            lines.insert(end, format!("{indent}  - {item}"));
            lines.insert(end, format!("{indent}peers:"));
        }
        Some(peers) => {
            let head = lines[peers.start].trim_end().to_owned();
            let (key, rest) = head.split_once(':')?;
            let value = rest.split('#').next().unwrap_or_default().trim();
            if value == "[]" {
                lines[peers.start] = format!("{key}:{}", rest.replacen(" []", "", 1));
            } else if !value.is_empty() {
                return None;
            }
            let end = last_content(&lines, peers.clone());
            let first = lines[peers.start + 1..=end.max(peers.start)].iter().find(|l| l.trim_start().starts_with("- "));
            let indent =
                first.map_or_else(|| format!("{indent}  "), |l| l[..l.len() - l.trim_start().len()].to_owned());
            lines.insert(end + 1, format!("{indent}- {item}"));
        }
    }
    let mut wanted = before;
    wanted.vpn.as_mut()?.peers.push(peer.clone());
    checked(&lines, &wanted)
}

/// The text without a peer; none if there is none of this name, or it can't be changed safely.
pub fn without_peer(text: &str, name: &str) -> Option<String> {
    let mut wanted = parse(text, "cluster.yaml").ok()?;
    let index = wanted.vpn.as_ref()?.peers.iter().position(|p| p.name == name)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let vpn = section(&lines, 0..lines.len(), "vpn")?;
    let peers = section(&lines, vpn, "peers")?;
    let items: Vec<usize> =
        (peers.start + 1..peers.end).filter(|at| lines[*at].trim_start().starts_with("- ")).collect();
    let start = *items.get(index)?;
    let end = items.get(index + 1).copied().unwrap_or_else(|| last_content(&lines, peers.clone()) + 1);
    // A comment above the next one belongs to that one.
    let end = (start + 1..end).rev().find(|at| !is_comment(&lines[*at])).map_or(start + 1, |at| at + 1);
    lines.drain(start..end);
    if items.len() == 1 {
        let head = lines[peers.start].clone();
        lines[peers.start] = head.replacen("peers:", "peers: []", 1);
    }
    wanted.vpn.as_mut()?.peers.remove(index);
    checked(&lines, &wanted)
}

/// Only a text that means exactly what is wanted is given out.
fn checked(lines: &[String], wanted: &Cluster) -> Option<String> {
    let text = format!("{}\n", lines.join("\n"));
    (parse(&text, "cluster.yaml").ok()? == *wanted).then_some(text)
}

fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The lines of a key within others: its own, and what is indented deeper (or a list at its depth).
fn section(lines: &[String], within: std::ops::Range<usize>, key: &str) -> Option<std::ops::Range<usize>> {
    let head = format!("{key}:");
    let start = within.clone().find(|at| lines[*at].trim_start().starts_with(&head))?;
    let deep = depth(&lines[start]);
    let inside = |line: &String| {
        is_comment(line) || depth(line) > deep || (depth(line) == deep && line.trim_start().starts_with("- "))
    };
    let end = (start + 1..within.end).find(|at| !inside(&lines[*at])).unwrap_or(within.end);
    Some(start..end)
}

fn last_content(lines: &[String], section: std::ops::Range<usize>) -> usize {
    section.clone().rev().find(|at| !is_comment(&lines[*at])).unwrap_or(section.start)
}

fn child_indent(lines: &[String], section: std::ops::Range<usize>) -> Option<String> {
    let line = lines[section.start + 1..section.end].iter().find(|l| !is_comment(l))?;
    Some(line[..depth(line)].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRIVATE: &str = include_str!("../../examples/private/cluster.yaml");

    fn peer(name: &str, last: u8) -> VpnPeer {
        let public_key = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=".to_owned();
        VpnPeer { name: name.into(), public_key, address: [10, 99, 1, last].into() }
    }

    #[test]
    fn a_peer_that_comes_and_goes_leaves_the_file_as_it_was() {
        let with = with_peer(PRIVATE, &peer("anna", 0)).unwrap();
        assert!(with.contains("\n  peers:\n    - {name: anna, "), "{with}");
        let two = with_peer(&with, &peer("ben", 1)).unwrap();
        assert_eq!(without_peer(&two, "ben").unwrap(), with);
        assert_eq!(without_peer(&with, "anna").unwrap(), PRIVATE);
        assert_eq!(without_peer(PRIVATE, "anna"), None);
    }

    #[test]
    fn other_ways_to_write_it_are_understood_or_refused() {
        let none = PRIVATE.replace("  peers: []\n", "");
        let block = with_peer(&none, &peer("anna", 0)).unwrap().replace(
            "    - {name: anna, publicKey: ",
            "    # on call\n    - name: anna # since May\n      address: 10.99.1.0\n      publicKey: ",
        );
        let block = block.replace(", address: 10.99.1.0}", "");
        let two = with_peer(&block, &peer("ben", 1)).unwrap();
        assert!(two.contains("# on call") && two.contains("# since May"));
        assert!(!without_peer(&two, "anna").unwrap().contains("since May"));
        let flow = PRIVATE.replace(
            "peers: []",
            "peers: [{name: x, publicKey: QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=, address: 10.99.1.9}]",
        );
        assert_eq!(with_peer(&flow, &peer("anna", 0)), None);
    }

    proptest! {
        #[test]
        fn addresses_are_free_and_peers_come_out_again(names in prop::collection::btree_set("[a-z]{3,8}", 1..12)) {
            let mut text = PRIVATE.to_owned();
            for name in &names {
                let vpn = parse(&text, "x").unwrap().vpn.unwrap();
                let address = free_address(&vpn).unwrap();
                prop_assert!(!vpn.peers.iter().any(|p| p.address == address));
                text = with_peer(&text, &VpnPeer { address, ..peer(name, 0) }).unwrap();
            }
            for name in &names {
                text = without_peer(&text, name).unwrap();
            }
            prop_assert_eq!(text, PRIVATE);
        }
    }
}
