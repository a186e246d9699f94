//! Whoever is a recipient opens everything, alone; nobody else opens anything.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use age::x25519;

use super::support::{FakeEtcd, Keys, backups, keys, newest, recovery_set, take_from};
use crate::backup::{BucketVault, Identities, Recipients, verify};
use crate::bolt::tests::binary;
use crate::ports::{Backups, ErrorCode, ObjectStore, SystemClock, Vault};
use crate::s3::MemoryStore;

fn pair() -> (String, Identities) {
    let pair = x25519::Identity::generate();
    let identities = Identities::parse(pair.to_string().expose_secret(), "new.txt").unwrap();
    (pair.to_public().to_string(), identities)
}

fn vault(store: &Arc<dyn ObjectStore>, recipients: &Recipients, identities: Option<&Identities>) -> BucketVault {
    BucketVault {
        store: Arc::clone(store),
        cluster: "demo".to_owned(),
        recipients: recipients.clone(),
        identities: identities.cloned(),
        clock: Arc::new(SystemClock),
    }
}

/// Opens all there is: the snapshot, its recovery set, and the cluster's secrets.
async fn opens_everything(store: &Arc<dyn ObjectStore>, recipients: &Recipients, identities: &Identities) -> bool {
    let manifest = newest(store.as_ref()).await.manifest;
    let scratch = tempfile::tempdir().unwrap();
    let read = verify(store.as_ref(), &manifest, identities, scratch.path(), &SystemClock).await;
    let set = backups(store, identities).open_recovery_set(&manifest.id).await;
    let secrets = vault(store, recipients, Some(identities)).load().await;
    let refused = [read.err(), set.err(), secrets.err()];
    assert!(refused.iter().flatten().all(|e| e.code == ErrorCode::Unauthorized), "{refused:?}");
    let opened = refused.iter().filter(|e| e.is_none()).count();
    assert!(opened == 0 || opened == 3, "{refused:?}");
    opened == 3
}

#[tokio::test]
async fn each_recipient_alone_opens_everything_and_a_stranger_nothing() {
    let Keys { recipients, first, second, .. } = keys();
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    let (paper_name, paper) = pair();
    let three = Recipients::parse(&(recipients.names().join("\n") + "\n" + &paper_name)).unwrap();
    let keys = Keys { recipients: three, first, second, second_file: String::new() };
    take_from(&FakeEtcd::sample(), store.as_ref(), &keys).await.unwrap();
    vault(&store, &keys.recipients, None).create(&recovery_set()).await.unwrap();
    for identities in [&keys.first, &keys.second, &paper] {
        assert!(opens_everything(&store, &keys.recipients, identities).await);
    }
    assert!(!opens_everything(&store, &keys.recipients, &pair().1).await);
    let none = vault(&store, &keys.recipients, None).load().await.unwrap_err();
    assert!(none.code == ErrorCode::Unauthorized && none.hint.unwrap().contains("--identity"));
}

#[tokio::test]
async fn after_a_rotation_the_new_set_opens_for_the_new_ones_only_and_what_was_there_for_the_old() {
    let before = keys();
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    take_from(&FakeEtcd::sample(), store.as_ref(), &before).await.unwrap();
    vault(&store, &before.recipients, None).create(&recovery_set()).await.unwrap();
    let old = newest(store.as_ref()).await.manifest;

    // The first one leaves, another one comes.
    let (name, joined) = pair();
    let names = before.recipients.names();
    let changed = Recipients::parse(&format!("{}\n{name}\n", names[1])).unwrap();
    assert!(vault(&store, &changed, Some(&before.first)).rewrap().await.unwrap());
    let after =
        Keys { recipients: changed, first: before.first.clone(), second: before.second, second_file: String::new() };
    // Names of snapshots are seconds.
    crate::s3::contract::next_second().await;
    take_from(&FakeEtcd::sample(), store.as_ref(), &after).await.unwrap();
    assert_ne!(newest(store.as_ref()).await.manifest.id, old.id);
    assert!(opens_everything(&store, &after.recipients, &after.second).await);
    assert!(opens_everything(&store, &after.recipients, &joined).await);
    assert!(!opens_everything(&store, &after.recipients, &after.first).await);

    let scratch = tempfile::tempdir().unwrap();
    verify(store.as_ref(), &old, &before.first, scratch.path(), &SystemClock).await.unwrap();
    let refused = verify(store.as_ref(), &old, &joined, scratch.path(), &SystemClock).await.unwrap_err();
    assert!(refused.hint.unwrap().contains(&names[0]), "whose identity opens it is told");
}

/// age's own plugin for post-quantum keys, where PATH finds it until this is dropped.
struct Plugin(Option<&'static Path>);

impl Plugin {
    fn install() -> Self {
        let path = Path::new("/usr/local/bin/age-plugin-pq");
        // Somebody's own stays.
        let ours = std::os::unix::fs::symlink(binary("age-plugin-pq-1.3.2"), path).is_ok();
        Self(ours.then_some(path))
    }

    /// A new key: its recipient, and its identity as the plugin wants it.
    fn pair() -> (String, String) {
        let made = Command::new(binary("age-keygen-1.3.2")).arg("-pq").output().unwrap();
        let native = String::from_utf8(made.stdout).unwrap();
        let recipient = native.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
        let mut convert = Command::new(binary("age-plugin-pq-1.3.2"));
        let mut convert = convert.arg("-identity").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        convert.stdin.take().unwrap().write_all(native.as_bytes()).unwrap();
        let identity = convert.wait_with_output().unwrap().stdout;
        (recipient, String::from_utf8(identity).unwrap())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.map(std::fs::remove_file);
    }
}

#[test]
fn a_plugins_key_seals_and_opens_and_a_missing_plugin_is_named() {
    // Bech32 of "a key", as a plugin would print them that nobody has.
    let (recipient, identity) = ("age1hkdrtest1vysxketec7svdq", "AGE-PLUGIN-HKDRTEST-1VYSXKETEAJ53H9");
    let missing = Recipients::parse(&format!("{recipient}\n{}\n", pair().0)).unwrap_err();
    assert!(missing.message.contains("age-plugin-hkdrtest is not on this machine"), "{missing}");
    assert!(Identities::parse(identity, "key.txt").unwrap_err().hint.unwrap().contains("install"));

    let _plugin = Plugin::install();
    let (one, other, stranger) = (Plugin::pair(), Plugin::pair(), Plugin::pair());
    let mixed = Recipients::parse(&format!("{}\n{}\n", one.0, pair().0)).unwrap();
    let recipients = Recipients::parse(&format!("{}\n{}\n", one.0, other.0)).unwrap();
    let [one, other, stranger] = [one, other, stranger].map(|(_, key)| Identities::parse(&key, "key.txt").unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let keys = Keys { recipients, first: one.clone(), second: one.clone(), second_file: String::new() };
        take_from(&FakeEtcd::sample(), store.as_ref(), &keys).await.unwrap();
        vault(&store, &keys.recipients, None).create(&recovery_set()).await.unwrap();
        for (opens, identity) in [(true, &one), (true, &other), (false, &stranger), (false, &pair().1)] {
            assert_eq!(opens_everything(&store, &keys.recipients, identity).await, opens);
        }
        let keys = Keys { recipients: mixed, ..keys };
        let refused = take_from(&FakeEtcd::sample(), store.as_ref(), &keys).await.unwrap_err();
        assert!(refused.message.contains("postquantum"), "{refused}");
    });
}
