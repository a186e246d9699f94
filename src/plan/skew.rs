//! Which versions may follow which.

use super::PlanError;
use super::draft::Basis;
use super::roll::declared;

/// Major, minor and patch.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// Whether two versions differ in their patch at most.
pub(super) fn same_minor(one: &str, other: &str) -> bool {
    numbers(one).zip(numbers(other)).is_some_and(|(a, b)| (a.0, a.1) == (b.0, b.1))
}

/// What there is to say before versions of masters change, if any does; an error where the step is not allowed:
/// Kubernetes and etcd go up one minor version at a time, and back over one only while a master still runs the old one.
///
/// <https://kubernetes.io/releases/version-skew-policy/>, <https://etcd.io/docs/v3.6/upgrades/>
pub(super) fn check<'a>(
    basis: &Basis<'_>,
    changes: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Option<String>, PlanError> {
    let changes: Vec<_> = changes.collect();
    let mut said = Vec::new();
    for (what, program) in [("etcd", "etcd"), ("Kubernetes", "kube-apiserver")] {
        let wanted = declared(basis, program);
        if !changes.iter().any(|(changed, _)| *changed == program) {
            continue;
        }
        // What runs on any master, be it changed or not.
        let masters = basis.cluster.masters.iter().map(|m| crate::distribution::server_name(basis.cluster, &m.name));
        let mut running: Vec<&str> = masters
            .filter_map(|full| basis.inventory.probes.get(&full))
            .filter_map(|p| p.stale.get(program).or_else(|| p.versions.get(program)))
            .map(String::as_str)
            .collect();
        running.sort_by_key(|v| numbers(v));
        running.dedup();
        let (Some(lowest), Some(highest)) = (running.first(), running.last()) else { continue };
        allowed(what, lowest, highest, wanted)?;
        said.push(format!("{what} {} → {wanted}", running.join(" and ")));
    }
    if said.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "{}: one master after the other, each checked before the next; the way back is to declare the version before and \
         build again, it is kept on the machines",
        said.join(", ")
    )))
}

fn allowed(what: &str, lowest: &str, highest: &str, wanted: &str) -> Result<(), PlanError> {
    let refused = |reason: String, hint: String| {
        Err(PlanError::Unbuildable { reason, hint: format!("nothing was touched; {hint}") })
    };
    let (Some(low), Some(high), Some(want)) = (numbers(lowest), numbers(highest), numbers(wanted)) else {
        return Ok(());
    };
    if want.0 != low.0 || want.0 != high.0 || want.1 > low.1 + 1 {
        let next = format!("{}.{}", low.0, low.1 + 1);
        return refused(
            format!("{what} can't go from {lowest} to {wanted}: one minor version at a time"),
            format!("declare a {next} first, build, and then go on"),
        );
    }
    if want.1 < high.1 && want.1 != low.1 {
        return refused(
            format!("{what} can't go back from {highest} to {wanted}: every master has the newer minor version, and its data \
                     may have a form that the older one can't read"),
            "declare the newer version again, or go back with the data as well: declare the older version and `hk-dr rebuild \
             --even-if-alive --snapshot ID` with the snapshot that was taken before the upgrade"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lowest: &str, highest: &str, wanted: &str) -> String {
        allowed("Kubernetes", lowest, highest, wanted).map_or_else(|e| e.to_string(), |()| "allowed".into())
    }

    #[test]
    fn patches_go_up_and_back_and_minors_up_one_at_a_time() {
        assert_eq!(verdict("1.35.4", "1.35.4", "1.35.9"), "allowed");
        assert_eq!(verdict("1.35.4", "1.35.4", "1.35.1"), "allowed");
        assert_eq!(verdict("1.35.4", "1.35.4", "1.36.0"), "allowed");
        assert!(verdict("1.35.4", "1.35.4", "1.37.0").contains("one minor version at a time"));
        assert!(verdict("1.35.4", "1.36.0", "1.37.0").contains("one minor version at a time"), "half way up");
        assert!(verdict("1.35.4", "1.35.4", "2.0.0").contains("one minor version at a time"));
    }

    #[test]
    fn over_a_minor_there_is_a_way_back_only_half_way() {
        assert_eq!(verdict("1.35.4", "1.36.0", "1.35.4"), "allowed");
        assert!(verdict("1.36.0", "1.36.0", "1.35.4").contains("can't go back"));
    }
}
