//! Rules for names, and guesses at what was meant.

/// The candidate that differs from the written word by at most a third of its letters.
pub(super) fn closest<'a>(written: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let bound = (written.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| (distance(&written.to_lowercase(), &candidate.to_lowercase()), *candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, with the exchange of two neighbours as one step.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j - 1] + same).min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// A DNS label: lower-case letters, digits and dashes, beginning with a letter, ending with a letter or digit.
pub(super) fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// A bucket name that every S3 service accepts.
pub(super) fn is_bucket(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.starts_with(edge)
        && name.ends_with(edge)
        && name.chars().all(|c| edge(c) || c == '-' || c == '.')
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// A label key that a kubelet may give its own Node: Kubernetes reserves its own prefixes.
pub(super) fn is_node_label(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    if name.is_empty()
        || name.len() > 63
        || !name.chars().all(inner)
        || !name.starts_with(edge)
        || !name.ends_with(edge)
    {
        return Err("a label is `name` or `domain/name`: letters, digits, dashes, underscores and dots");
    }
    if key == "topology.kubernetes.io/region" {
        return Err("hk-dr sets this label itself, from the location the server is in");
    }
    let reserved = ["kubernetes.io", "k8s.io"].iter().any(|r| prefix == *r || prefix.ends_with(&format!(".{r}")));
    let allowed = ["node.kubernetes.io", "kubelet.kubernetes.io"]
        .iter()
        .any(|a| prefix == *a || prefix.ends_with(&format!(".{a}")))
        || key == "topology.kubernetes.io/zone";
    if reserved && !allowed {
        return Err("Kubernetes does not let a node give itself labels of kubernetes.io; use a domain of your own");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        assert_eq!(closest("nmae", &["name", "network"]), Some("name"));
        assert_eq!(closest("fallbackLocation", &["fallbackLocations", "masters"]), Some("fallbackLocations"));
        assert_eq!(closest("firewall", &["name", "network", "masters"]), None);
    }

    #[test]
    fn labels_of_kubernetes_itself_are_reserved() {
        assert!(is_node_label("example.com/pool").is_ok());
        assert!(is_node_label("node.kubernetes.io/instance-type").is_ok());
        assert!(is_node_label("node-role.kubernetes.io/worker").is_err());
        assert!(is_node_label("-x").is_err());
    }
}
