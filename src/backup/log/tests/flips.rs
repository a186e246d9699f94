//! No bit of what is restored can change, and nothing can be cut, without being noticed.

use std::sync::Arc;

use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::CLUSTER;
use crate::backup::log::index::EpochDocument;
use crate::backup::log::segment::{Follows, Head, encode, push_change};
use crate::backup::log::{SegmentName, read};
use crate::backup::seal::seal_small;
use crate::backup::tests::support::{FakeEtcd, Keys, keys, newest, recovery_set, take_from};
use crate::backup::{BucketVault, Catalog, Identities, Manifest, Sealed, SignedStore, unseal, verify};
use crate::bolt::Revision;
use crate::ports::{ObjectStore, PutCondition, SystemClock, Vault};
use crate::s3::MemoryStore;
use crate::sign::{SigningKey, Trust, signature_name};

/// One of each kind of object that a restore reads, signed.
struct Bucket {
    raw: MemoryStore,
    store: Arc<dyn ObjectStore>,
    keys: Keys,
    manifest: Manifest,
    segment: String,
    epoch: String,
    vault: BucketVault,
}

const VAULT: &str = "demo/recovery/secrets.tar.zst.age";

impl Bucket {
    async fn new() -> Self {
        let (raw, keys) = (MemoryStore::new(), keys());
        let signer = Arc::new(SigningKey::generate().unwrap());
        let trust = Trust::parse(&[signer.public().to_string()]).unwrap();
        let store = SignedStore::over(Arc::new(raw.clone()), &trust, Some(&signer), false);
        let manifest = take_from(&FakeEtcd::sample(), store.as_ref(), &keys).await.unwrap().manifest;
        let scratch = tempfile::tempdir().unwrap();
        verify(store.as_ref(), &manifest, &keys.first, scratch.path(), &SystemClock).await.unwrap();
        let name = SegmentName { epoch: 1, first: 7, last: 8 };
        let head = Head {
            format: 1,
            cluster: CLUSTER.to_owned(),
            etcd_cluster_id: "abc".to_owned(),
            epoch: 1,
            first: 7,
            last: 8,
            follows: Follows::Snapshot(manifest.id.clone()),
            written_at: manifest.taken_at,
            hk_dr_version: "0".to_owned(),
        };
        let mut records = Vec::new();
        for main in 7..=8 {
            push_change(&mut records, Revision { main, sub: 0 }, false, b"\x0a\x01kvvvvvvvvvvvvvvvvv");
        }
        let (sealed, _) = seal_small(&encode(&head, &records).unwrap(), &keys.recipients).unwrap();
        let segment = name.key(CLUSTER);
        store.put(&segment, sealed, PutCondition::Absent).await.unwrap();
        let epoch = format!("{CLUSTER}/log/{:016}/epoch.json", 1);
        let document = EpochDocument {
            format: 1,
            epoch: 1,
            cluster: CLUSTER.to_owned(),
            etcd_cluster_id: "abc".to_owned(),
            holder: "test".to_owned(),
            started_at: manifest.taken_at,
            recipients: keys.recipients.names(),
        };
        store.put(&epoch, serde_json::to_vec(&document).unwrap().into(), PutCondition::Absent).await.unwrap();
        let vault = BucketVault {
            store: Arc::clone(&store),
            cluster: CLUSTER.to_owned(),
            recipients: keys.recipients.clone(),
            identities: Some(keys.first.clone()),
            clock: Arc::new(SystemClock),
        };
        vault.create(&recovery_set()).await.unwrap();
        Self { raw, store, keys, manifest, segment, epoch, vault }
    }

    fn beside(&self, name: &str) -> String {
        format!("{CLUSTER}/snapshots/{}/{name}", self.manifest.id)
    }

    /// Objects, and what has to be true of each while it is whole.
    fn objects(&self) -> Vec<String> {
        let signed = [
            self.beside("manifest.json"),
            self.beside("verify.json"),
            self.segment.clone(),
            self.epoch.clone(),
            VAULT.into(),
        ];
        let signatures: Vec<String> = signed.iter().map(|key| signature_name(key)).collect();
        let sealed = [self.manifest.etcd.key.clone(), self.manifest.recovery.key.clone()];
        signed.into_iter().chain(signatures).chain(sealed).collect()
    }

    async fn is_good(&self, key: &str) -> bool {
        let object = key.strip_suffix(".minisig").unwrap_or(key);
        let store = self.store.as_ref();
        if object == self.beside("manifest.json") {
            return Catalog::new(store, CLUSTER)
                .find(&self.manifest.id)
                .await
                .is_ok_and(|e| e.manifest == self.manifest);
        }
        if object == self.beside("verify.json") {
            let found = Catalog::new(store, CLUSTER).find(&self.manifest.id).await;
            return found.is_ok_and(|entry| entry.verification.is_some());
        }
        if object == VAULT {
            return self.vault.load().await.is_ok_and(|set| set == Some(recovery_set()));
        }
        if object == self.segment || object == self.epoch {
            return store.get(object, 1 << 20).await.is_ok();
        }
        let sealed = if object == self.manifest.etcd.key { &self.manifest.etcd } else { &self.manifest.recovery };
        drains(store, &self.manifest, sealed, &self.keys.first).await
    }

    /// The segment by itself, as whoever accepts what is unsigned would read it.
    async fn segment_opens(&self) -> bool {
        let sealed = self.raw.get(&self.segment, 1 << 20).await.unwrap();
        read::open(&self.segment, &sealed, &self.keys.recipients.names(), &self.keys.first).is_ok()
    }
}

async fn drains(store: &dyn ObjectStore, manifest: &Manifest, sealed: &Sealed, identities: &Identities) -> bool {
    let Ok(mut stream) = unseal::open(store, sealed, &manifest.recipients, identities).await else { return false };
    while let Some(chunk) = stream.next().await {
        if chunk.is_err() {
            return false;
        }
    }
    true
}

async fn battery(cases: usize) {
    let bucket = Bucket::new().await;
    let objects = bucket.objects();
    for key in &objects {
        assert!(bucket.is_good(key).await, "{key} before");
    }
    let seed: u64 = std::env::var("HK_DR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut flips, mut cuts) = (0, 0);
    for _ in 0..cases {
        let key = &objects[random.random_range(0..objects.len())];
        let whole = bucket.raw.get(key, 1 << 30).await.unwrap();
        // What a person wrote before a signature is no part of it.
        let free = if key.ends_with(".minisig") { whole.iter().position(|b| *b == b'\n').unwrap() } else { 0 };
        // Spaces at the end of a signature's lines mean nothing either.
        let last = if key.ends_with(".minisig") { whole.len() - 1 } else { whole.len() };
        let at = random.random_range(free..last);
        let what = if random.random_range(0..4) == 0 {
            cuts += 1;
            bucket.raw.truncate(key, at);
            format!("{key} cut at {at} of {}", whole.len())
        } else {
            flips += 1;
            let bit = random.random_range(0..8);
            bucket.raw.flip_bit(key, at, bit);
            format!("bit {bit} of byte {at} of {} in {key}", whole.len())
        };
        assert!(!bucket.is_good(key).await, "unnoticed with seed {seed}: {what}");
        if *key == bucket.segment {
            assert!(!bucket.segment_opens().await, "unnoticed without signature, seed {seed}: {what}");
        }
        bucket.raw.put(key, whole, PutCondition::Any).await.unwrap();
    }
    println!("{flips} flipped bits and {cuts} cuts, all noticed");
    assert_eq!(newest(bucket.store.as_ref()).await.manifest, bucket.manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_flipped_bits_and_cuts_are_noticed_in_every_kind_of_object() {
    battery(10_000).await;
}
