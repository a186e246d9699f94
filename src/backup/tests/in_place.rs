//! Snapshots whose pages are read beside the member, of a real etcd that goes on writing.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, CompactionOptions};
use futures::stream::unfold;

use super::oracle::{ask, restored};
use super::support::{Keys, keys, newest, recovery_set};
use crate::backup::local_etcd::LocalEtcd;
use crate::backup::pages::{Order, Word, pack};
use crate::backup::{Catalog, Compression, Rate, TakeRequest, Taken, fetch, take, verify};
use crate::bolt::tests::binary;
use crate::etcd::EtcdClient;
use crate::ports::{ErrorCode, MemberFile, PortError, PortResult, Printed, PrintedStream, SystemClock};
use crate::s3::{Fault, MemoryStore, Operation};

/// 12 MB, which take a few seconds at [`SLOWLY`].
const VALUES: usize = 2_000;
const VALUE_BYTES: usize = 6_000;
const SLOWLY: u64 = 4_000_000;

/// What becomes of the program beside the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    CannotStart,
    /// It ends with an error when it gave something.
    Dies,
    /// It ends as if it were done, without a word.
    Silent,
    /// A frame is lost on the way.
    Loses,
}

/// The file, read by a thread here.
struct Here {
    path: String,
    fate: Fate,
    started: AtomicUsize,
}

impl Here {
    fn of(path: &Path, fate: Fate) -> Arc<Self> {
        Arc::new(Self { path: path.to_str().unwrap().to_owned(), fate, started: AtomicUsize::new(0) })
    }
}

/// Hands on frames.
struct Out {
    to: tokio::sync::mpsc::Sender<PortResult<Printed>>,
    fate: Fate,
    given: usize,
}

impl std::io::Write for Out {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.given += 1;
        if self.fate == Fate::Dies && self.given == 3 {
            return Err(std::io::ErrorKind::Other.into());
        }
        if self.fate != Fate::Loses || self.given != 2 {
            let sent = self.to.blocking_send(Ok(Printed::Data(Bytes::copy_from_slice(data))));
            sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl MemberFile for Here {
    fn path(&self) -> &str {
        &self.path
    }
    async fn prepare(&self) -> PortResult<()> {
        Ok(())
    }
    async fn start(&self, arguments: &str, input: Bytes, _: bool, _: Duration) -> PortResult<PrintedStream> {
        assert_eq!(arguments, "read-pages");
        self.started.fetch_add(1, Ordering::Relaxed);
        if self.fate == Fate::CannotStart {
            return Err(PortError::new(ErrorCode::Local, "the disk is full there"));
        }
        let (to, from) = tokio::sync::mpsc::channel(2);
        let fate = self.fate;
        std::thread::spawn(move || {
            let (order, head) = Order::decode(&input[..]).unwrap();
            let words = to.clone();
            let say = move |word: &Word| {
                if fate != Fate::Silent {
                    let _ = words.blocking_send(Ok(Printed::Line(serde_json::to_string(word).unwrap())));
                }
            };
            let ended = pack(&order, &head, Out { to: to.clone(), fate, given: 0 }, &say);
            if let Err(error) = ended {
                let _ = to.blocking_send(Err(error));
            }
        });
        Ok(Box::pin(unfold(from, |mut from| async move { from.recv().await.map(|next| (next, from)) })))
    }
}

/// A member with a database, and what a snapshot of it needs.
struct Stage {
    etcd: LocalEtcd,
    folder: tempfile::TempDir,
    store: MemoryStore,
    keys: Keys,
}

impl Stage {
    async fn ready() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let etcd = LocalEtcd::start(&binary("etcd-3.6.16"), &folder.path().join("etcd"), &[]).await.unwrap();
        etcd.fill(VALUES, VALUE_BYTES).await.unwrap();
        Self { etcd, folder, store: MemoryStore::new(), keys: keys() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("etcd/member/snap/db")
    }

    async fn take(&self, file: Arc<Here>, from_bytes: u64, pace: Option<u64>) -> PortResult<Taken> {
        let mut etcd = EtcdClient::direct(&[(LocalEtcd::MEMBER.to_owned(), self.etcd.url().to_owned())], None).await?;
        etcd.with_file(LocalEtcd::MEMBER, file);
        take(&TakeRequest {
            cluster: "demo",
            etcd: &etcd,
            store: &self.store,
            recipients: &self.keys.recipients,
            recovery: &recovery_set(),
            required: &["cluster.yaml"],
            git_commit: None,
            clock: &SystemClock,
            compression: Compression::default(),
            // At the other way's pace it would not end.
            rate: pace.and_then(NonZeroU64::new).map(|in_place| Rate { in_place, through_api: NonZeroU64::MIN }),
            in_place_from_bytes: from_bytes,
            progress: &Arc::default(),
        })
        .await
    }

    /// It reads back, and a stock etcd that rises from it has what the living one had.
    async fn assert_whole(&self) {
        let manifest = newest(&self.store).await.manifest;
        let scratch = tempfile::tempdir().unwrap();
        verify(&self.store, &manifest, &self.keys.first, scratch.path(), &SystemClock).await.unwrap();
        let fetched = fetch(&self.store, &manifest, &self.keys.second, scratch.path()).await.unwrap();
        let risen = restored(&fetched.etcd, &scratch.path().join("risen")).await;
        let (then, now) = (ask(&risen, manifest.revision).await, ask(&self.etcd, manifest.revision).await);
        assert_eq!(manifest.keys, Some(then.keys.len() as u64));
        assert!(then.keys == now.keys, "other keys than the living etcd had");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_read_whole_while_etcd_frees_and_reuses_pages() {
    let stage = Stage::ready().await;
    let before = ask(&stage.etcd, 0).await.revision;
    let mut client = Client::connect([stage.etcd.url()], None).await.unwrap();
    let writing = tokio::spawn(async move {
        // Old versions go, so their pages are free; new ones need pages.
        for round in 0.. {
            for n in 0..200 {
                let value = vec![round as u8; 6_000];
                client.put(format!("/registry/bench/{:08}", (n * 7) % 2_000), value, None).await.unwrap();
            }
            client.compact(before, Some(CompactionOptions::new().with_physical())).await.ok();
        }
    });
    // What the log of a snapshot's own begins with: enough versions that the next compaction frees pages.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let taken = stage.take(Here::of(&stage.file(), Fate::Works), 0, Some(SLOWLY)).await.unwrap();
    writing.abort();
    assert_eq!(taken.manifest.not_in_place, None);
    assert!(taken.beside_peak_kib.is_some());
    assert!(taken.manifest.revision > before);
    stage.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_beside_the_member_comes_through_the_api_and_says_so() {
    let stage = Stage::ready().await;
    let old = stage.folder.path().join("old");
    std::fs::copy(stage.file(), &old).unwrap();
    stage.etcd.fill(1, 10).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let missing = stage.folder.path().join("missing");
    let cases = [
        (stage.file(), Fate::CannotStart, "the disk is full there"),
        (stage.file(), Fate::Dies, "hand on etcd's pages"),
        (stage.file(), Fate::Silent, "ended without its last word"),
        (stage.file(), Fate::Loses, "bytes came of"),
        (old, Fate::Works, "is not the file of the snapshot: it is at transaction"),
        (missing, Fate::Works, "No such file"),
    ];
    for (path, fate, why) in cases {
        let taken = stage.take(Here::of(&path, fate), 0, None).await.unwrap();
        let said = taken.manifest.not_in_place.unwrap_or_default();
        assert!(said.contains(why), "{fate:?}: {said}");
        assert_eq!((stage.store.open_uploads(), taken.beside_peak_kib), (0, None));
        // Manifests are named by the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    stage.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_databases_and_refusing_buckets_need_nobody_beside() {
    let stage = Stage::ready().await;
    let file = Here::of(&stage.file(), Fate::Works);
    let taken = stage.take(Arc::clone(&file), 1 << 30, None).await.unwrap();
    assert_eq!((taken.manifest.not_in_place, taken.beside_peak_kib), (None, None));
    assert_eq!(file.started.load(Ordering::Relaxed), 0);

    let error = PortError::new(ErrorCode::Forbidden, "planned");
    stage.store.fail(Fault { operation: Operation::Part, nth: stage.store.calls(Operation::Part) + 1, error });
    let refused = stage.take(Arc::clone(&file), 0, None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    assert_eq!(file.started.load(Ordering::Relaxed), 1, "another way to read cannot help");
    assert_eq!(stage.store.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_goes_while_its_file_is_read_leaves_no_snapshot() {
    let stage = Stage::ready().await;
    let pid = stage.etcd.pid().to_string();
    let killing = async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    };
    let file = Here::of(&stage.file(), Fate::Works);
    let (taken, ()) = tokio::join!(stage.take(Arc::clone(&file), 0, Some(SLOWLY)), killing);
    // The file itself was there to its last page.
    assert_eq!(file.started.load(Ordering::Relaxed), 1);
    let error = taken.unwrap_err();
    for said in ["the snapshot was not taken", "reading its file in place had failed before"] {
        assert!(error.message.contains(said), "{error}");
    }
    let (entries, _) = Catalog::new(&stage.store, "demo").list().await.unwrap();
    assert!(entries.is_empty());
    assert_eq!(stage.store.open_uploads(), 0);
}
