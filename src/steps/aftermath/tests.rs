//! Every trap that a restore leaves, made through a real API server over a real etcd, and cleared through it.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::kube::tests::Api;
use crate::plan::aftermath::{Known, decide};
use crate::steps::cluster_settle::settle;

fn at(api_version: &str, plural: &str, namespace: Option<&str>) -> Collection {
    Collection { api_version: api_version.into(), plural: plural.into(), namespace: namespace.map(Into::into) }
}

fn core(plural: &str, namespace: Option<&str>) -> Collection {
    at("v1", plural, namespace)
}

const GUARD: &str = "admissionregistration.k8s.io/v1";

/// w1 lives, w2 comes back, w9 is gone; a guard that nobody can ask any more refuses every change of them.
async fn traps(kube: &dyn Kube) {
    let make = async |at: &Collection, object: Value| {
        let made = until("make a trap", Duration::from_secs(30), Duration::from_millis(200), || async {
            match kube.create(at, &object).await {
                // An API server makes kube-system and its like a moment after it serves.
                Err(e) if e.code == ErrorCode::NotFound => Ok(Err(e.message)),
                other => other.map(Ok),
            }
        });
        made.await.unwrap_or_else(|e| panic!("{e}: {object}"));
    };
    for namespace in ["shop", "old"] {
        make(&core("namespaces", None), json!({"metadata": {"name": namespace}})).await;
    }
    // Its finalizer is the namespace controller's, which does not run.
    kube.delete(&core("namespaces", None), "old", None).await.unwrap();
    make(&core("serviceaccounts", Some("shop")), json!({"metadata": {"name": "default"}})).await;
    for (node, id) in [("w1", "11"), ("w2", "12"), ("w9", "19")] {
        let object = json!({"metadata": {"name": node}, "spec": {"providerID": format!("cloud://{id}")}});
        make(&core("nodes", None), object).await;
        let pod = json!({"metadata": {"name": format!("on-{node}")},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        make(&core("pods", Some("shop")), pod).await;
        let attachment = json!({"metadata": {"name": format!("a-{node}"), "finalizers": ["external-attacher/x"]},
            "spec": {"attacher": "csi.example", "nodeName": node, "source": {"persistentVolumeName": "far"}}});
        make(&at("storage.k8s.io/v1", "volumeattachments", None), attachment).await;
        let lease = json!({"metadata": {"name": node}, "spec": {"holderIdentity": node}});
        make(&at("coordination.k8s.io/v1", "leases", Some("kube-node-lease")), lease).await;
        let secret = json!({"metadata": {"name": format!("{node}.node-password.k3s")}, "data": {"hash": "eA=="}});
        make(&core("secrets", Some("kube-system")), secret).await;
    }
    let orphan = json!({"metadata": {"name": "orphan"},
        "spec": {"nodeName": "w8", "containers": [{"name": "c", "image": "i"}]}});
    make(&core("pods", Some("shop")), orphan).await;
    for (namespace, name, holder) in
        [("kube-system", "kube-scheduler", "m1_1"), ("shop", "leader", "on-w9_1"), ("shop", "lives", "on-w1_1")]
    {
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": holder}});
        make(&at("coordination.k8s.io/v1", "leases", Some(namespace)), lease).await;
    }
    let slice = json!({"metadata": {"name": "shop-1"}, "addressType": "IPv4", "endpoints": [
        {"addresses": ["10.1.0.1"], "nodeName": "w1"}, {"addresses": ["10.1.9.1"], "nodeName": "w9"}]});
    make(&at("discovery.k8s.io/v1", "endpointslices", Some("shop")), slice).await;
    let endpoints = json!({"metadata": {"name": "shop"}, "subsets": [{"ports": [{"port": 80}], "addresses": [
        {"ip": "10.1.0.1", "nodeName": "w1"}, {"ip": "10.1.9.1", "nodeName": "w9"}]}]});
    make(&core("endpoints", Some("shop")), endpoints).await;
    let token = json!({"metadata": {"name": "bootstrap-token-aaaaaa"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"expiration": "2026-01-01T00:00:00Z", "token-id": "aaaaaa"}});
    make(&core("secrets", Some("kube-system")), token).await;
    let volume = json!({"metadata": {"name": "far"}, "spec": {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "csi.example", "volumeHandle": "1"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "topology.kubernetes.io/region", "operator": "In", "values": ["hel1"]}]}]}}}});
    make(&core("persistentvolumes", None), volume).await;
    let guard = json!({"metadata": {"name": "guard"}, "webhooks": [{
        "name": "closed.guard.example", "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "shop", "name": "guard", "port": 8443}}, "timeoutSeconds": 2,
        "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["UPDATE", "DELETE"], "resources": [
            "nodes", "pods", "volumeattachments", "endpoints", "endpointslices", "secrets"]}]}]});
    make(&at(GUARD, "validatingwebhookconfigurations", None), guard).await;
}

/// Flux with its replica set and pod on w1, which lives, as controllers that do not run here would have made them.
async fn flux(kube: &dyn Kube) {
    let labels = json!({"app.kubernetes.io/part-of": "flux", "app": "source-controller"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "source-controller"}}, "template": template});
    let owned = |by: &Value, kind: &str| {
        json!([{"apiVersion": "apps/v1", "kind": kind, "controller": true,
            "name": by["metadata"]["name"], "uid": by["metadata"]["uid"]}])
    };
    let deployment = json!({"metadata": {"name": "source-controller", "labels": labels}, "spec": spec});
    let deployment = kube.create(&at("apps/v1", "deployments", Some("shop")), &deployment).await.unwrap();
    let metadata = json!({"name": "source-controller-1", "ownerReferences": owned(&deployment, "Deployment")});
    let set = json!({"metadata": metadata, "spec": spec});
    let set = kube.create(&at("apps/v1", "replicasets", Some("shop")), &set).await.unwrap();
    let metadata = json!({"name": "source-controller-1-a", "ownerReferences": owned(&set, "ReplicaSet")});
    let pod = json!({"metadata": metadata,
        "spec": {"nodeName": "w1", "containers": [{"name": "c", "image": "i"}]}});
    kube.create(&core("pods", Some("shop")), &pod).await.unwrap();
}

async fn replicas(kube: &dyn Kube, plural: &str, name: &str) -> Value {
    let found = kube.get(&at("apps/v1", plural, Some("shop")), name).await.unwrap().unwrap();
    json!([found["spec"]["replicas"], found["metadata"]["annotations"]["hk-dr/suspended-replicas"]])
}

/// Waits until the API server has heard of the guard's state.
async fn changes_are_refused(kube: &dyn Kube, wanted: bool) {
    let label = json!({"metadata": {"labels": {"changed": "yes"}}});
    for _ in 0..300 {
        let refused = match kube.patch(&core("nodes", None), "w1", &label).await {
            Err(e) => e.message.contains("failed calling webhook"),
            Ok(_) => false,
        };
        if refused == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("changes are refused: wanted {wanted}");
}

async fn names(kube: &dyn Kube, at: &Collection) -> Vec<String> {
    let listed = kube.list(at).await.unwrap();
    listed.iter().filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_trap_of_a_restore_is_cleared_through_a_real_api() {
    let (_api, kube) = Api::start().await;
    let kube: &dyn Kube = &kube;
    traps(kube).await;
    flux(kube).await;
    changes_are_refused(kube, true).await;
    let known = Known {
        living: ["w1".to_owned()].into(),
        returning: ["w2".to_owned()].into(),
        server_ids: [("w1".to_owned(), 11)].into(),
        locations: ["fsn1".to_owned()].into(),
        now: Some("2026-11-23T20:00:00Z".parse().unwrap()),
    };
    let decided = decide(&look(kube).await.unwrap(), &known);
    let done = carry_out(kube, &decided).await.unwrap();
    assert!(done[0].starts_with("change validatingwebhookconfigurations guard"), "{done:?}");

    assert_eq!(names(kube, &core("nodes", None)).await, ["w1"]);
    assert_eq!(names(kube, &core("pods", Some("shop"))).await, ["on-w1", "on-w2"]);
    assert_eq!(names(kube, &at("storage.k8s.io/v1", "volumeattachments", None)).await, ["a-w1"]);
    assert_eq!(names(kube, &at("coordination.k8s.io/v1", "leases", Some("kube-node-lease"))).await, ["w1"]);
    assert_eq!(names(kube, &at("coordination.k8s.io/v1", "leases", Some("shop"))).await, ["lives"]);
    let system = names(kube, &at("coordination.k8s.io/v1", "leases", Some("kube-system"))).await;
    assert!(!system.iter().any(|lease| lease == "kube-scheduler"), "{system:?}");
    assert_eq!(names(kube, &core("secrets", Some("kube-system"))).await, ["w1.node-password.k3s"]);
    let slice = kube.get(&at("discovery.k8s.io/v1", "endpointslices", Some("shop")), "shop-1").await.unwrap().unwrap();
    assert_eq!(slice["endpoints"].as_array().unwrap().len(), 1);
    let endpoints = kube.get(&core("endpoints", Some("shop")), "shop").await.unwrap().unwrap();
    assert_eq!(endpoints["subsets"][0]["addresses"].as_array().unwrap().len(), 1);
    let all = decided.findings.join("\n");
    assert!(
        all.contains("namespace old was being deleted") && all.contains("volume far can be used only in hel1"),
        "{all}"
    );
    assert_eq!(decide(&look(kube).await.unwrap(), &known).edits, [], "once is enough");
    // Its pod ran on a server that lives; nothing may start another one.
    assert_eq!(replicas(kube, "deployments", "source-controller").await, json!([0, "2"]));
    assert_eq!(replicas(kube, "replicasets", "source-controller-1").await, json!([0, null]));
    assert_eq!(suspended_workloads(kube).await.unwrap(), ["shop/source-controller"]);

    // Neither a service that is gone nor one without endpoints answers: it stays relaxed, and that is said.
    let copied = settle(kube, Duration::from_millis(100), false).await.unwrap();
    assert!(copied.done.is_empty() && suspended_workloads(kube).await.unwrap().len() == 1, "not in a copy: {copied:?}");
    let settled = settle(kube, Duration::from_millis(100), true).await.unwrap();
    assert_eq!(settled.done, ["shop/source-controller runs again"]);
    assert_eq!(replicas(kube, "deployments", "source-controller").await, json!([2, null]));
    assert!(settled.findings.iter().any(|f| f.contains("what Git has now is applied")), "{settled:?}");
    assert!(settled.findings.iter().any(|f| f.contains("closed.guard.example") && f.contains("shop/guard:8443")));
    assert!(settled.findings.iter().any(|f| f.contains("namespace old is still being deleted")), "{settled:?}");
    let service = json!({"metadata": {"name": "guard"}, "spec": {"ports": [{"port": 8443}]}});
    kube.create(&core("services", Some("shop")), &service).await.unwrap();
    assert_eq!(put_webhooks_back(kube, false).await.unwrap().left.len(), 1);
    changes_are_refused(kube, false).await;

    let forced = put_webhooks_back(kube, true).await.unwrap();
    assert_eq!(forced, Webhooks { put_back: vec!["closed.guard.example".into()], ..Webhooks::default() });
    changes_are_refused(kube, true).await;
    let guard = kube.get(&at(GUARD, "validatingwebhookconfigurations", None), "guard").await.unwrap().unwrap();
    assert_eq!(guard["webhooks"][0]["failurePolicy"], "Fail");
    assert!(relaxed_webhooks(kube).await.unwrap().is_empty(), "{guard}");
}

/// An API with one relaxed webhook, whose backend answers as it is told.
struct Proxy {
    says: PortResult<Vec<Value>>,
    patched: std::sync::Mutex<Vec<Value>>,
}

#[async_trait::async_trait]
impl Kube for Proxy {
    async fn ready(&self) -> PortResult<bool> {
        Ok(true)
    }
    async fn get(&self, at: &Collection, name: &str) -> PortResult<Option<Value>> {
        assert_eq!(at.plural, "services");
        Ok((name == "guard").then(|| json!({})))
    }
    async fn list(&self, at: &Collection) -> PortResult<Vec<Value>> {
        let webhook = json!({"name": "w", "failurePolicy": "Ignore",
            "clientConfig": {"service": {"namespace": "shop", "name": "guard", "port": 8443}}});
        let relaxed = json!({"metadata": {"name": "c", "annotations": {"hk-dr/relaxed-webhooks": "[\"w\"]"}},
            "webhooks": [webhook]});
        match at.plural.as_str() {
            "services/https:guard:8443/proxy" => self.says.clone(),
            "validatingwebhookconfigurations" => Ok(vec![relaxed]),
            _ => Ok(Vec::new()),
        }
    }
    async fn apply(&self, _: &Collection, object: &Value) -> PortResult<Value> {
        Ok(object.clone())
    }
    async fn delete(&self, _: &Collection, _: &str, _: Option<u32>) -> PortResult<bool> {
        Ok(true)
    }
    async fn patch(&self, _: &Collection, _: &str, patch: &Value) -> PortResult<Value> {
        self.patched.lock().unwrap().push(patch.clone());
        Ok(patch.clone())
    }
    async fn create(&self, _: &Collection, object: &Value) -> PortResult<Value> {
        Ok(object.clone())
    }
}

#[tokio::test]
async fn any_answer_of_a_backend_puts_its_webhook_back_and_silence_does_not() {
    use crate::ports::PortError;
    let failed = |code: ErrorCode, message: &str| Err(PortError::new(code, message));
    for (says, answers) in [
        (Ok(Vec::new()), true),
        (failed(ErrorCode::ServerError, "Kubernetes API, GET …: the answer is not JSON: expected value"), true),
        (failed(ErrorCode::NotFound, "404 404 page not found"), true),
        (failed(ErrorCode::Invalid, "405 only POST"), true),
        (failed(ErrorCode::NotFound, "404 services \"guard\" not found (NotFound)"), false),
        (failed(ErrorCode::ServerError, "503 no endpoints available for service \"https:guard:8443\""), false),
        (failed(ErrorCode::Timeout, "no answer within 30 s"), false),
    ] {
        let told = format!("{says:?}");
        let kube = Proxy { says, patched: Default::default() };
        let done = put_webhooks_back(&kube, false).await.unwrap();
        assert_eq!(done.put_back == ["w"], answers, "{told}");
        assert_eq!(done.left.len(), usize::from(!answers), "{told}");
        let patched = kube.patched.lock().unwrap();
        assert_eq!(patched.len(), usize::from(answers), "{told}");
        assert!(patched.iter().all(|p| p["webhooks"][0]["failurePolicy"] == "Fail"), "{told}: {patched:?}");
    }
}
