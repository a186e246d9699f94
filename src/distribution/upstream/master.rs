use super::digest::{NODE_FILE, NodeRecord, config_digest};
use super::text::{Service, file, hosts_files, kubeconfig, leaf_files};
use super::{EtcdState, Role};
use crate::config::{Cluster, MasterConfig};
use crate::distribution::pki::{ClusterSecrets, MasterLeaves, PkiError};
use crate::distribution::{API_PORT, ETCD_CLIENT_PORT, ETCD_PEER_PORT, initial_cluster};
use crate::ports::RemoteFile;
use jiff::Timestamp;
use secrecy::ExposeSecret;

/// What is decided for a master beyond what Git declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterPlacement {
    /// Device of the etcd volume, `/dev/disk/by-id/scsi-0HC_Volume_<id>`.
    pub volume_device: String,
    /// See [`ClusterSecrets::etcd_token`]; the same on all members.
    pub etcd_token: String,
    pub etcd_state: EtcdState,
}

/// Directory of etcd's certificates.
const ETCD_PKI: &str = "/etc/etcd/pki";
/// Directory of Kubernetes' certificates.
const PKI: &str = "/etc/kubernetes/pki";

/// Leader election. Kubernetes' defaults (15 s lease) are for large clusters; here they would be the largest part of a
/// recovery: a restored database says that a controller which no longer exists still leads, and nobody takes over
/// before that lease has run out. 6 s still spans four missed renewals.
const LEADER_ELECTION: [&str; 4] = [
    "--leader-elect=true",
    "--leader-elect-lease-duration=6s",
    "--leader-elect-renew-deadline=4s",
    "--leader-elect-retry-period=1s",
];

/// All files of one master. The last one is [`NODE_FILE`]. Secret files are 0600.
pub fn master_files(
    cluster: &Cluster,
    secrets: &ClusterSecrets,
    master: &MasterConfig,
    placement: &MasterPlacement,
    now: Timestamp,
) -> Result<Vec<RemoteFile>, PkiError> {
    let leaves = secrets.issue_master(cluster, master, now)?;
    let mut files = Vec::new();
    files.extend(hosts_files(cluster, &master.name, master.address));
    files.extend(pki_files(secrets, &leaves));
    files.push(file("/etc/systemd/system/var-lib-etcd.mount", 0o644, mount_unit(&placement.volume_device)));
    files.push(file("/etc/systemd/system/etcd.service", 0o644, etcd_unit(cluster, master, placement)));
    files.push(file("/etc/systemd/system/kube-apiserver.service", 0o644, apiserver_unit(cluster, master)));
    files.push(file("/etc/systemd/system/kube-controller-manager.service", 0o644, controller_manager_unit(cluster)));
    files.push(file("/etc/systemd/system/kube-scheduler.service", 0o644, scheduler_unit()));
    let record = NodeRecord {
        format: 1,
        cluster: cluster.name.clone(),
        name: master.name.clone(),
        role: Role::Master,
        config_digest: config_digest(cluster, secrets, Role::Master, &master.name),
        etcd_token: Some(placement.etcd_token.clone()),
        etcd_state: Some(placement.etcd_state),
        volume_device: Some(placement.volume_device.clone()),
        location: None,
    };
    files.push(file(NODE_FILE, 0o644, serde_json::json!(record).to_string()));
    Ok(files)
}

fn pki_files(secrets: &ClusterSecrets, leaves: &MasterLeaves) -> Vec<RemoteFile> {
    // CA keys are not among them: nothing on a master issues certificates, so whoever takes a master can't either.
    let mut files = vec![
        file(format!("{ETCD_PKI}/ca.crt"), 0o644, &secrets.etcd_ca.cert_pem),
        file(format!("{PKI}/ca.crt"), 0o644, &secrets.kubernetes_ca.cert_pem),
        file(format!("{PKI}/etcd-ca.crt"), 0o644, &secrets.etcd_ca.cert_pem),
        file(format!("{PKI}/front-proxy-ca.crt"), 0o644, &secrets.front_proxy_ca.cert_pem),
        file(format!("{PKI}/sa.key"), 0o600, secrets.service_account_key.expose_secret()),
        file(format!("{PKI}/sa.pub"), 0o644, &secrets.service_account_public),
        file("/etc/kubernetes/encryption.yaml", 0o600, secrets.encryption_config.expose_secret()),
    ];
    for (base, leaf) in [
        (format!("{ETCD_PKI}/server"), &leaves.etcd_server),
        (format!("{ETCD_PKI}/peer"), &leaves.etcd_peer),
        (format!("{PKI}/apiserver"), &leaves.apiserver),
        (format!("{PKI}/apiserver-etcd-client"), &leaves.apiserver_etcd_client),
        (format!("{PKI}/apiserver-kubelet-client"), &leaves.apiserver_kubelet_client),
        (format!("{PKI}/front-proxy-client"), &leaves.front_proxy_client),
    ] {
        files.extend(leaf_files(&base, leaf));
    }
    let local = format!("https://127.0.0.1:{API_PORT}");
    let ca = &secrets.kubernetes_ca.cert_pem;
    for (name, leaf) in [("controller-manager", &leaves.controller_manager), ("scheduler", &leaves.scheduler)] {
        let config = kubeconfig(&local, ca, &format!("system:kube-{name}"), leaf);
        files.push(file(format!("/etc/kubernetes/{name}.conf"), 0o600, config.as_bytes()));
    }
    files
}

fn mount_unit(device: &str) -> String {
    format!(
        "[Unit]\nDescription=etcd's volume\nBefore=etcd.service\n\n[Mount]\nWhat={device}\nWhere=/var/lib/etcd\nType=ext4\n\
         Options=noatime\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

fn etcd_unit(cluster: &Cluster, master: &MasterConfig, placement: &MasterPlacement) -> String {
    let (name, address) = (&master.name, master.address);
    let arguments = vec![
        format!("--name={name}"),
        format!("--data-dir={}", super::ETCD_DATA_DIR),
        format!("--listen-client-urls=https://{address}:{ETCD_CLIENT_PORT},https://127.0.0.1:{ETCD_CLIENT_PORT}"),
        format!("--advertise-client-urls=https://{address}:{ETCD_CLIENT_PORT}"),
        format!("--listen-peer-urls=https://{address}:{ETCD_PEER_PORT}"),
        format!("--initial-advertise-peer-urls=https://{address}:{ETCD_PEER_PORT}"),
        format!("--initial-cluster={}", initial_cluster(&cluster.masters)),
        format!("--initial-cluster-state={}", placement.etcd_state.flag()),
        format!("--initial-cluster-token={}", placement.etcd_token),
        format!("--cert-file={ETCD_PKI}/server.crt"),
        format!("--key-file={ETCD_PKI}/server.key"),
        "--client-cert-auth=true".into(),
        format!("--trusted-ca-file={ETCD_PKI}/ca.crt"),
        format!("--peer-cert-file={ETCD_PKI}/peer.crt"),
        format!("--peer-key-file={ETCD_PKI}/peer.key"),
        "--peer-client-cert-auth=true".into(),
        format!("--peer-trusted-ca-file={ETCD_PKI}/ca.crt"),
        // The largest that etcd's authors recommend; the default of 2 GiB turns a busy cluster read-only.
        "--quota-backend-bytes=8589934592".into(),
    ];
    Service {
        description: "etcd",
        program: "/usr/local/bin/etcd",
        arguments,
        // Without the volume etcd would write to the root disk, and a second cluster would be born there.
        unit: &[
            "BindsTo=var-lib-etcd.mount",
            "After=var-lib-etcd.mount network-online.target",
            "Wants=network-online.target",
        ],
        // It says it is ready once there is a quorum, which may take as long as it takes.
        service: &["Type=notify", "TimeoutStartSec=infinity"],
    }
    .render()
}

fn apiserver_unit(cluster: &Cluster, master: &MasterConfig) -> String {
    let arguments = vec![
        format!("--advertise-address={}", master.address),
        format!("--secure-port={API_PORT}"),
        // Every caller has a certificate or a token; there is nothing here for strangers.
        "--anonymous-auth=false".into(),
        format!("--etcd-servers=https://127.0.0.1:{ETCD_CLIENT_PORT}"),
        format!("--etcd-cafile={PKI}/etcd-ca.crt"),
        format!("--etcd-certfile={PKI}/apiserver-etcd-client.crt"),
        format!("--etcd-keyfile={PKI}/apiserver-etcd-client.key"),
        "--encryption-provider-config=/etc/kubernetes/encryption.yaml".into(),
        format!("--service-cluster-ip-range={}", cluster.kubernetes.service_range),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--client-ca-file={PKI}/ca.crt"),
        format!("--tls-cert-file={PKI}/apiserver.crt"),
        format!("--tls-private-key-file={PKI}/apiserver.key"),
        "--tls-min-version=VersionTLS12".into(),
        format!("--kubelet-certificate-authority={PKI}/ca.crt"),
        format!("--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt"),
        format!("--kubelet-client-key={PKI}/apiserver-kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--service-account-key-file={PKI}/sa.pub"),
        format!("--service-account-signing-key-file={PKI}/sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--requestheader-client-ca-file={PKI}/front-proxy-ca.crt"),
        format!("--proxy-client-cert-file={PKI}/front-proxy-client.crt"),
        format!("--proxy-client-key-file={PKI}/front-proxy-client.key"),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        "--allow-privileged=true".into(),
    ];
    Service {
        description: "Kubernetes API server",
        program: "/usr/local/bin/kube-apiserver",
        arguments,
        unit: &["After=etcd.service"],
        service: &[],
    }
    .render()
}

fn controller_manager_unit(cluster: &Cluster) -> String {
    let config = "/etc/kubernetes/controller-manager.conf";
    let mut arguments = vec![
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".into(),
        format!("--root-ca-file={PKI}/ca.crt"),
        format!("--service-account-private-key-file={PKI}/sa.key"),
        "--use-service-account-credentials=true".into(),
        format!("--cluster-cidr={}", cluster.kubernetes.pod_range),
        // A worker's pod range follows from its pinned address, so that it is the same after a rebuild.
        "--allocate-node-cidrs=false".into(),
        // Kubelets report every 2 s: five missed reports are a dead node.
        "--node-monitor-grace-period=10s".into(),
    ];
    arguments.extend(LEADER_ELECTION.map(String::from));
    Service {
        description: "Kubernetes controller manager",
        program: "/usr/local/bin/kube-controller-manager",
        arguments,
        unit: &["After=kube-apiserver.service"],
        service: &[],
    }
    .render()
}

fn scheduler_unit() -> String {
    let config = "/etc/kubernetes/scheduler.conf";
    let mut arguments = vec![
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".into(),
    ];
    arguments.extend(LEADER_ELECTION.map(String::from));
    Service {
        description: "Kubernetes scheduler",
        program: "/usr/local/bin/kube-scheduler",
        arguments,
        unit: &["After=kube-apiserver.service"],
        service: &[],
    }
    .render()
}
