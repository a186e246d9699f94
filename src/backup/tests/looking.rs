//! Objects are read out of a recovered state, Secrets decrypted, by an API server of one's own.

use std::path::Path;

use serde_json::json;

use super::oracle::save;
use super::support::{keys, newest, take_set};
use crate::backup::objects::{self, Change, Comparer, differences};
use crate::backup::{BootRequest, IsolatedApi, Programs, Proof, boot, field_changes, verify};
use crate::bolt::Backend;
use crate::bolt::tests::binary;
use crate::distribution::pki::ClusterSecrets;
use crate::distribution::tests_support::demo;
use crate::ports::{Clock, Collection, ErrorCode, Etcd, Kube, ObjectStore, RecoverySet, SystemClock};
use crate::s3::MemoryStore;

async fn start(snapshot: &Path, secrets: &ClusterSecrets, scratch: &Path) -> IsolatedApi {
    IsolatedApi::start(&programs(), snapshot, &demo(), secrets, scratch, &SystemClock).await.unwrap()
}

/// A snapshot of a running cluster is proven by a start from it; one whose keys are another cluster's is called bad.
async fn boots(api: &IsolatedApi, secrets: &ClusterSecrets, scratch: &Path) {
    let (store, keys, etcd) = (MemoryStore::new(), keys(), api.etcd.client().await.unwrap());
    let programs = programs();
    let manifest = async |set: &RecoverySet| {
        let mut set = set.clone();
        set.insert("cluster.yaml".into(), (0o644, b"kind: Cluster".to_vec()));
        set.insert("pki/kubernetes-ca.key".into(), (0o600, b"k".to_vec()));
        take_set(&etcd, &store, &keys, &set).await.unwrap().manifest
    };
    let taken = manifest(&secrets.to_recovery_set()).await;
    let cluster = demo();
    let request = |manifest| BootRequest {
        store: &store,
        manifest,
        identities: &keys.first,
        programs: &programs,
        cluster: &cluster,
        scratch,
        clock: &SystemClock,
        live: Some(&etcd as &dyn Etcd),
    };
    let proven = boot(&request(&taken)).await.unwrap();
    assert_eq!((proven.level.as_str(), proven.kinds["secrets"]), ("boot", 1));
    assert_eq!(proven.hash_agreed, ["local"]);
    assert!(!proven.not_served.contains_key("configmaps") && !proven.not_served.contains_key("secrets"));
    let shown = newest(&store).await.proof;
    assert!(matches!(&shown, Proof::Proven { level, .. } if level == "boot"), "{shown}");
    // Less than that is no news.
    verify(&store, &taken, &keys.first, scratch, &SystemClock).await.unwrap();
    assert_eq!(newest(&store).await.proof, shown);

    // Its Secrets cannot be read with these keys, though every byte is as it was.
    store.delete(&format!("demo/snapshots/{}/manifest.json", taken.id)).await.unwrap();
    let other = ClusterSecrets::generate(&cluster, SystemClock.now()).unwrap();
    // A snapshot of the same second and revision would have the same name.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let unreadable = manifest(&other.to_recovery_set()).await;
    let failed = boot(&request(&unreadable)).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::Corrupt, "{failed}");
    assert!(failed.message.contains("secrets"), "{failed}");
    assert!(matches!(newest(&store).await.proof, Proof::Bad { .. }));
}

fn programs() -> Programs {
    Programs {
        etcd: binary("etcd-3.6.16"),
        etcdutl: binary("etcdutl-3.6.16"),
        apiserver: binary("kube-apiserver-1.35.4"),
    }
}

fn backend(path: &Path) -> Backend {
    Backend::open(std::fs::File::open(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_back_as_they_were_with_secrets_decrypted() {
    let dir = tempfile::Builder::new().prefix("mat-looking-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let secrets = ClusterSecrets::generate(&demo(), SystemClock.now()).unwrap();
    let empty = crate::backup::local_etcd::LocalEtcd::start(&binary("etcd-3.6.16"), &path("empty"), &[]).await.unwrap();
    save(&empty, &path("empty.db")).await;
    drop(empty);

    let api = start(&path("empty.db"), &secrets, dir.path()).await;
    let core = |plural: &str| Collection {
        api_version: "v1".to_owned(),
        plural: plural.to_owned(),
        namespace: Some("default".to_owned()),
    };
    let secret = |value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"password": value}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gone"}, "data": {"a": "1"}});
    api.kube.apply(&core("secrets"), &secret("one")).await.unwrap();
    api.kube.create(&core("configmaps"), &map).await.unwrap();
    save(&api.etcd, &path("first.db")).await;
    api.kube.apply(&core("secrets"), &secret("two")).await.unwrap();
    api.kube.delete(&core("configmaps"), "gone", Some(0)).await.unwrap();
    save(&api.etcd, &path("second.db")).await;
    drop(api);

    let (first, second) = (backend(&path("first.db")), backend(&path("second.db")));
    let comparer = Comparer::default();
    let found = differences(&comparer.file(&first).unwrap(), &comparer.file(&second).unwrap());
    let of = |text: &str| found.iter().find(|(name, _)| name.to_string() == text).map(|(_, change)| *change);
    assert_eq!(of("secrets default/key"), Some(Change::Changed), "{found:?}");
    assert_eq!(of("configmaps default/gone"), Some(Change::Removed));

    let (name, stored) = objects::find(&first, "secret", Some("default"), "key").unwrap();
    assert!(!stored.windows(3).any(|window| window == b"one"), "the value lies encrypted");
    let collection = objects::collection(&name, &stored).unwrap();
    let api = start(&path("first.db"), &secrets, dir.path()).await;
    let then = api.kube.get(&collection, "key").await.unwrap().unwrap();
    assert_eq!(then["data"]["password"], "b25l");
    assert!(api.kube.get(&core("configmaps"), "gone").await.unwrap().is_some());
    boots(&api, &secrets, dir.path()).await;
    drop(api);
    let mut changed = then.clone();
    changed["data"]["password"] = json!("dHdv");
    let shown = serde_json::to_string(&field_changes(&then, &changed, true)).unwrap();
    assert!(shown.contains("data.password") && !shown.contains("dHdv"), "{shown}");
    assert!(objects::find(&second, "configmap", Some("default"), "gone").is_err());
    // Nothing of it stays behind.
    let left = std::fs::read_dir(dir.path()).unwrap();
    let left = left.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("isolated-"));
    assert_eq!(left.count(), 0);
}
