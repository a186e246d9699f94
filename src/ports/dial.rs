use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;
use secrecy::SecretString;

use super::{Etcd, Host, Kube, PortResult};

/// A client certificate, its key, and the CA that the other side must come from.
#[derive(Clone)]
pub struct ClientTls {
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: SecretString,
    /// The name the server's certificate must carry.
    pub server_name: String,
}

/// Where one etcd member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdEndpoint {
    /// The member's name.
    pub name: String,
    /// The machine it runs on, through which it is reached.
    pub host: Host,
    /// The private address its client port listens on.
    pub address: Ipv4Addr,
}

/// Opens connections to etcd and to the Kubernetes API of machines that may not have existed when the run began.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Client port 2379 of each member, through its own machine. Does not wait for members to be up.
    async fn etcd(&self, members: &[EtcdEndpoint], tls: &ClientTls) -> PortResult<Arc<dyn Etcd>>;
    /// Port 6443 on the machine's loopback.
    async fn kube(&self, host: &Host, tls: &ClientTls) -> PortResult<Arc<dyn Kube>>;
}
