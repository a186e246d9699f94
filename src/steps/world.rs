use std::sync::Arc;

use tokio::sync::OnceCell;

use super::secrets_keep;
use crate::config::Cluster;
use crate::distribution::pki::{ClusterSecrets, PkiError};
use crate::plan::OWNER_LABEL;
use crate::ports::{
    Artifacts, Backups, Clock, Cloud, Dialer, ErrorCode, Etcd, EtcdEndpoint, Host, Kube, Labels, Machines, ObjectStore,
    PortError, PortResult, Vault,
};

/// Everything a step may reach, and what Git declares.
#[derive(Clone)]
pub struct World {
    pub cluster: Cluster,
    pub cloud: Arc<dyn Cloud>,
    pub store: Arc<dyn ObjectStore>,
    pub machines: Arc<dyn Machines>,
    pub dialer: Arc<dyn Dialer>,
    pub vault: Arc<dyn Vault>,
    pub backups: Arc<dyn Backups>,
    pub artifacts: Arc<dyn Artifacts>,
    pub clock: Arc<dyn Clock>,
    /// The cluster's secrets once they were loaded.
    pub secrets: Arc<OnceCell<Arc<ClusterSecrets>>>,
}

impl World {
    /// Whether these labels say that a resource is this cluster's.
    pub fn owns(&self, labels: &Labels) -> bool {
        labels.get(OWNER_LABEL).is_some_and(|owner| *owner == self.cluster.name)
    }

    /// The cluster's long-lived secrets, loaded from the vault once.
    pub async fn secrets(&self) -> PortResult<Arc<ClusterSecrets>> {
        load_secrets(&self.secrets, self.vault.as_ref()).await
    }

    /// A connection to etcd's members, as hk-dr itself.
    pub async fn etcd(&self, members: &[EtcdEndpoint]) -> PortResult<Arc<dyn Etcd>> {
        let tls = self.secrets().await?.etcd_client(self.clock.now()).map_err(pki)?;
        self.dialer.etcd(members, &tls).await
    }

    /// A connection to the Kubernetes API on one master, as administrator.
    pub async fn kube(&self, host: &Host) -> PortResult<Arc<dyn Kube>> {
        let tls = self.secrets().await?.kube_client(&self.cluster, self.clock.now()).map_err(pki)?;
        self.dialer.kube(host, &tls).await
    }
}

/// The cluster's long-lived secrets: those that were loaded before, or the vault's.
///
/// # Errors
/// `NotFound` if the vault has none.
pub async fn load_secrets(
    loaded: &OnceCell<Arc<ClusterSecrets>>,
    vault: &dyn Vault,
) -> PortResult<Arc<ClusterSecrets>> {
    let load = || async {
        let set = vault.load().await?.ok_or_else(|| {
            PortError::new(ErrorCode::NotFound, "the bucket keeps no secrets for this cluster")
                .hint("`hk-dr build` makes them for a new cluster, `hk-dr rebuild` takes them from a snapshot")
        })?;
        Ok::<_, PortError>(Arc::new(secrets_keep::decode(&set)?))
    };
    loaded.get_or_try_init(load).await.map(Arc::clone)
}

fn pki(error: PkiError) -> PortError {
    PortError::new(ErrorCode::Local, error.to_string())
}
