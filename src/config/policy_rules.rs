use std::collections::BTreeSet;

use jiff::civil::{DateTime, Time};

use super::cron::{Cron, time_zone};
use super::error::Report;
use super::names::is_label;
use super::policy::{Action, Channel, Policy, Route, Schedule};
use super::tree::Tree;

/// Most that a start is moved.
const JITTER_SECONDS_MAX: u32 = 6 * 3600;

pub(super) fn check(policy: &Policy, tree: &Tree, report: &mut Report) {
    Rules { policy, tree, report }.all();
}

struct Rules<'a> {
    policy: &'a Policy,
    tree: &'a Tree,
    report: &'a mut Report,
}

impl Rules<'_> {
    fn wrong(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.report.add(self.tree.place(path), message, Some(hint.into()));
    }

    fn all(&mut self) {
        let policy = self.policy;
        if policy.api_version != "hk-dr/v1" {
            let message = format!("apiVersion `{}` is not known to this hk-dr", policy.api_version);
            self.wrong("apiVersion", message, "write `hk-dr/v1`");
        }
        if policy.kind != "Policy" {
            self.wrong("kind", format!("kind `{}` is not a policy", policy.kind), "write `Policy`");
        }
        self.name("name", &policy.name);
        for (index, cluster) in policy.clusters.iter().enumerate() {
            self.name(&format!("clusters.{index}"), cluster);
        }
        if time_zone(&policy.time_zone).is_none() {
            let message = format!("`{}` is no IANA time zone", policy.time_zone);
            self.wrong("timeZone", message, "such as `Europe/Berlin` or `UTC`");
        }
        if policy.schedules.is_empty() && policy.log.is_none() && policy.canary.is_none() {
            let hint = "give it `schedules` or `log`; `hk-dr policy show backups` prints an example";
            self.wrong("schedules", "a policy without schedules and log does nothing", hint);
        }
        if let Some(log) = &policy.log {
            let ranges = [
                ("segmentKib", log.segment_kib, 1, 65_536),
                ("segmentMilliseconds", log.segment_milliseconds, 50, 600_000),
                ("spoolMib", log.spool_mib, 1, 1_048_576),
            ];
            for (field, value, least, most) in ranges {
                self.range(&format!("log.{field}"), value, least, most);
            }
        }
        if let Some(canary) = &policy.canary {
            self.range("canary.everySeconds", canary.every_seconds, 5, 3600);
        }
        self.unique("schedules", policy.schedules.iter().map(|s| s.name.as_str()));
        for (index, schedule) in policy.schedules.iter().enumerate() {
            self.schedule(&format!("schedules.{index}"), schedule);
        }
        for (index, blackout) in policy.blackouts.iter().enumerate() {
            let at = |field: &str| format!("blackouts.{index}.{field}");
            let dates = (blackout.from.parse::<DateTime>(), blackout.to.parse::<DateTime>());
            let times = (blackout.from.parse::<Time>(), blackout.to.parse::<Time>());
            match (dates, times) {
                (_, (Ok(_), Ok(_))) if !is_date(&blackout.from) && !is_date(&blackout.to) => {}
                ((Ok(from), Ok(to)), _) if is_date(&blackout.from) && is_date(&blackout.to) => {
                    if to <= from {
                        self.wrong(&at("to"), "it ends before it begins", "write the later date as `to`");
                    }
                    if !blackout.days.is_empty() {
                        self.wrong(&at("days"), "it has dates: it happens once, not each week", "take `days` out");
                    }
                }
                _ => {
                    let message = format!("from `{}` to `{}` is no time", blackout.from, blackout.to);
                    self.wrong(&at("from"), message, "both as `2026-12-20 00:00`, or both as `08:00` for every week");
                }
            }
        }
        self.unique("notifications", policy.notifications.iter().map(|r| r.name.as_str()));
        for (index, route) in policy.notifications.iter().enumerate() {
            self.route(&format!("notifications.{index}"), route);
        }
        if let Some(heartbeat) = &policy.heartbeat {
            self.secret("heartbeat.urlSecret", &heartbeat.url_secret);
            self.range("heartbeat.everyMinutes", heartbeat.every_minutes, 1, 1440);
            self.range("heartbeat.whileSnapshotYoungerThanHours", heartbeat.while_snapshot_younger_than_hours, 1, 8760);
        }
    }

    fn schedule(&mut self, path: &str, schedule: &Schedule) {
        let at = |field: &str| format!("{path}.{field}");
        self.name(&at("name"), &schedule.name);
        // Without its time zone nothing can be said about it, and that was said.
        if let Some(zone) = time_zone(&self.policy.time_zone)
            && let Err(message) = Cron::parse(&schedule.cron, zone)
        {
            let hint = "minute, hour, day of month, month, day of week: `30 4 * * SUN` is Sundays at 04:30";
            self.wrong(&at("cron"), message, hint);
        }
        self.range(&at("jitterSeconds"), schedule.jitter_seconds, 0, JITTER_SECONDS_MAX);
        self.range(&at("lateMinutes"), schedule.late_minutes, 1, 7 * 1440);
        let given = [
            ("verify", schedule.verify, &[Action::SnapshotTake, Action::VolumeBackup][..]),
            (
                "point",
                schedule.point != Default::default(),
                &[Action::SnapshotVerify, Action::RunbookRun, Action::VolumeVerify],
            ),
            ("volumes", !schedule.volumes.is_empty(), &[Action::VolumeBackup, Action::VolumeVerify]),
            ("level", schedule.level != Default::default(), &[Action::VolumeVerify]),
            ("runbooks", !schedule.runbooks.is_empty(), &[Action::RunbookRun]),
            ("servers", !schedule.servers.is_empty(), &[Action::RunbookRun]),
            ("locations", !schedule.locations.is_empty(), &[Action::RunbookRun]),
        ];
        for (field, given, actions) in given {
            if given && !actions.contains(&schedule.action) {
                let message = format!("`{}` takes no `{field}`", schedule.action.name());
                let names: Vec<String> = actions.iter().map(|action| format!("`{}`", action.name())).collect();
                self.wrong(&at(field), message, format!("it belongs to {}", names.join(" and ")));
            }
        }
        for (index, volume) in schedule.volumes.iter().enumerate() {
            self.name(&at(&format!("volumes.{index}")), volume);
        }
        if schedule.action == Action::RunbookRun && schedule.runbooks.is_empty() {
            self.wrong(&at("runbooks"), "it names no runbook", "`hk-dr runbook list` shows what there is");
        }
    }

    fn route(&mut self, path: &str, route: &Route) {
        let at = |field: &str| format!("{path}.{field}");
        self.name(&at("name"), &route.name);
        if route.news.is_empty() {
            self.wrong(&at("news"), "it hears of nothing", "such as `news: [failed, recovered]`");
        }
        for (field, name) in [("urlSecret", &route.url_secret), ("passwordSecret", &route.password_secret)] {
            if let Some(name) = name {
                self.secret(&at(field), name);
            }
        }
        let smtp = route.by == Channel::Smtp;
        let needed = [
            ("urlSecret", route.url_secret.is_some(), !smtp),
            ("server", route.server.is_some(), smtp),
            ("from", route.from.is_some(), smtp),
            ("to", !route.to.is_empty(), smtp),
        ];
        for (field, given, wanted) in needed {
            if wanted && !given {
                self.wrong(&at("by"), format!("it needs `{field}`"), format!("add `{field}` to this route"));
            }
            if given && !wanted {
                self.wrong(&at(field), format!("this route takes no `{field}`"), "take it out");
            }
        }
        if route.user.is_some() != route.password_secret.is_some() {
            self.wrong(&at("user"), "`user` and `passwordSecret` belong together", "give both or none");
        }
    }

    fn name(&mut self, path: &str, name: &str) {
        if !is_label(name) || name.len() > 63 {
            let hint = "lower-case letters, digits and dashes, beginning with a letter; at most 63";
            self.wrong(path, format!("`{name}` can't be a name"), hint);
        }
    }

    fn secret(&mut self, path: &str, name: &str) {
        if !is_label(name) {
            let hint = "the secret's name, not its value: lower-case letters, digits and dashes";
            self.wrong(path, "this can't be the name of a secret", hint);
        }
    }

    fn range(&mut self, path: &str, value: u32, least: u32, most: u32) {
        if !(least..=most).contains(&value) {
            self.wrong(path, format!("{value} is out of range"), format!("from {least} to {most}"));
        }
    }

    fn unique<'n>(&mut self, list: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = BTreeSet::new();
        for (index, name) in names.enumerate() {
            if !seen.insert(name) {
                let path = format!("{list}.{index}.name");
                self.wrong(&path, format!("`{name}` is there twice"), "names are unique in a list");
            }
        }
    }
}

/// Whether a text begins with a date rather than a time of day.
pub(super) fn is_date(text: &str) -> bool {
    text.contains('-')
}

#[cfg(test)]
mod tests {
    use crate::config::{SHIPPED_POLICIES, load_policy, policy_schema};

    fn errors(text: &str) -> String {
        load_policy(text, "policies/x.yaml").map_or_else(|e| e.plain(), |_| "accepted".into())
    }

    fn with(rest: &str) -> String {
        errors(&format!("apiVersion: hk-dr/v1\nkind: Policy\nname: x\nsummary: y\ntimeZone: Europe/Berlin\n{rest}"))
    }

    fn scheduled(rest: &str) -> String {
        with(&format!("schedules:\n  - name: a\n{rest}"))
    }

    #[test]
    fn the_shipped_ones_are_right_and_named_as_their_files() {
        for (name, text) in SHIPPED_POLICIES {
            assert_eq!(load_policy(text, name).unwrap_or_else(|e| panic!("{}", e.plain())).name, name);
        }
    }

    #[test]
    fn each_mistake_is_shown_with_its_line_and_what_to_write() {
        let found = scheduled("    action: snapshot.take\n    cron: 0 25 * * *\n    runbooks: [x]\n");
        assert!(found.contains("policies/x.yaml:9:"), "{found}");
        assert!(found.contains("takes no `runbooks`") && found.contains("belongs to `runbook.run`"), "{found}");
        let found = scheduled("    action: snapshots.take\n    cron: 0 2 * * *\n");
        assert!(found.contains("did you mean `snapshot.take`?"), "{found}");
        let found =
            scheduled("    action: snapshot.prune\n    cron: 0 2 * * *\n    locations: [x]\n    point: random\n");
        assert!(
            found.contains("takes no `locations`")
                && found.contains("`snapshot.verify` and `runbook.run` and `volume.verify`"),
            "{found}"
        );
        let found =
            with("retention: {allHour: 3}\nschedules:\n  - {name: a, action: snapshot.prune, cron: 0 2 * * *}\n");
        assert!(found.contains("did you mean `allHours`?"), "{found}");
        let found =
            scheduled("    action: volume.prune\n    cron: 0 2 * * *\n    volumes: [shop]\n    level: restore\n");
        assert!(found.contains("`volume.prune` takes no `volumes`") && found.contains("takes no `level`"), "{found}");
        let found = scheduled("    action: volume.verify\n    cron: 0 2 * * *\n    volumes: [shop]\n    level: boot\n");
        assert!(found.contains("policies/x.yaml:11:12:") && found.contains("one of: read, restore"), "{found}");
        let found = scheduled("    action: runbook.run\n    cron: 0 2 * * *\n");
        assert!(found.contains("names no runbook"), "{found}");
        assert!(with("").contains("does nothing"));
        assert!(with("log: {}\ntimezone: UTC\n").contains("did you mean `timeZone`?"));
        let zone = "apiVersion: hk-dr/v1\nkind: Policy\nname: x\nsummary: y\ntimeZone: Europe/Bonn\nlog: {}\n";
        assert!(errors(zone).contains("policies/x.yaml:5:11: `Europe/Bonn` is no IANA time zone"), "{}", errors(zone));
    }

    #[test]
    fn a_secret_is_named_not_written_down() {
        let route = |url: &str| {
            with(&format!("log: {{}}\nnotifications:\n  - {{name: a, news: [failed], by: slack, urlSecret: {url}}}\n"))
        };
        assert_eq!(route("slack-url"), "accepted");
        let found = route("\"https://hooks.example/T0/secret\"");
        assert!(found.contains("not its value") && !found.contains("T0/secret"), "{found}");
        let found = with("log: {}\nnotifications:\n  - {name: a, news: [failed], by: smtp}\n");
        assert!(found.contains("needs `server`") && found.contains("needs `to`"), "{found}");
    }

    #[test]
    fn a_blackout_is_a_time_of_the_week_or_a_time_of_the_calendar() {
        let blackout = |rest: &str| with(&format!("log: {{}}\nblackouts:\n  - {{name: a, {rest}}}\n"));
        assert_eq!(blackout("from: \"22:00\", to: \"06:00\", days: [fri]"), "accepted");
        assert_eq!(blackout("from: 2026-12-20 00:00, to: 2027-01-03 00:00"), "accepted");
        assert!(blackout("from: 2026-12-20 00:00, to: 2025-01-03 00:00").contains("ends before it begins"));
        assert!(blackout("from: \"08:00\", to: 2025-01-03 00:00").contains("is no time"));
    }

    #[test]
    fn the_published_schema_is_that_of_the_code() {
        let published: serde_json::Value = serde_json::from_str(include_str!("../../docs/policy.schema.json")).unwrap();
        assert_eq!(published, policy_schema(), "write it anew: hk-dr schema policy > docs/policy.schema.json");
    }
}
