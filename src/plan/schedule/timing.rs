use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::config::{Action, Approval, Blackout, Cron, Day, Missed, Policy, Schedule, time_zone};

/// Runs that are looked at in one go; what is beyond is looked at next time.
const LOOK_MAX: usize = 2000;

/// A schedule's times, for one cluster.
#[derive(Debug, Clone)]
pub struct Timing {
    cron: Cron,
    /// Always the same for one cluster and schedule.
    pub jitter: SignedDuration,
    pub missed: Missed,
    pub late: SignedDuration,
    pub approval: Approval,
    action: Action,
    zone: TimeZone,
    blackouts: Vec<Blackout>,
}

/// A blackout that holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub name: String,
    pub until: Timestamp,
}

/// What a rotation has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turn {
    pub runbook: Option<String>,
    pub server: Option<String>,
    pub location: Option<String>,
}

impl Timing {
    /// The times of one schedule of a policy.
    ///
    /// # Errors
    /// What is wrong with its cron expression or time zone; a policy that was loaded has neither.
    pub fn of(cluster: &str, policy: &Policy, schedule: &Schedule) -> Result<Self, String> {
        let zone = time_zone(&policy.time_zone).ok_or_else(|| format!("no time zone `{}`", policy.time_zone))?;
        let name = format!("{cluster}/{}/{}", policy.name, schedule.name);
        let jitter = draw(&name, u64::from(schedule.jitter_seconds) + 1);
        Ok(Self {
            cron: Cron::parse(&schedule.cron, zone.clone())?,
            jitter: SignedDuration::from_secs(i64::try_from(jitter).unwrap_or_default()),
            missed: schedule.missed,
            late: SignedDuration::from_mins(schedule.late_minutes.into()),
            approval: schedule.approval,
            action: schedule.action,
            zone,
            blackouts: policy.blackouts.clone(),
        })
    }

    /// When the run of a scheduled instant may begin.
    pub fn due(&self, at: Timestamp) -> Timestamp {
        at.checked_add(self.jitter).unwrap_or(Timestamp::MAX)
    }

    /// Whether a run that begins now would be missed.
    pub fn is_late(&self, at: Timestamp, now: Timestamp) -> bool {
        now.duration_since(self.due(at)) > self.late
    }

    /// Scheduled instants after one, oldest first, that are due now.
    pub fn due_between(&self, after: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        self.after(after).take_while(|at| self.due(*at) <= now).take(LOOK_MAX).collect()
    }

    /// Scheduled instants after one.
    pub fn after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.cron.after(after), |at| self.cron.after(*at))
    }

    /// The blackout in which it must not begin now, and until when.
    pub fn held(&self, now: Timestamp) -> Option<Held> {
        let local = self.zone.to_datetime(now);
        let for_this = self.blackouts.iter().filter(|b| match b.actions.as_slice() {
            [] => self.action == Action::RunbookRun,
            some => some.contains(&self.action),
        });
        let ends = for_this.filter_map(|b| Some((b, blackout_end(b, local)?)));
        let (blackout, end) = ends.max_by_key(|(_, end)| *end)?;
        let until = self.zone.to_ambiguous_timestamp(end).compatible().unwrap_or(Timestamp::MAX);
        Some(Held { name: blackout.name.clone(), until })
    }
}

/// When a blackout that holds now ends.
fn blackout_end(blackout: &Blackout, now: DateTime) -> Option<DateTime> {
    if let (true, Ok(from), Ok(to)) =
        (blackout.from.contains('-'), blackout.from.parse(), blackout.to.parse::<DateTime>())
    {
        return (from..to).contains(&now).then_some(to);
    }
    let (from, to) = (blackout.from.parse::<Time>().ok()?, blackout.to.parse::<Time>().ok()?);
    weekly_end(from, to, &blackout.days, now)
}

/// When a time that comes every week (none: every day) ends, if it holds now. One that does not end after its beginning ends
/// on the next day.
pub(in crate::plan) fn weekly_end(from: Time, to: Time, days: &[Day], now: DateTime) -> Option<DateTime> {
    // One over midnight may have begun yesterday.
    [now.date(), now.date().yesterday().ok()?].into_iter().find_map(|day| {
        let last = if to <= from { day.tomorrow().ok()? } else { day };
        let (begin, end) = (day.to_datetime(from), last.to_datetime(to));
        (is_listed(days, day) && (begin..end).contains(&now)).then_some(end)
    })
}

/// When such a time begins next.
pub(in crate::plan) fn weekly_begin(from: Time, days: &[Day], now: DateTime) -> Option<DateTime> {
    let dates = std::iter::successors(Some(now.date()), |day| day.tomorrow().ok()).take(8);
    dates.filter(|day| is_listed(days, *day)).map(|day| day.to_datetime(from)).find(|begin| *begin > now)
}

fn is_listed(days: &[Day], date: Date) -> bool {
    days.is_empty() || days.iter().any(|d| weekday(*d) == date.weekday())
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

impl Turn {
    /// What a schedule does the n-th time, from 0: all runbooks, then all of them on the next server, or in the next
    /// location.
    pub fn of(schedule: &Schedule, number: u64) -> Self {
        let number = usize::try_from(number).unwrap_or_default();
        let round = number / schedule.runbooks.len().max(1);
        let of = |list: &[String], turn: usize| list.get(turn % list.len().max(1)).cloned();
        Self {
            runbook: of(&schedule.runbooks, number),
            server: of(&schedule.servers, round),
            location: of(&schedule.locations, round),
        }
    }
}

/// A number below `bound` that depends on the name alone; 0 if the bound is.
pub fn draw(name: &str, bound: u64) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    first.checked_rem(bound).unwrap_or_default()
}
