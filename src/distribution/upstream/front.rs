//! Floating IPs inside a worker. All workers have all of them configured, so that moving one is a matter of the cloud alone.

use std::net::Ipv4Addr;

use super::scripts::script;

/// Names the addresses that are hk-dr's among those of loopback.
pub(super) const FRONT_LABEL: &str = "lo:hk-dr";

/// Configures these addresses and no others, now and at every boot. They are on loopback: a packet for one of them comes in by
/// whatever interface, and no connection of the machine's own takes one as its source.
pub fn carry_script(addresses: &[Ipv4Addr]) -> String {
    let addresses: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    script(&format!(
        "mkdir -p -m 755 /etc/hk-dr\n\
         cat > /etc/hk-dr/front <<'HK_DR_END'\n{addresses}HK_DR_END\n\
         cat > /usr/local/sbin/hk-dr-front <<'HK_DR_END'\n\
         #!/bin/sh\n\
         set -eu\n\
         while read -r address; do ip addr replace \"$address/32\" dev lo label {FRONT_LABEL}; done < /etc/hk-dr/front\n\
         ip -o -4 addr show dev lo label {FRONT_LABEL} | sed -n 's/.* inet \\([0-9.]*\\).*/\\1/p' | while read -r address; do\n\
         grep -qxF \"$address\" /etc/hk-dr/front || ip addr del \"$address/32\" dev lo\ndone\nHK_DR_END\n\
         chmod 755 /usr/local/sbin/hk-dr-front\n\
         cat > /etc/systemd/system/hk-dr-front.service <<'HK_DR_END'\n\
         [Unit]\nDescription=Floating IPs that may be routed to this machine\nAfter=network-pre.target\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/sbin/hk-dr-front\n\n\
         [Install]\nWantedBy=multi-user.target\nHK_DR_END\n\
         chmod 644 /etc/systemd/system/hk-dr-front.service\n\
         systemctl daemon-reload\nsystemctl --no-reload enable -q hk-dr-front\nsystemctl restart hk-dr-front"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_line_of_its_own_and_none_leaves_an_empty_file() {
        let script = carry_script(&[[203, 0, 113, 9].into(), [203, 0, 113, 10].into()]);
        assert!(script.contains("<<'HK_DR_END'\n203.0.113.9\n203.0.113.10\nHK_DR_END"), "{script}");
        assert!(carry_script(&[]).contains("/etc/hk-dr/front <<'HK_DR_END'\nHK_DR_END"));
    }
}
