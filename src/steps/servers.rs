//! Finding a server by its name: from this run's outputs, or from the cloud.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::StepContext;
use crate::config::Cluster;
use crate::ports::{ErrorCode, Etcd, EtcdEndpoint, Host, PortError, PortResult, Server};

/// Label with the pinned host key's fingerprint: it survives the loss of everything local. The value is `s`, the
/// fingerprint in URL-safe base64, `s`: a label may neither begin nor end with the alphabet's dash and underscore.
pub const HOST_KEY_LABEL: &str = "hk-dr/host-key";

/// What later steps know of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerOutput {
    pub id: u64,
    pub name: String,
    pub location: String,
    pub address: Ipv4Addr,
    /// As `ssh-keygen -l` prints it behind `SHA256:`.
    pub host_key_sha256: String,
}

impl ServerOutput {
    /// Reads what the cloud shows of a server that hk-dr made.
    pub fn of(cluster: &Cluster, server: &Server) -> PortResult<Self> {
        let broken = |what: &str| {
            PortError::new(ErrorCode::Invalid, format!("server {} {what}", server.name))
                .hint("it was not made by hk-dr or was changed by hand: delete it, or correct it, then run again")
        };
        Ok(Self {
            id: server.id,
            name: server.name.clone(),
            location: server.location.clone(),
            address: crate::distribution::reached_at(cluster, &server.name)
                .or(server.public_ipv4)
                .or_else(|| server.private.first().map(|p| p.address))
                .ok_or_else(|| broken("has no address"))?,
            host_key_sha256: server
                .labels
                .get(HOST_KEY_LABEL)
                .and_then(|v| fingerprint_of_label(v))
                .ok_or_else(|| broken("has no pinned host key in its labels"))?,
        })
    }

    /// Where to connect.
    pub fn host(&self) -> Host {
        Host { name: self.name.clone(), address: self.address, host_key_sha256: self.host_key_sha256.clone() }
    }
}

/// The label value that pins a fingerprint.
pub fn label_of_fingerprint(sha256_base64: &str) -> Option<String> {
    Some(format!("s{}s", BASE64_URL_SAFE_NO_PAD.encode(BASE64_STANDARD_NO_PAD.decode(sha256_base64).ok()?)))
}

fn fingerprint_of_label(value: &str) -> Option<String> {
    let inner = value.strip_prefix('s')?.strip_suffix('s')?;
    let digest = BASE64_URL_SAFE_NO_PAD.decode(inner).ok()?;
    (digest.len() == 32).then(|| BASE64_STANDARD_NO_PAD.encode(digest))
}

impl StepContext<'_> {
    /// A server of the cluster by its full name.
    pub async fn server(&self, name: &str) -> PortResult<ServerOutput> {
        if let Some(output) = self.outputs.get(&format!("server/{name}"))
            && let Ok(server) = serde_json::from_value::<ServerOutput>(output.clone())
        {
            return Ok(server);
        }
        let server = self.world.cloud.server_by_name(name).await?;
        let server =
            server.ok_or_else(|| PortError::new(ErrorCode::NotFound, format!("server {name} does not exist")))?;
        ServerOutput::of(&self.world.cluster, &server)
    }

    /// The id that a step of this run gave for what it made: known without asking anybody.
    pub(super) fn made(&self, step: &str) -> Option<u64> {
        self.outputs.get(step)?.as_u64()
    }

    /// A connection to the etcd members of these masters, by their servers.
    pub async fn etcd(&self, servers: &BTreeMap<String, String>) -> PortResult<Arc<dyn Etcd>> {
        let mut endpoints = Vec::new();
        for (master, server) in servers {
            let config = self.world.cluster.masters.iter().find(|m| m.name == *master).ok_or_else(|| {
                PortError::new(ErrorCode::Invalid, format!("cluster.yaml has no master {master} any more"))
            })?;
            let host = self.server(server).await?.host();
            endpoints.push(EtcdEndpoint { name: master.clone(), host, address: config.address });
        }
        self.world.etcd(&endpoints).await
    }

    /// The cluster's long-lived secrets, loaded from the vault once.
    pub async fn secrets(&self) -> PortResult<std::sync::Arc<crate::distribution::pki::ClusterSecrets>> {
        self.world.secrets().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_fingerprint_survives_the_label() {
        let fingerprint = BASE64_STANDARD_NO_PAD.encode([0xfb; 32]);
        let label = label_of_fingerprint(&fingerprint).unwrap();
        assert!(label.len() <= 63 && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)));
        assert_eq!(fingerprint_of_label(&label), Some(fingerprint));
        assert_eq!(fingerprint_of_label("sAAAAs"), None);
    }
}
