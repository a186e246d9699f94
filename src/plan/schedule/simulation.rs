//! A year of a thousand clusters' policies, with several instances that die, take over and have wrong clocks.

use std::collections::BTreeSet;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};

use super::tests::policy;
use super::*;
use crate::config::time_zone;

const CLUSTERS: u64 = 1000;

/// A generator of numbers that is the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The bucket: a book and its version, replaced only by those who saw that version.
struct Bucket {
    book: Book,
    version: u64,
}

impl Bucket {
    fn put(&mut self, seen: u64, book: Book) -> bool {
        let fits = seen == self.version;
        if fits {
            (self.book, self.version) = (book, seen + 1);
        }
        fits
    }
}

/// What the schedule of a cluster should do in that year, without cron: each such day's time on the wall, as an instant.
fn expected(zone: &str, hour: i8, minute: i8, days: &dyn Fn(&DateTime) -> bool) -> BTreeSet<Timestamp> {
    let zone = time_zone(zone).unwrap();
    let mut day: DateTime = "2026-01-01T00:00".parse().unwrap();
    let mut all = BTreeSet::new();
    while day.year() == 2026 {
        let wall = day.date().to_datetime(jiff::civil::time(hour, minute, 0, 0));
        if days(&wall) {
            // jiff moves what does not exist behind the gap, as far as it lay in it.
            let instant = zone.to_ambiguous_timestamp(wall).compatible().unwrap();
            let moved = zone.to_datetime(instant).duration_since(wall);
            let into_gap = if moved.is_zero() { SignedDuration::ZERO } else { gap_begin(&zone, wall) };
            all.insert(instant - into_gap);
        }
        day = day.tomorrow().unwrap();
    }
    all
}

/// How far behind the beginning of its gap a time lies that does not exist.
fn gap_begin(zone: &jiff::tz::TimeZone, wall: DateTime) -> SignedDuration {
    let exists = |at: DateTime| zone.to_datetime(zone.to_ambiguous_timestamp(at).compatible().unwrap()) == at;
    let mut minutes = 0;
    while !exists(wall - SignedDuration::from_mins(minutes + 1)) {
        minutes += 1;
    }
    SignedDuration::from_mins(minutes)
}

fn one(cluster: u64, dice: &mut Dice, cron: &str, action: &str) -> (Vec<Timestamp>, usize) {
    let zones = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"];
    let zone = zones[(cluster % 4) as usize];
    let mut policy = policy(&format!("{action}, cron: \"{cron}\", missed: each, jitterSeconds: 900"), "");
    policy.time_zone = zone.to_owned();
    let timing = Timing::of(&format!("c{cluster}"), &policy, &policy.schedules[0]).unwrap();
    let year: (Timestamp, Timestamp) =
        ("2025-12-30T00:00:00Z".parse().unwrap(), "2027-01-06T00:00:00Z".parse().unwrap());
    let mut bucket = Bucket { book: Book::new(year.0), version: 0 };
    let (mut now, mut ran, mut taken_over) = (year.0, Vec::new(), 0);
    while now < year.1 {
        // What one instance sees, whose clock may be up to two hours slow, or minutes fast.
        let clock = match dice.roll(20) {
            0 => now - SignedDuration::from_mins(120),
            1 => now + SignedDuration::from_mins(10),
            _ => now,
        };
        let (seen, book) = (bucket.version, bucket.book.clone());
        if let Some(decision) = book.decide(&timing, clock, "one") {
            let begin = decision.begin.clone();
            assert!(bucket.put(seen, decision.book));
            // Another one read the same book and decides the same a moment later: the bucket refuses.
            if dice.roll(4) == 0
                && let Some(other) = book.decide(&timing, now, "two")
            {
                assert!(!bucket.put(seen, other.book));
            }
            if let Some(mut current) = begin {
                // Its holder may die any number of times: the survivor goes on with the same run.
                while dice.roll(10) == 0 {
                    let (book, taken) = bucket.book.take_over("survivor").unwrap();
                    assert_eq!((taken.at, taken.attempt), (current.at, current.attempt + 1));
                    let version = bucket.version;
                    let stale = bucket.book.conclude(Outcome::Succeeded, "", now);
                    assert!(bucket.put(version, book));
                    assert!(!bucket.put(version, stale), "the dead one comes back and may not conclude");
                    (current, taken_over) = (taken, taken_over + 1);
                }
                ran.push(current.at);
                let book = bucket.book.conclude(Outcome::Succeeded, "", now);
                let version = bucket.version;
                assert!(bucket.put(version, book));
            }
        }
        // On to the next run, or past some of them: nobody was there.
        if bucket.book.decide(&timing, now, "one").is_none() {
            let next = timing.after(bucket.book.decided).next().unwrap();
            let away = if dice.roll(50) == 0 { dice.roll(72 * 60) } else { 0 };
            now = timing.due(next).max(now) + SignedDuration::from_mins(i64::try_from(away).unwrap());
        }
    }
    (ran, taken_over)
}

#[test]
fn a_year_of_a_thousand_clusters_does_everything_once_and_nothing_twice() {
    let zones = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"];
    let seed = 0x5eed_0007;
    eprintln!("seed {seed:#x}");
    let (mut total, mut taken_over) = (0, 0);
    let mut dice = Dice(seed);
    // Times in and around the hours that vanish and come twice.
    let (hours, minutes) = ([1i8, 2, 3, 14], [0i8, 15, 30]);
    for cluster in 0..CLUSTERS {
        let (hour, minute) = (hours[(cluster / 4 % 4) as usize], minutes[(cluster % 3) as usize]);
        let zone = zones[(cluster % 4) as usize];
        type Days = fn(&DateTime) -> bool;
        let schedules: [(String, &str, Days); 3] = [
            (format!("{minute} {hour} * * *"), "action: snapshot.take", |_| true),
            (format!("{minute} {hour} * * SUN"), "action: runbook.run, runbooks: [x]", |day| {
                day.weekday() == jiff::civil::Weekday::Sunday
            }),
            (format!("{minute} {hour} 1 * *"), "action: log.compact", |day| day.day() == 1),
        ];
        for (cron, action, days) in schedules {
            let (ran, taken) = one(cluster, &mut dice, &cron, action);
            let once: BTreeSet<Timestamp> = ran.iter().copied().collect();
            assert_eq!(once.len(), ran.len(), "cluster {cluster}, `{cron}`: a run happened twice");
            let expected = expected(zone, hour, minute, &days);
            let missing: Vec<_> = expected.difference(&once).collect();
            assert!(missing.is_empty(), "cluster {cluster}, `{cron}` in {zone}: {missing:?} did not happen");
            // Beyond them only those around both New Years.
            let end: Timestamp = "2026-12-31T00:00:00Z".parse().unwrap();
            assert!(once.difference(&expected).all(|at| *at > end || at.to_string().starts_with("2025")));
            total += ran.len();
            taken_over += taken;
        }
    }
    assert!(total > 400_000 && taken_over > 10_000, "{total} runs, {taken_over} taken over");
}
