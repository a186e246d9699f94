use std::collections::{BTreeMap, BTreeSet};

use super::params::{MemberAdd, Params};
use super::{Plan, PlanError, Purpose, works_on_copy};

/// Chooses where servers go: each in its own location while that has capacity, else in the fallback location that holds
/// the fewest of them so far, ties broken by the declared order. `fixed` are servers that exist and stay where they are.
pub fn place<'a>(
    wanted: &[(&'a str, &'a str)],
    fixed: &BTreeMap<&'a str, &'a str>,
    fallback: &'a [String],
    unavailable: &BTreeSet<String>,
) -> Result<BTreeMap<&'a str, &'a str>, PlanError> {
    let mut placed = fixed.clone();
    placed.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
    for (name, location) in wanted {
        if !unavailable.contains(*location) {
            placed.entry(name).or_insert(location);
        }
    }
    for (name, location) in wanted {
        if placed.contains_key(name) {
            continue;
        }
        let load = |candidate: &str| placed.values().filter(|l| **l == candidate).count();
        let choice = fallback
            .iter()
            .enumerate()
            .filter(|(_, l)| !unavailable.contains(l.as_str()))
            .min_by_key(|(order, l)| (load(l), *order))
            .ok_or_else(|| PlanError::NoLocation { server: (*name).to_owned(), location: (*location).to_owned() })?;
        placed.insert(name, choice.1);
    }
    Ok(placed)
}

/// The location of a step that found no capacity there, if a plan without that location may replace this one. A server whose
/// volume is to be attached again can't go elsewhere; one that starts anew can, and so can a copy.
pub fn may_go_elsewhere<'p>(plan: &'p Plan, step: &str) -> Option<&'p str> {
    let copies = plan.runbook.as_ref().is_some_and(|r| works_on_copy(&r.runbook));
    if plan.purpose == Purpose::Runbook && !copies && !plan.steps.iter().any(|s| s.kind == MemberAdd::KIND) {
        return None;
    }
    plan.steps.iter().find(|s| s.id == step)?.params["location"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [(&str, &str); 3] = [("m1", "fsn1"), ("m2", "nbg1"), ("m3", "hel1")];

    fn places(unavailable: &[&str]) -> Result<BTreeMap<String, String>, PlanError> {
        let fallback = ["nbg1".to_owned(), "hel1".to_owned(), "fsn1".to_owned()];
        let unavailable = unavailable.iter().map(|s| (*s).to_owned()).collect();
        let placed = place(&WANTED, &BTreeMap::new(), &fallback, &unavailable)?;
        Ok(placed.into_iter().map(|(n, l)| (n.to_owned(), l.to_owned())).collect())
    }

    #[test]
    fn every_server_goes_to_its_own_location_when_all_have_capacity() {
        let placed = places(&[]).unwrap();
        assert!(WANTED.iter().all(|(n, l)| placed[*n] == *l));
    }

    #[test]
    fn a_lost_locations_server_goes_to_the_first_fallback_that_holds_fewest() {
        assert_eq!(places(&["fsn1"]).unwrap()["m1"], "nbg1");
        assert_eq!(places(&["nbg1"]).unwrap()["m2"], "hel1");
    }

    #[test]
    fn two_lost_locations_leave_one_and_none_leaves_an_error() {
        assert!(places(&["fsn1", "nbg1"]).unwrap().values().all(|l| l == "hel1"));
        assert!(matches!(places(&["fsn1", "nbg1", "hel1"]), Err(PlanError::NoLocation { .. })));
    }
}
