use super::digest::{NODE_FILE, NodeRecord, config_digest};
use super::text::{Service, file, hosts_files, kubeconfig, leaf_files};
use super::{Role, SANDBOX_IMAGE};
use crate::config::{Cluster, WorkerConfig};
use crate::distribution::pki::{ClusterSecrets, PkiError};
use crate::distribution::{API_PORT, api_name, pod_subnet, server_name};
use crate::ports::RemoteFile;
use jiff::Timestamp;

/// What is decided for a worker beyond what Git declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPlacement {
    /// Where it really is: its own location or a fallback. Becomes the Node's region label.
    pub location: String,
}

/// Where image bundles are put.
pub(super) const IMAGES_DIR: &str = "/var/lib/hk-dr/images";
/// Runs before containerd and kubelet at every boot.
const PREPARE: &str = "/usr/local/sbin/hk-dr-prepare-node";
const PKI: &str = "/etc/kubernetes/pki";

/// A connection to a master that vanished without a word is given up after 5 + 3 seconds instead of 45.
const QUICK_HTTP2: [&str; 2] =
    ["Environment=HTTP2_READ_IDLE_TIMEOUT_SECONDS=5", "Environment=HTTP2_PING_TIMEOUT_SECONDS=3"];

/// All files of one worker. The last one is [`NODE_FILE`]. Secret files are 0600.
pub fn worker_files(
    cluster: &Cluster,
    secrets: &ClusterSecrets,
    worker: &WorkerConfig,
    placement: &WorkerPlacement,
    now: Timestamp,
) -> Result<Vec<RemoteFile>, PkiError> {
    let leaves = secrets.issue_worker(cluster, worker, now)?;
    let node = server_name(cluster, &worker.name);
    let pods = pod_subnet(cluster, worker).ok_or_else(|| PkiError::Unusable {
        path: "kubernetes.podRange".into(),
        reason: format!("it has no /24 for worker {}", worker.name),
    })?;
    let api = format!("https://{}:{API_PORT}", api_name(cluster));
    let ca = &secrets.kubernetes_ca.cert_pem;
    let kubelet_config = kubeconfig(&api, ca, &format!("system:node:{node}"), &leaves.kubelet_client);
    let proxy_config = kubeconfig(&api, ca, "system:kube-proxy", &leaves.kube_proxy);

    let mut files = Vec::new();
    files.extend(hosts_files(cluster, &worker.name, worker.address));
    files.push(file(format!("{PKI}/ca.crt"), 0o644, ca));
    files.extend(leaf_files(&format!("{PKI}/kubelet"), &leaves.kubelet_serving));
    files.push(file("/etc/kubernetes/kubelet.conf", 0o600, kubelet_config.as_bytes()));
    files.push(file("/etc/kubernetes/kube-proxy.conf", 0o600, proxy_config.as_bytes()));
    files.push(file("/etc/kubernetes/kubelet.yaml", 0o644, kubelet_yaml()));
    files.push(file("/etc/containerd/config.toml", 0o644, containerd_toml()));
    files.push(file("/etc/cni/net.d/10-hk-dr.conflist", 0o644, conflist(&pods)));
    files.push(file("/etc/hk-dr/pods.nft", 0o644, pods_nft(&pods, &cluster.kubernetes.pod_range)));
    files.push(file("/etc/sysctl.d/90-hk-dr.conf", 0o644, SYSCTL));
    files.push(file("/etc/modules-load.d/hk-dr.conf", 0o644, "overlay\nbr_netfilter\n"));
    files.push(file(PREPARE, 0o755, PREPARE_SCRIPT));
    files.push(file("/etc/systemd/system/hk-dr-node.service", 0o644, prepare_unit()));
    files.push(file("/etc/systemd/system/kubelet.service", 0o644, kubelet_unit(worker, placement, &node)));
    files.push(file("/etc/systemd/system/kube-proxy.service", 0o644, kube_proxy_unit(cluster, &node)));
    let record = NodeRecord {
        format: 1,
        cluster: cluster.name.clone(),
        name: worker.name.clone(),
        role: Role::Worker,
        config_digest: config_digest(cluster, secrets, Role::Worker, &worker.name),
        etcd_token: None,
        etcd_state: None,
        volume_device: None,
        location: Some(placement.location.clone()),
    };
    files.push(file(NODE_FILE, 0o644, serde_json::json!(record).to_string()));
    Ok(files)
}

/// cgroupfs, not systemd, as the cgroup driver: it works on cgroup v1, v2 and the hybrid of both, and in a machine whose
/// systemd does not own the whole tree. Both sides, containerd and kubelet, must say the same.
fn containerd_toml() -> String {
    format!(
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{SANDBOX_IMAGE}\"\n  \
         # A container's own choice is kept within what the machine allows.\n  restrict_oom_score_adj = true\n\n  \
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n    conf_dir = \"/etc/cni/net.d\"\n\n  \
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      SystemdCgroup = false\n"
    )
}

fn conflist(pods: &str) -> String {
    let list = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "hk-dr",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                // The masquerade is in pods.nft: the plugin's own one would need iptables on every worker.
                "ipMasq": false,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    format!("{list:#}\n")
}

fn pods_nft(pods: &str, pod_range: &str) -> String {
    format!(
        "# Pods leave with their worker's address: nothing beyond the workers has a route to them.\n\
         table ip hk-dr\ndelete table ip hk-dr\ntable ip hk-dr {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n    \
         ip saddr {pods} ip daddr != {pod_range} masquerade\n  }}\n}}\n"
    )
}

const SYSCTL: &str = "net.ipv4.ip_forward = 1\n# Traffic between pods of one worker must pass the service rules as well.\n\
                      -net.bridge.bridge-nf-call-iptables = 1\n";

// Modules are a matter of the host when this is itself a container: then they are there or can't be had.
const PREPARE_SCRIPT: &str = "#!/bin/sh\nset -eu\nfor module in overlay br_netfilter; do modprobe -q \"$module\" 2>/dev/null || true; done\n\
                              sysctl -q -e -p /etc/sysctl.d/90-hk-dr.conf || true\n\
                              [ \"$(cat /proc/sys/net/ipv4/ip_forward)\" = 1 ] || echo 1 > /proc/sys/net/ipv4/ip_forward\n\
                              nft -f /etc/hk-dr/pods.nft\n\
                              # Whatever wrote /etc/hosts at boot does not know the API's name.\n\
                              cp /etc/hk-dr/hosts /etc/hosts.hk-dr && mv -f /etc/hosts.hk-dr /etc/hosts\n\
                              # Volumes that pods share with the node need shared mounts.\nmount --make-rshared /\n";

fn prepare_unit() -> String {
    format!(
        "[Unit]\nDescription=Prepare this machine for pods\nBefore=containerd.service kubelet.service kube-proxy.service\nAfter=cloud-init.service ssh.service\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={PREPARE}\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

fn kubelet_yaml() -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\ncgroupDriver: cgroupfs\nfailSwapOn: false\n\
         # A host with cgroup v1 is deprecated, not broken.\nfailCgroupV1: false\n\
         authentication:\n  anonymous: {{enabled: false}}\n  webhook: {{enabled: true}}\n  x509: {{clientCAFile: {PKI}/ca.crt}}\n\
         authorization: {{mode: Webhook}}\n\
         tlsCertFile: {PKI}/kubelet.crt\ntlsPrivateKeyFile: {PKI}/kubelet.key\ntlsMinVersion: VersionTLS12\nreadOnlyPort: 0\n\
         # Small disks: Kubernetes' defaults of 10 and 15 per cent would evict early.\n\
         evictionHard: {{memory.available: \"50Mi\", nodefs.available: \"3%\"}}\n\
         # Preloaded images can't be pulled again: never collect them because the disk is nearly full.\n\
         imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 95\n\
         # Often enough that a dead node is seen within 10 s (the controller manager's grace period).\n\
         nodeStatusUpdateFrequency: 2s\nnodeLeaseDurationSeconds: 8\n"
    )
}

fn kubelet_unit(worker: &WorkerConfig, placement: &WorkerPlacement, node: &str) -> String {
    let mut labels: Vec<String> = worker.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.push(format!("topology.kubernetes.io/region={}", placement.location));
    let service: Vec<&str> = QUICK_HTTP2.into_iter().chain(["Delegate=yes", "KillMode=process"]).collect();
    Service {
        description: "Kubernetes node agent",
        program: "/usr/local/bin/kubelet",
        arguments: vec![
            "--config=/etc/kubernetes/kubelet.yaml".into(),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".into(),
            format!("--hostname-override={node}"),
            format!("--node-ip={}", worker.address),
            format!("--node-labels={}", labels.join(",")),
        ],
        unit: &["After=hk-dr-node.service containerd.service", "Wants=hk-dr-node.service containerd.service"],
        service: &service,
    }
    .render()
}

fn kube_proxy_unit(cluster: &Cluster, node: &str) -> String {
    Service {
        description: "Kubernetes service proxy",
        program: "/usr/local/bin/kube-proxy",
        arguments: vec![
            "--kubeconfig=/etc/kubernetes/kube-proxy.conf".into(),
            "--proxy-mode=nftables".into(),
            format!("--cluster-cidr={}", cluster.kubernetes.pod_range),
            format!("--hostname-override={node}"),
            // Without a load balancer in front, a NodePort is how the world reaches a Service: answer on the public
            // address too, as the other proxy modes do.
            "--nodeport-addresses=0.0.0.0/0".into(),
            // Leave the machine's connection tracking as it is: it may not be ours to set.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-min=0".into(),
            "--conntrack-tcp-timeout-established=0".into(),
            "--conntrack-tcp-timeout-close-wait=0".into(),
        ],
        unit: &["After=hk-dr-node.service", "Wants=hk-dr-node.service"],
        service: &QUICK_HTTP2,
    }
    .render()
}
