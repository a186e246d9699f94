//! The building blocks of rendered files.

use std::net::Ipv4Addr;

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::config::Cluster;
use crate::distribution::pki::Leaf;
use crate::distribution::{api_name, server_name};
use crate::ports::RemoteFile;

/// A file with the given mode.
pub(super) fn file(path: impl Into<String>, mode: u32, content: impl AsRef<[u8]>) -> RemoteFile {
    RemoteFile { path: path.into(), mode, content: Zeroizing::new(content.as_ref().to_vec()) }
}

/// `<base>.crt` and `<base>.key`.
pub(super) fn leaf_files(base: &str, leaf: &Leaf) -> [RemoteFile; 2] {
    [
        file(format!("{base}.crt"), 0o644, &leaf.cert_pem),
        file(format!("{base}.key"), 0o600, leaf.key_pem.expose_secret()),
    ]
}

/// A service that systemd keeps running, whatever happens, forever: its backoff is a second and has no limit, because a
/// control plane that gave up while its network was away would need a person to come back.
pub(super) struct Service<'a> {
    pub description: &'a str,
    pub program: &'a str,
    pub arguments: Vec<String>,
    /// Further lines of `[Unit]`.
    pub unit: &'a [&'a str],
    /// Further lines of `[Service]`.
    pub service: &'a [&'a str],
}

impl Service<'_> {
    pub(super) fn render(&self) -> String {
        let mut text = format!("[Unit]\nDescription={}\nStartLimitIntervalSec=0\n", self.description);
        for line in self.unit {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("\n[Service]\n");
        text.push_str(&format!("ExecStart={}", self.program));
        for argument in &self.arguments {
            text.push_str(" \\\n  ");
            text.push_str(argument);
        }
        text.push_str("\nRestart=always\nRestartSec=1\nLimitNOFILE=65536\n");
        for line in self.service {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        text
    }
}

/// A kubeconfig with everything inside it.
pub(super) fn kubeconfig(server: &str, ca_pem: &str, user: &str, leaf: &Leaf) -> Zeroizing<String> {
    use base64::Engine as _;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let key = Zeroizing::new(base64(leaf.key_pem.expose_secret()));
    Zeroizing::new(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: default\nclusters:\n- name: default\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\ncontexts:\n- name: default\n  context: {{cluster: default, user: {user}}}\nusers:\n- name: {user}\n  \
         user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n",
        ca = base64(ca_pem),
        cert = base64(&leaf.cert_pem),
        key = key.as_str(),
    ))
}

/// `/etc/hosts`; the template from which cloud-init writes it anew at every boot (Hetzner's images have `manage_etc_hosts`
/// on); and a copy that a worker puts in its place at boot, whatever else wrote there. The API's name has every master's
/// address: Go's dialer tries them in turn, so neither a master nor the load balancer is needed by itself.
pub(super) fn hosts_files(cluster: &Cluster, own_name: &str, own_address: Ipv4Addr) -> [RemoteFile; 3] {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let masters = cluster.masters.iter().map(|m| (m.address, m.name.as_str()));
    let own = (own_address, own_name);
    for (address, name) in masters.clone().filter(|other| *other != own).chain([own]) {
        text.push_str(&format!("{address} {} {name}\n", server_name(cluster, name)));
    }
    // First the load balancer, which knows who is well; the masters themselves are for when it is gone.
    if let Some(address) = cluster.api_balancer().filter(|_| !masters.clone().any(|master| master == own)) {
        text.push_str(&format!("{address} {}\n", api_name(cluster)));
    }
    // Every server begins with another master, so that their requests spread.
    let first = own_name.bytes().map(usize::from).sum::<usize>() % cluster.masters.len().max(1);
    for master in cluster.masters.iter().cycle().skip(first).take(cluster.masters.len()) {
        text.push_str(&format!("{} {}\n", master.address, api_name(cluster)));
    }
    [
        file("/etc/hk-dr/hosts", 0o644, &text),
        file("/etc/hosts", 0o644, &text),
        file("/etc/cloud/templates/hosts.debian.tmpl", 0o644, &text),
    ]
}
