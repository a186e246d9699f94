//! What goes wrong, and what is said and left behind then.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use super::support::{FakeEtcd, Keys, backups, keys, newest, recovery_set, take_from, take_set};
use crate::backup::seal::hex;
use crate::backup::{Catalog, Identities, Proof, Recipients, check, fetch, verify};
use crate::bolt::tests::compacted_sample;
use crate::ports::{Backups, ErrorCode, ObjectStore, PortError, PortResult, PutCondition, SystemClock};
use crate::s3::versitygw::{VersityGw, free_port};
use crate::s3::{Fault, MemoryStore, Operation, S3Config, S3Store};

/// A store with one good snapshot.
async fn stored() -> (MemoryStore, Keys) {
    let (store, keys) = (MemoryStore::new(), keys());
    take_from(&FakeEtcd::sample(), &store, &keys).await.unwrap();
    (store, keys)
}

/// Reads the newest snapshot; returns its digest.
async fn read_back(store: &MemoryStore, identities: &Identities) -> PortResult<String> {
    let id = newest(store).await.manifest.id;
    let store: Arc<dyn ObjectStore> = Arc::new(store.clone());
    let chunks: Vec<Bytes> = backups(&store, identities).open_etcd(&id).await?.try_collect().await?;
    Ok(hex(&Sha256::digest(chunks.concat())))
}

/// No snapshot shows, and no upload is left open.
async fn assert_nothing_left(store: &MemoryStore) {
    let (entries, _) = Catalog::new(store, "demo").list().await.unwrap();
    assert!(entries.is_empty());
    assert!(!store.keys().iter().any(|key| key.ends_with("manifest.json")));
    assert_eq!(store.open_uploads(), 0);
}

#[tokio::test]
async fn a_snapshot_comes_back_as_it_was() {
    let (store, keys) = stored().await;
    let sample = compacted_sample();
    let entry = newest(&store).await;
    assert_eq!(entry.proof, Proof::Unproven);
    assert_eq!(entry.manifest.revision, sample.revision);
    assert_eq!(entry.manifest.compact_revision, sample.compacted);
    assert_eq!(entry.manifest.keys, Some(sample.live.len() as u64));
    assert_eq!(entry.manifest.source_member, "m2");
    assert!(entry.manifest.id.ends_with(&format!("-r{}", sample.revision)));
    for identities in [&keys.first, &keys.second] {
        assert_eq!(read_back(&store, identities).await.unwrap(), hex(&Sha256::digest(&sample.snapshot)));
    }
    let shared: Arc<dyn ObjectStore> = Arc::new(store.clone());
    let set = backups(&shared, &keys.first).open_recovery_set(&entry.manifest.id).await.unwrap();
    assert_eq!(set, recovery_set());

    let scratch = tempfile::tempdir().unwrap();
    let read = verify(&store, &entry.manifest, &keys.second, scratch.path(), &SystemClock).await.unwrap();
    assert_eq!(read.keys, sample.live.len() as u64);
    let secrets = sample.live.keys().filter(|key| key.starts_with(b"/registry/secrets/")).count();
    assert_eq!(read.kinds["secrets"], secrets as u64);
    assert_eq!(read.recovery_files, ["cluster.yaml", "pki/kubernetes-ca.key"]);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    // Reading back proves no restore.
    let proof = newest(&store).await.proof;
    assert!(matches!(proof, Proof::Verified { .. }));
    assert!(proof.to_string().starts_with("verified "));
}

#[tokio::test]
async fn fetched_files_are_private_whole_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let (store, keys) = stored().await;
    let manifest = newest(&store).await.manifest;
    let dir = tempfile::tempdir().unwrap();
    let fetched = fetch(&store, &manifest, &keys.first, dir.path()).await.unwrap();
    assert!(std::fs::read(&fetched.etcd).unwrap() == compacted_sample().snapshot);
    for path in [&fetched.etcd, &fetched.recovery] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = fetch(&store, &manifest, &keys.first, dir.path()).await.unwrap_err();
    assert!(again.message.contains("exists already"), "{again}");

    store.flip_bit(&manifest.etcd.key, 5000, 1);
    let other = tempfile::tempdir().unwrap();
    let damaged = fetch(&store, &manifest, &keys.first, other.path()).await.unwrap_err();
    assert_eq!(damaged.code, ErrorCode::Corrupt);
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
}

/// A real file system of so many bytes, which only this thread and what it starts see, and a runtime of this thread.
fn small_disk(bytes: usize) -> (tempfile::TempDir, tokio::runtime::Runtime) {
    use nix::mount::{MsFlags, mount};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let none = None::<&str>;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let small = tempfile::tempdir().unwrap();
    let size = format!("size={bytes}");
    mount(Some("tmpfs"), small.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
    (small, runtime)
}

#[test]
fn a_bucket_whose_server_has_no_room_left_gets_no_snapshot() {
    let (small, runtime) = small_disk(32 << 10);
    let server = VersityGw::start(&crate::bolt::tests::binary("versitygw-1.8.0"), small.path()).unwrap();
    runtime.block_on(async {
        let store = S3Store::connect(&server.config("full")).unwrap();
        store.ensure_bucket().await.unwrap();
        let refused = take_from(&FakeEtcd::sample(), &store, &keys()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::LimitExceeded, "{refused}");
        assert!(refused.message.contains("the snapshot was not taken"), "{refused}");
        let listed = store.list("").await.unwrap();
        assert!(listed.is_empty(), "{listed:?}");
    });
    drop(server);
    nix::mount::umount(small.path()).unwrap();
}

#[test]
fn a_fetch_onto_a_full_disk_says_so_and_leaves_nothing() {
    let (small, runtime) = small_disk(compacted_sample().snapshot.len() / 2);
    runtime.block_on(async {
        let (store, keys) = stored().await;
        let manifest = newest(&store).await.manifest;
        let full = fetch(&store, &manifest, &keys.first, small.path()).await.unwrap_err();
        assert!(full.message.contains("No space left"), "{full}");
        assert!(full.hint.is_some_and(|hint| hint.contains("free space or fetch into another directory")));
    });
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0);
    nix::mount::umount(small.path()).unwrap();
}

#[tokio::test]
async fn a_wrong_identity_is_told_which_ones_would_open_it() {
    let (store, keys) = stored().await;
    let stranger = super::support::keys().first;
    let refused = read_back(&store, &stranger).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthorized);
    assert!(refused.message.contains("no identity in first.txt opens"), "{refused}");
    let hint = refused.hint.unwrap();
    assert!(keys.recipients.names().iter().all(|name| hint.contains(name)), "{hint}");
}

#[test]
fn without_an_identity_the_error_says_how_to_give_one() {
    let none = Identities::load_given(None).unwrap_err();
    assert_eq!(none.code, ErrorCode::Unauthorized);
    assert!(none.hint.unwrap().contains("--identity"));
    let gone = Identities::load_given(Some("/nowhere/key.txt".as_ref())).unwrap_err();
    assert!(gone.message.contains("/nowhere/key.txt"), "{gone}");
    let typo = Identities::parse("# mine\nAGE-SECRET-KEY-1TYPO", "key.txt").unwrap_err();
    assert_eq!(typo.message, "key.txt: line 2 is not an age identity");
    assert!(Identities::parse("# nothing\n", "key.txt").unwrap_err().message.contains("no age identity"));
}

#[test]
fn fewer_than_two_recipients_are_refused() {
    let one = keys().recipients.names().remove(0);
    for text in [String::new(), one.clone(), format!("{one}\n# twice the same\n{one}\n")] {
        let refused = Recipients::parse(&text).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid);
        assert!(refused.message.contains("at least two"), "{refused}");
    }
    let wrong = Recipients::parse("age1wrong").unwrap_err();
    assert!(wrong.message.starts_with("line 1: not an age recipient"), "{wrong}");
}

#[tokio::test]
async fn truncated_objects_are_called_truncated() {
    let (store, keys) = stored().await;
    let key = newest(&store).await.manifest.etcd.key;
    store.truncate(&key, 5_000);
    let failed = read_back(&store, &keys.first).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Corrupt);
    assert!(failed.message.contains("truncated: 5000 bytes"), "{failed}");
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found() {
    let (store, keys) = stored().await;
    let manifest = newest(&store).await.manifest;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let scratch = tempfile::tempdir().unwrap();
    for case in 0..10 {
        // Four in age's header and its first nonce, the rest in the body; each object in turn.
        let sealed = if case % 2 == 0 { &manifest.etcd } else { &manifest.recovery };
        let size = usize::try_from(sealed.stored_bytes).unwrap();
        let (offset, bit) = (random.random_range(if case < 4 { 0..300 } else { 300..size }), random.random_range(0..8));
        store.flip_bit(&sealed.key, offset, bit);
        let failed = verify(&store, &manifest, &keys.first, scratch.path(), &SystemClock).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::Corrupt, "offset {offset} bit {bit} of {}: {failed}", sealed.key);
        assert!(failed.message.contains(&sealed.key), "{failed}");
        assert!(failed.hint.unwrap().contains("another snapshot"));
        store.flip_bit(&sealed.key, offset, bit);
    }
    // What was found is told to everybody, until it is read whole again.
    let proof = newest(&store).await.proof;
    assert!(matches!(&proof, Proof::Bad { problem, .. } if problem.contains(".age")), "{proof}");
    verify(&store, &manifest, &keys.first, scratch.path(), &SystemClock).await.unwrap();
    assert!(matches!(newest(&store).await.proof, Proof::Verified { .. }));
    check(&store, &manifest).await.unwrap();
    store.flip_bit(&manifest.etcd.key, 700, 3);
    assert_eq!(check(&store, &manifest).await.unwrap_err().code, ErrorCode::Corrupt);
}

#[tokio::test]
async fn missing_objects_are_named() {
    let (store, keys) = stored().await;
    let manifest = newest(&store).await.manifest;
    store.delete(&manifest.etcd.key).await.unwrap();
    let failed = read_back(&store, &keys.first).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Corrupt);
    assert!(failed.message.contains(&manifest.etcd.key) && failed.message.contains("missing"), "{failed}");
}

#[tokio::test]
async fn a_snapshot_that_does_not_exist_is_answered_with_those_that_do() {
    let (store, _) = stored().await;
    let id = newest(&store).await.manifest.id;
    let catalog = Catalog::new(&store, "demo");
    for wanted in ["20200101T000000Z-r5", "nonsense", "../../x"] {
        let failed = catalog.find(wanted).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::NotFound);
        assert_eq!(failed.hint.unwrap(), format!("there are: {id}"));
    }
    assert_eq!(catalog.find(&id[..9]).await.unwrap().manifest.id, id);
    let none = Catalog::new(&store, "other").find("latest").await.unwrap_err();
    assert!(none.hint.unwrap().contains("no snapshot of this cluster"));
}

#[tokio::test]
async fn a_damaged_manifest_hides_no_other() {
    let (store, _) = stored().await;
    let key = "demo/snapshots/20990101T000000Z-r9/manifest.json";
    store.put(key, Bytes::from_static(b"{\"format\":1"), PutCondition::Any).await.unwrap();
    let later = "demo/snapshots/20990101T000000Z-r8/manifest.json";
    store.put(later, Bytes::from_static(b"{\"format\":2}"), PutCondition::Any).await.unwrap();
    let (entries, unreadable) = Catalog::new(&store, "demo").list().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert!(unreadable[0].message.contains(key), "{}", unreadable[0]);
    assert!(unreadable[1].message.contains("format 2"), "{}", unreadable[1]);
}

#[tokio::test]
async fn an_unreachable_bucket_is_noticed_before_etcd_is_asked_for_data() {
    let config = S3Config {
        endpoint: Some(format!("http://{}", free_port().unwrap())),
        region: "us-east-1".to_owned(),
        bucket: "backups".to_owned(),
        access_key: "a".to_owned(),
        secret_key: "b".to_owned().into(),
        lock: None,
    };
    let store = S3Store::connect(&config).unwrap();
    let etcd = FakeEtcd::streaming(vec![Err(PortError::new(ErrorCode::Invalid, "etcd was asked"))]);
    let failed = take_from(&etcd, &store, &keys()).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Unreachable, "{failed}");
    assert!(failed.message.contains("s3://backups"), "{failed}");
    assert!(failed.hint.unwrap().contains("endpoint"));
}

#[tokio::test]
async fn refused_credentials_say_where_they_come_from() {
    let (server, _dir) = crate::s3::contract::s3_server();
    let mut config = server.config("backups");
    S3Store::connect(&config).unwrap().ensure_bucket().await.unwrap();
    config.secret_key = "wrong".to_owned().into();
    let store = S3Store::connect(&config).unwrap();
    let refused = take_from(&FakeEtcd::sample(), &store, &keys()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthorized, "{refused}");
    assert!(refused.hint.unwrap().contains("secrets.yaml.age"));
}

#[tokio::test]
async fn a_full_bucket_leaves_nothing() {
    let store = MemoryStore::new();
    store.set_capacity(5_000);
    let failed = take_from(&FakeEtcd::sample(), &store, &keys()).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::LimitExceeded);
    assert!(failed.message.contains("the snapshot was not taken"), "{failed}");
    assert_nothing_left(&store).await;
}

#[tokio::test]
async fn a_failure_of_any_call_to_the_bucket_leaves_no_snapshot() {
    let operations = [Operation::BeginUpload, Operation::Part, Operation::Complete, Operation::Put];
    for (operation, nth) in operations.iter().map(|o| (*o, 1)).chain([(Operation::Put, 2)]) {
        let store = MemoryStore::new();
        store.fail(Fault { operation, nth, error: PortError::new(ErrorCode::ServerError, "planned") });
        let failed = take_from(&FakeEtcd::sample(), &store, &keys()).await.unwrap_err();
        assert!(failed.message.contains("planned"), "{operation:?}: {failed}");
        assert_nothing_left(&store).await;
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_write_that_happened_is_no_failure() {
    for nth in [1, 2] {
        let store = MemoryStore::new();
        store.lose_answer_of_put(nth);
        take_from(&FakeEtcd::sample(), &store, &keys()).await.unwrap();
        newest(&store).await;
    }
}

#[tokio::test]
async fn a_wrong_trailer_leaves_nothing() {
    let snapshot = &compacted_sample().snapshot;
    let mut flipped = snapshot.clone();
    flipped[100_000] ^= 1;
    let stripped = &snapshot[..snapshot.len() - 32];
    let cut = &snapshot[..snapshot.len() / 2];
    for wrong in [flipped.as_slice(), stripped, cut, b"short", b""] {
        let store = MemoryStore::new();
        let failed = take_from(&FakeEtcd::healthy(wrong), &store, &keys()).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::Corrupt, "{failed}");
        assert_nothing_left(&store).await;
    }
}

#[tokio::test]
async fn a_broken_stream_leaves_nothing() {
    let mut pieces = FakeEtcd::sample().0[0].stream.clone();
    pieces.truncate(20);
    pieces.push(Err(PortError::new(ErrorCode::Unreachable, "connection reset by peer")));
    let store = MemoryStore::new();
    let failed = take_from(&FakeEtcd::streaming(pieces), &store, &keys()).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Unreachable);
    assert!(failed.message.contains("member m2 broke after 655360 bytes: connection reset by peer"), "{failed}");
    assert_nothing_left(&store).await;
}

#[tokio::test]
async fn an_incomplete_recovery_set_stops_before_anything() {
    let store = MemoryStore::new();
    let mut set = recovery_set();
    set.remove("pki/kubernetes-ca.key");
    let refused = take_set(&FakeEtcd::sample(), &store, &keys(), &set).await.unwrap_err();
    assert_eq!(refused.message, "the recovery set lacks: pki/kubernetes-ca.key");
    assert!(store.keys().is_empty());
}
