//! When a schedule's time comes, in a time zone whose clocks change.

use std::cmp::Ordering;

use croner::parser::{CronParser, Seconds, Year};
use croner::{CivilDate, CivilDateTime, CivilTime, Cron as Pattern, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

/// Clocks are moved by less than this.
const CHANGE_MAX: SignedDuration = SignedDuration::from_hours(4);

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Cron {
    pattern: Pattern,
    zone: TimeZone,
    /// `*` or `*/n` as the hour: follows elapsed time instead of the clock on the wall.
    every_hour: bool,
}

/// A time zone of the IANA database that is part of this binary: instances on machines with different databases must agree
/// on when a run is due.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

impl Cron {
    /// Reads five fields.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != 5 {
            return Err(format!("`{text}` has {} fields instead of five", fields.len()));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let pattern = parser.parse(text).map_err(|e| format!("`{text}` is no cron expression: {e}"))?;
        let cron = Self { pattern, zone, every_hour: fields[1].starts_with('*') };
        // A leap day comes within eight years.
        match cron.after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(cron),
            None => Err(format!("`{text}` never comes")),
        }
    }

    /// The time zone it is read in.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first occurrence after an instant; none if there is none in jiff's range of years.
    pub fn after(&self, instant: Timestamp) -> Option<Timestamp> {
        let local = self.zone.to_datetime(instant);
        let ambiguous = |at: DateTime| {
            !matches!(self.zone.to_ambiguous_timestamp(at).offset(), AmbiguousOffset::Unambiguous { .. })
        };
        let mut here = local;
        // Where the clock was not moved, the next time on the wall is the next instant.
        if !ambiguous(local) {
            let next = self.next_local(here)?;
            match self.zone.to_ambiguous_timestamp(next).offset() {
                AmbiguousOffset::Unambiguous { offset } => return offset.to_timestamp(next).ok(),
                _ => here = local.checked_sub(CHANGE_MAX).ok()?,
            }
        } else {
            here = here.checked_sub(CHANGE_MAX).ok()?;
        }
        // Around a change instants and times on the wall are in different orders: look at all near it.
        let mut found: Option<Timestamp> = None;
        loop {
            here = self.next_local(here)?;
            let far =
                |found: Timestamp| self.zone.to_datetime(found).checked_add(CHANGE_MAX).is_ok_and(|end| here > end);
            if let Some(found) = found.filter(|found| far(*found)) {
                return Some(found);
            }
            let later = self.instants(here).into_iter().flatten().filter(|at| *at > instant);
            found = later.chain(found).min();
        }
    }

    fn next_local(&self, after: DateTime) -> Option<DateTime> {
        self.pattern.find_next_occurrence(&Wall(after), false).ok().map(|wall| wall.0)
    }

    /// The instants of a time on the wall.
    fn instants(&self, at: DateTime) -> [Option<Timestamp>; 2] {
        match self.zone.to_ambiguous_timestamp(at).offset() {
            AmbiguousOffset::Unambiguous { offset } => [offset.to_timestamp(at).ok(), None],
            AmbiguousOffset::Fold { before, after } => {
                [before.to_timestamp(at).ok(), after.to_timestamp(at).ok().filter(|_| self.every_hour)]
            }
            AmbiguousOffset::Gap { .. } if self.every_hour => [None, None],
            AmbiguousOffset::Gap { before, .. } => {
                // Read with the old offset it lies at or behind the change.
                let change = before.to_timestamp(at).ok().and_then(|late| {
                    let behind = late.checked_add(SignedDuration::from_secs(1)).ok()?;
                    self.zone.preceding(behind).next().map(|change| change.timestamp())
                });
                [change, None]
            }
        }
    }
}

/// A clock on a wall that nobody moves.
#[derive(Clone)]
struct Wall(DateTime);

impl CronDateTime for Wall {
    fn to_civil(&self) -> CivilDateTime {
        let (date, time) = (self.0.date(), self.0.time());
        let part = |part: i8| u32::from(part.unsigned_abs());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(i32::from(date.year()), part(date.month()), part(date.day())),
            CivilTime::from_parts_unchecked(part(time.hour()), part(time.minute()), part(time.second())),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(u32::from(self.0.weekday().to_sunday_zero_offset().unsigned_abs()))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, croner::errors::CronError> {
        let part = |part: u32| i8::try_from(part).unwrap_or(i8::MAX);
        let year = i16::try_from(civil.year()).unwrap_or(i16::MAX);
        DateTime::new(
            year,
            part(civil.month()),
            part(civil.day()),
            part(civil.hour()),
            part(civil.minute()),
            part(civil.second()),
            0,
        )
        .map(|at| Resolution::Single(Self(at)))
        .map_err(|_| croner::errors::CronError::InvalidDate)
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let cron = Cron::parse(cron, time_zone(zone).unwrap()).unwrap();
        let mut at: Timestamp = from.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            at = cron.after(at).unwrap();
            found.push(at.to_string());
        }
        found
    }

    #[test]
    fn a_time_that_does_not_exist_runs_once_at_the_next_that_does() {
        // Berlin, 29 March 2026: 02:00 becomes 03:00, which is 01:00 in UTC.
        let found = runs("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
        assert_eq!(found, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let found = runs("0,20,40 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 2);
        assert_eq!(found, ["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"], "three times that don't exist are one run");
        // Half an hour is missing there.
        let found = runs("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2);
        assert_eq!(found, ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"]);
    }

    #[test]
    fn a_time_that_exists_twice_runs_once() {
        // Berlin, 25 October 2026: 03:00 becomes 02:00 again.
        let found = runs("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(found, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        // Asked between both.
        assert_eq!(runs("30 2 * * *", "Europe/Berlin", "2026-10-25T01:15:00Z", 1), ["2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn every_hour_means_every_hour_that_passes() {
        let found = runs("30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 4);
        assert_eq!(
            found,
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z", "2026-10-25T03:30:00Z"]
        );
        let found = runs("*/30 */1 * * *", "Europe/Berlin", "2026-03-29T00:15:00Z", 4);
        assert_eq!(
            found,
            ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:00:00Z"]
        );
    }

    #[test]
    fn what_can_not_come_is_refused() {
        let refused = |text: &str| Cron::parse(text, TimeZone::UTC).err().unwrap_or_default();
        assert!(refused("0 3 * *").contains("4 fields"));
        assert!(refused("0 25 * * *").contains("no cron expression"));
        assert!(refused("0 0 30 2 *").contains("never comes"));
        assert_eq!(refused("0 0 29 2 *"), "");
    }
}
