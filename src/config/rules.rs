//! What the form can't say: addresses that can exist, names that can be given, versions that can be installed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::error::Report;
use super::names::{closest, is_bucket, is_label, is_node_label};
use super::tree::Tree;
use super::{CertificatesConfig, Cluster, Pinned, Range, WorkerConfig};

/// Locations and their network zones. A private network can't span zones.
const LOCATIONS: [(&str, &str); 6] = [
    ("fsn1", "eu-central"),
    ("nbg1", "eu-central"),
    ("hel1", "eu-central"),
    ("ash", "us-east"),
    ("hil", "us-west"),
    ("sin", "ap-southeast"),
];

/// Used by Hetzner's gateway in every network.
const CLOUD_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 1);
/// What a CA of ours lives.
const VALID_DAYS_MAX: u32 = 3650;
/// Longest object lock in days.
const LOCK_DAYS_MAX: u32 = 3650;
/// A name of a resource, the longest label in DNS.
const FULL_NAME_MAX: usize = 63;

pub(super) fn check(cluster: &Cluster, tree: &Tree, pinned: &Pinned, report: &mut Report) {
    let mut rules = Rules { cluster, tree, pinned, report };
    rules.header();
    rules.versions();
    let ranges = rules.ranges();
    rules.locations();
    rules.names();
    if let Some((subnet, pods)) = ranges {
        rules.addresses(subnet, pods);
    }
    rules.masters();
    rules.workers();
    rules.certificates();
    rules.backup();
    super::firewall::check(cluster, tree, report);
    super::vpn::check(cluster, tree, report);
    super::volume::check(cluster, tree, report);
    super::front::check(cluster, tree, report);
}

/// Where a worker is declared.
fn worker_path(index: usize, worker: &WorkerConfig) -> String {
    worker.pool.map_or_else(|| format!("workers.{index}"), |pool| format!("workers.pools.{pool}"))
}

struct Rules<'a> {
    cluster: &'a Cluster,
    tree: &'a Tree,
    pinned: &'a Pinned,
    report: &'a mut Report,
}

impl Rules<'_> {
    fn wrong(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.report.add(self.tree.place(path), message, Some(hint.into()));
    }

    /// Path, name, location and address of every server, masters first, the VPN host last.
    fn servers(&self) -> Vec<(String, String, String, Ipv4Addr)> {
        let masters = self.cluster.masters.iter().map(|m| (&m.name, &m.location, m.address));
        let workers = self.cluster.workers.iter().enumerate();
        let workers = workers.map(|(index, w)| (worker_path(index, w), (&w.name, &w.location, w.address)));
        masters
            .enumerate()
            .map(|(index, s)| (format!("masters.{index}"), s))
            .chain(workers)
            .chain(self.cluster.vpn.iter().map(|v| ("vpn".to_owned(), (&v.name, &v.location, v.address))))
            .map(|(path, (name, location, address))| (path, name.clone(), location.clone(), address))
            .collect()
    }

    /// The same of load balancers, which need a place and an address as servers do.
    fn balancers(&self) -> Vec<(String, String, String, Ipv4Addr)> {
        let balancers = self.cluster.front.iter().flat_map(super::FrontConfig::balancers);
        balancers.map(|(path, b)| (path.to_owned(), path.to_owned(), b.location.clone(), b.address)).collect()
    }

    fn header(&mut self) {
        if self.cluster.api_version != "hk-dr/v1" {
            let message = format!("apiVersion `{}` is not known to this hk-dr", self.cluster.api_version);
            self.wrong("apiVersion", message, "write `hk-dr/v1`");
        }
        if self.cluster.kind != "Cluster" {
            let message = format!("kind `{}` is not a cluster", self.cluster.kind);
            self.wrong("kind", message, "write `Cluster`");
        }
    }

    fn versions(&mut self) {
        let kubernetes = self.cluster.kubernetes.version.clone();
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
            if !self.version("kubernetes.version", "Kubernetes", name, &kubernetes) {
                break;
            }
        }
        let etcd = self.cluster.etcd.version.clone();
        if self.version("etcd.version", "etcd", "etcd", &etcd) {
            self.version("etcd.version", "etcd", "etcdutl", &etcd);
        }
        for (index, bundle) in self.cluster.kubernetes.preload_images.iter().enumerate() {
            if !self.pinned.contains_key(bundle) {
                let path = format!("kubernetes.preloadImages.{index}");
                let known: Vec<&str> = self.pinned.keys().map(String::as_str).collect();
                let hint = closest(bundle, &known)
                    .map_or("`hk-dr artifacts list` shows what there is".into(), |close| {
                        format!("did you mean `{close}`?")
                    });
                self.wrong(&path, format!("no image bundle `{bundle}` is pinned in artifacts.lock"), hint);
            }
        }
    }

    fn version(&mut self, path: &str, what: &str, artifact: &str, version: &str) -> bool {
        let known = self.pinned.get(artifact).cloned().unwrap_or_default();
        if known.iter().any(|k| k == version) {
            return true;
        }
        let bare = version.trim_start_matches('v');
        let hint = if known.iter().any(|k| k == bare) {
            format!("write it without `v`: {bare}")
        } else {
            format!("pinned in artifacts.lock: {}", known.join(", "))
        };
        self.wrong(path, format!("{what} {version} can't be installed: its {artifact} is not pinned"), hint);
        false
    }

    /// The subnet and the pod range, if all ranges are sound.
    fn ranges(&mut self) -> Option<(Range, Range)> {
        let mut parsed = BTreeMap::new();
        for (path, text) in [
            ("network.range", &self.cluster.network.range),
            ("network.subnet", &self.cluster.network.subnet),
            ("kubernetes.podRange", &self.cluster.kubernetes.pod_range),
            ("kubernetes.serviceRange", &self.cluster.kubernetes.service_range),
        ] {
            match text.parse::<Range>() {
                Ok(range) => {
                    parsed.insert(path, range);
                }
                Err(hint) => self.wrong(path, format!("{path} is not a range: `{text}`"), hint),
            }
        }
        let get = |path: &str| parsed.get(path).copied();
        let (network, subnet) = (get("network.range")?, get("network.subnet")?);
        let (pods, services) = (get("kubernetes.podRange")?, get("kubernetes.serviceRange")?);
        if !network.covers(subnet) {
            let hint = format!("it must lie in the network's range {network}");
            self.wrong("network.subnet", format!("the subnet {subnet} is outside the network"), hint);
        }
        if subnet.bits() > 29 {
            self.wrong("network.subnet", format!("the subnet {subnet} is too small"), "take /24 or larger");
        }
        if pods.bits() > 24 {
            self.wrong("kubernetes.podRange", format!("{pods} has no /24 for a worker"), "take /16");
        }
        if !(12..=24).contains(&services.bits()) {
            self.wrong(
                "kubernetes.serviceRange",
                format!("{services} is not between /12 and /24"),
                "take 10.96.0.0/16",
            );
        }
        for (path, one, name, other) in [
            ("kubernetes.podRange", pods, "the private network", network),
            ("kubernetes.serviceRange", services, "the private network", network),
            ("kubernetes.serviceRange", services, "the pod range", pods),
        ] {
            if one.overlaps(other) {
                self.wrong(path, format!("{one} overlaps {name} {other}"), "ranges must not share an address");
            }
        }
        Some((subnet, pods))
    }

    fn locations(&mut self) {
        let zone = self.cluster.network.zone.clone();
        let zones: Vec<&str> = LOCATIONS.iter().map(|(_, zone)| *zone).collect();
        if !zones.contains(&zone.as_str()) {
            let hint = closest(&zone, &zones)
                .map_or(format!("one of {}", zones.join(", ")), |z| format!("did you mean `{z}`?"));
            self.wrong("network.zone", format!("unknown network zone `{zone}`"), hint);
            return;
        }
        let mut wanted: Vec<(String, String)> =
            self.servers().into_iter().map(|(path, _, location, _)| (format!("{path}.location"), location)).collect();
        wanted
            .extend(self.balancers().into_iter().map(|(path, _, location, _)| (format!("{path}.location"), location)));
        let floating = self.cluster.floating_ips().iter().enumerate();
        wanted.extend(
            floating.map(|(index, f)| (format!("front.ingress.floatingIPs.{index}.location"), f.location.clone())),
        );
        let fallback = self.cluster.fallback_locations.iter().enumerate();
        wanted.extend(fallback.map(|(index, location)| (format!("fallbackLocations.{index}"), location.clone())));
        for (path, location) in wanted {
            let known: Vec<&str> = LOCATIONS.iter().map(|(name, _)| *name).collect();
            match LOCATIONS.iter().find(|(name, _)| *name == location) {
                None => {
                    let hint = closest(&location, &known)
                        .map_or(format!("one of {}", known.join(", ")), |close| format!("did you mean `{close}`?"));
                    self.wrong(&path, format!("unknown location `{location}`"), hint);
                }
                Some((_, of)) if *of != zone => {
                    let message = format!("{location} is in zone {of}, the network in {zone}");
                    let there: Vec<&str> = LOCATIONS.iter().filter(|(_, z)| *z == zone).map(|(n, _)| *n).collect();
                    self.wrong(
                        &path,
                        message,
                        format!("no network spans zones; in {zone} there are: {}", there.join(", ")),
                    );
                }
                Some(_) => {}
            }
        }
        if self.cluster.fallback_locations.is_empty() {
            let hint = "name the locations, best first, into which a server may move when its own has no capacity";
            self.wrong("fallbackLocations", "fallbackLocations is empty", hint);
        }
        for (index, location) in self.cluster.fallback_locations.iter().enumerate() {
            if self.cluster.fallback_locations[..index].contains(location) {
                let path = format!("fallbackLocations.{index}");
                self.wrong(&path, format!("`{location}` is listed twice"), "each location once, best first");
            }
        }
    }

    fn names(&mut self) {
        let cluster = self.cluster.name.clone();
        let form = "lower-case letters, digits and dashes, beginning with a letter and not ending with a dash";
        if !is_label(&cluster) || cluster.len() > 32 {
            self.wrong("name", format!("`{cluster}` can't be a cluster's name"), format!("{form}; at most 32"));
        }
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (path, name, _, _) in self.servers() {
            let at = format!("{path}.name");
            if !is_label(&name) {
                self.wrong(&at, format!("`{name}` can't be a server's name"), form);
            }
            let full = format!("{cluster}-{name}-etcd");
            if full.len() > FULL_NAME_MAX {
                let message = format!("`{full}`, the name of its volume, is longer than {FULL_NAME_MAX} characters");
                self.wrong(&at, message, format!("shorten it by {}", full.len() - FULL_NAME_MAX));
            }
            match seen.get(&name) {
                Some(first) => {
                    let message = format!("two servers are called `{name}`");
                    let hint = format!("{first} has this name already; names are unique over masters and workers");
                    self.wrong(&at, message, hint);
                }
                None => {
                    seen.insert(name, path);
                }
            }
        }
    }

    fn addresses(&mut self, subnet: Range, pods: Range) {
        let network_first = self.cluster.network.range.parse::<Range>().ok().and_then(|range| range.nth(1));
        let mut seen: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
        for (path, name, _, address) in self.servers().into_iter().chain(self.balancers()) {
            let at = format!("{path}.address");
            let usable = format!(
                "free addresses of {subnet} begin at {}",
                subnet
                    .nth(if network_first.is_some_and(|gateway| subnet.contains(gateway)) { 2 } else { 1 })
                    .unwrap_or(subnet.first())
            );
            if !subnet.contains(address) {
                self.wrong(&at, format!("{address} is not in the subnet {subnet}"), usable);
            } else if address == subnet.first() {
                self.wrong(&at, format!("{address} is the subnet itself, not an address in it"), usable);
            } else if address == subnet.last() {
                self.wrong(&at, format!("{address} is the subnet's broadcast address"), usable);
            } else if Some(address) == network_first || address == CLOUD_GATEWAY {
                self.wrong(&at, format!("{address} is reserved for the network's gateway"), usable);
            } else if path.starts_with("workers") {
                let offset = u32::from(address) - u32::from(subnet.first());
                let room = 1u32.checked_shl(u32::from(24u8.saturating_sub(pods.bits()))).unwrap_or(0);
                if offset >= room {
                    let message = format!(
                        "{address} is number {offset} of its subnet, but {pods} has only {room} ranges for pods"
                    );
                    self.wrong(&at, message, "a worker's pods get the /24 of its address's number: take a lower address or a larger podRange");
                }
            }
            match seen.get(&address) {
                Some(first) => {
                    let hint = format!("`{first}` has it already");
                    self.wrong(&at, format!("the address {address} is given twice"), hint);
                }
                None => {
                    seen.insert(address, name);
                }
            }
        }
    }

    fn masters(&mut self) {
        match self.cluster.masters.len() {
            0 => self.wrong("masters", "there are no masters", "one, or three to survive the loss of one"),
            count if count % 2 == 0 => {
                let message = format!("{count} masters are an even number");
                let hint = format!(
                    "{count} survive the loss of no more masters than {} do, and tie in a split: take {} or {}",
                    count - 1,
                    count - 1,
                    count + 1
                );
                self.wrong("masters", message, hint);
            }
            count if count > 7 => {
                self.wrong(
                    "masters",
                    format!("{count} masters are too many"),
                    "every write waits for a majority: at most 7",
                );
            }
            _ => {}
        }
        for (index, master) in self.cluster.masters.iter().enumerate() {
            if !(10..=10240).contains(&master.etcd_volume_gb) {
                let path = format!("masters.{index}.etcdVolumeGb");
                self.wrong(&path, format!("a volume of {} GB can't be had", master.etcd_volume_gb), "from 10 to 10240");
            }
        }
    }

    fn workers(&mut self) {
        for (index, worker) in self.cluster.workers.iter().enumerate() {
            for (key, value) in &worker.labels {
                let path = format!("{}.labels.{key}", worker_path(index, worker));
                if let Err(hint) = is_node_label(key) {
                    self.wrong(&path, format!("`{key}` can't be a label of this node"), hint);
                }
                let sound =
                    value.is_empty() || (value.len() <= 63 && is_node_label(value).is_ok() && !value.contains('/'));
                if !sound {
                    self.wrong(
                        &path,
                        format!("`{value}` can't be a label's value"),
                        "letters, digits, dashes, underscores and dots; at most 63",
                    );
                }
            }
        }
    }

    fn certificates(&mut self) {
        let CertificatesConfig { valid_days, renew_before_days } = self.cluster.certificates;
        if !(1..=VALID_DAYS_MAX).contains(&valid_days) {
            let message = format!("certificates can't be valid for {valid_days} days");
            self.wrong("certificates.validDays", message, format!("from 1 to {VALID_DAYS_MAX}, the life of a CA"));
        }
        if renew_before_days >= valid_days {
            let message = format!(
                "certificates that are valid for {valid_days} days would be renewed {renew_before_days} days before \
                 their end: at once, and at every build"
            );
            self.wrong("certificates.renewBeforeDays", message, "a tenth of validDays is usual");
        }
    }

    fn backup(&mut self) {
        let backup = &self.cluster.backup;
        if !is_bucket(&backup.bucket) {
            let message = format!("`{}` can't be a bucket's name", backup.bucket);
            self.wrong(
                "backup.bucket",
                message,
                "3 to 63 lower-case letters, digits, dashes and dots, beginning and ending with a letter or digit",
            );
        }
        if let Some(endpoint) = &backup.endpoint
            && !endpoint.starts_with("https://")
            && !endpoint.starts_with("http://")
        {
            let message = format!("`{endpoint}` is not a URL");
            self.wrong("backup.endpoint", message, format!("write `https://{endpoint}`"));
        }
        let file = &backup.recipients_file;
        if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == "..") {
            let message = format!("`{file}` is not a file beside cluster.yaml");
            self.wrong("backup.recipientsFile", message, "what a rebuild needs must be in the same Git directory");
        }
        let copies = self.cluster.backup.copies.clone();
        let home = ("backup.objectLock.days".to_owned(), self.cluster.backup.object_lock);
        let of_copies = copies
            .iter()
            .enumerate()
            .map(|(index, copy)| (format!("backup.copies.{index}.objectLock.days"), copy.object_lock));
        for (path, lock) in std::iter::once(home).chain(of_copies) {
            if lock.is_some_and(|lock| !(1..=LOCK_DAYS_MAX).contains(&lock.days)) {
                let hint = format!("from 1 to {LOCK_DAYS_MAX}: in compliance mode nobody can shorten it afterwards");
                self.wrong(&path, "a lock of so many days is a mistake", hint);
            }
        }
        for (index, copy) in copies.iter().enumerate() {
            if copy.directory().is_some() && copy.object_lock.is_some() {
                let hint = "take it out; a file system with snapshots of its own can do as much";
                self.wrong(&format!("backup.copies.{index}.objectLock"), "a directory has no object lock", hint);
            }
            let at = |field: &str| format!("backup.copies.{index}.{field}");
            if !is_label(&copy.name) || copies[..index].iter().any(|other| other.name == copy.name) {
                let message = format!("`{}` can't be the name of a copy", copy.name);
                self.wrong(&at("name"), message, "lower-case letters, digits and dashes; each name once");
            }
            if !is_bucket(&copy.bucket) {
                self.wrong(&at("bucket"), format!("`{}` can't be a bucket's name", copy.bucket), "as backup.bucket");
            }
            if let Some(endpoint) = &copy.endpoint
                && !["https://", "http://", "file:///"].iter().any(|scheme| endpoint.starts_with(scheme))
            {
                self.wrong(
                    &at("endpoint"),
                    format!("`{endpoint}` is not a URL"),
                    format!("write `https://{endpoint}`"),
                );
            }
        }
        for (index, key) in self.cluster.backup.signed_by.iter().enumerate() {
            if crate::sign::PublicKey::parse(key).is_err() {
                let message = format!("`{key}` is not a minisign public key");
                let hint = "it has 56 characters and begins with RW; `hk-dr keys signing show` prints yours";
                self.wrong(&format!("backup.signedBy.{index}"), message, hint);
            }
        }
    }
}
