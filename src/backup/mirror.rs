//! Brings several buckets to hold the same: what one lacks is copied from another, and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::copies::at_home;
use super::manifest::Manifest;
use super::seal::hex;
use super::signed::is_signed_kind;
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};
use crate::s3::PART_BYTES;
use crate::sign::{SIGNATURE_BYTES_MAX, SUFFIX, Trust, signature_name};

/// An object that one bucket got from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub key: String,
    pub from: String,
    pub to: String,
    pub bytes: u64,
    /// What was there before was damaged or forged.
    pub replaced: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Mirrored {
    pub copied: Vec<Copied>,
    /// Objects that are the same everywhere.
    pub same: usize,
    /// Objects that could not be brought to be the same, and why. They were left as they are.
    pub unresolved: Vec<(String, String)>,
    /// Buckets that could not be listed.
    pub away: Vec<String>,
}

/// A bucket, and its objects with their bytes.
type Listed<'a> = (&'a Arc<dyn ObjectStore>, BTreeMap<String, u64>);

/// What the buckets are compared by.
pub struct MirrorRequest<'a> {
    /// The buckets themselves, without anything before them.
    pub stores: &'a [Arc<dyn ObjectStore>],
    pub cluster: &'a str,
    pub trust: &'a Trust,
    /// Reads everything, instead of believing lengths.
    pub deep: bool,
    pub dry_run: bool,
}

/// Compares the buckets and copies what is missing or wrong. Where two hold different content under one name, that is good
/// which is signed, or has the digest that a manifest names; where neither tells, both are left and named.
pub async fn mirror(request: &MirrorRequest<'_>) -> PortResult<Mirrored> {
    let mut done = Mirrored::default();
    let mut listed: Vec<Listed<'_>> = Vec::new();
    for store in request.stores {
        match store.list(&format!("{}/", request.cluster)).await {
            Ok(objects) => listed.push((store, objects.into_iter().map(|o| (o.key, o.size_bytes)).collect())),
            Err(e) => done.away.push(format!("{}: {}", store.name(), e.message)),
        }
    }
    if listed.len() < 2 {
        let message = format!("fewer than two buckets can be read: {}", done.away.join("; "));
        return Err(PortError::new(ErrorCode::Unreachable, message)
            .hint("nothing was copied; `backup.copies` in cluster.yaml declares further buckets"));
    }
    let mut keys: Vec<&String> =
        listed.iter().flat_map(|(_, objects)| objects.keys()).collect::<BTreeSet<_>>().into_iter().collect();
    // A snapshot is there when its manifest is: so that comes last.
    keys.sort_by_key(|key| (key.ends_with("/manifest.json"), *key));
    let digests = digests(request.trust, &listed).await;
    for key in keys {
        // Signatures go with their objects.
        let object = key.strip_suffix(SUFFIX).unwrap_or(key);
        let signed = |name: &str| is_signed_kind(name) && !request.trust.is_empty();
        if at_home(key) || (object != key && signed(object)) {
            continue;
        }
        let sizes: Vec<Option<u64>> = listed.iter().map(|(_, objects)| objects.get(key).copied()).collect();
        let name = signature_name(key);
        let vouched = !signed(key) || listed.iter().all(|(_, objects)| objects.contains_key(&name));
        if !request.deep && vouched && sizes.iter().all(|size| size.is_some() && *size == sizes[0]) {
            done.same += 1;
            continue;
        }
        let digest = digests.get(key).cloned().or_else(|| named_by_digest(key));
        if let Err(e) = level(request, &listed, &sizes, key, digest.as_ref(), &mut done).await {
            done.unresolved.push((key.clone(), e.message));
        }
    }
    Ok(done)
}

/// Digests of stored objects as manifests name them; where there are keys, signed ones only.
async fn digests(trust: &Trust, listed: &[Listed<'_>]) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    for (store, objects) in listed {
        for key in objects.keys().filter(|key| key.ends_with("/manifest.json")) {
            if !is_good(trust, store.as_ref(), key, "", None).await.unwrap_or(false) {
                continue;
            }
            let Ok(bytes) = store.get(key, Manifest::BYTES_MAX).await else { continue };
            let Ok(manifest) = Manifest::parse(key, &bytes) else { continue };
            for sealed in [manifest.etcd, manifest.recovery] {
                known.entry(sealed.key).or_insert(sealed.stored_sha256);
            }
        }
    }
    known
}

/// restic names its files by what they hold.
fn named_by_digest(key: &str) -> Option<String> {
    let (_, file) = key.split_once("/volumes/restic/")?;
    let name = file.rsplit('/').next().filter(|name| name.len() == 64 && *name != file)?;
    name.bytes().all(|b| b.is_ascii_hexdigit()).then(|| name.to_owned())
}

/// One object.
async fn level(
    request: &MirrorRequest<'_>,
    listed: &[Listed<'_>],
    sizes: &[Option<u64>],
    key: &str,
    digest: Option<&String>,
    done: &mut Mirrored,
) -> PortResult<()> {
    let mut found: Vec<Option<String>> = Vec::new();
    for ((store, _), size) in listed.iter().zip(sizes) {
        found.push(match size {
            Some(_) => digest_of(store.as_ref(), key).await.ok(),
            None => None,
        });
    }
    let signed = is_signed_kind(key) && !request.trust.is_empty();
    let mut goods = vec![false; listed.len()];
    let mut good: Option<(usize, Option<String>)> = None;
    for (index, (store, _)) in listed.iter().enumerate() {
        let Some(own) = &found[index] else { continue };
        goods[index] = is_good(request.trust, store.as_ref(), key, own, digest).await?;
        if goods[index] {
            // Of findings about a snapshot the later one counts.
            let at = found_at(store.as_ref(), key).await;
            if good.as_ref().is_none_or(|(_, before)| at > *before) {
                good = Some((index, at));
            }
        }
    }
    let good = good.map(|(index, _)| index);
    let different: BTreeSet<&String> = found.iter().flatten().collect();
    let judged = digest.is_some() || signed;
    let source = match good {
        Some(index) if judged || different.len() == 1 => index,
        Some(_) => {
            return Err(PortError::new(
                ErrorCode::Corrupt,
                "the buckets hold different content, and nothing says which is right",
            ));
        }
        None => return Err(PortError::new(ErrorCode::Corrupt, "no bucket has it as it was written")),
    };
    let right = found[source].clone().unwrap_or_default();
    let mut touched = false;
    for (index, (store, _)) in listed.iter().enumerate() {
        let same = found[index].as_ref() == Some(&right);
        if same && goods[index] {
            continue;
        }
        touched = true;
        let bytes = sizes[source].unwrap_or_default();
        if !request.dry_run {
            let condition = if sizes[index].is_none() { PutCondition::Absent } else { PutCondition::Any };
            if signed {
                let name = signature_name(key);
                let signature = listed[source].0.get(&name, SIGNATURE_BYTES_MAX).await?;
                store.put(&name, signature, PutCondition::Any).await?;
            }
            if !same {
                copy(listed[source].0.as_ref(), store.as_ref(), key, condition).await?;
            }
            if digest_of(store.as_ref(), key).await? != right {
                let message = format!("{} does not give back what it took", store.name());
                return Err(PortError::new(ErrorCode::Corrupt, message));
            }
        }
        done.copied.push(Copied {
            key: key.to_owned(),
            from: listed[source].0.name(),
            to: store.name(),
            bytes,
            replaced: sizes[index].is_some(),
        });
    }
    done.same += usize::from(!touched);
    Ok(())
}

/// When a document about a snapshot was written; none for everything else.
async fn found_at(store: &dyn ObjectStore, key: &str) -> Option<String> {
    if !key.ends_with("/verify.json") && !key.ends_with("/bad.json") {
        return None;
    }
    let bytes = store.get(key, Manifest::BYTES_MAX).await.ok()?;
    let document: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let at: jiff::Timestamp = document["at"].as_str()?.parse().ok()?;
    Some(format!("{:020}", at.as_microsecond()))
}

async fn is_good(
    trust: &Trust,
    store: &dyn ObjectStore,
    key: &str,
    own: &str,
    digest: Option<&String>,
) -> PortResult<bool> {
    /// Larger than any object of these kinds.
    const OBJECT_BYTES_MAX: u64 = 256 << 20;
    if let Some(digest) = digest {
        return Ok(own == digest);
    }
    if !is_signed_kind(key) || trust.is_empty() {
        return Ok(true);
    }
    let data = store.get(key, OBJECT_BYTES_MAX).await?;
    let signature = match store.get(&signature_name(key), SIGNATURE_BYTES_MAX).await {
        Ok(signature) => Some(signature),
        Err(e) if e.code == ErrorCode::NotFound => None,
        Err(e) => return Err(e),
    };
    Ok(trust.check(key, &data, signature.as_deref()).is_ok())
}

async fn digest_of(store: &dyn ObjectStore, key: &str) -> PortResult<String> {
    let mut body = store.stream(key, 0).await?;
    let mut digest = Sha256::new();
    while let Some(chunk) = body.next().await {
        digest.update(&chunk?);
    }
    Ok(hex(&digest.finalize()))
}

async fn copy(from: &dyn ObjectStore, to: &dyn ObjectStore, key: &str, condition: PutCondition) -> PortResult<()> {
    let mut body = from.stream(key, 0).await?;
    let mut part = BytesMut::new();
    let mut upload = None;
    while let Some(chunk) = body.next().await {
        part.extend_from_slice(&chunk?);
        while part.len() >= PART_BYTES {
            let lane = match &mut upload {
                Some(lane) => lane,
                None => upload.insert(to.upload(key).await?),
            };
            lane.part(part.split_to(PART_BYTES).freeze()).await?;
        }
    }
    let rest: Bytes = part.freeze();
    match upload {
        None => to.put(key, rest, condition).await.map(|_| ()),
        Some(mut lane) => {
            if !rest.is_empty() {
                lane.part(rest).await?;
            }
            lane.complete(condition).await.map(|_| ())
        }
    }
}
