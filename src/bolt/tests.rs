//! Files that a real etcd wrote, whole and damaged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use etcd_client::{Client, CompactionOptions, DeleteOptions};
use futures::StreamExt;
use proptest::prelude::*;

use super::*;
use crate::backup::local_etcd::LocalEtcd;
use crate::ports::Etcd;
use crate::s3::versitygw::pinned_binary;

/// A snapshot (with trailer), what must live in it, and the compaction.
pub(crate) struct Sample {
    pub snapshot: Vec<u8>,
    pub live: BTreeMap<Vec<u8>, Vec<u8>>,
    pub revision: i64,
    pub compacted: i64,
}

pub(crate) fn binary(name: &str) -> PathBuf {
    let cache = std::env::var_os("HK_DR_CACHE").map(PathBuf::from);
    pinned_binary(cache.as_deref(), name).unwrap()
}

async fn snapshot_of(etcd: &LocalEtcd) -> Vec<u8> {
    let mut stream = etcd.client().await.unwrap().snapshot(LocalEtcd::MEMBER, 1 << 20).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

/// Writes, overwrites, deletes, compacts and writes again: all sizes of values, several versions, freed pages.
async fn make(compact: bool) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let etcd = LocalEtcd::start(&binary("etcd-3.6.16"), dir.path(), &[]).await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let mut live = BTreeMap::new();
    let mut revision = 1;
    let mut compacted = 0;
    for round in 0..4_usize {
        for n in 0..150_usize {
            let key = format!("/registry/{}/ns/{n}", ["pods", "secrets", "configmaps"][n % 3]).into_bytes();
            let size = [10, 300, 6000, 90_000][(n + round) % 4] / (1 + n % 3);
            let value: Vec<u8> = (0..size).map(|at| (at * 31 + n + round) as u8).collect();
            client.put(key.clone(), value.clone(), None).await.unwrap();
            live.insert(key, value);
        }
        let range = DeleteOptions::new().with_range(format!("/registry/pods/ns/{}", round + 2));
        revision = client
            .delete(format!("/registry/pods/ns/{round}"), Some(range))
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
        let (from, to) = (format!("/registry/pods/ns/{round}"), format!("/registry/pods/ns/{}", round + 2));
        live.retain(|key, _| !(from.as_bytes()..to.as_bytes()).contains(&key.as_slice()));
        if compact && round == 2 {
            compacted = revision - 40;
            let options = CompactionOptions::new().with_physical();
            client.compact(compacted, Some(options)).await.unwrap();
        }
    }
    // The finished compaction reaches the file with the next commit.
    let snapshot = loop {
        let snapshot = snapshot_of(&etcd).await;
        if scan(&snapshot[..snapshot.len() - 32], 1 << 16, 0).unwrap().compact_revision == compacted {
            break snapshot;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    Sample { snapshot, live, revision, compacted }
}

/// A sample that was compacted, made once.
pub(crate) fn compacted_sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(make(true))).join().unwrap()
    })
}

fn scan(content: &[u8], piece: usize, hint: i64) -> Result<Summary, BoltError> {
    let mut scanner = Scanner::new(hint);
    for piece in content.chunks(piece) {
        scanner.push(piece)?;
    }
    scanner.finish()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn check(sample: &Sample) {
    let content = &sample.snapshot[..sample.snapshot.len() - 32];
    let backend = Backend::open(file(&sample.snapshot)).unwrap();
    let info = backend.info().unwrap();
    assert_eq!(info.size_bytes, content.len() as u64);
    assert_eq!(info.finished_compact_revision, sample.compacted);
    assert!(info.consistent_index > 0 && info.term > 0);
    assert!(info.buckets.iter().any(|name| name == "lease"));

    let versions: Vec<Stored> = backend.key_values().map(Result::unwrap).collect();
    assert!(versions.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    assert_eq!(versions.last().unwrap().revision.main, sample.revision);
    let live: BTreeMap<Vec<u8>, Vec<u8>> =
        backend.live_at(None).map(Result::unwrap).map(|v| (v.key_value.key, v.key_value.value)).collect();
    assert!(live == sample.live, "the live state differs");

    for (piece, hint) in [(content.len(), 0), (32 << 10, sample.compacted), (777, sample.compacted - 5)] {
        let summary = scan(content, piece, hint).unwrap();
        assert_eq!(summary.revision, sample.revision);
        assert_eq!(summary.compact_revision, sample.compacted);
        assert_eq!(summary.versions, versions.len() as u64);
        assert_eq!(summary.keys, Some(live.len() as u64), "pieces of {piece}, hint {hint}");
        assert_eq!(summary.consistent_index, info.consistent_index);
        assert_eq!(summary.term, info.term);
    }
}

#[test]
fn a_compacted_file_is_read_and_scanned_alike() {
    let sample = compacted_sample();
    assert!(sample.compacted > 0);
    check(sample);
}

#[tokio::test]
async fn a_file_with_all_its_history_is_read_and_scanned_alike() {
    let sample = make(false).await;
    assert_eq!(sample.compacted, 0);
    check(&sample);
    // The state at an earlier revision: the last key of the first round had its first value then.
    let backend = Backend::open(file(&sample.snapshot)).unwrap();
    let then: Vec<Stored> = backend.live_at(Some(151)).map(Result::unwrap).collect();
    assert_eq!(then.len(), 150);
    assert!(then.iter().all(|v| v.revision.main <= 151 && v.key_value.version == 1));
}

#[tokio::test]
async fn an_empty_etcd_is_at_revision_one() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = LocalEtcd::start(&binary("etcd-3.6.16"), dir.path(), &[]).await.unwrap();
    let snapshot = snapshot_of(&etcd).await;
    let summary = scan(&snapshot[..snapshot.len() - 32], 4096, 0).unwrap();
    assert_eq!((summary.revision, summary.versions, summary.keys), (1, 0, Some(0)));
    assert_eq!(Backend::open(file(&snapshot)).unwrap().key_values().count(), 0);
}

#[test]
fn a_restored_file_counts_no_key_for_its_bumped_revision() {
    let dir = tempfile::tempdir().unwrap();
    let sample = compacted_sample();
    let (snapshot, data) = (dir.path().join("snapshot.db"), dir.path().join("data"));
    std::fs::write(&snapshot, &sample.snapshot).unwrap();
    let restored = std::process::Command::new(binary("etcdutl-3.6.16"))
        .args(["snapshot", "restore", "--bump-revision", "1000000000", "--mark-compacted", "--data-dir"])
        .args([&data, &snapshot])
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    let mut content = Vec::new();
    File::open(data.join("member/snap/db")).unwrap().read_to_end(&mut content).unwrap();
    let backend = Backend::open(file(&content)).unwrap();
    assert_eq!(backend.live_at(None).count(), sample.live.len());
    let info = backend.info().unwrap();
    let summary = scan(&content[..info.size_bytes as usize], 4096, 0).unwrap();
    assert_eq!(summary.revision, sample.revision + 1_000_000_000);
    // The compaction is ordered, not done: the keys can't be counted in passing.
    assert_eq!(summary.keys, None);
}

#[test]
fn a_cut_file_names_the_page_it_ends_in() {
    let content = &compacted_sample().snapshot;
    let short = Backend::open(file(&content[..50_000])).unwrap_err();
    assert!(matches!(short, BoltError::Corrupt { page: 12, .. }), "{short}");
    let short = scan(&content[..50_000], 4096, 0).unwrap_err();
    assert!(matches!(short, BoltError::Corrupt { page: 12, .. }), "{short}");
    assert!(matches!(Backend::open(file(b"")), Err(BoltError::Corrupt { page: 0, .. })));
    assert!(matches!(Backend::open(file(&[7; 9000])), Err(BoltError::Corrupt { page: 0, .. })));
}

#[test]
fn either_meta_page_is_enough_for_the_reader() {
    let sample = compacted_sample();
    for page in [0, 4096] {
        let mut bytes = sample.snapshot.clone();
        bytes[page + 30] ^= 4;
        let backend = Backend::open(file(&bytes)).unwrap();
        assert_eq!(backend.live_at(None).count(), sample.live.len());
        bytes[4096 - page + 30] ^= 4;
        let both = Backend::open(file(&bytes)).unwrap_err();
        assert!(matches!(both, BoltError::Corrupt { page: 0, .. }), "{both}");
    }
}

/// Reads all there is to read.
fn devour(mut file: File) {
    if let Ok(backend) = Backend::open(file.try_clone().unwrap()) {
        let _ = backend.info();
        let _ = backend.key_values().filter(Result::is_err).count();
        let _ = backend.live_at(None).filter(Result::is_err).count();
        for bucket in ["meta", "lease", "members", "none"] {
            let _ = backend.entries(bucket, &mut |_, _| {});
        }
    }
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    let _ = scan(&content, 10_000, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Damage never panics, never hangs, never eats the memory: it is an error, or it hit bytes that nobody reads.
    #[test]
    fn damage_is_an_error_not_a_panic(
        flips in proptest::collection::vec((0.0..1.0f64, 0..32usize, 0..8u8, any::<bool>()), 1..20),
        cut in proptest::option::of(0.0..1.0f64),
    ) {
        let mut bytes = compacted_sample().snapshot.clone();
        let pages = bytes.len() / 4096;
        for (place, offset, bit, in_header) in flips {
            // Half of the flips hit the first bytes of a page, where structure is.
            let at = if in_header { (place * pages as f64) as usize * 4096 + offset } else { (place * bytes.len() as f64) as usize };
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        devour(file(&bytes));
    }

    #[test]
    fn noise_is_an_error_not_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        devour(file(&noise));
    }
}
