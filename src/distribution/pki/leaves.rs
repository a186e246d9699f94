//! Which certificates servers and hk-dr itself carry, whom they name and what they may be used for.

use std::net::Ipv4Addr;

use jiff::Timestamp;

use super::{ClusterSecrets, Leaf, OWN_DAYS, PkiError};
use crate::config::{Cluster, MasterConfig, WorkerConfig};
use crate::distribution::{api_name, api_service_address, server_name};
use crate::ports::ClientTls;

impl ClusterSecrets {
    /// hk-dr's own access to etcd. Issued for one day, on every use anew; never stored.
    pub fn etcd_client(&self, now: Timestamp) -> Result<ClientTls, PkiError> {
        let leaf = self.etcd_ca.issue_for(&Subject::client("hk-dr", None), now, OWN_DAYS)?;
        Ok(ClientTls {
            ca_pem: self.etcd_ca.cert_pem.clone(),
            cert_pem: leaf.cert_pem,
            key_pem: leaf.key_pem,
            server_name: "localhost".into(),
        })
    }

    /// hk-dr's own access to the Kubernetes API, as an administrator (group `system:masters`), for one day.
    pub fn kube_client(&self, cluster: &Cluster, now: Timestamp) -> Result<ClientTls, PkiError> {
        let subject = Subject::client("hk-dr", Some("system:masters"));
        let leaf = self.kubernetes_ca.issue_for(&subject, now, OWN_DAYS)?;
        Ok(ClientTls {
            ca_pem: self.kubernetes_ca.cert_pem.clone(),
            cert_pem: leaf.cert_pem,
            key_pem: leaf.key_pem,
            server_name: api_name(cluster),
        })
    }

    /// The certificates of one master.
    pub fn issue_master(
        &self,
        cluster: &Cluster,
        master: &MasterConfig,
        now: Timestamp,
    ) -> Result<MasterLeaves, PkiError> {
        let days = i64::from(cluster.certificates.valid_days);
        let full_name = server_name(cluster, &master.name);
        let member_names = vec!["localhost".to_owned(), full_name.clone(), master.name.clone()];
        let member_addresses = vec![Ipv4Addr::LOCALHOST, master.address];
        let etcd = |common_name: &str| {
            let subject = Subject::both(common_name, member_names.clone(), member_addresses.clone());
            self.etcd_ca.issue_for(&subject, now, days)
        };
        let kubernetes = |common_name: &str, organisation: Option<&str>| {
            self.kubernetes_ca.issue_for(&Subject::client(common_name, organisation), now, days)
        };
        Ok(MasterLeaves {
            etcd_server: etcd(&full_name)?,
            etcd_peer: etcd(&full_name)?,
            apiserver: self.kubernetes_ca.issue_for(&apiserver_subject(cluster, &full_name), now, days)?,
            apiserver_etcd_client: self.etcd_ca.issue_for(&Subject::client("kube-apiserver", None), now, days)?,
            apiserver_kubelet_client: kubernetes("kube-apiserver", Some("system:masters"))?,
            front_proxy_client: self.front_proxy_ca.issue_for(
                &Subject::client("front-proxy-client", None),
                now,
                days,
            )?,
            controller_manager: kubernetes("system:kube-controller-manager", None)?,
            scheduler: kubernetes("system:kube-scheduler", None)?,
        })
    }

    /// The certificates of one worker.
    pub fn issue_worker(
        &self,
        cluster: &Cluster,
        worker: &WorkerConfig,
        now: Timestamp,
    ) -> Result<WorkerLeaves, PkiError> {
        let days = i64::from(cluster.certificates.valid_days);
        let node = server_name(cluster, &worker.name);
        let user = format!("system:node:{node}");
        let serving = Subject {
            common_name: user.clone(),
            organisation: Some("system:nodes".into()),
            names: vec![node],
            addresses: vec![worker.address, Ipv4Addr::LOCALHOST],
            server: true,
            client: false,
        };
        Ok(WorkerLeaves {
            kubelet_client: self.kubernetes_ca.issue_for(&Subject::client(&user, Some("system:nodes")), now, days)?,
            kubelet_serving: self.kubernetes_ca.issue_for(&serving, now, days)?,
            kube_proxy: self.kubernetes_ca.issue_for(&Subject::client("system:kube-proxy", None), now, days)?,
        })
    }
}

/// Certificates of a master.
pub struct MasterLeaves {
    pub etcd_server: Leaf,
    pub etcd_peer: Leaf,
    pub apiserver: Leaf,
    pub apiserver_etcd_client: Leaf,
    pub apiserver_kubelet_client: Leaf,
    pub front_proxy_client: Leaf,
    pub controller_manager: Leaf,
    pub scheduler: Leaf,
}

/// Certificates of a worker.
pub struct WorkerLeaves {
    pub kubelet_client: Leaf,
    pub kubelet_serving: Leaf,
    pub kube_proxy: Leaf,
}

/// Whom a certificate names and what it may be used for.
pub(super) struct Subject {
    pub(super) common_name: String,
    pub(super) organisation: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) server: bool,
    pub(super) client: bool,
}

impl Subject {
    fn client(common_name: &str, organisation: Option<&str>) -> Self {
        Self {
            common_name: common_name.into(),
            organisation: organisation.map(Into::into),
            names: Vec::new(),
            addresses: Vec::new(),
            server: false,
            client: true,
        }
    }

    /// etcd presents one certificate in both directions: members dial each other, and the gateway dials its own server.
    fn both(common_name: &str, names: Vec<String>, addresses: Vec<Ipv4Addr>) -> Self {
        Self { common_name: common_name.into(), organisation: None, names, addresses, server: true, client: true }
    }
}

/// Every name and address by which anybody may call the API: it is the same for all masters, so that one that takes
/// another's place needs nothing new.
fn apiserver_subject(cluster: &Cluster, full_name: &str) -> Subject {
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).into();
    names.push("kubernetes.default.svc.cluster.local".into());
    names.push("localhost".into());
    names.push(api_name(cluster));
    names.push(full_name.to_owned());
    let mut addresses = vec![Ipv4Addr::LOCALHOST];
    addresses.extend(api_service_address(&cluster.kubernetes.service_range));
    addresses.extend(cluster.masters.iter().map(|master| master.address));
    addresses.extend(cluster.api_balancer());
    Subject { common_name: "kube-apiserver".into(), organisation: None, names, addresses, server: true, client: false }
}
