//! WireGuard, as the clusters of careful people use it: the only open port is the tunnel's.

use serde_json::json;

use crate::common::eventually;
use crate::{Knock, Stage};

/// The kernels that labs run on need no WireGuard: the golden image has wireguard-go, and the device policy allows
/// /dev/net/tun.
pub fn an_operator_reaches_a_private_server_by_wireguard(stage: &Stage) {
    let Stage { lab, gate, db, .. } = stage;
    let key = |place: &str| lab.ok(place, "umask 077; mkdir -p /run/wg; wg genkey | tee /run/wg/key | wg pubkey");
    let (server, client) = (key("server:gate"), key("operator"));
    lab.ok(
        "server:gate",
        &format!(
            "umask 077; mkdir -p /etc/wireguard; cat >/etc/wireguard/wg0.conf <<X\n\
             [Interface]\nPrivateKey = $(cat /run/wg/key)\nListenPort = 51820\nAddress = 10.8.0.1/24\n\
             PostUp = sysctl -qw net.ipv4.ip_forward=1\n\
             PostUp = nft 'add table ip wg; add chain ip wg post {{ type nat hook postrouting priority 100; }}; \
             add rule ip wg post ip saddr 10.8.0.0/24 oifname ens10 masquerade'\n\
             [Peer]\nPublicKey = {client}\nAllowedIPs = 10.8.0.2/32\nX\n\
             systemctl start wg-quick@wg0"
        ),
    );
    let tunnel = json!({"direction": "in", "protocol": "udp", "ports": [51820, 51820], "networks": ["0.0.0.0/0"]});
    stage.firewall(gate, Some(vec![tunnel]));
    lab.ok(
        "operator",
        &format!(
            "umask 077; cat >/run/wg/wg0.conf <<X\n\
             [Interface]\nPrivateKey = $(cat /run/wg/key)\nAddress = 10.8.0.2/24\n\
             [Peer]\nPublicKey = {server}\nAllowedIPs = 10.0.0.0/16, 10.8.0.0/24\nEndpoint = {}:51820\nX\n\
             wg-quick up /run/wg/wg0.conf 2>&1",
            gate.public
        ),
    );
    eventually("the tunnel carries", || lab.answers_ssh("operator", &db.private));
    assert_eq!(stage.knock("operator", &gate.public, 22), Knock::Silent, "all else is closed");
    assert_ne!(stage.knock("internet", &db.private, 22), Knock::Open);
    lab.ok("operator", "wg-quick down /run/wg/wg0.conf 2>&1; rm -r /run/wg");
    assert!(!lab.answers_ssh("operator", &db.private));
    stage.firewall(gate, None);
}
