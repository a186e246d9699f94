//! Materialized files against a real etcd: whatever revision is asked for, a stock etcd that is restored from the file
//! holds what the living one held then, to the byte (HashKV).

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use etcd_client::{Client, CompactionOptions, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::backup::local_etcd::LocalEtcd;
use crate::backup::materialize::{Change, Logged, UNKNOWN_TTL_SECONDS, materialize, place};
use crate::bolt::tests::binary;
use crate::bolt::{Backend, Revision, decode, encode, revision};
use crate::ports::{ErrorCode, Etcd, KeyValue, PortResult, WatchNews};

/// The pinned etcd, or another version: HK_DR_TEST_ETCD names a directory with `etcd` and `etcdutl`.
fn program(name: &str) -> PathBuf {
    match std::env::var_os("HK_DR_TEST_ETCD") {
        Some(dir) => Path::new(&dir).join(name),
        None => binary(&format!("{name}-3.6.16")),
    }
}

/// What etcd said at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub revision: i64,
    pub hash: u32,
    pub keys: Vec<KeyValue>,
}

pub async fn ask(etcd: &LocalEtcd, at: i64) -> Said {
    let client = etcd.client().await.unwrap();
    let hash = client.hash_kv(LocalEtcd::MEMBER, at).await.unwrap();
    let mut keys = Vec::new();
    let revision = client.range(LocalEtcd::MEMBER, b"", at, &mut |page| keys.extend(page)).await.unwrap();
    Said { revision, hash: hash.hash, keys }
}

pub async fn save(etcd: &LocalEtcd, path: &Path) {
    let mut stream = etcd.client().await.unwrap().snapshot(LocalEtcd::MEMBER, 1 << 20).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    std::fs::write(path, bytes).unwrap();
}

/// Stock etcdutl finds nothing wrong with the file and restores it, and stock etcd starts over it.
pub async fn restored(file: &Path, dir: &Path) -> LocalEtcd {
    let etcdutl = program("etcdutl");
    // Walks every page, as bbolt's own check does.
    let status = Command::new(&etcdutl).args(["snapshot", "status", "-w", "json"]).arg(file).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    let made = Command::new(&etcdutl).args(["snapshot", "restore", "--data-dir"]).arg(dir).arg(file).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    LocalEtcd::start(&program("etcd"), dir, &["--force-new-cluster"]).await.unwrap()
}

/// Random changes; each call is at least one revision, unless it finds nothing to do.
pub struct Workload {
    pub client: Client,
    random: StdRng,
    leases: Vec<i64>,
    revision: i64,
    pub compacted: i64,
}

impl Workload {
    pub async fn new(etcd: &LocalEtcd, seed: u64) -> Self {
        let client = Client::connect([etcd.url()], None).await.unwrap();
        Self { client, random: StdRng::seed_from_u64(seed), leases: Vec::new(), revision: 1, compacted: 0 }
    }

    fn key(&mut self) -> Vec<u8> {
        let mut key = format!("/registry/k/{}", self.random.random_range(0..24)).into_bytes();
        if self.random.random_bool(0.2) {
            key.extend_from_slice(&[0, 0xff, 0x80, b'\n']);
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let bytes = *[0, 1, 40, 900, 5000, 70_000].choose(&mut self.random).unwrap();
        (0..bytes).map(|_| self.random.random()).collect()
    }

    async fn lease(&mut self) -> i64 {
        if self.leases.is_empty() || self.random.random_bool(0.4) {
            let ttl = self.random.random_range(600..900);
            self.leases.push(self.client.lease_grant(ttl, None).await.unwrap().id());
        }
        *self.leases.choose(&mut self.random).unwrap()
    }

    pub async fn change(&mut self) {
        let (key, value) = (self.key(), self.value());
        let header = match self.random.random_range(0..20) {
            0..8 => self.client.put(key, value, None).await.unwrap().take_header(),
            8..11 => {
                let options = PutOptions::new().with_lease(self.lease().await);
                self.client.put(key, value, Some(options)).await.unwrap().take_header()
            }
            11..14 => self.client.delete(key, None).await.unwrap().take_header(),
            14 => {
                let options = DeleteOptions::new().with_range("/registry/k/2");
                self.client.delete("/registry/k/10", Some(options)).await.unwrap().take_header()
            }
            15 if !self.leases.is_empty() => {
                let at = self.random.random_range(0..self.leases.len());
                let lease = self.leases.swap_remove(at);
                self.client.lease_revoke(lease).await.unwrap().take_header()
            }
            _ => {
                let mut operations: Vec<TxnOp> = Vec::new();
                for n in 0..self.random.random_range(1..6) {
                    let value = self.value();
                    operations.push(TxnOp::put(format!("/registry/txn/{n}"), value, None));
                }
                operations.push(TxnOp::delete(key, None));
                self.client.txn(Txn::new().and_then(operations)).await.unwrap().take_header()
            }
        };
        self.revision = self.revision.max(header.unwrap().revision());
    }

    /// Compacts somewhere, and sometimes defragments.
    pub async fn tidy(&mut self) {
        if self.revision > self.compacted + 1 {
            self.compacted = self.random.random_range(self.compacted + 1..=self.revision);
            self.client.compact(self.compacted, Some(CompactionOptions::new().with_physical())).await.unwrap();
        }
        if self.random.random_bool(0.5) {
            self.client.defragment().await.unwrap();
        }
    }

    /// The newest revision, asked: a lease may have been revoked without keys.
    pub async fn newest(&mut self) -> i64 {
        let options = GetOptions::new().with_count_only();
        self.client.get("x", Some(options)).await.unwrap().header().unwrap().revision()
    }
}

/// Collects what a watch delivers up to a revision, as the log would have it.
async fn watched(etcd: &LocalEtcd, from: i64, to: i64) -> Vec<PortResult<Logged>> {
    let client = etcd.client().await.unwrap();
    let mut watch = client.watch(LocalEtcd::MEMBER, from).await.unwrap();
    let mut logged: Vec<Change> = Vec::new();
    watch.ask_progress().await.unwrap();
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(300), watch.next()).await {
            Err(_) => watch.ask_progress().await.unwrap(),
            Ok(news) => match news.unwrap() {
                WatchNews::Progress(revision) if revision >= to => break,
                WatchNews::Progress(_) => {}
                WatchNews::Compacted(at) => panic!("compacted at {at}"),
                WatchNews::Changes(changes) => {
                    for change in changes {
                        let main = change.kv.mod_revision;
                        let sub = logged.last().filter(|l| l.revision.main == main).map_or(0, |l| l.revision.sub + 1);
                        let kv = if change.tombstone { KeyValue { mod_revision: 0, ..change.kv } } else { change.kv };
                        let revision = Revision { main, sub };
                        logged.push(Change { revision, tombstone: change.tombstone, value: encode(&kv) });
                    }
                }
            },
        }
    }
    logged.into_iter().map(|change| Ok(Logged::Change(change))).collect()
}

fn write(base: &Path, log: Vec<PortResult<Logged>>, at: Option<i64>, out: &Path) -> PortResult<i64> {
    let base = Backend::open(File::open(base).unwrap())?;
    place(out, |file| materialize(&base, &mut log.into_iter(), at, file)).map(|(made, _)| made.revision)
}

async fn compare(base: &Path, log: &[PortResult<Logged>], said: &Said, dir: &Path) {
    let (file, data) = (dir.join(format!("{}.db", said.revision)), dir.join(format!("{}.data", said.revision)));
    let reached = write(base, log.to_vec(), Some(said.revision), &file).unwrap();
    assert_eq!(reached, said.revision);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let etcd = restored(&file, &data).await;
    assert_eq!(etcd.client().await.unwrap().status(LocalEtcd::MEMBER).await.unwrap().revision, said.revision);
    let now = ask(&etcd, said.revision).await;
    assert!(now.keys == said.keys, "revision {}: the keys differ", said.revision);
    assert_eq!(now.hash, said.hash, "revision {}", said.revision);
    // Keys keep their leases: each lease a key names is one that etcd knows.
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    for kv in said.keys.iter().filter(|kv| kv.lease != 0) {
        let ttl = client.lease_time_to_live(kv.lease, None).await.unwrap();
        assert!(ttl.granted_ttl() > 0, "revision {}: lease {:x} is unknown", said.revision, kv.lease);
    }
}

async fn whole_story(seed: u64) {
    println!("seed {seed}");
    let dir = tempfile::Builder::new().prefix("mat-oracle-").tempdir().unwrap();
    let etcd = LocalEtcd::start(&program("etcd"), &dir.path().join("live"), &[]).await.unwrap();
    let mut work = Workload::new(&etcd, seed).await;
    for round in 0..4 {
        for _ in 0..30 {
            work.change().await;
        }
        if round < 3 {
            work.tidy().await;
        }
    }
    let base = dir.path().join("base.db");
    save(&etcd, &base).await;
    let snapshot = work.newest().await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut asked = vec![ask(&etcd, snapshot).await];
    for _ in 0..2 {
        asked.push(ask(&etcd, random.random_range(work.compacted + 1..=snapshot)).await);
    }
    // At the compaction itself the living etcd answers with a hash from before it (it keeps those); one that was restored
    // from the whole snapshot does not.
    let fresh = restored(&base, &dir.path().join("whole")).await;
    asked.push(Said { hash: ask(&fresh, work.compacted).await.hash, ..ask(&etcd, work.compacted).await });
    drop(fresh);
    for _ in 0..60 {
        work.change().await;
    }
    let newest = work.newest().await;
    for _ in 0..2 {
        asked.push(ask(&etcd, random.random_range(snapshot + 1..=newest)).await);
    }
    asked.push(ask(&etcd, newest).await);
    let log = watched(&etcd, snapshot, newest).await;
    let compacted = work.compacted;
    work.tidy().await;
    drop(etcd);
    asked.sort_by_key(|said| said.revision);
    asked.dedup();
    for said in &asked {
        let before = if said.revision <= snapshot { &[][..] } else { &log };
        compare(&base, before, said, dir.path()).await;
    }

    // What can't be had is refused, and nothing is left.
    let nowhere = dir.path().join("nowhere.db");
    let early = write(&base, Vec::new(), Some(compacted - 1), &nowhere).unwrap_err();
    assert!(early.code == ErrorCode::NotFound && early.message.contains("compacted"), "{early}");
    let late = write(&base, log.clone(), Some(newest + 1), &nowhere).unwrap_err();
    assert!(late.hint.unwrap().contains(&format!("--at {newest}")), "{}", late.message);
    let mut holed = log;
    holed.retain(|l| !matches!(l, Ok(Logged::Change(change)) if change.revision.main == snapshot + 2));
    let gap = write(&base, holed, None, &nowhere).unwrap_err();
    assert!(gap.message.contains("gap"), "{gap}");
    assert!(!nowhere.exists());
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".hk-dr-"));
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_revision_is_what_etcd_held_then() {
    for seed in [7, rand::random()] {
        whole_story(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_and_leases_that_are_gone_come_back() {
    let dir = tempfile::Builder::new().prefix("mat-oracle-").tempdir().unwrap();
    let etcd = LocalEtcd::start(&program("etcd"), &dir.path().join("live"), &[]).await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let large: Vec<u8> = (0..1_500_000u32).map(|n| (n * 7 % 251) as u8).collect();
    for n in 0..5 {
        client.put(format!("/large/{n}"), large.clone(), None).await.unwrap();
    }
    let lease = client.lease_grant(700, None).await.unwrap().id();
    let expiring = client.lease_grant(1, None).await.unwrap().id();
    for (name, lease) in [("/leased", lease), ("/expires", expiring)] {
        client.put(name, "x", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }
    let then = ask(&etcd, 0).await;
    assert_eq!(then.keys.len(), 7);
    // Both leases go, with their keys: one is revoked, one runs out.
    client.lease_revoke(lease).await.unwrap();
    while client.get("/expires", None).await.unwrap().count() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let base = dir.path().join("base.db");
    save(&etcd, &base).await;
    drop(etcd);
    compare(&base, &[], &then, dir.path()).await;
    let file = File::open(dir.path().join(format!("{}.db", then.revision))).unwrap();
    let mut leases = Vec::new();
    Backend::open(file).unwrap().entries("lease", &mut |id, _| leases.push(id.to_vec())).unwrap();
    assert!(leases.contains(&lease.to_be_bytes().to_vec()) && leases.contains(&expiring.to_be_bytes().to_vec()));
    assert_eq!(UNKNOWN_TTL_SECONDS, 3600);
}

#[test]
fn what_etcd_wrote_is_encoded_alike() {
    let sample = crate::bolt::tests::compacted_sample();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &sample.snapshot).unwrap();
    let backend = Backend::open(file).unwrap();
    let mut entries = backend.bucket("key").unwrap().unwrap();
    let mut count = 0;
    while let Some((key, value)) = entries.next_entry().unwrap() {
        assert!(encode(&decode(value).unwrap()) == value);
        let (at, tombstone) = revision(key).unwrap();
        assert_eq!(crate::bolt::revision_key(at, tombstone), key);
        count += 1;
    }
    assert!(count > 100);
}
