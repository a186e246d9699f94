//! What Kubernetes keeps under which key.

/// The kind of object behind a key of Kubernetes' registry, as `kubectl` names it: `pods`, `deployments`,
/// `certificates.cert-manager.io`. Keys of others count as `(not Kubernetes)`.
pub fn kind_of(key: &[u8]) -> String {
    let Some(path) = key.strip_prefix(b"/registry/").and_then(|path| std::str::from_utf8(path).ok()) else {
        return "(not Kubernetes)".to_owned();
    };
    let mut segments = path.split('/');
    let first = segments.next().unwrap_or_default();
    let second = segments.next().unwrap_or_default();
    match (first, second) {
        ("services", "specs") => "services".to_owned(),
        ("services", "endpoints") => "endpoints".to_owned(),
        ("minions", _) => "nodes".to_owned(),
        // Custom resources and aggregated APIs have their group in front.
        (group, plural) if group.contains('.') => format!("{plural}.{group}"),
        (plural, _) => plural.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_kubectl_names_them() {
        for (key, kind) in [
            ("/registry/pods/default/web-1", "pods"),
            ("/registry/minions/demo-m1", "nodes"),
            ("/registry/services/specs/default/web", "services"),
            ("/registry/services/endpoints/default/web", "endpoints"),
            ("/registry/cert-manager.io/certificates/default/tls", "certificates.cert-manager.io"),
            ("/registry/health", "health"),
            ("canary", "(not Kubernetes)"),
        ] {
            assert_eq!(kind_of(key.as_bytes()), kind);
        }
        assert_eq!(kind_of(b"/registry/\xff\xfe"), "(not Kubernetes)");
    }
}
