use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, timeout};

use super::slots::Slot;
use super::{Slots, Tunnel, TunnelConfig};
use crate::config::{Cluster, Range};
use crate::distribution::pki::ClusterSecrets;
use crate::distribution::{server_name, vpn_slot_address};
use crate::ports::{Cloud, ErrorCode, PortError, PortResult, Reach, Stream, Vault};
use crate::ssh::Direct;
use crate::steps::load_secrets;

/// How long the VPN host may take to answer a greeting before the tunnel counts as dead.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// How often the cloud is asked at most where the VPN host is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Reaches private addresses through the VPN host, everything else directly.
pub struct VpnRoute {
    cluster: Cluster,
    cloud: Arc<dyn Cloud>,
    vault: Arc<dyn Vault>,
    secrets: Arc<OnceCell<Arc<ClusterSecrets>>>,
    slots: Slots,
    way: Mutex<Way>,
}

#[derive(Default)]
struct Way {
    tunnel: Option<Open>,
    /// Where the VPN host was found, and when; none: there is none.
    found: Option<(Instant, Option<Ipv4Addr>)>,
    /// Public addresses of servers by private ones, from before there was a VPN.
    public: Vec<(Ipv4Addr, Ipv4Addr)>,
}

struct Open {
    tunnel: Tunnel,
    number: u64,
    _slot: Slot,
}

impl VpnRoute {
    /// `secrets` is shared with whoever loads them too. Asks nobody yet.
    pub fn new(
        cluster: Cluster,
        cloud: Arc<dyn Cloud>,
        vault: Arc<dyn Vault>,
        secrets: Arc<OnceCell<Arc<ClusterSecrets>>>,
        slots: Slots,
    ) -> Self {
        Self { cluster, cloud, vault, secrets, slots, way: Mutex::default() }
    }

    fn is_private(&self, address: Ipv4Addr) -> bool {
        self.cluster.network.range.parse::<Range>().is_ok_and(|range| range.contains(address))
    }

    /// The tunnel, opened now if there is none, with the number by which it can be given up; none without a VPN host.
    async fn tunnel(&self) -> PortResult<Option<(Tunnel, u64)>> {
        let mut way = self.way.lock().await;
        if let Some(open) = way.tunnel.as_ref().filter(|open| !open.tunnel.is_over()) {
            return Ok(Some((open.tunnel.clone(), open.number)));
        }
        way.tunnel = None;
        let Some(vpn) = &self.cluster.vpn else { return Ok(None) };
        let host = match way.found {
            Some((at, host)) if at.elapsed() < LOOK_EVERY => host,
            _ => {
                let server = self.cloud.server_by_name(&server_name(&self.cluster, &vpn.name)).await?;
                let host = server.and_then(|s| s.public_ipv4);
                if host.is_none() {
                    way.public = self.public_addresses().await?;
                }
                way.found = Some((Instant::now(), host));
                host
            }
        };
        let Some(host) = host else { return Ok(None) };
        let secrets = load_secrets(&self.secrets, self.vault.as_ref()).await?;
        let keys = secrets.vpn_keys().map_err(|e| PortError::new(ErrorCode::Invalid, e.to_string()))?;
        let slot = self.slots.take()?;
        let unusable = || PortError::new(ErrorCode::Invalid, format!("vpn.range `{}` is not a range", vpn.range));
        let config = TunnelConfig {
            private_key: keys.slot_private(slot.number),
            host_public_key: keys.host_public(),
            address: vpn_slot_address(vpn, slot.number).ok_or_else(unusable)?,
            endpoint: (host, vpn.port).into(),
        };
        let tunnel = Tunnel::open(config)
            .await
            .map_err(|e| PortError::new(ErrorCode::Local, format!("could not open a UDP socket for the VPN: {e}")))?;
        let number = rand::random();
        way.tunnel = Some(Open { tunnel: tunnel.clone(), number, _slot: slot });
        Ok(Some((tunnel, number)))
    }

    async fn public_addresses(&self) -> PortResult<Vec<(Ipv4Addr, Ipv4Addr)>> {
        let selector = format!("{}=={}", crate::plan::OWNER_LABEL, self.cluster.name);
        let servers = self.cloud.servers(&selector).await?;
        let pair = |s: &crate::ports::Server| Some((s.private.first()?.address, s.public_ipv4?));
        Ok(servers.iter().filter_map(pair).collect())
    }

    /// Gives a tunnel up whose host does not answer: it may be another machine at another address by now.
    async fn check(&self, tunnel: &Tunnel, number: u64) {
        if tunnel.answers(ANSWER_WITHIN).await {
            return;
        }
        let mut way = self.way.lock().await;
        if way.tunnel.as_ref().is_some_and(|open| open.number == number) {
            way.tunnel = None;
        }
    }
}

#[async_trait]
impl Reach for VpnRoute {
    async fn connect(&self, to: SocketAddr, patience: Duration) -> PortResult<Box<dyn Stream>> {
        let SocketAddr::V4(to) = to else { return Direct.connect(to, patience).await };
        if !self.is_private(*to.ip()) {
            return Direct.connect(to.into(), patience).await;
        }
        let Some((tunnel, number)) = self.tunnel().await? else {
            let way = self.way.lock().await;
            let public = way.public.iter().find(|(private, _)| private == to.ip()).map(|(_, public)| *public);
            drop(way);
            return match public {
                // A cluster that has not got its VPN yet is still reached as it was before.
                Some(public) => Direct.connect((public, to.port()).into(), patience).await,
                None => {
                    Err(PortError::new(ErrorCode::Unreachable, format!("{to}: there is no VPN host to go through"))
                        .hint("`hk-dr build` makes it"))
                }
            };
        };
        match timeout(patience, tunnel.connect(to)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(unreachable(to.into(), &format!("{error} (through the VPN)"))),
            Err(_) => {
                self.check(&tunnel, number).await;
                Err(unreachable(to.into(), &format!("no answer within {patience:?} through the VPN")))
            }
        }
    }
}

fn unreachable(to: SocketAddr, why: &str) -> PortError {
    PortError::new(ErrorCode::Unreachable, format!("{to}: {why}"))
}
