//! The VPN host: WireGuard, and the way out for servers without a public address.

use sha2::{Digest, Sha256};

use super::Role;
use super::digest::{NODE_FILE, NodeRecord};
use super::text::file;
use crate::config::{Cluster, Range, VpnConfig};
use crate::distribution::pki::{ClusterSecrets, PkiError, VPN_SLOTS, hex};
use crate::distribution::{vpn_host_address, vpn_slot_address};
use crate::ports::RemoteFile;

/// Raised whenever rendering changes what the VPN host gets.
const RENDERING: u32 = 1;
const CONFIG: &str = "/etc/wireguard/wg0.conf";

/// Runs WireGuard.
pub const VPN_UNITS: [&str; 2] = ["wg-quick@wg0", "hk-dr-nat"];

/// All files of the VPN host. The last one is [`NODE_FILE`].
///
/// # Errors
/// When the secrets have no keys for a VPN.
pub fn vpn_files(cluster: &Cluster, vpn: &VpnConfig, secrets: &ClusterSecrets) -> Result<Vec<RemoteFile>, PkiError> {
    let record = NodeRecord {
        format: 1,
        cluster: cluster.name.clone(),
        name: vpn.name.clone(),
        role: Role::Vpn,
        config_digest: vpn_digest(cluster, vpn, secrets)?,
        etcd_token: None,
        etcd_state: None,
        volume_device: None,
        location: None,
    };
    let mut files = first_boot_files(cluster, vpn, secrets)?;
    files.retain(|f| f.path != CONFIG);
    files.push(file(CONFIG, 0o600, config(vpn, secrets, true)?.as_bytes()));
    files.push(file(NODE_FILE, 0o644, serde_json::json!(record).to_string()));
    Ok(files)
}

/// What the host needs to let hk-dr in: it comes with its first boot, because nothing else of it is open. People follow with
/// [`vpn_files`].
///
/// # Errors
/// As [`vpn_files`].
pub fn first_boot_files(
    cluster: &Cluster,
    vpn: &VpnConfig,
    secrets: &ClusterSecrets,
) -> Result<Vec<RemoteFile>, PkiError> {
    Ok(vec![
        file(CONFIG, 0o600, config(vpn, secrets, false)?.as_bytes()),
        file("/etc/hk-dr/nat.nft", 0o644, nat(cluster, vpn)),
        file("/etc/sysctl.d/90-hk-dr.conf", 0o644, "net.ipv4.ip_forward = 1\n"),
        file("/etc/systemd/system/hk-dr-nat.service", 0o644, NAT_UNIT),
    ])
}

/// What the first boot runs once its files are there. The packages are in no image of the cloud's.
pub const VPN_FIRST_BOOT: &str = "if ! command -v wg-quick >/dev/null || ! command -v nft >/dev/null; then\n\
     export DEBIAN_FRONTEND=noninteractive\n\
     apt-get -q update && apt-get -q -y install --no-install-recommends wireguard-tools nftables\nfi\n\
     systemctl daemon-reload\nsystemctl --no-block enable --now hk-dr-nat wg-quick@wg0\n";

/// Makes what runs equal to the files; tunnels that are open stay open.
pub(super) const APPLY_VPN: &str = "systemctl daemon-reload\n\
     systemctl enable -q hk-dr-nat wg-quick@wg0\n\
     systemctl restart hk-dr-nat\n\
     if systemctl is-active -q wg-quick@wg0; then\n\
     umask 077\nwg-quick strip wg0 > /run/hk-dr-wg0.conf\nwg syncconf wg0 /run/hk-dr-wg0.conf\nrm -f /run/hk-dr-wg0.conf\n\
     else systemctl start wg-quick@wg0; fi";

/// SHA-256, in hex, over what the VPN host is made from. As [`super::config_digest`].
///
/// # Errors
/// As [`vpn_files`].
pub fn vpn_digest(cluster: &Cluster, vpn: &VpnConfig, secrets: &ClusterSecrets) -> Result<String, PkiError> {
    let keys = secrets.vpn_keys()?;
    // Where people call it is no matter of its own.
    let vpn = VpnConfig { endpoint: None, ..vpn.clone() };
    let inputs = serde_json::json!({
        "rendering": RENDERING, "cluster": cluster.name, "network": cluster.network.range, "vpn": vpn,
        "host": keys.host_public(), "own": keys.slot_public(0),
    });
    Ok(hex(&Sha256::digest(inputs.to_string())))
}

fn config(vpn: &VpnConfig, secrets: &ClusterSecrets, people: bool) -> Result<zeroize::Zeroizing<String>, PkiError> {
    let keys = secrets.vpn_keys()?;
    let unusable = || PkiError::Unusable { path: "vpn.range".into(), reason: "it is not a range".into() };
    let bits = vpn.range.parse::<Range>().map_err(|_| unusable())?.bits();
    let mut text = zeroize::Zeroizing::new(format!(
        // The address brings the route of the whole range: none a peer is needed.
        "[Interface]\nAddress = {}/{bits}\nListenPort = {}\nTable = off\nPrivateKey = {}\n",
        vpn_host_address(vpn).ok_or_else(unusable)?,
        vpn.port,
        keys.host_private().as_str()
    ));
    let mut peer = |name: &str, key: &str, address: std::net::Ipv4Addr| {
        text.push_str(&format!("\n[Peer] # {name}\nPublicKey = {key}\nAllowedIPs = {address}/32\n"));
    };
    for slot in 0..VPN_SLOTS {
        peer("hk-dr", &keys.slot_public(slot), vpn_slot_address(vpn, slot).ok_or_else(unusable)?);
    }
    for person in vpn.peers.iter().filter(|_| people) {
        peer(&person.name, &person.public_key, person.address);
    }
    Ok(text)
}

fn nat(cluster: &Cluster, vpn: &VpnConfig) -> String {
    let (network, tunnel) = (&cluster.network.range, &vpn.range);
    format!(
        "table ip hk-dr\ndelete table ip hk-dr\ntable ip hk-dr {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n    \
         # A server with a public address would answer people through that.\n    \
         ip saddr {tunnel} ip daddr {network} masquerade\n    \
         ip saddr {network} ip daddr != {{ {network}, {tunnel} }} masquerade\n  }}\n  \
         chain forward {{\n    type filter hook forward priority filter; policy drop;\n    \
         ct state established,related accept\n    \
         # People come in, to the private network and nowhere else; servers go out.\n    \
         iifname \"wg0\" ip saddr {tunnel} ip daddr {network} accept\n    \
         iifname != \"wg0\" ip saddr {network} ip daddr != {tunnel} accept\n  }}\n}}\n"
    )
}

const NAT_UNIT: &str = "[Unit]\nDescription=The way out for servers without a public address\nBefore=wg-quick@wg0.service\n\n\
     [Service]\nType=oneshot\nRemainAfterExit=yes\n\
     ExecStart=/bin/sh -c 'sysctl -q -e -p /etc/sysctl.d/90-hk-dr.conf; [ \"$$(cat /proc/sys/net/ipv4/ip_forward)\" = 1 ] || \
     echo 1 > /proc/sys/net/ipv4/ip_forward; exec nft -f /etc/hk-dr/nat.nft'\n\n[Install]\nWantedBy=multi-user.target\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VpnPeer;
    use crate::distribution::tests_support::{demo, noon};

    fn vpn() -> VpnConfig {
        serde_json::from_value(serde_json::json!({"location": "fsn1", "type": "cx23", "address": "10.0.0.2"})).unwrap()
    }

    fn text(files: &[RemoteFile], path: &str) -> String {
        let file = files.iter().find(|f| f.path == path).unwrap();
        String::from_utf8(file.content.to_vec()).unwrap()
    }

    #[test]
    fn people_come_by_git_and_not_by_the_first_boot() {
        let cluster = demo();
        let secrets = ClusterSecrets::generate(&cluster, noon()).unwrap();
        let key = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
        let anna = VpnPeer { name: "anna".into(), public_key: key.into(), address: [10, 99, 1, 0].into() };
        let with = VpnConfig { peers: vec![anna], ..vpn() };
        let boot = text(&first_boot_files(&cluster, &with, &secrets).unwrap(), CONFIG);
        assert_eq!(boot.matches("[Peer]").count(), VPN_SLOTS as usize);
        assert!(!boot.contains(key) && boot.contains("Address = 10.99.0.1/22") && boot.len() < 16 << 10);
        let files = vpn_files(&cluster, &with, &secrets).unwrap();
        assert!(text(&files, CONFIG).contains("AllowedIPs = 10.99.1.0/32"));
        assert!(files.iter().filter(|f| f.path == CONFIG).all(|f| f.mode == 0o600));
        let digest = |vpn: &VpnConfig| vpn_digest(&cluster, vpn, &secrets).unwrap();
        assert_ne!(digest(&with), digest(&vpn()));
        assert_eq!(digest(&vpn()), digest(&VpnConfig { endpoint: Some("vpn.example.com".into()), ..vpn() }));
    }
}
