//! Level `boot`: etcd and kube-apiserver start on a snapshot, with nothing else around them, and every object is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::local_etcd::LocalEtcd;
use super::manifest::{Manifest, Verification};
use super::objects::{ObjectName, collection};
use super::rehearsed::{Plain, plain};
use super::{Identities, IsolatedApi, Programs, catalog, verify};
use crate::bolt::Backend;
use crate::config::Cluster;
use crate::distribution::pki::ClusterSecrets;
use crate::ports::{Clock, Collection, ErrorCode, Etcd, Kube, ObjectStore, PortError, PortResult};

/// How long a custom resource may take to be served after the API server is ready.
const SERVED_DEADLINE: Duration = Duration::from_secs(60);
/// Objects that end by themselves, or that an API server's own housekeeping removes.
const PASSING: [&str; 4] = ["events", "events.events.k8s.io", "leases", "leases.coordination.k8s.io"];
/// Objects that are missing, as far as they are named.
const NAMED: usize = 5;

/// What is started on what.
pub struct BootRequest<'a> {
    pub store: &'a dyn ObjectStore,
    pub manifest: &'a Manifest,
    pub identities: &'a Identities,
    pub programs: &'a Programs,
    /// The declared cluster: whose names the API server's certificate carries.
    pub cluster: &'a Cluster,
    /// Plain data lies in a directory of its own below, readable by its owner only.
    pub scratch: &'a Path,
    pub clock: &'a dyn Clock,
    /// The living cluster, whose members are asked for their hash at the snapshot's revision.
    pub live: Option<&'a dyn Etcd>,
}

/// Starts both on a snapshot, reads every object through the API (Secrets come back decrypted or not at all), and
/// compares the data's hash with what the members said, then and now. What was found is recorded.
///
/// # Errors
/// `Corrupt` if something is missing or differs; the member that differs is named.
pub async fn boot(request: &BootRequest<'_>) -> PortResult<Verification> {
    let outcome = started(request).await;
    verify::judge(request.store, request.manifest, request.clock, outcome).await
}

async fn started(request: &BootRequest<'_>) -> PortResult<Verification> {
    let BootRequest { store, manifest, identities, scratch, clock, .. } = *request;
    let Plain { path, mut verification, dir } = plain(store, manifest, identities, scratch, clock).await?;
    let set = catalog::read_recovery(store, manifest, identities).await?;
    let secrets = ClusterSecrets::from_recovery_set(&set)
        .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("the recovery set of {}: {e}", manifest.id)))?;
    let stored = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || stored_objects(&path))
            .await
            .map_err(|e| PortError::new(ErrorCode::Local, format!("reading the snapshot died: {e}")))??
    };
    let api = IsolatedApi::start(request.programs, &path, request.cluster, &secrets, dir.path(), clock).await?;
    let etcd = api.etcd.client().await?;
    verification.hash_agreed = compare_hashes(manifest, &etcd, request.live).await?;
    verification.not_served = read_all(&api.kube, stored).await.map_err(|e| match e.code {
        ErrorCode::Corrupt => e,
        _ => e.context(format!("reading the objects of {}", manifest.id)),
    })?;
    verification.level = "boot".to_owned();
    verification.at = clock.now();
    Ok(verification)
}

/// Namespace and name.
type ObjectId = (Option<String>, String);

/// Objects that are stored, by where the API serves them; and how many keys are nothing that it could serve.
#[derive(Default)]
pub(super) struct Stored {
    by_collection: BTreeMap<(String, String), BTreeSet<ObjectId>>,
    other: BTreeMap<String, u64>,
}

impl Stored {
    /// Objects that the API serves.
    pub fn count(&self) -> u64 {
        self.by_collection.values().map(|objects| objects.len() as u64).sum()
    }
}

pub(super) fn stored_objects(path: &Path) -> PortResult<Stored> {
    let file =
        File::open(path).map_err(|e| PortError::new(ErrorCode::Local, format!("read {}: {e}", path.display())))?;
    let backend = Backend::open(file)?;
    let mut stored = Stored::default();
    for version in backend.live_at(None) {
        let kv = version?.key_value;
        let name = ObjectName::of(&kv.key);
        let place = if internal(&name.kind) { None } else { collection(&name, &kv.value).ok() };
        match place {
            Some(place) => {
                let objects = stored.by_collection.entry((place.api_version, name.kind)).or_default();
                objects.insert((name.namespace, name.name));
            }
            None => *stored.other.entry(name.kind).or_default() += 1,
        }
    }
    Ok(stored)
}

/// What an API server keeps for itself and does not serve.
fn internal(kind: &str) -> bool {
    matches!(kind, "masterleases" | "ranges" | "peerserverleases" | "health" | "(not Kubernetes)")
}

/// Lists every collection and looks for each stored object in it. Returns what is not served, by kind.
pub(super) async fn read_all(kube: &dyn Kube, stored: Stored) -> PortResult<BTreeMap<String, u64>> {
    let mut not_served = stored.other;
    for ((api_version, kind), objects) in stored.by_collection {
        let plural = kind.split('.').next().unwrap_or_default().to_owned();
        let place = Collection { api_version, plural, namespace: None };
        let Some(listed) = list(kube, &place).await? else {
            *not_served.entry(kind).or_default() += objects.len() as u64;
            continue;
        };
        if PASSING.contains(&kind.as_str()) {
            continue;
        }
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let found: BTreeSet<(Option<String>, String)> = listed
            .iter()
            .filter_map(|object| Some((text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"])?)))
            .collect();
        let missing: Vec<String> = objects
            .difference(&found)
            .map(|(namespace, name)| format!("{}{name}", namespace.as_ref().map_or(String::new(), |n| format!("{n}/"))))
            .collect();
        if !missing.is_empty() {
            let shown = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let message = format!("{} of {} {kind} are stored and not served: {shown}", missing.len(), objects.len());
            return Err(PortError::new(ErrorCode::Corrupt, message).hint("do not restore it; use another snapshot"));
        }
    }
    Ok(not_served)
}

/// All objects of a collection, or none if this API server does not serve it. One that cannot be decoded or decrypted
/// fails the whole list.
async fn list(kube: &dyn Kube, place: &Collection) -> PortResult<Option<Vec<serde_json::Value>>> {
    let begun = Instant::now();
    loop {
        match kube.list(place).await {
            Ok(objects) => return Ok(Some(objects)),
            // Custom resources are served a moment after their definitions were read.
            Err(e) if e.code == ErrorCode::NotFound && place.api_version.contains('.') => {
                let builtin = place.api_version.split('/').next().is_some_and(|group| group.ends_with(".k8s.io"));
                if builtin || begun.elapsed() > SERVED_DEADLINE {
                    return Ok(None);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(e) if e.code == ErrorCode::NotFound => return Ok(None),
            Err(e) if e.code == ErrorCode::ServerError => {
                let message = format!("not every object of {} can be read: {}", place.plural, e.message);
                return Err(PortError::new(ErrorCode::Corrupt, message).hint(
                    "the key that encrypted them is not in the recovery set, or they are damaged: use another snapshot",
                ));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Compares the data's HashKV with what the members agreed on before the snapshot, and with what each says now. Hashes of
/// different compactions say nothing about each other. Returns the members that agreed.
async fn compare_hashes(manifest: &Manifest, etcd: &dyn Etcd, live: Option<&dyn Etcd>) -> PortResult<Vec<String>> {
    let mut agreed = Vec::new();
    let compared = &manifest.hash_kv;
    // etcd answers for the revision of its last compaction with a hash it kept from before it.
    if let (Some(hash), Some(compaction)) = (compared.hash, compared.compact_revision)
        && compaction.max(0) == manifest.compact_revision
        && compared.revision > manifest.compact_revision
    {
        let here = etcd.hash_kv(LocalEtcd::MEMBER, compared.revision).await?;
        if here.compact_revision.max(0) == compaction.max(0) {
            if here.hash != hash {
                let message = format!(
                    "snapshot {} holds other data than its members did: HashKV at revision {} is {:08x}, they agreed on {hash:08x}",
                    manifest.id, compared.revision, here.hash
                );
                return Err(PortError::new(ErrorCode::Corrupt, message).hint("do not restore it; use another snapshot"));
            }
            agreed.extend(compared.agreed.iter().cloned());
        }
    }
    let Some(live) = live else { return Ok(agreed) };
    let here = etcd.hash_kv(LocalEtcd::MEMBER, manifest.revision).await?;
    let mut differing = Vec::new();
    for member in live.members() {
        // A member that has compacted the revision away, or does not answer, can't be compared.
        let Ok(there) = live.hash_kv(&member, manifest.revision).await else { continue };
        if there.compact_revision != here.compact_revision {
            continue;
        }
        if there.hash == here.hash {
            agreed.push(member);
        } else {
            differing.push(format!("{member} {:08x}", there.hash));
        }
    }
    agreed.sort();
    agreed.dedup();
    if differing.is_empty() {
        return Ok(agreed);
    }
    let message = format!(
        "at revision {} snapshot {} has HashKV {:08x}, but {}",
        manifest.revision,
        manifest.id,
        here.hash,
        differing.join(", ")
    );
    // Whose data is wrong is for a person to find out: the snapshot is not called bad for a corrupt member's sake.
    Err(PortError::new(ErrorCode::Untrusted, message).hint(
        "nothing was changed; if the others agree with the snapshot, that member is corrupt: remove it and let it join again empty",
    ))
}
