//! Proves that the cluster that came back is the one that was lost: each claim is asked of the cluster itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::canary::{self, Canary};
use super::compare::{Comparison, Keyspace, compare};
use super::uses::{self, NAMESPACE, Notes, READER};
use super::web::TokenApi;
use super::{Check, DemoError};
use crate::bolt::Backend;
use crate::distribution::api_name;
use crate::plan::OWNER_LABEL;
use crate::ports::{Collection, Etcd, HashKv, Kube, PortResult};
use crate::steps::{ServerOutput, World};

/// Everything Kubernetes keeps in etcd is below it.
const REGISTRY: &[u8] = b"/registry/";
/// Members apply what a majority has agreed on a little later than others.
const AGREE_WITHIN: Duration = Duration::from_secs(10);

/// What there is from before the loss, to hold the cluster against.
pub struct Before<'a> {
    pub notes: &'a Notes,
    /// All canaries that were acknowledged.
    pub canaries: &'a [Canary],
    /// The snapshot's etcd file.
    pub snapshot: &'a Path,
    /// When the loss began.
    pub lost_at: Timestamp,
    /// The location that is gone for good.
    pub lost_location: &'a str,
}

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proofs {
    pub checks: Vec<Check>,
    pub objects: Comparison,
    /// Age of the newest surviving canary at the loss. None: no canary survived.
    pub rpo_seconds: Option<f64>,
}

/// Looks at everything but the forgotten disk.
///
/// # Errors
/// The cluster can't be asked at all.
pub async fn prove(world: &World, before: &Before<'_>) -> Result<Proofs, DemoError> {
    let hosts = uses::hosts(world).await?;
    let masters = uses::masters(world, &hosts);
    let first = masters.first().ok_or_else(|| DemoError::new("there is no master"))?;
    let etcd = uses::etcd(world, &hosts).await?;
    let kube = world.kube(first).await?;
    let (etcd, kube) = (etcd.as_ref(), kube.as_ref());
    let api = TokenApi::new(&before.notes.ca_pem, &api_name(&world.cluster), first.address)?;

    let held = snapshot_keyspace(before.snapshot)?;
    let objects = compare(&held, &live_keyspace(etcd).await?);
    let (rpo_seconds, canaries) = recovery_point(kube, before).await?;
    // Written after the snapshot and before the loss: nobody who saw this revision may go on from there.
    let seen = before.canaries.last().map_or(0, |c| c.revision);
    let checks = vec![
        objects_check(&objects),
        canaries,
        Check::of("etcd members hold the same", hashes_agree(etcd).await),
        Check::of("every Secret reads as written", secrets_read(kube, before.notes).await),
        Check::of("a service-account token from before authenticates", token_works(&api, before.notes).await),
        Check::of("a forged token is refused", forged_is_refused(&api, before.notes).await),
        Check::of("watches from before start anew", watches_end(etcd, &api, before.notes, seen).await),
        Check::of("nothing is in the lost location", location_empty(world, &hosts, before.lost_location).await),
    ];
    Ok(Proofs { checks, objects, rpo_seconds })
}

fn snapshot_keyspace(path: &Path) -> Result<Keyspace, DemoError> {
    let failed = |e: &dyn std::fmt::Display| DemoError::new(format!("read the snapshot {}: {e}", path.display()));
    let backend = Backend::open(File::open(path).map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    let mut held = Keyspace::new();
    for stored in backend.live_at(None) {
        let kv = stored.map_err(|e| failed(&e))?.key_value;
        if kv.key.starts_with(REGISTRY) {
            held.insert(kv.key, kv.value);
        }
    }
    Ok(held)
}

async fn live_keyspace(etcd: &dyn Etcd) -> PortResult<Keyspace> {
    let mut live = Keyspace::new();
    let mut page = |entries: Vec<crate::ports::KeyValue>| live.extend(entries.into_iter().map(|kv| (kv.key, kv.value)));
    let member = etcd.members().into_iter().next().unwrap_or_default();
    etcd.range(&member, REGISTRY, 0, &mut page).await?;
    Ok(live)
}

fn objects_check(objects: &Comparison) -> Check {
    let mut detail = format!(
        "{} in the snapshot: {} equal, {} changed as expected, {} lost",
        objects.compared, objects.equal, objects.expected, objects.lost
    );
    if let Some(first) = objects.lost_objects.first() {
        detail = format!("{detail} ({first}{})", if objects.lost > 1 { ", …" } else { "" });
    }
    Check::new("no object is lost", objects.lost == 0 && objects.equal > 0, detail)
}

/// All canaries up to the newest survivor must be there: a hole would mean that the snapshot was no moment in time.
async fn recovery_point(kube: &dyn Kube, before: &Before<'_>) -> Result<(Option<f64>, Check), DemoError> {
    let present: std::collections::BTreeSet<String> = kube
        .list(&canary::collection())
        .await?
        .iter()
        .filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    let survivor = canary::newest_survivor(before.canaries, |name| present.contains(name));
    let age = survivor.map(|c| before.lost_at.duration_since(c.acknowledged_at).as_secs_f64().max(0.0));
    let survived = before.canaries.iter().filter(|c| present.contains(&c.name)).count();
    let holes = before
        .canaries
        .iter()
        .filter(|c| survivor.is_some_and(|s| c.acknowledged_at < s.acknowledged_at) && !present.contains(&c.name))
        .count();
    let detail = match age {
        Some(age) => format!(
            "{survived} of {} acknowledged, {holes} missing in between; the newest was {age:.1} s old at the loss",
            before.canaries.len()
        ),
        None => format!("none of {} acknowledged ones", before.canaries.len()),
    };
    Ok((age, Check::new("canaries up to the snapshot survived", age.is_some() && holes == 0, detail)))
}

async fn hashes_agree(etcd: &dyn Etcd) -> Result<(bool, String), DemoError> {
    let members = etcd.members();
    let first = members.first().ok_or_else(|| DemoError::new("etcd has no member"))?;
    let revision = etcd.status(first).await?.revision;
    let mut hashes: Vec<HashKv> = Vec::new();
    let end = tokio::time::Instant::now() + AGREE_WITHIN;
    for member in &members {
        loop {
            match etcd.hash_kv(member, revision).await {
                Ok(hash) => break hashes.push(hash),
                // It has not got there yet.
                Err(_) if tokio::time::Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let same = hashes.windows(2).all(|pair| pair[0] == pair[1]);
    let shown: Vec<String> = hashes.iter().map(|h| format!("{:08x}", h.hash)).collect();
    let detail = format!("HashKV at revision {revision} on {}: {}", members.join(", "), shown.join(" "));
    Ok((same && hashes.len() == members.len() && members.len() > 1, detail))
}

async fn secrets_read(kube: &dyn Kube, notes: &Notes) -> Result<(bool, String), DemoError> {
    let secrets = Collection { api_version: "v1".into(), plural: "secrets".into(), namespace: None };
    // A Secret that can't be decrypted fails the whole list.
    let listed = kube.list(&secrets).await?;
    let contents: BTreeMap<&str, String> = listed
        .iter()
        .filter(|o| o["metadata"]["namespace"] == NAMESPACE)
        .filter_map(|o| Some((o["metadata"]["name"].as_str()?, uses::digest(o["data"]["content"].as_str()?))))
        .collect();
    let wrong: Vec<&str> = notes
        .secrets
        .iter()
        .filter(|(name, digest)| contents.get(name.as_str()) != Some(*digest))
        .map(|(name, _)| name.as_str())
        .collect();
    let mut detail = format!(
        "{} read, {} compared with what was written, {} differ",
        listed.len(),
        notes.secrets.len(),
        wrong.len()
    );
    if let Some(first) = wrong.first() {
        detail = format!("{detail} ({first}, …)");
    }
    Ok((wrong.is_empty() && !notes.secrets.is_empty(), detail))
}

async fn token_works(api: &TokenApi, notes: &Notes) -> Result<(bool, String), DemoError> {
    let (status, user) = api.who_am_i(&SecretString::from(notes.token.clone())).await?;
    let wanted = format!("system:serviceaccount:{NAMESPACE}:{READER}");
    let seen = user.as_deref().unwrap_or("nobody");
    Ok((user.as_ref() == Some(&wanted), format!("{status}: the API takes its bearer for {seen}")))
}

async fn forged_is_refused(api: &TokenApi, notes: &Notes) -> Result<(bool, String), DemoError> {
    let (status, user) = api.who_am_i(&SecretString::from(forge(&notes.token))).await?;
    Ok((
        status == 401 && user.is_none(),
        format!("{status} for the same token with one letter of its signature changed"),
    ))
}

/// Changes one letter in the middle of the signature.
fn forge(token: &str) -> String {
    let signature = token.rfind('.').map_or(0, |dot| dot + 1);
    let at = signature + (token.len() - signature) / 2;
    let changed = |(i, c): (usize, char)| {
        if i != at {
            c
        } else if c == 'A' {
            'B'
        } else {
            'A'
        }
    };
    token.char_indices().map(changed).collect()
}

async fn watches_end(
    etcd: &dyn Etcd,
    api: &TokenApi,
    notes: &Notes,
    revision: i64,
) -> Result<(bool, String), DemoError> {
    if revision == 0 {
        return Err(DemoError::new("no canary was written after the snapshot"));
    }
    let mut told = 0;
    let members = etcd.members();
    for member in &members {
        told += usize::from(etcd.watch_is_compacted(member, REGISTRY, revision).await?);
    }
    let path =
        format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=true&resourceVersion={revision}&timeoutSeconds=2");
    let (status, event) = api.get(&path, &SecretString::from(notes.token.clone())).await?;
    // Told by the answer itself, or by the first event of an answer that had begun.
    let gone = status == 410 || (status == 200 && event["type"] == "ERROR" && event["object"]["code"] == 410);
    let api_said = if gone { "410 Gone".to_owned() } else { format!("{status}, {event:.80}") };
    let detail = format!(
        "from revision {revision}, seen before the loss: {told} of {} etcd members say compacted, the API says {api_said}",
        members.len()
    );
    Ok((told == members.len() && told > 0 && gone, detail))
}

async fn location_empty(
    world: &World,
    hosts: &BTreeMap<String, ServerOutput>,
    location: &str,
) -> Result<(bool, String), DemoError> {
    let volumes = world.cloud.volumes(&format!("{OWNER_LABEL}=={}", world.cluster.name)).await?;
    let left = hosts.values().filter(|h| h.location == location).count()
        + volumes.iter().filter(|v| v.location == location).count();
    let declared = world.cluster.masters.len() + world.cluster.workers.len();
    let places: Vec<String> = hosts.values().map(|h| format!("{} {}", h.name, h.location)).collect();
    let detail = format!("{location}: {left} servers and volumes; now {}", places.join(", "));
    Ok((left == 0 && hosts.len() == declared && volumes.len() == world.cluster.masters.len(), detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_token_differs_in_one_letter_of_its_signature() {
        let token = "aaaa.bbbb.AAAAAA";
        let forged = forge(token);
        let changed: Vec<usize> = (0..token.len()).filter(|i| token.as_bytes()[*i] != forged.as_bytes()[*i]).collect();
        assert_eq!((forged.len(), changed.len()), (token.len(), 1));
        assert!(changed[0] > token.rfind('.').unwrap());
    }

    #[test]
    fn an_empty_snapshot_proves_nothing() {
        assert!(!objects_check(&Comparison::default()).ok);
        assert!(objects_check(&Comparison { compared: 1, equal: 1, ..Comparison::default() }).ok);
        assert!(!objects_check(&Comparison { compared: 2, equal: 1, lost: 1, ..Comparison::default() }).ok);
    }
}
