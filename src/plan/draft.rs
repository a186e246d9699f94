//! What build and rebuild have in common: the parts of a cluster as steps.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::params::{
    ApiStart, ArtifactMirror, BinariesInstall, ClusterClean, ClusterSettle, ControllersStart, EtcdAgree, EtcdMount,
    EtcdStart, EtcdStartStep, MachineReady, MasterConfigure, NetworkCreate, NodeReady, Params, PlacementGroupCreate,
    ServerCreate, SshKeyCreate, VolumeProvide, WorkerConfigure, WorkerStart,
};
use super::perimeter;
use super::placement::place;
use super::who::Who;
use super::{Inventory, PLAN_FORMAT, Plan, PlanError, Purpose, Step};
use crate::config::{Cluster, MasterConfig, WorkerConfig};
use crate::distribution::server_name;
use crate::distribution::upstream::{Role, needed};
use crate::ports::{Binary, Labels, Server};

/// Label with the run that founded or last rebuilt the cluster: tells its resources from those of a life before.
pub const LINEAGE_LABEL: &str = "hk-dr/lineage";
/// Label with the role of a server.
pub const ROLE_LABEL: &str = "hk-dr/role";
/// Label with the short name from `cluster.yaml`.
pub const NAME_LABEL: &str = "hk-dr/name";
/// Label that everything of a cluster carries. Nothing without it is ever changed or deleted.
pub const OWNER_LABEL: &str = "hk-dr/cluster";

/// How long backends of webhooks may take to answer after a restore. Pods are started and pull their images meanwhile; what
/// takes longer is not worth holding up the run's end, and is said.
const ANSWER_WITHIN_SECONDS: u32 = 60;

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct Basis<'a> {
    pub cluster: &'a Cluster,
    pub inventory: &'a Inventory,
    /// Pinned version and SHA-256 of everything servers install, by name.
    pub pins: &'a BTreeMap<String, (String, String)>,
    pub ssh_public_key: &'a str,
    /// What each server's configuration digest should be, by server name; empty when the secrets are not known yet.
    pub digests: &'a BTreeMap<String, String>,
    /// Id of the new plan.
    pub plan_id: &'a str,
    /// The plan that this one replaces.
    pub parent: Option<&'a str>,
    /// See [`LINEAGE_LABEL`].
    pub lineage: &'a str,
    pub now: Timestamp,
    /// Locations that answered that they have no capacity.
    pub unavailable: &'a BTreeSet<String>,
    /// The cluster that this one is a copy of, for a rehearsal.
    pub copy_of: Option<&'a str>,
    /// Longest times without an acknowledged write in the last runs of the runbook that is planned, in seconds.
    pub outages: &'a [f64],
}

/// A plan being drawn.
pub(super) struct Draft<'a> {
    pub basis: &'a Basis<'a>,
    pub findings: Vec<String>,
    pub locations: BTreeMap<String, String>,
    pub snapshot: Option<String>,
    /// Machines stay as they are installed and configured.
    pub in_place: bool,
    /// Masters and their servers that must agree before an API server starts; none: all that are declared.
    pub agreeing: Option<BTreeMap<String, String>>,
    /// Servers are reached at public addresses until the VPN is there.
    pub closing_last: bool,
    steps: Vec<Step>,
}

impl<'a> Draft<'a> {
    /// Chooses locations; servers in `stay` keep theirs.
    pub fn new(basis: &'a Basis<'a>, stay: &BTreeMap<&str, &str>) -> Result<Self, PlanError> {
        let cluster = basis.cluster;
        if !basis.inventory.foreign.is_empty() {
            return Err(PlanError::Foreign(basis.inventory.foreign.clone()));
        }
        let masters: Vec<_> = cluster.masters.iter().map(|m| (m.name.as_str(), m.location.as_str())).collect();
        let workers: Vec<_> = cluster.workers.iter().map(|w| (w.name.as_str(), w.location.as_str())).collect();
        let mut findings = Vec::new();
        let mut locations = BTreeMap::new();
        let vpn: Vec<_> = cluster.vpn.iter().map(|v| (v.name.as_str(), v.location.as_str())).collect();
        // Full names, which no server's short name is.
        let (arrivals, there) = (super::front::arrivals(cluster), super::front::where_they_are(basis.inventory));
        let arrivals: Vec<_> = arrivals.iter().map(|(name, location)| (name.as_str(), *location)).collect();
        let stay: BTreeMap<&str, &str> = stay.iter().chain(&there).map(|(name, location)| (*name, *location)).collect();
        for wanted in [masters, workers, vpn, arrivals] {
            for (name, location) in place(&wanted, &stay, &cluster.fallback_locations, basis.unavailable)? {
                let declared = wanted.iter().find(|(n, _)| *n == name).map_or(location, |(_, l)| l);
                if declared != location {
                    findings.push(format!("{name} goes to {location}: {declared} has no capacity"));
                }
                locations.insert(name.to_owned(), location.to_owned());
            }
        }
        Ok(Self {
            basis,
            findings,
            locations,
            snapshot: None,
            in_place: false,
            agreeing: None,
            closing_last: false,
            steps: Vec::new(),
        })
    }

    /// A plan that creates no server: nothing needs a place.
    pub fn bare(basis: &'a Basis<'a>) -> Self {
        Self {
            basis,
            findings: Vec::new(),
            locations: BTreeMap::new(),
            snapshot: None,
            in_place: true,
            agreeing: None,
            closing_last: false,
            steps: Vec::new(),
        }
    }

    /// Adds a step. Needs that are no step of this plan are true already and are left out.
    pub fn add<P: Params>(
        &mut self,
        id: impl Into<String>,
        params: &P,
        needs: &[&str],
        title: impl Into<String>,
        reason: impl Into<String>,
        deadline_seconds: u32,
    ) {
        let needs = needs.iter().filter(|n| self.has(n)).map(|n| (*n).to_owned()).collect();
        self.steps.push(Step {
            id: id.into(),
            kind: P::KIND.into(),
            version: P::VERSION,
            params: serde_json::to_value(params).unwrap_or_default(),
            needs,
            title: title.into(),
            reason: reason.into(),
            deadline_seconds,
            seen_absent: false,
        });
    }

    /// Says of the step that was added last that nothing of what it makes was observed.
    pub fn seen_absent(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.seen_absent = true;
        }
    }

    /// Whether the plan has this step.
    pub fn has(&self, id: &str) -> bool {
        self.steps.iter().any(|s| s.id == id)
    }

    /// Ids of all steps so far.
    pub fn ids(&self) -> Vec<String> {
        self.steps.iter().map(|s| s.id.clone()).collect()
    }

    /// Full name of a server.
    pub fn full(&self, name: &str) -> String {
        server_name(self.basis.cluster, name)
    }

    /// Labels of every resource of this life of the cluster.
    pub fn labels(&self) -> Labels {
        let mut labels = Labels::from([
            (OWNER_LABEL.into(), self.basis.cluster.name.clone()),
            (LINEAGE_LABEL.into(), self.basis.lineage.into()),
        ]);
        if let Some(of) = self.basis.copy_of {
            labels.insert(super::COPY_LABEL.into(), of.to_owned());
        }
        labels
    }

    /// Pinned binaries that the bucket lacks.
    pub fn artifacts(&mut self, roles: &[Role]) {
        for role in roles {
            for item in needed(self.basis.cluster, *role) {
                let Some((version, sha256)) = self.basis.pins.get(&item.name) else { continue };
                let id = format!("artifact/{}", item.name);
                if self.basis.inventory.mirrored.contains(sha256) || self.has(&id) {
                    continue;
                }
                let params =
                    ArtifactMirror { name: item.name.clone(), version: version.clone(), sha256: sha256.clone() };
                let title = format!("copy {} {version} into the bucket", item.name);
                self.add(id, &params, &[], title, "servers install from the bucket, which lacks it", 900);
            }
        }
    }

    /// Network, firewalls, placement group, SSH key, load balancers and floating IPs.
    pub fn foundation(&mut self) {
        self.perimeter();
        let (cluster, inventory) = (self.basis.cluster, self.basis.inventory);
        let labels = self.labels();
        if inventory.network.is_none() {
            let params = NetworkCreate {
                name: cluster.name.clone(),
                range: cluster.network.range.clone(),
                subnet: cluster.network.subnet.clone(),
                zone: cluster.network.zone.clone(),
                // The way out comes with it.
                routes: cluster.vpn.iter().map(super::vpn::way_out).collect(),
                labels: labels.clone(),
            };
            let way = cluster.vpn.as_ref().map(|v| format!(" with the way out through {}", self.full(&v.name)));
            let (range, way) = (&cluster.network.range, way.unwrap_or_default());
            let title = format!("create network {} ({range}){way}", cluster.name);
            self.add("network", &params, &[], title, "it does not exist", 120);
            self.seen_absent();
        }
        if inventory.placement_group.is_none() {
            let params = PlacementGroupCreate { name: placement_group(cluster), labels: labels.clone() };
            let title = format!("create placement group {}", params.name);
            self.add("placement-group", &params, &[], title, "it does not exist", 120);
            self.seen_absent();
        }
        if inventory.ssh_key.is_none() {
            let params =
                SshKeyCreate { name: cluster.name.clone(), public_key: self.basis.ssh_public_key.into(), labels };
            self.add("ssh-key", &params, &[], "register the cluster's SSH key", "it is not registered", 120);
            self.seen_absent();
        }
        self.front();
    }

    /// A server, until it answers. `after` are steps that must be done before it may exist.
    pub fn server(&mut self, who: Who<'_>, reason: &str, after: &[&str]) {
        let (cluster, full) = (self.basis.cluster, self.full(who.name()));
        let mut labels = self.labels();
        labels.insert(ROLE_LABEL.into(), who.role().into());
        labels.insert(NAME_LABEL.into(), who.name().into());
        let location = self.locations.get(who.name()).cloned().unwrap_or_default();
        let params = ServerCreate {
            name: full.clone(),
            server_type: who.server_type().into(),
            image: cluster.image.clone(),
            location: location.clone(),
            network: cluster.name.clone(),
            address: who.address(),
            placement_group: matches!(who, Who::Master(_)).then(|| placement_group(cluster)),
            ssh_key: cluster.name.clone(),
            labels,
            public_ipv4: who.public_ipv4(cluster),
        };
        let needs: Vec<&str> = ["network", "placement-group", "ssh-key"]
            .into_iter()
            .chain(perimeter::STEPS)
            .chain(after.iter().copied())
            .collect();
        let title = format!("create server {full} in {location}");
        self.add(format!("server/{full}"), &params, &needs, title, reason, 300);
        if self.basis.inventory.server(&full).is_none() {
            self.seen_absent();
        }
    }

    /// Everything on one master up to etcd's start. `restore` adds the step that fills the volume and returns its id.
    pub fn master(
        &mut self,
        master: &MasterConfig,
        etcd: &EtcdStart,
        reason: &str,
        restore: impl FnOnce(&mut Self, &[&str]) -> Option<String>,
    ) {
        let full = self.full(&master.name);
        let volume = volume_name(self.basis.cluster, &master.name);
        let (server_id, ready_id) = (format!("server/{full}"), format!("ready/{full}"));
        let (volume_id, mount_id) = (format!("volume/{volume}"), format!("mount/{full}"));
        let (configure_id, etcd_binaries) = (format!("configure/{full}"), format!("binaries-etcd/{full}"));
        let stays = !self.has(&server_id) && !self.has(&format!("retire/{volume}"));
        let attached = stays && super::build::has_its_volume(self.basis, &full, &volume);
        if !attached && !self.has(&volume_id) {
            let mut labels = self.labels();
            labels.insert(NAME_LABEL.into(), master.name.clone());
            let params = VolumeProvide {
                name: volume.clone(),
                size_gb: master.etcd_volume_gb,
                location: self.locations.get(&master.name).cloned().unwrap_or_default(),
                server: full.clone(),
                labels,
            };
            let title = format!("create volume {volume} and attach it to {full}");
            let retired = format!("retire/{volume}");
            self.add(&volume_id, &params, &[&server_id, &retired], title, reason, 180);
            if self.basis.inventory.volume(&volume).is_none() {
                self.seen_absent();
            }
        }
        self.ready(&full, reason);
        self.binaries(&etcd_binaries, &full, Role::Master, |name| name.starts_with("etcd"), &[&ready_id]);
        let params = MasterConfigure {
            server: full.clone(),
            master: master.name.clone(),
            volume: volume.clone(),
            etcd: etcd.clone(),
        };
        let needs = [ready_id.as_str(), &volume_id, "secrets"];
        self.add(&configure_id, &params, &needs, format!("configure {full}"), reason, 120);
        let params = EtcdMount { server: full.clone(), volume };
        self.add(&mount_id, &params, &[&configure_id], format!("mount etcd's volume on {full}"), reason, 120);
        let restored = restore(self, &[&mount_id, &etcd_binaries]);
        let needs = [configure_id.as_str(), &mount_id, &etcd_binaries, restored.as_deref().unwrap_or_default()];
        let params = EtcdStartStep { server: full.clone() };
        self.add(format!("etcd/{full}"), &params, &needs, format!("start etcd on {full}"), reason, 60);
    }

    /// Waits for etcd's members, then starts the API server on each of `masters`. `then` adds what must be done between
    /// the first API server and the controllers.
    pub fn control_plane(&mut self, masters: &[&MasterConfig], reason: &str, then: impl FnOnce(&mut Self, &str)) {
        let cluster = self.basis.cluster;
        let all = || cluster.masters.iter().map(|m| (m.name.clone(), self.full(&m.name))).collect();
        let servers: BTreeMap<String, String> = self.agreeing.clone().unwrap_or_else(all);
        let etcds: Vec<String> = servers.values().map(|full| format!("etcd/{full}")).collect();
        let needs: Vec<&str> = etcds.iter().map(String::as_str).collect();
        // A comparison with what was before says more than agreement.
        let agree = if self.has(super::runbook::UNCHANGED) { super::runbook::UNCHANGED } else { "etcd-agree" };
        if !self.has(agree) {
            let title = "wait until all etcd members agree on the hash of all data";
            self.add(agree, &EtcdAgree { servers }, &needs, title, "the API must not serve before", 180);
        }
        // One API server is enough to serve again: the first gets the machine and the network to itself, the others
        // follow. etcd's binaries go before all: they are small, and everything waits for etcd.
        let first = masters.first().map(|m| self.full(&m.name)).unwrap_or_default();
        let first_api = format!("api/{first}");
        for master in masters {
            let full = self.full(&master.name);
            let (control, etcd) = (format!("binaries-control-plane/{full}"), format!("binaries-etcd/{full}"));
            let ready = format!("ready/{full}");
            let after = if full == first { "" } else { first_api.as_str() };
            if !self.in_place {
                self.binaries(&control, &full, Role::Master, |name| name.starts_with("kube"), &[&ready, &etcd, after]);
            }
            let params = ApiStart { server: full.clone() };
            let title = format!("start the API server on {full}");
            self.add(format!("api/{full}"), &params, &[agree, &control, after], title, reason, 180);
        }
        if !masters.is_empty() {
            then(self, &first);
        }
        for master in masters {
            let full = self.full(&master.name);
            let params = ControllersStart { server: full.clone() };
            let title = format!("start controller manager and scheduler on {full}");
            let needs = [format!("api/{full}"), "clean".to_owned()];
            let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            self.add(format!("controllers/{full}"), &params, &needs, title, reason, 60);
        }
    }

    /// What is done between the first API server's start and the controllers' over a restored state.
    pub fn clean(&mut self, master: &str, returning_nodes: Vec<String>, living: &[&Server]) {
        let cluster = self.basis.cluster;
        let place = |worker: &WorkerConfig| {
            let there = living.iter().find(|s| s.name == self.full(&worker.name)).map(|s| s.location.clone());
            there.or_else(|| self.locations.get(&worker.name).cloned())
        };
        let locations: BTreeSet<String> = cluster.workers.iter().filter_map(place).collect();
        let params = ClusterClean {
            master_server: master.to_owned(),
            returning_nodes,
            living_nodes: living.iter().map(|server| server.name.clone()).collect(),
            server_ids: living.iter().map(|server| (server.name.clone(), server.id)).collect(),
            locations: locations.into_iter().collect(),
        };
        let title = "let webhooks that fail closed pass, suspend GitOps controllers and autoscalers, then clear away what \
                     the snapshot has of servers that are gone: Nodes, their pods, attachments, leases, endpoints and \
                     node passwords";
        let reason = "webhooks would refuse the recovery, and controllers would act on what is old or gone";
        self.add("clean", &params, &[&format!("api/{master}")], title, reason, 300);
    }

    /// The last step behind `clean`, when everything else is done.
    pub fn settle(&mut self, master: &str) {
        if !self.has("clean") {
            return;
        }
        let needs = self.ids();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        // Without workers no backend can run: nobody waits for one.
        let within_seconds = if self.basis.cluster.workers.is_empty() { 0 } else { ANSWER_WITHIN_SECONDS };
        let resumes = self.basis.copy_of.is_none();
        let params = ClusterSettle { master_server: master.to_owned(), within_seconds, resumes };
        let title = match resumes {
            true => {
                "let webhooks fail closed again as their backends answer, start GitOps controllers and autoscalers \
                     again, and say what is left"
            }
            false => "let webhooks fail closed again as their backends answer, and say what is left",
        };
        self.add("settle", &params, &needs, title, "what was relaxed for the recovery must not stay so", 180);
    }

    /// Everything on one worker until its Node is ready. `master` is the server whose API server is asked.
    pub fn worker(&mut self, worker: &WorkerConfig, reason: &str, master: &str) {
        let full = self.full(&worker.name);
        let (ready_id, binaries_id) = (format!("ready/{full}"), format!("binaries/{full}"));
        let (configure_id, start_id) = (format!("configure/{full}"), format!("worker/{full}"));
        self.ready(&full, reason);
        self.binaries(&binaries_id, &full, Role::Worker, |_| true, &[&ready_id]);
        let params = WorkerConfigure { server: full.clone(), worker: worker.name.clone() };
        let needs = [ready_id.as_str(), &binaries_id, "secrets"];
        self.add(&configure_id, &params, &needs, format!("configure {full} and load its images"), reason, 300);
        let api = format!("api/{master}");
        let params = WorkerStart { server: full.clone() };
        let needs = [configure_id.as_str(), &api, "clean"];
        self.add(&start_id, &params, &needs, format!("start kubelet and proxy on {full}"), reason, 60);
        let params = NodeReady { node: full.clone(), master_server: master.to_owned(), labels: worker.labels.clone() };
        let title = format!("wait until node {full} is ready");
        self.add(format!("node/{full}"), &params, &[&start_id, &api], title, reason, 240);
    }

    /// Waits until a server answers.
    pub fn ready(&mut self, full: &str, reason: &str) {
        let params = MachineReady { server: full.to_owned() };
        let server = format!("server/{full}");
        // The way to it, and its own way out.
        let way = self.basis.cluster.vpn.as_ref().map(|v| format!("ready/{}", self.full(&v.name))).unwrap_or_default();
        let title = format!("wait until {full} answers with its pinned host key");
        self.add(format!("ready/{full}"), &params, &[&server, &way, super::vpn::WAY_OUT], title, reason, 300);
    }

    pub fn binaries(&mut self, id: &str, full: &str, role: Role, choose: impl Fn(&str) -> bool, needs: &[&str]) {
        let mut binaries = Vec::new();
        let mut needs: Vec<String> = needs.iter().map(|n| (*n).to_owned()).collect();
        for item in needed(self.basis.cluster, role).into_iter().filter(|item| choose(&item.name)) {
            let Some((_, sha256)) = self.basis.pins.get(&item.name) else { continue };
            needs.push(format!("artifact/{}", item.name));
            binaries.push(Binary { name: item.name, sha256: sha256.clone(), path: item.path, mode: item.mode });
        }
        let names: Vec<_> = binaries.iter().map(|b| b.name.as_str()).collect();
        let title = format!("install {} on {full}", names.join(", "));
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let params = BinariesInstall { server: full.to_owned(), binaries };
        self.add(id, &params, &needs, title, "by digest, from the bucket", 900);
    }

    /// The finished plan.
    pub fn finish(self, purpose: Purpose) -> Plan {
        let basis = self.basis;
        Plan {
            format: PLAN_FORMAT,
            id: basis.plan_id.to_owned(),
            cluster: basis.cluster.name.clone(),
            purpose,
            snapshot: self.snapshot,
            runbook: None,
            lineage: basis.lineage.to_owned(),
            parent: basis.parent.map(str::to_owned),
            created_at: basis.now,
            inputs_digest: digest(basis),
            steps: self.steps,
            findings: self.findings,
        }
    }
}

/// Name of the volume that holds a master's etcd data.
pub(super) fn volume_name(cluster: &Cluster, master: &str) -> String {
    format!("{}-{master}-etcd", cluster.name)
}

fn placement_group(cluster: &Cluster) -> String {
    format!("{}-masters", cluster.name)
}

fn digest(basis: &Basis<'_>) -> String {
    // Plain values: they can't fail to become JSON.
    let inputs = serde_json::json!({"cluster": basis.cluster, "inventory": basis.inventory, "pins": basis.pins});
    Sha256::digest(inputs.to_string()).iter().map(|b| format!("{b:02x}")).collect()
}
