use std::net::Ipv4Addr;

use crate::config::{Cluster, MasterConfig, VpnConfig, WorkerConfig};

/// A server that is declared.
#[derive(Clone, Copy)]
pub(super) enum Who<'a> {
    Master(&'a MasterConfig),
    Worker(&'a WorkerConfig),
    Vpn(&'a VpnConfig),
}

impl Who<'_> {
    pub fn name(&self) -> &str {
        match self {
            Self::Master(m) => &m.name,
            Self::Worker(w) => &w.name,
            Self::Vpn(v) => &v.name,
        }
    }

    pub fn role(&self) -> &'static str {
        match self {
            Self::Master(_) => "master",
            Self::Worker(_) => "worker",
            Self::Vpn(_) => "vpn",
        }
    }

    pub fn server_type(&self) -> &str {
        match self {
            Self::Master(m) => &m.server_type,
            Self::Worker(w) => &w.server_type,
            Self::Vpn(v) => &v.server_type,
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        match self {
            Self::Master(m) => m.address,
            Self::Worker(w) => w.address,
            Self::Vpn(v) => v.address,
        }
    }

    pub fn public_ipv4(&self, cluster: &Cluster) -> bool {
        match self {
            Self::Master(_) => cluster.network.public_ipv4.masters(),
            Self::Worker(_) => cluster.network.public_ipv4.workers(),
            Self::Vpn(_) => true,
        }
    }
}
