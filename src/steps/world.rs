use std::sync::Arc;

use tokio::sync::OnceCell;

use super::copy::SnapshotVault;
use super::secrets_keep;
use crate::config::Cluster;
use crate::distribution::pki::{ClusterSecrets, PkiError};
use crate::plan::{COPY_LABEL, OWNER_LABEL};
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
    /// The cluster that this one is a copy of, for a rehearsal.
    pub copy_of: Option<String>,
    /// The way to servers with public addresses, where the usual one leads through a VPN.
    pub in_public: Option<(Arc<dyn Machines>, Arc<dyn Dialer>)>,
}

impl World {
    /// Whether these labels say that a resource is this cluster's.
    pub fn owns(&self, labels: &Labels) -> bool {
        let owned = labels.get(OWNER_LABEL).is_some_and(|owner| *owner == self.cluster.name);
        owned && labels.get(COPY_LABEL) == self.copy_of.as_ref()
    }

    /// The folder of the bucket that has what servers install: a copy takes it from the cluster's.
    pub fn folder(&self) -> &str {
        self.copy_of.as_ref().unwrap_or(&self.cluster.name)
    }

    /// The labels by which the cloud is asked for what is this cluster's.
    pub fn selector(&self) -> String {
        match &self.copy_of {
            None => format!("{OWNER_LABEL}=={}", self.cluster.name),
            Some(of) => format!("{OWNER_LABEL}=={},{COPY_LABEL}=={of}", self.cluster.name),
        }
    }

    /// The world of a copy of this cluster, made from a snapshot, whose secrets it has.
    #[must_use]
    pub fn copy(&self, cluster: Cluster, snapshot: &str) -> Self {
        let world = self.clone();
        let backups = Arc::clone(&self.backups);
        let (machines, dialer) = world.in_public.clone().unwrap_or((world.machines, world.dialer));
        Self {
            copy_of: Some(self.cluster.name.clone()),
            cluster,
            vault: Arc::new(SnapshotVault { backups, snapshot: snapshot.to_owned() }),
            secrets: Arc::default(),
            machines,
            dialer,
            ..self.clone()
        }
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
