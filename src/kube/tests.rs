//! Against a real API server with a real etcd.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::etcd::testing::{Pki, Process, Server, free_port, pinned};
use crate::ports::{ClientTls, Collection, ErrorCode, Kube};

/// etcd and an API server of a test's own.
pub(crate) struct Api {
    url: String,
    etcd: Server,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Api {
    pub(crate) async fn start() -> (Self, KubeClient) {
        let etcd = Server::start().await;
        let pki = &etcd.pki;
        let dir = tempfile::Builder::new().prefix("hk-dr-api-").tempdir().unwrap();
        let port = free_port();
        let process = Command::new(pinned("kube-apiserver-1.35.4"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--authorization-mode=RBAC"])
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--endpoint-reconciler-type=none"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--anonymous-auth=false"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--etcd-servers={}", etcd.url()))
            .arg(format!("--etcd-cafile={}", pki.file("ca.crt")))
            .arg(format!("--etcd-certfile={}", pki.file("client.crt")))
            .arg(format!("--etcd-keyfile={}", pki.file("client.key")))
            .arg(format!("--client-ca-file={}", pki.file("ca.crt")))
            .arg(format!("--tls-cert-file={}", pki.file("server.crt")))
            .arg(format!("--tls-private-key-file={}", pki.file("server.key")))
            .arg(format!("--service-account-key-file={}", pki.file("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", pki.file("sa.key")))
            .arg(format!("--cert-dir={}", dir.path().display()))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let url = format!("https://127.0.0.1:{port}");
        let kube = KubeClient::direct(&url, &etcd.pki.client()).unwrap();
        let api = Self { url, etcd, _process: Process(process), _dir: dir };
        let begun = Instant::now();
        loop {
            let ready = kube.ready().await;
            if matches!(ready, Ok(true)) {
                return (api, kube);
            }
            let log = || std::fs::read_to_string(api._dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(120), "no API server: {ready:?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn core(plural: &str, namespace: Option<&str>) -> Collection {
    Collection { api_version: "v1".into(), plural: plural.into(), namespace: namespace.map(Into::into) }
}

/// One server for all of it: starting one takes longer than everything that is asked of it.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_any_kind_are_made_read_changed_and_deleted() {
    let (api, kube) = Api::start().await;
    let maps = core("configmaps", Some("default"));

    // Apply makes and changes; patch merges; an absent object is an answer.
    assert_eq!(kube.get(&maps, "one").await.unwrap(), None);
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "1"}});
    let made = kube.apply(&maps, &object).await.unwrap();
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "hk-dr");
    let patched = kube.patch(&maps, "one", &json!({"data": {"b": "2"}})).await.unwrap();
    assert_eq!(patched["data"], json!({"a": "1", "b": "2"}));
    assert_eq!(kube.get(&maps, "one").await.unwrap().unwrap()["data"]["b"], "2");
    assert_eq!(kube.create(&maps, &object).await.unwrap_err().code, ErrorCode::Conflict);
    assert!(kube.delete(&maps, "one", Some(0)).await.unwrap());
    assert!(!kube.delete(&maps, "one", None).await.unwrap());

    // The service's canary.
    use crate::steps::Mark;
    assert_eq!(Mark::read(&kube).await.unwrap(), None);
    for at in ["2026-11-23T12:00:00Z", "2026-11-23T12:01:00Z"] {
        let mark = Mark { at: at.parse().unwrap(), every_seconds: 60 };
        mark.write(&kube).await.unwrap();
        assert_eq!(Mark::read(&kube).await.unwrap(), Some(mark));
    }
    kube.patch(&maps, "hk-dr-canary", &json!({"data": {"at": "yesterday"}})).await.unwrap();
    assert_eq!(Mark::read(&kube).await.unwrap(), None, "what can't be read is none");

    // Lists come whole, over several pages, and their objects say what they are.
    for i in 0..260 {
        let name = format!("page-{i:03}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        kube.create(&maps, &object).await.unwrap();
    }
    let listed = kube.list(&core("configmaps", None)).await.unwrap();
    let pages: Vec<_> = listed
        .iter()
        .filter(|o| o["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("page-")))
        .collect();
    assert_eq!(pages.len(), 260);
    assert!(pages.iter().all(|o| o["kind"] == "ConfigMap" && o["apiVersion"] == "v1"));

    // Names with a colon, groups with a version, subresources.
    let roles = Collection {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        plural: "clusterroles".into(),
        namespace: None,
    };
    assert!(kube.get(&roles, "system:node").await.unwrap().is_some());
    let accounts = core("serviceaccounts", Some("default"));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "app"}});
    kube.apply(&accounts, &account).await.unwrap();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = kube.create(&core("serviceaccounts/app/token", Some("default")), &request).await.unwrap();
    assert!(token["status"]["token"].as_str().is_some_and(|t| t.len() > 100));

    // What is wrong is told apart.
    let bad = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Not A Name"}});
    assert_eq!(kube.create(&maps, &bad).await.unwrap_err().code, ErrorCode::Invalid);
    let absent = Collection { api_version: "nothing.example/v1".into(), plural: "things".into(), namespace: None };
    assert_eq!(kube.list(&absent).await.unwrap_err().code, ErrorCode::NotFound);
    let connect = |tls: &ClientTls| KubeClient::direct(&api.url, tls).unwrap();
    let stranger = Pki::new();
    let wrong_ca = ClientTls { ca_pem: stranger.client().ca_pem, ..api.etcd.pki.client() };
    assert_eq!(connect(&wrong_ca).ready().await.unwrap_err().code, ErrorCode::Untrusted);
    let wrong_name = ClientTls { server_name: "other.test".into(), ..api.etcd.pki.client() };
    assert_eq!(connect(&wrong_name).ready().await.unwrap_err().code, ErrorCode::Untrusted);
    let wrong_client = ClientTls { ca_pem: api.etcd.pki.client().ca_pem, ..stranger.client() };
    assert_eq!(connect(&wrong_client).ready().await.unwrap_err().code, ErrorCode::Unauthorized);
    let nobody = KubeClient::direct(&format!("https://127.0.0.1:{}", free_port()), &api.etcd.pki.client()).unwrap();
    assert_eq!(nobody.ready().await.unwrap_err().code, ErrorCode::Unreachable);
}
