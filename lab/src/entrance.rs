//! Effects without the cloud's API: a socket in the lab's directory over which tests of the machine room order one effect
//! a connection. Open only if the lab was started with `HK_LAB_ENTRANCE` in its environment, and only to root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::backend::{Backend, BackendError, BalancerSpec, Effect, FirewallRule};
use crate::error::{Attempt, LabError};

/// The socket's name in the lab's directory.
const SOCKET: &str = "entrance";
/// Asks for it.
const VARIABLE: &str = "HK_LAB_ENTRANCE";
/// More than the largest order: a load balancer with its certificates.
const ORDER_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
enum Order {
    SetFirewall { machine: u64, rules: Option<Vec<FirewallRule>> },
    RouteFloatingIp { address: IpAddr, machine: Option<u64> },
    SetPublicAddresses { machine: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr> },
    SetAliasIps { machine: u64, network: u64, aliases: Vec<Ipv4Addr> },
    SetBalancer { spec: BalancerSpec },
    DeleteBalancer { id: u64 },
    BalancerHealth { id: u64 },
    BalancerCounters { id: u64 },
    MachineCounters { machine: u64 },
}

/// Opens the entrance if it was asked for.
pub(crate) fn open(dir: &Path, backend: Arc<dyn Backend>) -> Result<(), LabError> {
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(());
    }
    let path = dir.join(SOCKET);
    let listener = UnixListener::bind(&path).attempt(|| format!("listen on {}", path.display()))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let backend = Arc::clone(&backend);
            // Whoever hangs up does not want the answer.
            tokio::spawn(async move { serve(stream, &*backend).await.ok() });
        }
    });
    Ok(())
}

/// Reads an order to its end, carries it out, answers `{"ok": …}` or `{"error": "…"}`.
async fn serve(mut stream: UnixStream, backend: &dyn Backend) -> std::io::Result<()> {
    let mut text = Vec::new();
    (&mut stream).take(ORDER_MAX).read_to_end(&mut text).await?;
    let done = match serde_json::from_slice(&text) {
        Ok(order) => carry_out(order, backend).await,
        Err(error) => Err(BackendError(format!("no order: {error}"))),
    };
    let answer = match done {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"error": error.0}),
    };
    stream.write_all(answer.to_string().as_bytes()).await
}

async fn carry_out(order: Order, backend: &dyn Backend) -> Effect<Value> {
    let nothing = |()| Value::Null;
    match order {
        Order::SetFirewall { machine, rules } => backend.set_firewall(machine, rules.as_deref()).await.map(nothing),
        Order::RouteFloatingIp { address, machine } => backend.route_floating_ip(address, machine).await.map(nothing),
        Order::SetPublicAddresses { machine, ipv4, ipv6 } => {
            backend.set_public_addresses(machine, ipv4, ipv6).await.map(nothing)
        }
        Order::SetAliasIps { machine, network, aliases } => {
            backend.set_alias_ips(machine, network, &aliases).await.map(nothing)
        }
        Order::SetBalancer { spec } => backend.set_balancer(&spec).await.map(nothing),
        Order::DeleteBalancer { id } => backend.delete_balancer(id).await.map(nothing),
        Order::BalancerHealth { id } => backend.balancer_health(id).await.map(|health| json!(health)),
        Order::BalancerCounters { id } => backend.balancer_counters(id).await.map(|counters| json!(counters)),
        Order::MachineCounters { machine } => backend.machine_counters(machine).await.map(|counters| json!(counters)),
    }
}
