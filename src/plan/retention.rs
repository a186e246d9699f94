//! Which snapshots stay. By time, never by count, and only what was read back can take another's place: however many
//! snapshots somebody adds, none that is there is removed for them.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::Offset};
use serde::Serialize;

use crate::config::RetentionConfig;

/// What is known of a snapshot's use. Later ones are worth more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worth {
    /// Nobody has read it back, or whoever did found it damaged.
    Unread,
    /// Read back whole.
    Verified,
    /// A cluster, or etcd and an API server, rose from it.
    Proven,
}

/// A snapshot, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    pub id: String,
    /// The time that it is a state of.
    pub taken_at: Timestamp,
    pub worth: Worth,
}

/// What becomes of a snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: String,
    pub taken_at: Timestamp,
    pub worth: Worth,
    pub keep: bool,
    pub reason: String,
}

/// All decisions, newest snapshot first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retention {
    pub decisions: Vec<Decision>,
    /// The snapshot that the log begins with: the changes before it lead to nothing that has to be had.
    pub log_base: Option<String>,
}

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A way to divide time, and how far back it is used.
struct Tier {
    name: &'static str,
    window_seconds: i64,
    period: fn(Timestamp) -> i64,
}

fn tiers(policy: &RetentionConfig) -> [Tier; 5] {
    let days = |count: u32| i64::from(count) * DAY;
    [
        Tier { name: "hour", window_seconds: days(policy.hourly_days), period: |at| at.as_second().div_euclid(HOUR) },
        Tier { name: "day", window_seconds: days(policy.daily_days), period: |at| at.as_second().div_euclid(DAY) },
        // 1970 began on a Thursday; weeks begin on Mondays.
        Tier {
            name: "week",
            window_seconds: 7 * days(policy.weekly_weeks),
            period: |at| (at.as_second() + 3 * DAY).div_euclid(7 * DAY),
        },
        Tier {
            name: "month",
            window_seconds: 31 * days(policy.monthly_months),
            period: |at| {
                let date = Offset::UTC.to_datetime(at);
                i64::from(date.year()) * 12 + i64::from(date.month())
            },
        },
        Tier {
            name: "year",
            window_seconds: 366 * days(policy.yearly_years),
            period: |at| i64::from(Offset::UTC.to_datetime(at).year()),
        },
    ]
}

/// What the reasons call things.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    one: &'static str,
    /// The command that reads one back.
    verify: &'static str,
}

/// Snapshots of etcd.
const SNAPSHOTS: Words = Words { one: "snapshot", verify: "hk-dr snapshot verify" };
/// Backups of one volume.
const VOLUME_BACKUPS: Words = Words { one: "backup", verify: "hk-dr volume verify" };

/// Decides about every snapshot.
pub fn decide(policy: &RetentionConfig, snapshots: &[SnapshotFacts], now: Timestamp) -> Retention {
    decide_about(SNAPSHOTS, policy, snapshots, now)
}

/// Decides about every backup of one volume, in the same way; there is no log that has to begin with one.
pub fn decide_about_volume(policy: &RetentionConfig, backups: &[SnapshotFacts], now: Timestamp) -> Vec<Decision> {
    let without_log = RetentionConfig { log_days: 0, ..policy.clone() };
    decide_about(VOLUME_BACKUPS, &without_log, backups, now).decisions
}

fn decide_about(words: Words, policy: &RetentionConfig, snapshots: &[SnapshotFacts], now: Timestamp) -> Retention {
    let Words { one, verify } = words;
    let mut ordered: Vec<&SnapshotFacts> = snapshots.iter().collect();
    ordered.sort_by(|a, b| (b.taken_at, &b.id).cmp(&(a.taken_at, &a.id)));
    let verified: Vec<&SnapshotFacts> =
        ordered.iter().copied().filter(|s| s.worth >= Worth::Verified && s.taken_at <= now).collect();
    let newest = verified.first().copied();
    let proven = verified.iter().copied().find(|s| s.worth == Worth::Proven);
    let log_begin = now.as_second() - i64::from(policy.log_days) * DAY;
    let log_base =
        verified.iter().copied().find(|s| s.taken_at.as_second() <= log_begin).or_else(|| verified.last().copied());
    let tiers = tiers(policy);
    // The first of the best in each period: what comes later, and is no better, does not take its place.
    let represented: Vec<BTreeMap<i64, &SnapshotFacts>> = tiers
        .iter()
        .map(|tier| {
            let mut best: BTreeMap<i64, &SnapshotFacts> = BTreeMap::new();
            for snapshot in &verified {
                let entry = best.entry((tier.period)(snapshot.taken_at)).or_insert(*snapshot);
                if snapshot.worth >= entry.worth {
                    *entry = *snapshot;
                }
            }
            best
        })
        .collect();

    let decide_one = |snapshot: &SnapshotFacts| -> (bool, String) {
        let is = |other: Option<&SnapshotFacts>| other.is_some_and(|other| other.id == snapshot.id);
        let age = now.as_second() - snapshot.taken_at.as_second();
        let Some(newest) = newest else {
            return (true, format!("no {one} was ever read back: nothing is removed ({verify})"));
        };
        if age < 0 {
            return (true, "its time is in the future: a clock is wrong, or it is forged".into());
        }
        if is(proven) {
            return (true, "the last proven one".into());
        }
        if is(Some(newest)) {
            return (true, "the newest that was read back".into());
        }
        if is(log_base) {
            return (true, "the log begins with it".into());
        }
        if age < i64::from(policy.all_hours) * HOUR {
            return (true, format!("younger than {} hours", policy.all_hours));
        }
        if snapshot.worth == Worth::Unread && snapshot.taken_at > newest.taken_at {
            return (true, format!("newer than any that was read back ({verify})"));
        }
        let mut covered = None;
        for (tier, best) in tiers.iter().zip(&represented).filter(|(tier, _)| age < tier.window_seconds) {
            match best.get(&(tier.period)(snapshot.taken_at)) {
                Some(representative) if representative.id == snapshot.id => {
                    return (true, format!("the {} of its {}", quality(snapshot.worth), tier.name));
                }
                Some(representative) => covered = covered.or(Some((tier.name, representative.id.as_str()))),
                None => {
                    let name = tier.name;
                    return (true, format!("none of its {name} was read back ({verify})"));
                }
            }
        }
        match covered {
            Some((name, by)) => (false, format!("its {name} is kept by {by}")),
            None => (false, "older than everything that is to be kept".into()),
        }
    };
    let decisions = ordered
        .iter()
        .map(|snapshot| {
            let (keep, reason) = decide_one(snapshot);
            Decision { id: snapshot.id.clone(), taken_at: snapshot.taken_at, worth: snapshot.worth, keep, reason }
        })
        .collect();
    Retention { decisions, log_base: log_base.map(|s| s.id.clone()) }
}

fn quality(worth: Worth) -> &'static str {
    match worth {
        Worth::Proven => "first proven one",
        Worth::Verified | Worth::Unread => "first",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_795_000_000;

    fn at(seconds_ago: i64) -> Timestamp {
        Timestamp::from_second(NOW - seconds_ago).unwrap()
    }

    fn snapshot(number: usize, seconds_ago: i64, worth: Worth) -> SnapshotFacts {
        SnapshotFacts { id: format!("s{number:05}"), taken_at: at(seconds_ago), worth }
    }

    fn kept(snapshots: &[SnapshotFacts]) -> Vec<SnapshotFacts> {
        let decided = decide(&RetentionConfig::default(), snapshots, at(0));
        let keep = |s: &&SnapshotFacts| decided.decisions.iter().any(|d| d.id == s.id && d.keep);
        snapshots.iter().filter(keep).cloned().collect()
    }

    #[test]
    fn a_year_of_hourly_snapshots_becomes_hours_days_weeks_and_months() {
        let all: Vec<_> = (0..365 * 24).map(|n| snapshot(n, n as i64 * HOUR + 600, Worth::Verified)).collect();
        let kept = kept(&all);
        let older = |days: i64| kept.iter().filter(|s| NOW - s.taken_at.as_second() > days * DAY).count();
        assert!((48..=50).contains(&(kept.len() - older(2))), "{}", kept.len() - older(2));
        assert!((12..=13).contains(&(older(2) - older(14))), "{}", older(2) - older(14));
        assert!((6..=8).contains(&(older(14) - older(56))), "{}", older(14) - older(56));
        assert!((9..=13).contains(&older(56)), "{}", older(56));
    }

    #[test]
    fn every_decision_says_why() {
        let all = [
            snapshot(0, 2 * HOUR, Worth::Unread),
            snapshot(1, 30 * HOUR, Worth::Verified),
            snapshot(2, 30 * HOUR - 60, Worth::Verified),
            snapshot(3, 30 * HOUR - 90, Worth::Unread),
            snapshot(4, 3000 * DAY, Worth::Proven),
            snapshot(5, 3001 * DAY, Worth::Verified),
            snapshot(6, -HOUR, Worth::Proven),
        ];
        let decided = decide(&RetentionConfig::default(), &all, at(0));
        let why = |id: &str| {
            let one = decided.decisions.iter().find(|d| d.id == id).unwrap();
            (one.keep, one.reason.as_str())
        };
        assert_eq!(why("s00000"), (true, "younger than 24 hours"));
        assert_eq!(why("s00001"), (true, "the first of its hour"));
        assert_eq!(why("s00002"), (true, "the newest that was read back"));
        assert_eq!(why("s00003"), (true, "newer than any that was read back (hk-dr snapshot verify)"));
        assert_eq!(why("s00004"), (true, "the last proven one"));
        assert_eq!(why("s00005"), (false, "older than everything that is to be kept"));
        assert_eq!(why("s00006"), (true, "its time is in the future: a clock is wrong, or it is forged"));
        assert_eq!(decided.log_base.as_deref(), Some("s00004"));
    }

    #[test]
    fn backups_of_volumes_are_judged_alike_but_for_the_log() {
        let all = [
            snapshot(0, 2 * HOUR, Worth::Unread),
            snapshot(1, 30 * HOUR, Worth::Verified),
            snapshot(2, 10 * DAY + 60, Worth::Verified),
            snapshot(3, 10 * DAY, Worth::Verified),
            snapshot(4, 3000 * DAY, Worth::Proven),
            snapshot(5, 3001 * DAY, Worth::Unread),
        ];
        let decided = decide_about_volume(&RetentionConfig::default(), &all, at(0));
        let why = |id: &str| {
            let one = decided.iter().find(|d| d.id == id).unwrap();
            (one.keep, one.reason.as_str())
        };
        assert_eq!(why("s00000"), (true, "younger than 24 hours"));
        assert_eq!(why("s00001"), (true, "the newest that was read back"));
        assert_eq!(why("s00002"), (true, "the first of its day"));
        assert_eq!(why("s00003"), (false, "its day is kept by s00002"));
        assert_eq!(why("s00004"), (true, "the last proven one"));
        assert_eq!(why("s00005"), (false, "older than everything that is to be kept"));
        let none = decide_about_volume(&RetentionConfig::default(), &all[..1], at(-3000 * DAY));
        assert!(none[0].keep && none[0].reason.contains("(hk-dr volume verify)"), "{none:?}");
    }

    #[test]
    fn where_nothing_was_read_back_nothing_is_removed() {
        let all: Vec<_> = (0..500).map(|n| snapshot(n, n as i64 * 40 * HOUR, Worth::Unread)).collect();
        assert_eq!(kept(&all), all);
    }

    fn any_snapshots(count: usize) -> impl Strategy<Value = Vec<(i64, Worth)>> {
        let worth = prop_oneof![3 => Just(Worth::Unread), 4 => Just(Worth::Verified), 1 => Just(Worth::Proven)];
        let ago = prop_oneof![-2 * DAY..2 * DAY, 0..30 * DAY, 0..3000 * DAY];
        proptest::collection::vec((ago, worth), 0..count)
    }

    fn numbered(from: usize, drawn: &[(i64, Worth)]) -> Vec<SnapshotFacts> {
        drawn.iter().enumerate().map(|(n, (ago, worth))| snapshot(from + n, *ago, *worth)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn floors_hold(drawn in any_snapshots(60)) {
            let all = numbered(0, &drawn);
            let kept = kept(&all);
            let past = |s: &&&SnapshotFacts| s.taken_at <= at(0);
            let newest = |worth: Worth| {
                let worthy = all.iter().filter(|s| s.worth >= worth);
                worthy.filter(|s| past(&s)).max_by_key(|s| (s.taken_at, &s.id))
            };
            for floor in [Worth::Verified, Worth::Proven] {
                if let Some(floor) = newest(floor) {
                    prop_assert!(kept.contains(floor), "{floor:?}");
                }
            }
            // The state of any moment that the log reaches has something at or before it.
            let decided = decide(&RetentionConfig::default(), &all, at(0));
            let begin = all.iter().filter(|s| s.worth >= Worth::Verified && s.taken_at <= at(7 * DAY)).count();
            if begin > 0 {
                let base = kept.iter().find(|s| Some(&s.id) == decided.log_base.as_ref());
                prop_assert!(base.is_some_and(|s| s.taken_at <= at(7 * DAY)));
            }
            prop_assert!(all.iter().filter(|s| s.taken_at > at(DAY)).all(|s| kept.contains(s)));
        }

        #[test]
        fn a_flood_of_junk_evicts_nothing(drawn in any_snapshots(40), junk in any_snapshots(200)) {
            let mut all = numbered(0, &drawn);
            let before = kept(&all);
            let junk: Vec<_> = junk.into_iter().map(|(ago, _)| (ago, Worth::Unread)).collect();
            all.extend(numbered(10_000, &junk));
            let after = kept(&all);
            prop_assert!(before.iter().all(|s| after.contains(s)));
        }

        #[test]
        fn removing_what_is_decided_leaves_nothing_to_decide(drawn in any_snapshots(60)) {
            let once = kept(&numbered(0, &drawn));
            prop_assert_eq!(kept(&once), once);
        }
    }
}
