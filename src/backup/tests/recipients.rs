//! Whoever is a recipient opens everything, alone; nobody else opens anything.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use age::x25519;

use super::support::{FakeEtcd, Keys, backups, keys, newest, recovery_set, take_from};
use crate::backup::{BucketVault, Identities, Recipients, verify};
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

/// Speaks age's protocol of plugins, with wrapping that hides nothing: the plumbing is what is tried here.
const PLUGIN: &str = r#"#!/usr/bin/env python3
import sys, base64
enc = lambda b: base64.b64encode(b).decode().rstrip("=")
dec = lambda s: base64.b64decode(s + "=" * (-len(s) % 4))
def receive():
    head = sys.stdin.buffer.readline().decode().split()[1:]
    body = ""
    while True:
        line = sys.stdin.buffer.readline().decode().rstrip("\n")
        body += line
        if len(line) < 64: return head, dec(body)
def send(*head, body=b""):
    text, out = enc(body), "-> " + " ".join(head) + "\n"
    lines = [text[i:i + 64] for i in range(0, len(text), 64)]
    if not lines or len(lines[-1]) == 64: lines.append("")
    sys.stdout.write(out + "".join(line + "\n" for line in lines)); sys.stdout.flush()
seen = []
while True:
    head, body = receive()
    if head[0] == "done": break
    seen.append((head, body))
if "recipient-v1" in sys.argv[1]:
    for number, (head, body) in enumerate(h for h in seen if h[0][0] == "wrap-file-key"):
        send("recipient-stanza", str(number), "hkdrtest", body=bytes(b ^ 85 for b in body)); receive()
else:
    for head, body in seen:
        if head[0] == "recipient-stanza" and head[2] == "hkdrtest":
            send("file-key", head[1], body=bytes(b ^ 85 for b in body)); receive()
send("done")
"#;

#[test]
fn a_plugins_key_seals_and_opens_and_a_missing_plugin_is_named() {
    // Bech32 of "a key", as such a plugin would print them.
    let (recipient, identity) = ("age1hkdrtest1vysxketec7svdq", "AGE-PLUGIN-HKDRTEST-1VYSXKETEAJ53H9");
    let other = pair();
    let text = format!("{recipient}\n{}\n", other.0);
    let missing = Recipients::parse(&text).unwrap_err();
    assert!(missing.message.contains("age-plugin-hkdrtest is not on this machine"), "{missing}");
    assert!(Identities::parse(identity, "key.txt").unwrap_err().hint.unwrap().contains("install"));

    // Where PATH finds it; no other test needs the rest of PATH less for it.
    let path = std::path::Path::new("/usr/local/bin/age-plugin-hkdrtest");
    std::fs::write(path, PLUGIN).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tried = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let recipients = Recipients::parse(&text)?;
        let opens = Identities::parse(identity, "key.txt")?;
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let keys = Keys { recipients, first: opens.clone(), second: opens.clone(), second_file: String::new() };
        take_from(&FakeEtcd::sample(), store.as_ref(), &keys).await?;
        vault(&store, &keys.recipients, None).create(&recovery_set()).await?;
        let both = opens_everything(&store, &keys.recipients, &opens).await
            && opens_everything(&store, &keys.recipients, &other.1).await;
        Ok::<_, crate::ports::PortError>(both && !opens_everything(&store, &keys.recipients, &pair().1).await)
    });
    std::fs::remove_file(path).unwrap();
    assert!(tried.unwrap());
}
