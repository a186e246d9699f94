//! A backup opens without hk-dr: `age`, `zstd`, `tar`, `etcdutl`, and an etcd that serves what it brings.

use std::path::Path;
use std::process::{Command, Stdio};

use super::support::{keys, newest, take_from};
use crate::backup::local_etcd::LocalEtcd;
use crate::backup::verify;
use crate::bolt::tests::binary;
use crate::ports::{Etcd, ObjectStore, SystemClock};
use crate::s3::S3Store;
use crate::s3::contract::s3_server;

fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_under_writes_opens_with_stock_tools() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys();
    let (server, _s3_dir) = s3_server();
    let store = S3Store::connect(&server.config("backups")).unwrap();
    store.ensure_bucket().await.unwrap();

    let etcd = LocalEtcd::start(&binary("etcd-3.6.16"), &dir.path().join("first"), &[]).await.unwrap();
    let client = etcd.client().await.unwrap();
    for n in 0..300 {
        let key = format!("/registry/secrets/ns/{n:04}");
        client.put(LocalEtcd::MEMBER, key.as_bytes(), &vec![b'x'; 5000 + n]).await.unwrap();
    }
    // Writes go on while the snapshot is taken: the revision asked beside it would be wrong.
    let writer = etcd.client().await.unwrap();
    let writing = tokio::spawn(async move {
        for n in 0.. {
            let key = format!("/registry/events/ns/{n}");
            writer.put(LocalEtcd::MEMBER, key.as_bytes(), b"an event").await.unwrap();
        }
    });
    let taken = take_from(&client, &store, &keys).await.unwrap();
    writing.abort();
    drop(etcd);

    let manifest = newest(&store).await.manifest;
    assert_eq!(manifest, taken.manifest);
    for (sealed, name) in [(&manifest.etcd, "etcd.db.zst.age"), (&manifest.recovery, "recovery.tar.zst.age")] {
        assert!(sealed.key.ends_with(name), "{}", sealed.key);
        let stored = store.get(&sealed.key, 1 << 30).await.unwrap();
        std::fs::write(dir.path().join(name), stored).unwrap();
    }
    std::fs::write(dir.path().join("key.txt"), &keys.second_file).unwrap();
    let digest = sh(dir.path(), "age -d -i key.txt etcd.db.zst.age | zstd -dq > etcd.db; sha256sum etcd.db");
    assert!(digest.starts_with(&manifest.etcd.plain_sha256));
    let listing = sh(dir.path(), "age -d -i key.txt recovery.tar.zst.age | zstd -dq | tar tvf -");
    assert!(listing.contains("-rw------- 0/0") && listing.contains("pki/kubernetes-ca.key"), "{listing}");
    let yaml = sh(dir.path(), "age -d -i key.txt recovery.tar.zst.age | zstd -dq | tar xOf - cluster.yaml");
    assert_eq!(yaml, "kind: Cluster\n");

    let etcdutl = binary("etcdutl-3.6.16");
    let status = sh(dir.path(), &format!("{} snapshot status etcd.db -w json", etcdutl.display()));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["revision"].as_i64(), Some(manifest.revision), "{status}");
    sh(dir.path(), &format!("{} snapshot restore etcd.db --data-dir second 2>&1", etcdutl.display()));
    let options = ["--force-new-cluster"];
    let restored = LocalEtcd::start(&binary("etcd-3.6.16"), &dir.path().join("second"), &options).await.unwrap();
    let client = restored.client().await.unwrap();
    let value = client.get(LocalEtcd::MEMBER, b"/registry/secrets/ns/0299").await.unwrap().unwrap();
    assert_eq!(value.value.len(), 5299);
    let mut keys_found = 0;
    client.range(LocalEtcd::MEMBER, b"/", 0, &mut |page| keys_found += page.len() as u64).await.unwrap();
    assert_eq!(Some(keys_found), manifest.keys);

    let read = verify(&store, &manifest, &keys.first, dir.path(), &SystemClock).await.unwrap();
    assert_eq!(read.kinds["secrets"], 300);
    assert_eq!(read.keys, keys_found);
}
