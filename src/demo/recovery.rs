//! Measures when a cluster that comes back is really back: when a write is acknowledged and when a pod answers, not when
//! something says that it is ready (a restored database says what was true at the time of the snapshot).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use super::uses::{NODE_PORT, hosts, masters, worker_address};
use super::{DemoError, canary, web};
use crate::ports::{Host, Kube, PortResult};
use crate::steps::World;

/// Between two looks at the cloud's list of servers.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two tries to write.
const WRITE_EVERY: Duration = Duration::from_millis(100);
const WRITE_WITHIN: Duration = Duration::from_secs(3);

/// When the cluster served again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// When the first write was acknowledged.
    pub written_at: Timestamp,
    /// The master that acknowledged it.
    pub written_to: String,
    /// When the first pod answered over the network.
    pub pod_answered_at: Timestamp,
    /// What it said.
    pub pod_said: String,
}

/// Waits for the first acknowledged write and the first answer of a pod, both at once.
///
/// # Errors
/// The deadline passed.
pub async fn await_recovery(world: &World, deadline: Duration) -> Result<Recovered, DemoError> {
    let late = |what: &str| DemoError::new(format!("{what} within {} s", deadline.as_secs()));
    let written = async {
        let write = tokio::time::timeout(deadline, first_write(world)).await;
        write.map_err(|_| late("no write was acknowledged"))
    };
    let answered = async {
        let worker =
            tokio::time::timeout(deadline, new_worker(world)).await.map_err(|_| late("there was no worker"))?;
        let said = web::pod_answer(worker, NODE_PORT, deadline).await?;
        Ok((world.clock.now(), said))
    };
    let ((written_at, written_to), (pod_answered_at, pod_said)) = tokio::try_join!(written, answered)?;
    Ok(Recovered { written_at, written_to, pod_answered_at, pod_said })
}

/// Knocks at every master that appears, until one acknowledges a write.
async fn first_write(world: &World) -> (Timestamp, String) {
    // Dropped with this future, and all knocking with it.
    let mut knocking = JoinSet::new();
    let mut known: BTreeMap<String, Host> = BTreeMap::new();
    loop {
        for host in list(world).await.unwrap_or_default() {
            if known.get(&host.name) != Some(&host)
                && let Ok(kube) = world.kube(&host).await
            {
                let clock = Arc::clone(&world.clock);
                let name = host.name.clone();
                known.insert(name.clone(), host);
                knocking.spawn(async move {
                    write_until_acknowledged(kube.as_ref(), &name).await;
                    (clock.now(), name)
                });
            }
        }
        // Looking for more masters goes on only while some are missing: the cloud counts requests.
        let pause = if known.len() < world.cluster.masters.len() { LOOK_EVERY } else { LOOK_EVERY * 10 };
        tokio::select! {
            Some(Ok(written)) = knocking.join_next() => return written,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn list(world: &World) -> PortResult<Vec<Host>> {
    Ok(masters(world, &hosts(world).await?))
}

async fn new_worker(world: &World) -> std::net::Ipv4Addr {
    loop {
        if let Ok(hosts) = hosts(world).await
            && let Some(address) = worker_address(world, &hosts)
        {
            return address;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn write_until_acknowledged(kube: &dyn Kube, master: &str) {
    let collection = canary::collection();
    for number in 1u32.. {
        let name = format!("after-the-loss-{master}-{number}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let write = kube.create(&collection, &object);
        if let Ok(Ok(_)) = tokio::time::timeout(WRITE_WITHIN, write).await {
            return;
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
}
