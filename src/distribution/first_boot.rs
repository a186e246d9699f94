use secrecy::{ExposeSecret, SecretString};

/// What a server runs at its first boot: it installs the host key that hk-dr made and pinned, so that nobody can stand
/// between hk-dr and a new server. Plain shell, which cloud-init runs as it is. Holds a private key: never logged.
pub fn first_boot_script(host_key: &SecretString, host_key_public: &str) -> String {
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
         systemctl --no-block try-restart ssh.service || true\n",
        public = host_key_public.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_what_cloud_init_runs_and_fits_its_limit() {
        let key = crate::ssh::keypair().unwrap();
        let script = first_boot_script(&key.private, &key.public);
        assert!(script.starts_with("#!/bin/sh\n"));
        assert!(script.contains("-----BEGIN OPENSSH PRIVATE KEY-----") && script.contains(&key.public));
        assert!(script.len() < 32 * 1024, "user_data is limited to 32 KiB");
    }
}
