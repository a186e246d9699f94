//! Uses a cluster as people do, and notes what they would miss if it were lost.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Check, DemoError, canary, web};
use crate::artifacts::WEB_IMAGE;
use crate::distribution::server_name;
use crate::plan::OWNER_LABEL;
use crate::ports::{Collection, Etcd, EtcdEndpoint, Host, Kube, PortResult};
use crate::steps::{ServerOutput, World};

/// Where the workloads live.
pub const NAMESPACE: &str = "shop";
/// The port by which the pod is reached on every node.
pub const NODE_PORT: u16 = 30080;
/// The service account whose token must survive.
pub const READER: &str = "reader";
const SECRETS: usize = 30;
const CONFIG_MAPS: usize = 100;
/// Requests under way at once.
const AT_ONCE: usize = 8;
pub(super) const SERVERS_WITHIN: Duration = Duration::from_secs(180);
pub(super) const API_WITHIN: Duration = Duration::from_secs(300);
/// Between two looks at a cluster that is being built.
const ASK_EVERY: Duration = Duration::from_millis(200);
pub(super) const POD_WITHIN: Duration = Duration::from_secs(120);
/// How the API server marks what it encrypted before it gave it to etcd.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// A token that outlives any demo, in seconds.
const TOKEN_VALID: u32 = 7 * 24 * 3600;

/// What must be the same after the cluster was lost and brought back. Holds a token: kept in a file with mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct Notes {
    /// SHA-256 of each Secret's content, in hex, by name.
    pub secrets: BTreeMap<String, String>,
    /// A service account's token.
    pub token: String,
    /// The CA whose certificates clients of the API trust.
    pub ca_pem: String,
}

impl Notes {
    /// Reads them back.
    pub fn read(path: &Path) -> Result<Self, DemoError> {
        let text = std::fs::read(path).map_err(|e| DemoError::io(format!("read {}", path.display()), &e))?;
        serde_json::from_slice(&text).map_err(|e| DemoError::new(format!("{} is damaged: {e}", path.display())))
    }
}

/// A pod's first answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answered {
    pub at: Timestamp,
    /// What it said, and where.
    pub said: String,
}

/// The cluster's servers by full name, as the cloud shows them; those that are not ready to be talked to are left out.
pub async fn hosts(world: &World) -> PortResult<BTreeMap<String, ServerOutput>> {
    let servers = world.cloud.servers(&format!("{OWNER_LABEL}=={}", world.cluster.name)).await?;
    Ok(servers.iter().filter_map(|s| ServerOutput::of(&world.cluster, s).ok()).map(|s| (s.name.clone(), s)).collect())
}

/// The masters among them, in declared order.
pub fn masters(world: &World, hosts: &BTreeMap<String, ServerOutput>) -> Vec<Host> {
    let names = world.cluster.masters.iter().map(|m| server_name(&world.cluster, &m.name));
    names.filter_map(|name| hosts.get(&name).map(ServerOutput::host)).collect()
}

/// Public address of the first worker, where the pod's port is.
pub fn worker_address(world: &World, hosts: &BTreeMap<String, ServerOutput>) -> Option<Ipv4Addr> {
    let worker = world.cluster.workers.first()?;
    hosts.get(&server_name(&world.cluster, &worker.name)).map(|w| w.address)
}

/// A connection to all members of etcd.
pub async fn etcd(world: &World, hosts: &BTreeMap<String, ServerOutput>) -> PortResult<std::sync::Arc<dyn Etcd>> {
    let members: Vec<EtcdEndpoint> = world
        .cluster
        .masters
        .iter()
        .filter_map(|m| {
            let host = hosts.get(&server_name(&world.cluster, &m.name))?.host();
            Some(EtcdEndpoint { name: m.name.clone(), host, address: m.address })
        })
        .collect();
    world.etcd(&members).await
}

/// Puts a web pod into a cluster that is being built, as soon as it takes it, and waits for the pod's answer over the
/// network.
///
/// # Errors
/// The cluster does not take it, or no pod answers.
pub async fn start_web(world: &World) -> Result<Answered, DemoError> {
    let (master, worker) = within(SERVERS_WITHIN, "master and worker", || async {
        let hosts = hosts(world).await?;
        let master = masters(world, &hosts).into_iter().next();
        Ok(master.zip(worker_address(world, &hosts)))
    })
    .await?;
    // The bucket keeps the cluster's secrets from early on, but not from the first moment.
    let kube = within(API_WITHIN, "secrets in the bucket", || async { Ok(Some(world.kube(&master).await?)) }).await?;
    within(API_WITHIN, "ready Kubernetes API", || async { Ok(kube.ready().await?.then_some(())) }).await?;
    let (namespace, rest) = workload();
    kube.create(&namespace.0, &namespace.1).await?;
    // A pod that comes before there is a node for it is tried again a second later, and then two.
    within(POD_WITHIN, "ready node", || async {
        Ok(kube.list(&core("nodes", None)).await?.iter().find(|n| is_ready(n)).map(|_| ()))
    })
    .await?;
    for (collection, object) in rest {
        kube.create(&collection, &object).await?;
    }
    let said = web::pod_answer(worker, NODE_PORT, POD_WITHIN).await?;
    Ok(Answered { at: world.clock.now(), said: format!("{said}, at {worker}:{NODE_PORT}") })
}

pub(super) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Asks until there is something. Errors mean "not yet", until the deadline.
pub(super) async fn within<T, F: Future<Output = PortResult<Option<T>>>>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T, DemoError> {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let last = match ask().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "not yet".to_owned(),
            Err(error) => error.message,
        };
        if tokio::time::Instant::now() > end {
            return Err(DemoError::new(format!("no {what} within {} s: {last}", deadline.as_secs())));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Writes what the team would miss, and notes what must survive.
///
/// # Errors
/// The cluster does not take it.
pub async fn use_cluster(world: &World, notes_path: &Path) -> Result<Vec<Check>, DemoError> {
    let hosts = hosts(world).await?;
    let first = masters(world, &hosts).into_iter().next().ok_or_else(|| DemoError::new("there is no master"))?;
    let kube = world.kube(&first).await?;
    let secrets = write_contents(kube.as_ref()).await?;
    let token = grant(kube.as_ref()).await?;
    let ca_pem = world.secrets().await?.kubernetes_ca.cert_pem.clone();
    let checks = vec![Check::of("Secrets are encrypted at rest", encrypted(world, &hosts, secrets.len()).await)];
    write_notes(notes_path, &Notes { secrets, token, ca_pem })?;
    Ok(checks)
}

pub(super) fn core(plural: &str, namespace: Option<&str>) -> Collection {
    Collection { api_version: "v1".into(), plural: plural.into(), namespace: namespace.map(Into::into) }
}

/// A namespace, and in it a Deployment whose pod answers, behind a Service, in the order they must be made.
fn workload() -> ((Collection, Value), Vec<(Collection, Value)>) {
    let deployments =
        Collection { api_version: "apps/v1".into(), plural: "deployments".into(), namespace: Some(NAMESPACE.into()) };
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let first = (core("namespaces", None), namespace(NAMESPACE));
    let rest = vec![
        // Its own account: the namespace's default one appears only once a controller made it, and pods wait for it.
        (
            core("serviceaccounts", Some(NAMESPACE)),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}}),
        ),
        (
            deployments,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {
                            "serviceAccountName": "web",
                            "automountServiceAccountToken": false,
                            "enableServiceLinks": false,
                            "terminationGracePeriodSeconds": 1,
                            "containers": [{
                                "name": "web", "image": WEB_IMAGE, "imagePullPolicy": "Never",
                                "ports": [{"containerPort": 8080}],
                            }],
                        },
                    },
                },
            }),
        ),
        (
            core("services", Some(NAMESPACE)),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {
                    "type": "NodePort", "selector": {"app": "web"},
                    "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}],
                },
            }),
        ),
        (core("namespaces", None), namespace(canary::NAMESPACE)),
    ];
    (first, rest)
}

/// Writes Secrets and ConfigMaps; returns the digests of the Secrets' contents.
async fn write_contents(kube: &dyn Kube) -> Result<BTreeMap<String, String>, DemoError> {
    let mut digests = BTreeMap::new();
    let mut objects = Vec::with_capacity(SECRETS + CONFIG_MAPS);
    for number in 1..=SECRETS {
        let mut content = [0; 48];
        rand::rngs::OsRng
            .try_fill_bytes(&mut content)
            .map_err(|e| DemoError::new(format!("no random numbers from the system: {e}")))?;
        let (name, content) = (format!("secret-{number:02}"), BASE64_STANDARD.encode(content));
        digests.insert(name.clone(), digest(&content));
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name}, "data": {"content": content},
        });
        objects.push((core("secrets", Some(NAMESPACE)), object));
    }
    for number in 1..=CONFIG_MAPS {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("config-{number:03}")},
            "data": {"price": (number * 7).to_string(), "text": "what the shop must not forget ".repeat(8)},
        });
        objects.push((core("configmaps", Some(NAMESPACE)), object));
    }
    let writes = objects.iter().map(|(collection, object)| kube.create(collection, object));
    futures::stream::iter(writes).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    Ok(digests)
}

/// SHA-256 of a Secret's content as the API shows it, in hex.
pub fn digest(content: &str) -> String {
    Sha256::digest(content.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// Lets a service account read ConfigMaps and returns a token for it.
async fn grant(kube: &dyn Kube) -> Result<String, DemoError> {
    let rbac = |plural: &str| Collection {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        plural: plural.into(),
        namespace: Some(NAMESPACE.into()),
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}});
    kube.create(&core("serviceaccounts", Some(NAMESPACE)), &account).await?;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": READER},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}],
    });
    kube.create(&rbac("roles"), &role).await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": READER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": READER},
        "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": NAMESPACE}],
    });
    kube.create(&rbac("rolebindings"), &binding).await?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_VALID},
    });
    let tokens = core(&format!("serviceaccounts/{READER}/token"), Some(NAMESPACE));
    let answer = kube.create(&tokens, &request).await?;
    let token = answer["status"]["token"].as_str();
    token.map(str::to_owned).ok_or_else(|| DemoError::new("the API answered a token request without a token"))
}

/// Looks at what etcd really holds of the Secrets.
async fn encrypted(
    world: &World,
    hosts: &BTreeMap<String, ServerOutput>,
    written: usize,
) -> Result<(bool, String), DemoError> {
    let etcd = etcd(world, hosts).await?;
    let member = etcd.members().into_iter().next().ok_or_else(|| DemoError::new("etcd has no member"))?;
    let (mut all, mut plain) = (0usize, 0usize);
    let mut page = |entries: Vec<crate::ports::KeyValue>| {
        all += entries.len();
        plain += entries.iter().filter(|kv| !kv.value.starts_with(ENCRYPTED)).count();
    };
    etcd.range(&member, b"/registry/secrets/", 0, &mut page).await?;
    Ok((all >= written && plain == 0, format!("{all} in etcd, {plain} of them readable there")))
}

fn write_notes(path: &Path, notes: &Notes) -> Result<(), DemoError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |e: std::io::Error| DemoError::io(format!("write {}", path.display()), &e);
    let text = serde_json::to_vec(notes).map_err(|e| DemoError::new(e.to_string()))?;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&text)).map_err(failed)
}
