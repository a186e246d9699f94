//! Looks at everything a plan depends on and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::config::Cluster;
use crate::distribution::server_name;
use crate::distribution::upstream::Role;
use crate::plan::{Inventory, NAME_LABEL, ROLE_LABEL, balancer_names, floating_ip_name};
use crate::ports::{Collection, ErrorCode, Etcd, EtcdEndpoint, NodeProbe, PortResult, SnapshotInfo};
use crate::steps::{ServerOutput, World};

/// How long one machine may take to answer before it counts as silent.
const PROBE_WITHIN: Duration = Duration::from_secs(10);

/// Between two reads that need a majority.
const QUORUM_PAUSE: Duration = Duration::from_millis(700);

/// Begins what etcd itself answers, such as that its leader changed, in contrast to what connections say.
const SAYS_ETCD: &str = "etcdserver: ";

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Cloud and bucket: enough to re-plan a run that is under way.
    Cloud,
    /// Machines, etcd and the Kubernetes API as well.
    Machines,
}

/// Observes the cluster.
///
/// # Errors
/// When the cloud or the bucket can't be asked. A machine that does not answer is an observation, not an error.
pub async fn observe(world: &World, depth: Depth) -> PortResult<Inventory> {
    let cluster = &world.cluster;
    let selector = world.selector();
    // All of the project: who has a name that is needed is seen without asking for each.
    let (all_servers, volumes, network, placement_group, ssh_key, firewalls, all_balancers, all_floating) = tokio::try_join!(
        world.cloud.servers(""),
        world.cloud.volumes(&selector),
        world.cloud.network_by_name(&cluster.name),
        async { world.cloud.placement_group_by_name(&format!("{}-masters", cluster.name)).await },
        world.cloud.ssh_key_by_name(&cluster.name),
        world.cloud.firewalls(&selector),
        world.cloud.balancers(""),
        world.cloud.floating_ips(""),
    )?;
    let (servers, others): (Vec<_>, Vec<_>) = all_servers.into_iter().partition(|s| world.owns(&s.labels));
    let (balancers, other_balancers): (Vec<_>, Vec<_>) = all_balancers.into_iter().partition(|b| world.owns(&b.labels));
    let (floating_ips, other_floating): (Vec<_>, Vec<_>) =
        all_floating.into_iter().partition(|f| world.owns(&f.labels));
    let mut foreign = Vec::new();
    let mut check = |what: &str, owned: Option<bool>| {
        if owned == Some(false) {
            foreign.push(format!("{what} named for this cluster exists, but does not carry its label {selector}"));
        }
    };
    check("a network", network.as_ref().map(|n| world.owns(&n.labels)));
    check("a placement group", placement_group.as_ref().map(|g| world.owns(&g.labels)));
    check("an SSH key", ssh_key.as_ref().map(|k| world.owns(&k.labels)));
    let names = needed_names(cluster);
    let other_servers = others.iter().map(|s| ("server", &s.name));
    let other_balancers = other_balancers.iter().map(|b| ("load balancer", &b.name));
    let taken = other_servers.chain(other_balancers).chain(other_floating.iter().map(|f| ("floating IP", &f.name)));
    for (kind, name) in taken.filter(|taken| names.contains(&(taken.0, taken.1.clone()))) {
        foreign.push(format!("a {kind} named {name} exists that does not carry this cluster's label"));
    }

    let (mirrored, snapshots, secrets) = tokio::try_join!(mirrored(world), snapshots(world), world.vault.load())?;
    let mut inventory = Inventory {
        observed_at: world.clock.now(),
        servers,
        volumes,
        network,
        placement_group,
        ssh_key,
        firewalls,
        balancers,
        floating_ips,
        foreign,
        probes: BTreeMap::new(),
        silent: BTreeMap::new(),
        api_ready: BTreeSet::new(),
        ready_nodes: BTreeSet::new(),
        quorum: false,
        members: Vec::new(),
        etcd_serving: BTreeSet::new(),
        mirrored,
        secrets_kept: secrets.is_some(),
        snapshots,
    };
    if depth == Depth::Machines {
        probe_machines(world, &mut inventory).await;
        if inventory.secrets_kept && !inventory.probes.is_empty() {
            look_at_etcd(world, &mut inventory).await;
            look_at_kubernetes(world, &mut inventory).await;
        }
    }
    Ok(inventory)
}

/// Kind and name of all that has a name of the cluster's own.
fn needed_names(cluster: &Cluster) -> Vec<(&'static str, String)> {
    let servers = cluster.masters.iter().map(|m| &m.name).chain(cluster.workers.iter().map(|w| &w.name));
    let servers = servers.chain(cluster.vpn.iter().map(|v| &v.name)).map(|n| ("server", server_name(cluster, n)));
    let floating = cluster.floating_ips().iter().map(|f| ("floating IP", floating_ip_name(cluster, f)));
    servers.chain(floating).chain(balancer_names(cluster).into_iter().map(|name| ("load balancer", name))).collect()
}

async fn snapshots(world: &World) -> PortResult<Vec<SnapshotInfo>> {
    match world.backups.snapshots().await {
        // The bucket is made by the first build.
        Err(error) if error.code == ErrorCode::NotFound => Ok(Vec::new()),
        other => other,
    }
}

async fn mirrored(world: &World) -> PortResult<BTreeSet<String>> {
    let prefix = format!("{}/artifacts/", world.folder());
    match world.store.list(&prefix).await {
        Ok(objects) => Ok(objects.iter().filter_map(|o| o.key.strip_prefix(&prefix).map(str::to_owned)).collect()),
        // The bucket is made by the first build.
        Err(error) if error.code == ErrorCode::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

async fn probe_machines(world: &World, inventory: &mut Inventory) {
    let mut answers: FuturesUnordered<_> = inventory
        .servers
        .iter()
        .map(|server| async move {
            let work = async {
                let host = ServerOutput::of(&world.cluster, server).map_err(|e| e.message)?.host();
                let role = match server.labels.get(ROLE_LABEL).map(String::as_str) {
                    Some("master") => Role::Master,
                    Some("vpn") => Role::Vpn,
                    _ => Role::Worker,
                };
                world.machines.probe(&host, role).await.map_err(|e| e.message)
            };
            let answer: Result<NodeProbe, String> = tokio::time::timeout(PROBE_WITHIN, work)
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", PROBE_WITHIN.as_secs())));
            (server.name.clone(), answer)
        })
        .collect();
    let (mut probes, mut silent) = (BTreeMap::new(), BTreeMap::new());
    while let Some((name, answer)) = answers.next().await {
        match answer {
            Ok(probe) => drop(probes.insert(name, probe)),
            Err(why) => drop(silent.insert(name, why)),
        }
    }
    drop(answers);
    (inventory.probes, inventory.silent) = (probes, silent);
}

/// Masters that answered, with their addresses.
fn endpoints(world: &World, inventory: &Inventory) -> Vec<EtcdEndpoint> {
    inventory
        .servers
        .iter()
        .filter(|s| inventory.probes.contains_key(&s.name))
        .filter_map(|s| {
            let name = s.labels.get(NAME_LABEL)?;
            let master = world.cluster.masters.iter().find(|m| m.name == *name)?;
            let host = ServerOutput::of(&world.cluster, s).ok()?.host();
            Some(EtcdEndpoint { name: master.name.clone(), host, address: master.address })
        })
        .collect()
}

/// Which members serve reads that need a majority, and whom the majority counts as members.
async fn look_at_etcd(world: &World, inventory: &mut Inventory) {
    let running: Vec<EtcdEndpoint> = endpoints(world, inventory)
        .into_iter()
        .filter(|e| inventory.probes.get(&e.host.name).is_some_and(|p| p.active_units.contains("etcd")))
        .collect();
    if running.is_empty() {
        return;
    }
    let Ok(etcd) = world.etcd(&running).await else { return };
    let reads = running.iter().map(|endpoint| {
        let etcd = &etcd;
        async move {
            let serves = tokio::time::timeout(PROBE_WITHIN, serves(etcd.as_ref(), &endpoint.name));
            serves.await.unwrap_or(false).then_some(endpoint)
        }
    });
    let serving: Vec<&EtcdEndpoint> = futures::future::join_all(reads).await.into_iter().flatten().collect();
    inventory.quorum = !serving.is_empty();
    inventory.etcd_serving = serving.iter().map(|e| e.host.name.clone()).collect();
    for endpoint in serving {
        if let Ok(Ok(members)) = tokio::time::timeout(PROBE_WITHIN, etcd.member_list(&endpoint.name)).await {
            inventory.members = members;
            return;
        }
    }
}

/// Whether a member answers a read that needs a majority. One that is there and says itself why not, as during the election of a
/// leader, is asked again: it is no lost member.
async fn serves(etcd: &dyn Etcd, member: &str) -> bool {
    for pause in [Some(QUORUM_PAUSE), Some(2 * QUORUM_PAUSE), None] {
        match etcd.get(member, b"hk-dr-quorum").await {
            Ok(_) => return true,
            Err(refused) if refused.message.contains(SAYS_ETCD) => {}
            Err(_) => return false,
        }
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    false
}

async fn look_at_kubernetes(world: &World, inventory: &mut Inventory) {
    let nodes = Collection { api_version: "v1".into(), plural: "nodes".into(), namespace: None };
    for endpoint in endpoints(world, inventory) {
        if !inventory.probes.get(&endpoint.host.name).is_some_and(|p| p.active_units.contains("kube-apiserver")) {
            continue;
        }
        let Ok(kube) = world.kube(&endpoint.host).await else { continue };
        if !matches!(tokio::time::timeout(PROBE_WITHIN, kube.ready()).await, Ok(Ok(true))) {
            continue;
        }
        inventory.api_ready.insert(endpoint.host.name.clone());
        if inventory.ready_nodes.is_empty()
            && let Ok(Ok(list)) = tokio::time::timeout(PROBE_WITHIN, kube.list(&nodes)).await
        {
            let ready = list.iter().filter(|n| {
                n["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            });
            inventory.ready_nodes = ready.filter_map(|n| n["metadata"]["name"].as_str().map(str::to_owned)).collect();
        }
    }
}
