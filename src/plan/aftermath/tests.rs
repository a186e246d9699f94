//! A cluster that has every one of the traps, and random ones.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn object(name: &str, namespace: Option<&str>, more: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}});
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    for (field, value) in more.as_object().cloned().unwrap_or_default() {
        match field.as_str() {
            "metadata" => {
                for (field, value) in value.as_object().cloned().unwrap_or_default() {
                    object["metadata"][field] = value;
                }
            }
            _ => object[field] = value,
        }
    }
    object
}

fn webhook(name: &str, policy: Option<&str>, service: bool) -> Value {
    let mut webhook = json!({"name": name, "clientConfig": {"url": "https://elsewhere.example/"}});
    if service {
        webhook["clientConfig"] = json!({"service": {"namespace": "guard", "name": "guard", "port": 8443}});
    }
    if let Some(policy) = policy {
        webhook["failurePolicy"] = policy.into();
    }
    webhook
}

fn known() -> Known {
    Known {
        living: ["w1".to_owned()].into(),
        returning: ["w2".to_owned()].into(),
        server_ids: [("w1".to_owned(), 11)].into(),
        locations: ["fsn1".to_owned()].into(),
        now: Some("2026-11-23T20:00:00Z".parse().unwrap()),
    }
}

/// w1 lives, w2 comes back, w9 is gone.
fn fixture() -> Found {
    let token = |end: &str| {
        use base64::Engine;
        let end = base64::engine::general_purpose::STANDARD.encode(end);
        json!({"type": BOOTSTRAP_TOKEN, "data": {"expiration": end}})
    };
    let bound = |place: &str| {
        json!({"spec": {"claimRef": {"namespace": "shop", "name": "data"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "csi.hetzner.cloud/location", "operator": "In", "values": [place]}]}]}}}})
    };
    let attached =
        |node: &str| json!({"spec": {"nodeName": node}, "metadata": {"finalizers": ["external-attacher/x"]}});
    let lists = [
        (
            "validatingwebhookconfigurations",
            vec![object(
                "guard",
                None,
                json!({"metadata": {"resourceVersion": "7"}, "webhooks": [
                    webhook("closed.guard", Some("Fail"), true), webhook("default.guard", None, true),
                    webhook("open.guard", Some("Ignore"), true), webhook("url.guard", Some("Fail"), false)]}),
            )],
        ),
        (
            "nodes",
            vec![
                object("w1", None, json!({"spec": {"providerID": "hcloud://11", "podCIDR": "10.1.0.0/24"}})),
                object("w2", None, json!({"spec": {"providerID": "hcloud://12"}})),
                object("w9", None, json!({"spec": {}})),
            ],
        ),
        (
            "pods",
            vec![
                object("on-w1", Some("shop"), json!({"spec": {"nodeName": "w1"}})),
                object("on-w2", Some("shop"), json!({"spec": {"nodeName": "w2"}})),
                object("on-w9", Some("shop"), json!({"spec": {"nodeName": "w9"}})),
                // Its Node is not even there any more.
                object("orphan", Some("shop"), json!({"spec": {"nodeName": "w8"}})),
                object("waiting", Some("shop"), json!({"spec": {}})),
            ],
        ),
        (
            "volumeattachments",
            vec![
                object("a1", None, attached("w1")),
                object("a2", None, attached("w2")),
                object("a9", None, attached("w9")),
            ],
        ),
        (
            "leases",
            vec![
                object("w1", Some("kube-node-lease"), json!({"spec": {"holderIdentity": "w1"}})),
                object("w9", Some("kube-node-lease"), json!({"spec": {"holderIdentity": "w9"}})),
                object("kube-scheduler", Some("kube-system"), json!({"spec": {"holderIdentity": "m1_1"}})),
                object("apiserver-abc", Some("kube-system"), json!({"spec": {"holderIdentity": "apiserver-abc_1"}})),
                object("leader", Some("shop"), json!({"spec": {"holderIdentity": "on-w9_1"}})),
                object("other", Some("shop"), json!({"spec": {"holderIdentity": "on-w1_1"}})),
            ],
        ),
        (
            "endpointslices",
            vec![object(
                "shop-1",
                Some("shop"),
                json!({"endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "w1"},
                {"addresses": ["10.1.9.1"], "nodeName": "w9"}, {"addresses": ["192.0.2.1"]}]}),
            )],
        ),
        (
            "endpoints",
            vec![object(
                "shop",
                Some("shop"),
                json!({"subsets": [
                {"addresses": [{"ip": "10.1.0.1", "nodeName": "w1"}, {"ip": "10.1.9.1", "nodeName": "w9"}]},
                {"notReadyAddresses": [{"ip": "10.1.9.2", "nodeName": "w9"}]}]}),
            )],
        ),
        (
            "secrets",
            vec![
                object("w1.node-password.k3s", Some("kube-system"), json!({"type": "Opaque"})),
                object("w2.node-password.k3s", Some("kube-system"), json!({"type": "Opaque"})),
                object("bootstrap-token-aaaaaa", Some("kube-system"), token("2026-11-20T00:00:00Z")),
                object("bootstrap-token-bbbbbb", Some("kube-system"), token("2026-12-20T00:00:00Z")),
                object("something", Some("kube-system"), json!({"type": "Opaque"})),
            ],
        ),
        (
            "namespaces",
            vec![
                object("shop", None, json!({})),
                object("old", None, json!({"metadata": {"deletionTimestamp": "2026-11-22T00:00:00Z"}})),
            ],
        ),
        ("apiservices", vec![object("v1.metrics", None, json!({"spec": {"service": {"name": "m"}}}))]),
        ("persistentvolumes", vec![object("here", None, bound("fsn1-dc14")), object("far", None, bound("hel1"))]),
    ];
    lists.into_iter().map(|(plural, list)| (plural.to_owned(), list)).collect()
}

/// What the API server would make of the edits.
fn applied(found: &Found, edits: &[Edit]) -> Found {
    let mut found = found.clone();
    for edit in edits {
        let list = found.get_mut(&edit.at.plural).expect("a kind that was looked at");
        let namespace = edit.at.namespace.as_deref().unwrap_or_default();
        let at = list.iter().position(|o| name(o) == edit.name && super::namespace(o) == namespace);
        let at = at.unwrap_or_else(|| panic!("{} {} is not there", edit.at.plural, edit.name));
        match &edit.act {
            Act::Delete { .. } => _ = list.remove(at),
            Act::Patch(patch) => merge(&mut list[at], patch),
            Act::Recreate(object) => list[at] = object.clone(),
        }
    }
    found
}

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else { return *object = patch.clone() };
    if !object.is_object() {
        *object = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            object.as_object_mut().map(|o| o.remove(field));
        } else {
            merge(&mut object[field], value);
        }
    }
}

#[test]
fn a_cluster_with_every_trap_is_cleared_in_order() {
    let found = fixture();
    let decided = decide(&found, &known());
    let said: Vec<String> = decided
        .edits
        .iter()
        .map(|e| {
            let act = match e.act {
                Act::Delete { .. } => "-",
                Act::Patch(_) => "~",
                Act::Recreate(_) => "+",
            };
            format!("{act}{}/{}", e.at.plural, e.name)
        })
        .collect();
    let wanted = [
        "~validatingwebhookconfigurations/guard",
        "-nodes/w2",
        "-nodes/w9",
        "-leases/w9",
        "-leases/kube-scheduler",
        "-leases/leader",
        "-pods/on-w9",
        "-pods/orphan",
        "~volumeattachments/a2",
        "-volumeattachments/a2",
        "~volumeattachments/a9",
        "-volumeattachments/a9",
        "~endpointslices/shop-1",
        "~endpoints/shop",
        "-secrets/w2.node-password.k3s",
        "-secrets/bootstrap-token-aaaaaa",
    ];
    assert_eq!(said, wanted);
    let all = decided.findings.join("\n");
    for part in [
        "bootstrap-token-bbbbbb",
        "namespace old was being deleted",
        "these APIs answer: v1.metrics",
        "persistent volume far, claimed as shop/data, can be used only in hel1",
    ] {
        assert!(all.contains(part), "{part} is missing in {all}");
    }
    assert!(!all.contains("volume here"), "{all}");

    let after = applied(&found, &decided.edits);
    let webhooks = &after["validatingwebhookconfigurations"][0];
    let policies: Vec<&str> =
        webhooks["webhooks"].as_array().unwrap().iter().filter_map(|w| w["failurePolicy"].as_str()).collect();
    assert_eq!(policies, ["Ignore", "Ignore", "Ignore", "Fail"], "one at a URL is no matter of this cluster");
    assert_eq!(after["endpointslices"][0]["endpoints"].as_array().unwrap().len(), 2);
    assert_eq!(after["endpoints"][0]["subsets"], json!([{"addresses": [{"ip": "10.1.0.1", "nodeName": "w1"}]}]));

    // Put back, but for those whose backends do not answer; and exactly those that were relaxed.
    let (patch, left) = put_back(webhooks, &|_| false).unwrap();
    assert_eq!((patch, left), (None, vec!["closed.guard".to_owned(), "default.guard".to_owned()]));
    let (patch, left) = put_back(webhooks, &|b| b.service == "guard" && b.port == 8443).unwrap();
    assert!(left.is_empty());
    let mut back = webhooks.clone();
    merge(&mut back, &patch.unwrap());
    let policies: Vec<&str> =
        back["webhooks"].as_array().unwrap().iter().filter_map(|w| w["failurePolicy"].as_str()).collect();
    assert_eq!(policies, ["Fail", "Fail", "Ignore", "Fail"]);
    assert_eq!(put_back(&back, &|_| true), None, "nothing says any more that something is relaxed");
}

/// A workload with the replica set (if it has one) and the pod that are its.
fn workload(found: &mut Found, plural: &str, name: &str, labels: Value, replicas: Option<u64>) {
    let mut made =
        object(name, Some("ops"), json!({"metadata": {"labels": labels, "resourceVersion": "3"}, "spec": {}}));
    if let Some(replicas) = replicas {
        made["spec"]["replicas"] = replicas.into();
    }
    let owned = |kind: &str, by: &str| json!({"ownerReferences": [{"kind": kind, "name": by, "controller": true}]});
    let mut pod = object(&format!("{name}-pod"), Some("ops"), json!({"spec": {"nodeName": "w1"}}));
    if plural == "deployments" {
        let set = format!("{name}-set");
        let made = object(&set, Some("ops"), json!({"metadata": owned("Deployment", name), "spec": {"replicas": 1}}));
        found.entry("replicasets".into()).or_default().push(made);
        merge(&mut pod, &json!({"metadata": owned("ReplicaSet", &set)}));
    } else {
        merge(&mut pod, &json!({"metadata": owned("StatefulSet", name)}));
    }
    found.entry(plural.into()).or_default().push(made);
    found.entry("pods".into()).or_default().push(pod);
}

#[test]
fn what_acts_on_the_whole_cluster_stands_still_and_comes_back_as_it_was() {
    let mut found = fixture();
    let flux = json!({"app.kubernetes.io/part-of": "flux", "app.kubernetes.io/component": "kustomize-controller"});
    workload(&mut found, "deployments", "kustomize-controller", flux, None);
    let argo = json!({"app.kubernetes.io/part-of": "argocd", "app.kubernetes.io/component": "application-controller"});
    workload(&mut found, "statefulsets", "argocd-application-controller", argo.clone(), Some(2));
    let page = json!({"app.kubernetes.io/part-of": "argocd", "app.kubernetes.io/component": "server"});
    workload(&mut found, "deployments", "argocd-server", page, Some(1));
    workload(&mut found, "deployments", "cluster-autoscaler", json!({"app": "cluster-autoscaler"}), Some(1));
    workload(&mut found, "deployments", "ours", json!({"hk-dr/suspend-in-recovery": "true"}), Some(1));
    workload(&mut found, "deployments", "shop", json!({"app": "shop"}), Some(3));
    // Its team had stopped it before.
    workload(&mut found, "statefulsets", "argocd-old", argo, Some(0));
    let lease =
        object("kustomize-controller", Some("ops"), json!({"spec": {"holderIdentity": "kustomize-controller-pod_7"}}));
    found.entry("leases".into()).or_default().push(lease);

    let decided = decide(&found, &known());
    let after = applied(&found, &decided.edits);
    let of = |found: &Found, plural: &str| -> Vec<(String, Value)> {
        found[plural].iter().map(|o| (name(o).to_owned(), o["spec"]["replicas"].clone())).collect()
    };
    let stopped = |name: &str, replicas: u64| (name.to_owned(), json!(replicas));
    assert_eq!(
        of(&after, "deployments"),
        [
            stopped("kustomize-controller", 0),
            stopped("argocd-server", 1),
            stopped("cluster-autoscaler", 0),
            stopped("ours", 0),
            stopped("shop", 3),
        ]
    );
    assert_eq!(of(&after, "statefulsets"), [stopped("argocd-application-controller", 0), stopped("argocd-old", 0)]);
    let pods: Vec<&str> = after["pods"].iter().map(name).filter(|n| n.ends_with("-pod")).collect();
    assert_eq!(pods, ["argocd-server-pod", "shop-pod", "argocd-old-pod"], "what acted runs no more");
    assert!(after["leases"].iter().all(|l| name(l) != "kustomize-controller"), "a successor need not wait for it");
    // Nothing would start them again before their own controllers know, and nothing acts on Nodes before they stand still.
    let sets = of(&after, "replicasets");
    assert!(
        sets.contains(&stopped("kustomize-controller-set", 0)) && sets.contains(&stopped("shop-set", 1)),
        "{sets:?}"
    );
    let place = |plural: &str| decided.edits.iter().position(|e| e.at.plural == plural);
    assert!(place("validatingwebhookconfigurations") < place("deployments") && place("replicasets") < place("nodes"));
    for cut in 0..=decided.edits.len() {
        let halfway = applied(&found, &decided.edits[..cut]);
        assert_eq!(applied(&halfway, &decide(&halfway, &known()).edits), after, "after {cut} edits and a death");
    }

    let mut back = after.clone();
    for plural in ["deployments", "statefulsets"] {
        for workload in back.get_mut(plural).unwrap() {
            if let Some(patch) = resumed(workload) {
                merge(workload, &patch);
            }
        }
    }
    assert_eq!(back["deployments"][0]["spec"]["replicas"], 1, "one is the default");
    assert_eq!(back["statefulsets"][0]["spec"]["replicas"], 2);
    assert_eq!(back["statefulsets"][1]["spec"]["replicas"], 0, "it was stopped before");
    for workload in back["deployments"].iter().chain(&back["statefulsets"]) {
        assert!(
            workload["metadata"]["annotations"].get(SUSPENDED).is_none() && resumed(workload).is_none(),
            "{workload}"
        );
    }
}

#[test]
fn a_node_that_lives_on_another_server_is_made_anew_without_the_old_ones_id() {
    let mut known = known();
    known.server_ids.insert("w1".into(), 99);
    known.living.insert("w5".into());
    let decided = decide(&fixture(), &known);
    let Act::Recreate(node) = &decided.edits.iter().find(|e| e.name == "w1").unwrap().act else {
        panic!("{decided:?}")
    };
    assert_eq!(node["spec"], json!({"podCIDR": "10.1.0.0/24"}));
    assert_eq!(decided.unregistered, ["w5"], "it joined after the snapshot");
}

fn any_cluster() -> impl Strategy<Value = (Found, Known)> {
    const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
    let node = || prop::sample::select(NODES.to_vec());
    let some = |count: usize| prop::collection::vec((node(), any::<bool>(), 0u8..4), 0..count);
    let sets = prop::collection::vec(0u8..3, NODES.len());
    (some(12), some(8), some(8), some(8), sets).prop_map(|(pods, attachments, leases, slices, fates)| {
        let mut known = Known { now: Some(Timestamp::UNIX_EPOCH), ..Known::default() };
        for (node, fate) in NODES.iter().zip(&fates) {
            match fate {
                0 => _ = known.living.insert((*node).to_owned()),
                1 => _ = known.returning.insert((*node).to_owned()),
                _ => {}
            }
        }
        let mut found = Found::new();
        found.insert("nodes".into(), NODES.iter().map(|n| object(n, None, json!({"spec": {}}))).collect());
        found.insert(
            "pods".into(),
            pods.iter()
                .enumerate()
                .map(|(i, (n, _, _))| object(&format!("p{i}"), Some("a"), json!({"spec": {"nodeName": n}})))
                .collect(),
        );
        found.insert(
            "volumeattachments".into(),
            attachments
                .iter()
                .enumerate()
                .map(|(i, (n, held, _))| {
                    let finalizers = if *held { json!(["x"]) } else { json!([]) };
                    object(
                        &format!("v{i}"),
                        None,
                        json!({"spec": {"nodeName": n}, "metadata": {"finalizers": finalizers}}),
                    )
                })
                .collect(),
        );
        found.insert(
            "leases".into(),
            leases
                .iter()
                .enumerate()
                .map(|(i, (n, system, pod))| {
                    let name = if *system { (*n).to_owned() } else { format!("l{i}") };
                    let namespace = if *system { "kube-node-lease" } else { "a" };
                    object(&name, Some(namespace), json!({"spec": {"holderIdentity": format!("p{pod}_x")}}))
                })
                .collect(),
        );
        let mut seen = BTreeSet::new();
        if let Some(leases) = found.get_mut("leases") {
            leases.retain(|l| seen.insert((namespace(l).to_owned(), name(l).to_owned())));
        }
        found.insert(
            "endpointslices".into(),
            slices
                .iter()
                .enumerate()
                .map(|(i, (n, _, _))| {
                    object(&format!("s{i}"), Some("a"), json!({"endpoints": [{"nodeName": n}, {"nodeName": "n1"}]}))
                })
                .collect(),
        );
        found.insert(
            "mutatingwebhookconfigurations".into(),
            slices
                .iter()
                .enumerate()
                .map(|(i, (_, service, kind))| {
                    let policy = [None, Some("Fail"), Some("Ignore")].get(usize::from(*kind)).copied().flatten();
                    object(&format!("m{i}"), None, json!({"webhooks": [webhook(&format!("w{i}"), policy, *service)]}))
                })
                .collect(),
        );
        (found, known)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_living_are_left_alone_and_once_is_enough((found, known) in any_cluster()) {
        let decided = decide(&found, &known);
        let after = applied(&found, &decided.edits);
        // Nothing that belongs to a living node goes.
        for plural in ["nodes", "pods", "volumeattachments"] {
            let living = |list: &Vec<Value>| -> Vec<Value> {
                let of = |o: &Value| match plural {
                    "nodes" => name(o).to_owned(),
                    _ => text(o, "/spec/nodeName").unwrap_or_default().to_owned(),
                };
                list.iter().filter(|o| known.living.contains(&of(o))).cloned().collect()
            };
            prop_assert_eq!(living(&found[plural]), living(&after[plural]));
        }
        // Nothing names the dead any more.
        for pod in &after["pods"] {
            let node = text(pod, "/spec/nodeName").unwrap_or_default();
            prop_assert!(known.living.contains(node) || known.returning.contains(node));
        }
        // Webhooks go first: they may refuse the rest.
        let first_other = decided.edits.iter().position(|e| !webhooks::PLURALS.contains(&e.at.plural.as_str()));
        let last_webhook = decided.edits.iter().rposition(|e| webhooks::PLURALS.contains(&e.at.plural.as_str()));
        prop_assert!(first_other.zip(last_webhook).is_none_or(|(other, webhook)| webhook < other));
        // Decided again after a crash anywhere, the same end is reached; after all of it, nothing is left to do.
        for cut in [decided.edits.len() / 2, decided.edits.len()] {
            let halfway = applied(&found, &decided.edits[..cut]);
            let again = decide(&halfway, &known);
            prop_assert_eq!(&applied(&halfway, &again.edits), &after);
            prop_assert!(cut < decided.edits.len() || again.edits.is_empty(), "{:?}", again.edits);
        }
    }

    #[test]
    fn what_was_relaxed_comes_back_as_it_was((found, known) in any_cluster()) {
        let after = applied(&found, &decide(&found, &known).edits);
        for (before, relaxed) in found["mutatingwebhookconfigurations"].iter().zip(&after["mutatingwebhookconfigurations"]) {
            let mut back = relaxed.clone();
            if let Some((Some(patch), left)) = put_back(relaxed, &|_| true) {
                prop_assert!(left.is_empty());
                merge(&mut back, &patch);
            }
            let policy = |o: &Value| o["webhooks"][0]["failurePolicy"].as_str().unwrap_or("Fail").to_owned();
            prop_assert_eq!(policy(before), policy(&back));
            prop_assert!(back["metadata"]["annotations"].get(RELAXED).is_none());
        }
    }
}
