use std::net::Ipv4Addr;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::ports::RemoteFile;

/// What a server runs at its first boot: it installs the host key that hk-dr made and pinned, so that nobody can stand
/// between hk-dr and a new server; `then` is what else its role needs before anybody can log in. Plain shell, which cloud-init runs as it is. Holds a private key: never logged.
pub fn first_boot_script(host_key: &SecretString, host_key_public: &str, then: &str) -> String {
    let private = host_key.expose_secret().trim_end();
    format!(
        "#!/bin/sh\n\
         set -eu\n\
         umask 077\n\
         cat > /etc/ssh/ssh_host_ed25519_key.hk-dr <<'HK_DR_END'\n{private}\nHK_DR_END\n\
         rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub\n\
         mv /etc/ssh/ssh_host_ed25519_key.hk-dr /etc/ssh/ssh_host_ed25519_key\n\
         echo '{public}' > /etc/ssh/ssh_host_ed25519_key.pub\n\
         chmod 644 /etc/ssh/ssh_host_ed25519_key.pub\n\
         mkdir -p /etc/ssh/sshd_config.d\n\
         printf 'HostKey /etc/ssh/ssh_host_ed25519_key\\nPasswordAuthentication no\\n' > /etc/ssh/sshd_config.d/10-hk-dr.conf\n\
         # Only where it runs already: at the lab's first boot it starts after this script.\n\
         systemctl --no-block try-restart ssh.service || true\n{then}",
        public = host_key_public.trim()
    )
}

/// Puts files in place, for [`first_boot_script`]. Their paths are hk-dr's own; their text has no line `HK_DR_END`.
pub fn files_script(files: &[RemoteFile]) -> Zeroizing<String> {
    let mut script = Zeroizing::new(String::new());
    for file in files {
        let parent = file.path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let text = Zeroizing::new(String::from_utf8_lossy(&file.content).into_owned());
        script.push_str(&format!("mkdir -p -m 755 {parent}\ncat > {path} <<'HK_DR_END'\n", path = file.path));
        script.push_str(text.trim_end_matches('\n'));
        script.push_str(&format!("\nHK_DR_END\nchmod {:o} {}\n", file.mode, file.path));
    }
    script
}

/// The way out of a server without a public address, for [`first_boot_script`]: the network's gateway, which hands everything on
/// to the VPN host. Kept over reboots.
pub fn way_out_script(address: Ipv4Addr, gateway: Ipv4Addr) -> String {
    format!(
        "cat > /usr/local/sbin/hk-dr-way-out <<'HK_DR_END'\n\
         #!/bin/sh\n\
         # The private interface may come up after this has started.\n\
         for i in $(seq 1 600); do\n\
         dev=$(ip -o -4 addr show to {address}/32 | sed -n 's/^[0-9]*: \\([^ ]*\\) .*/\\1/p' | head -n 1)\n\
         [ -n \"$dev\" ] && ip route replace default via {gateway} dev \"$dev\" onlink && exit 0\n\
         sleep 0.1\ndone\n\
         echo 'no interface has {address}' >&2; exit 1\nHK_DR_END\n\
         chmod 755 /usr/local/sbin/hk-dr-way-out\n\
         cat > /etc/systemd/system/hk-dr-way-out.service <<'HK_DR_END'\n\
         [Unit]\nDescription=The way out through the VPN host\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/usr/local/sbin/hk-dr-way-out\n\n[Install]\nWantedBy=multi-user.target\nHK_DR_END\n\
         chmod 644 /etc/systemd/system/hk-dr-way-out.service\n\
         # Name servers come with a public address; these are the cloud's own.\n\
         grep -qs '^nameserver' /etc/resolv.conf || printf 'nameserver 185.12.64.1\\nnameserver 185.12.64.2\\n' >> /etc/resolv.conf\n\
         systemctl daemon-reload\nsystemctl --no-block enable --now hk-dr-way-out\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_what_cloud_init_runs_and_fits_its_limit() {
        let key = crate::ssh::keypair().unwrap();
        let script =
            first_boot_script(&key.private, &key.public, &way_out_script([10, 0, 0, 11].into(), [10, 0, 0, 1].into()));
        assert!(script.starts_with("#!/bin/sh\n"));
        assert!(script.contains("-----BEGIN OPENSSH PRIVATE KEY-----") && script.contains(&key.public));
        assert!(script.len() < 32 * 1024, "user_data is limited to 32 KiB");
    }
}
