//! Which Kubernetes objects a state holds, and how two states differ, without understanding what is in them.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde::Serialize;

use super::kind_of;
use crate::bolt::Backend;
use crate::ports::{Collection, ErrorCode, Etcd, KeyValue, PortError, PortResult};

/// What encrypted values begin with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// What values in protobuf begin with.
const PROTOBUF: &[u8] = b"k8s\0";

/// An object's name, as kubectl would take it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectName {
    /// As [`kind_of`] names it: `pods`, `certificates.cert-manager.io`.
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectName {
    /// From a key of the registry. Keys of others are named as they are.
    pub fn of(key: &[u8]) -> Self {
        let kind = kind_of(key);
        let text = String::from_utf8_lossy(key);
        let mut parts: Vec<&str> = text.strip_prefix("/registry/").unwrap_or_default().split('/').collect();
        let skip = match parts.as_slice() {
            ["services", "specs" | "endpoints", ..] => 2,
            [group, _, ..] if group.contains('.') => 2,
            _ => 1,
        };
        parts.drain(..skip.min(parts.len()));
        match parts.as_slice() {
            [name] => Self { kind, namespace: None, name: (*name).to_owned() },
            [namespace, name] => Self { kind, namespace: Some((*namespace).to_owned()), name: (*name).to_owned() },
            _ => Self { kind, namespace: None, name: text.into_owned() },
        }
    }

    /// Whether a person means it by this kind (plural or singular, with or without group), namespace and name.
    pub fn is_meant(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        let kind = kind.to_ascii_lowercase();
        let plural = self.kind.split('.').next().unwrap_or_default();
        let of_kind = [self.kind.as_str(), plural]
            .iter()
            .any(|own| **own == kind || **own == format!("{kind}s") || **own == format!("{kind}es"));
        of_kind && self.name == name && (self.namespace.as_deref() == namespace || self.namespace.is_none())
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Where the API serves a stored object. Encrypted values don't say their version; only Secrets are known without.
pub fn collection(name: &ObjectName, stored: &[u8]) -> PortResult<Collection> {
    let api_version = if stored.starts_with(ENCRYPTED) {
        (name.kind == "secrets" || name.kind == "configmaps").then(|| "v1".to_owned())
    } else if let Some(envelope) = stored.strip_prefix(PROTOBUF) {
        api_version_of(envelope)
    } else {
        serde_json::from_slice::<serde_json::Value>(stored)
            .ok()
            .and_then(|object| object["apiVersion"].as_str().map(str::to_owned))
    };
    let api_version = api_version.ok_or_else(|| {
        PortError::new(ErrorCode::Invalid, format!("{name} does not say of which API version it is"))
            .hint("it is no object of Kubernetes, or encrypted; `hk-dr materialize` gives the whole state")
    })?;
    let plural = name.kind.split('.').next().unwrap_or_default().to_owned();
    Ok(Collection { api_version, plural, namespace: name.namespace.clone() })
}

/// `runtime.Unknown { typeMeta = 1 { apiVersion = 1 … } … }`; short fields only, as these are.
fn api_version_of(envelope: &[u8]) -> Option<String> {
    let [0x0a, meta_bytes, 0x0a, bytes, rest @ ..] = envelope else { return None };
    let bytes = usize::from(*bytes);
    (bytes < 0x80 && *meta_bytes < 0x80).then_some(())?;
    String::from_utf8(rest.get(..bytes)?.to_vec()).ok()
}

/// Every key of a state, with a hash of its value: enough to compare, and no more than 16 bytes and the key of each.
pub struct Contents {
    keys: BTreeMap<Vec<u8>, u64>,
}

/// Makes hashes that can be compared.
#[derive(Default)]
pub struct Comparer(RandomState);

impl Comparer {
    /// Reads a file. Blocks.
    pub fn file(&self, backend: &Backend) -> PortResult<Contents> {
        let mut keys = BTreeMap::new();
        for version in backend.live_at(None) {
            let kv = version?.key_value;
            keys.insert(kv.key, self.0.hash_one(&kv.value));
        }
        Ok(Contents { keys })
    }

    /// Reads a living etcd, at one revision, which is returned.
    pub async fn live(&self, etcd: &dyn Etcd) -> PortResult<(Contents, i64)> {
        let mut last = PortError::new(ErrorCode::Invalid, "no etcd member is declared");
        for member in etcd.members() {
            let mut keys = BTreeMap::new();
            let mut take = |page: Vec<KeyValue>| {
                keys.extend(page.into_iter().map(|kv| (kv.key, self.0.hash_one(&kv.value))));
            };
            match etcd.range(&member, b"", 0, &mut take).await {
                Ok(revision) => return Ok((Contents { keys }, revision)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// How an object differs between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only in the first.
    Removed,
    /// Only in the second.
    Added,
    Changed,
}

/// Objects that differ, ordered by their names.
pub fn differences(first: &Contents, second: &Contents) -> Vec<(ObjectName, Change)> {
    let removed_or_changed = first.keys.iter().filter_map(|(key, hash)| match second.keys.get(key) {
        None => Some((key, Change::Removed)),
        Some(other) if other != hash => Some((key, Change::Changed)),
        Some(_) => None,
    });
    let added = second.keys.keys().filter(|key| !first.keys.contains_key(*key)).map(|key| (key, Change::Added));
    let mut found: Vec<_> =
        removed_or_changed.chain(added).map(|(key, change)| (ObjectName::of(key), change)).collect();
    found.sort();
    found
}

/// The stored value of an object, if the state has it.
pub fn find(backend: &Backend, kind: &str, namespace: Option<&str>, name: &str) -> PortResult<(ObjectName, Vec<u8>)> {
    for version in backend.live_at(None) {
        let kv = version?.key_value;
        let found = ObjectName::of(&kv.key);
        if found.is_meant(kind, namespace, name) {
            return Ok((found, kv.value));
        }
    }
    let place = namespace.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
    Err(PortError::new(ErrorCode::NotFound, format!("there was no {kind} {name}{place} then")).hint(
        "kinds are named as kubectl names them (pods, certificates.cert-manager.io); -n names the namespace; \
         `hk-dr diff` lists what came and went",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> String {
        ObjectName::of(key.as_bytes()).to_string()
    }

    #[test]
    fn keys_are_named_as_people_name_objects() {
        assert_eq!(name("/registry/pods/shop/web-1"), "pods shop/web-1");
        assert_eq!(name("/registry/minions/demo-m1"), "nodes demo-m1");
        assert_eq!(name("/registry/services/specs/shop/web"), "services shop/web");
        assert_eq!(name("/registry/cert-manager.io/certificates/shop/tls"), "certificates.cert-manager.io shop/tls");
        assert_eq!(
            name("/registry/apiextensions.k8s.io/customresourcedefinitions/a.b.c"),
            "customresourcedefinitions.apiextensions.k8s.io a.b.c"
        );
        assert_eq!(name("/hk-dr/canary"), "(not Kubernetes) /hk-dr/canary");
        let web = ObjectName::of(b"/registry/pods/shop/web-1");
        assert!(web.is_meant("pod", Some("shop"), "web-1") && web.is_meant("Pods", Some("shop"), "web-1"));
        assert!(!web.is_meant("pod", Some("other"), "web-1") && !web.is_meant("pods", None, "web-1"));
    }

    #[test]
    fn stored_objects_say_where_the_api_serves_them() {
        let deployment = ObjectName::of(b"/registry/deployments/shop/web");
        let stored = b"k8s\0\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\x00";
        let found = collection(&deployment, stored).unwrap();
        assert_eq!(found.path(), "/apis/apps/v1/namespaces/shop/deployments");
        let certificate = ObjectName::of(b"/registry/cert-manager.io/certificates/shop/tls");
        let found = collection(&certificate, br#"{"apiVersion":"cert-manager.io/v1"}"#).unwrap();
        assert_eq!(found.path(), "/apis/cert-manager.io/v1/namespaces/shop/certificates");
        let secret = ObjectName::of(b"/registry/secrets/shop/key");
        assert_eq!(collection(&secret, b"k8s:enc:aescbc:v1:k:xx").unwrap().path(), "/api/v1/namespaces/shop/secrets");
        assert!(collection(&deployment, b"k8s:enc:aescbc:v1:k:xx").is_err());
    }

    #[test]
    fn differences_are_by_key_and_value() {
        let contents = |entries: &[(&str, u64)]| Contents {
            keys: entries.iter().map(|(key, hash)| (key.as_bytes().to_vec(), *hash)).collect(),
        };
        let first = contents(&[("/registry/pods/a/1", 1), ("/registry/pods/a/2", 2), ("/registry/pods/a/3", 3)]);
        let second = contents(&[("/registry/pods/a/2", 9), ("/registry/pods/a/3", 3), ("/registry/pods/a/4", 4)]);
        let found: Vec<_> = differences(&first, &second).into_iter().map(|(n, c)| (n.name, c)).collect();
        assert_eq!(
            found,
            [("1".to_owned(), Change::Removed), ("2".to_owned(), Change::Changed), ("4".to_owned(), Change::Added),]
        );
    }
}
