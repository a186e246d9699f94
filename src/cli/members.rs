//! The connection to the etcd of the declared cluster.

use std::sync::Arc;

use super::connect::Connected;
use crate::distribution::server_name;
use crate::ports::{ErrorCode, Etcd, EtcdEndpoint, PortError, PortResult};
use crate::steps::ServerOutput;

/// Finds the masters in the cloud and connects to their etcd. A lost master is left out: the others will do.
pub(super) async fn etcd_of(connected: &Connected) -> PortResult<Arc<dyn Etcd>> {
    let world = &connected.world;
    let mut endpoints = Vec::new();
    for master in &world.cluster.masters {
        let name = server_name(&world.cluster, &master.name);
        if let Some(server) = world.cloud.server_by_name(&name).await? {
            let host = ServerOutput::of(&world.cluster, &server)?.host();
            endpoints.push(EtcdEndpoint { name: master.name.clone(), host, address: master.address });
        }
    }
    if endpoints.is_empty() {
        let message = format!("no master of cluster {} exists in the cloud", world.cluster.name);
        return Err(PortError::new(ErrorCode::NotFound, message)
            .hint("nothing was written; `hk-dr rebuild` brings the cluster back from the newest snapshot"));
    }
    world.etcd(&endpoints).await
}
