use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::RetentionConfig;

/// `policies/NAME.yaml`: what the service does by itself, when, and against which targets. Choices that depend on the
/// clock or on what exists (which recovery point, which master) are declared here and made by the planner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// `hk-dr/v1`
    pub api_version: String,
    /// `Policy`
    pub kind: String,
    /// The file's name without `.yaml`.
    pub name: String,
    /// What it is for, in a sentence.
    pub summary: String,
    /// Names of the clusters it holds for; none: every cluster the service looks after.
    #[serde(default)]
    pub clusters: Vec<String>,
    /// IANA time zone of all times in this file, such as `Europe/Berlin`.
    pub time_zone: String,
    #[serde(default)]
    pub targets: PolicyTargets,
    /// Ship every change continuously; without it only snapshots are taken.
    #[serde(default)]
    pub log: Option<LogPolicy>,
    /// Write a canary into the cluster again and again: rehearsals on a copy measure by it what would have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryPolicy>,
    /// Which snapshots stay; without it what `cluster.yaml` says. `snapshot.prune` and `hk-dr snapshot prune` go by it.
    #[serde(default)]
    pub retention: Option<RetentionConfig>,
    /// Which backups of volumes stay; without it as snapshots do. `volume.prune` and `hk-dr volume prune` go by it.
    #[serde(default)]
    pub volume_retention: Option<RetentionConfig>,
    /// What is done when.
    #[serde(default)]
    pub schedules: Vec<Schedule>,
    /// When nothing of some kinds may begin.
    #[serde(default)]
    pub blackouts: Vec<Blackout>,
    /// Who hears of what.
    #[serde(default)]
    pub notifications: Vec<Route>,
    /// Called as long as all is well, so that silence raises the alarm somewhere else.
    #[serde(default)]
    pub heartbeat: Option<Heartbeat>,
}

/// What is promised. The status page and the shipped alert rules compare it with what is measured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTargets {
    /// Most that may be lost, in seconds before a failure.
    #[serde(default)]
    pub recovery_point_seconds: Option<u32>,
    /// Longest that a drill may take until a write is acknowledged again, in seconds.
    #[serde(default)]
    pub recovery_seconds: Option<u32>,
    /// Oldest that the newest snapshot may be, in hours.
    #[serde(default)]
    pub snapshot_age_hours: Option<u32>,
    /// Oldest that the newest proven snapshot may be, in hours.
    #[serde(default)]
    pub proven_age_hours: Option<u32>,
    /// Longest time since the last drill that passed, in days.
    #[serde(default)]
    pub drill_age_days: Option<u32>,
    /// Oldest that the newest backup of each declared volume may be, in hours.
    #[serde(default)]
    pub volume_age_hours: Option<u32>,
    /// Oldest that the newest proven backup of each declared volume may be, in hours.
    #[serde(default)]
    pub volume_proven_age_hours: Option<u32>,
}

/// How the log is shipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogPolicy {
    /// A segment is closed at this size, in KiB …
    #[serde(default = "default_segment_kib")]
    pub segment_kib: u32,
    /// … or after this time, in milliseconds.
    #[serde(default = "default_segment_milliseconds")]
    pub segment_milliseconds: u32,
    /// How much may wait on the service's disk, encrypted, while the bucket is away, in MiB.
    #[serde(default = "default_spool_mib")]
    pub spool_mib: u32,
}

/// One object, `default/hk-dr-canary`, that says when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanaryPolicy {
    /// How often it is written, in seconds: what is lost is measured no finer than this.
    pub every_seconds: u32,
}

/// One thing that is done again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// Unique in this file.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// Five fields: minute, hour, day of month, month, day of week. Across daylight-saving changes: with a fixed hour, a
    /// time that does not exist runs once at the next instant that does, and one that exists twice runs once, the first
    /// time; with `*` or `*/n` as the hour it follows elapsed time.
    pub cron: String,
    /// The start is moved later by up to so many seconds, always by the same for one cluster and schedule, so that not
    /// everything begins at once.
    #[serde(default)]
    pub jitter_seconds: u32,
    /// What becomes of runs whose time passed while no service ran or a blackout held.
    #[serde(default)]
    pub missed: Missed,
    /// A run that begins later than this counts as missed, in minutes.
    #[serde(default = "default_late_minutes")]
    pub late_minutes: u32,
    /// snapshot.take, volume.backup: read it back afterwards.
    #[serde(default)]
    pub verify: bool,
    /// snapshot.verify, volume.verify: which one is verified; runbook.run: which one is restored, by runbooks that restore
    /// one.
    #[serde(default)]
    pub point: RecoveryPointChoice,
    /// runbook.run: names of runbooks, each in turn.
    #[serde(default)]
    pub runbooks: Vec<String>,
    /// runbook.run: masters to act on, each in turn; for runbooks that act on chosen masters.
    #[serde(default)]
    pub servers: Vec<String>,
    /// runbook.run: locations to go to, each in turn; for runbooks that go elsewhere.
    #[serde(default)]
    pub locations: Vec<String>,
    /// volume.backup, volume.verify: names of declared volumes; none: all.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// volume.verify: how much is proven.
    #[serde(default)]
    pub level: VolumeLevel,
    /// Whether a person must agree to each run first.
    #[serde(default)]
    pub approval: Approval,
}

/// What a schedule does. Each is the same as the command of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Take a snapshot into the bucket.
    #[serde(rename = "snapshot.take")]
    SnapshotTake,
    /// Read a snapshot back.
    #[serde(rename = "snapshot.verify")]
    SnapshotVerify,
    /// Remove snapshots and log that retention does not keep.
    #[serde(rename = "snapshot.prune")]
    SnapshotPrune,
    /// Make a snapshot of the log's end, without touching the cluster.
    #[serde(rename = "log.compact")]
    LogCompact,
    /// Run a runbook: a drill.
    #[serde(rename = "runbook.run")]
    RunbookRun,
    /// Back up the files of volumes.
    #[serde(rename = "volume.backup")]
    VolumeBackup,
    /// Read backups of volumes, or restore them and compare.
    #[serde(rename = "volume.verify")]
    VolumeVerify,
    /// Remove backups of volumes that retention does not keep.
    #[serde(rename = "volume.prune")]
    VolumePrune,
}

impl Action {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::SnapshotTake => "snapshot.take",
            Self::SnapshotVerify => "snapshot.verify",
            Self::SnapshotPrune => "snapshot.prune",
            Self::LogCompact => "log.compact",
            Self::RunbookRun => "runbook.run",
            Self::VolumeBackup => "volume.backup",
            Self::VolumeVerify => "volume.verify",
            Self::VolumePrune => "volume.prune",
        }
    }
}

/// How much a backup of a volume is to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VolumeLevel {
    /// Every byte of the repository is read.
    #[default]
    Read,
    /// It is restored on the service's machine, and each file compared.
    Restore,
}

/// What becomes of missed runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Missed {
    /// One run stands for all that were missed.
    #[default]
    Once,
    /// Each is made up for, one after the other.
    Each,
    /// They are skipped, but for the last one if it is not late.
    Skip,
}

/// Which snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RecoveryPointChoice {
    /// The newest.
    #[default]
    Latest,
    /// Any of those that exist, drawn by the run's own name, so that a repetition draws the same.
    Random,
}

/// Whether a person must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Approval {
    /// It runs by itself.
    #[default]
    None,
    /// `hk-dr policy approve` for each run, within its `lateMinutes`; otherwise it is skipped.
    Required,
}

/// A time in which nothing of these kinds may begin. What falls into it counts as missed when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blackout {
    /// Shown as the reason.
    pub name: String,
    /// Beginning, as `2026-12-20 00:00`, or, every week, as `08:00`.
    pub from: String,
    /// End, in the same form. Before the beginning: on the next day.
    pub to: String,
    /// Days on which a weekly one begins; none: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// What may not begin; none: runbooks only.
    #[serde(default)]
    pub actions: Vec<Action>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Where news go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Unique in this file.
    pub name: String,
    /// Which news.
    pub news: Vec<News>,
    /// How they are sent.
    pub by: Channel,
    /// webhook, slack: name of the secret that holds the URL. Secrets are systemd credentials or environment variables
    /// `HK_DR_SECRET_<NAME>`.
    #[serde(default)]
    pub url_secret: Option<String>,
    /// smtp: `host:port`.
    #[serde(default)]
    pub server: Option<String>,
    /// smtp: whether the connection is encrypted.
    #[serde(default)]
    pub encryption: Encryption,
    /// smtp: the sender.
    #[serde(default)]
    pub from: Option<String>,
    /// smtp: who gets it.
    #[serde(default)]
    pub to: Vec<String>,
    /// smtp: user name; none: without logging in.
    #[serde(default)]
    pub user: Option<String>,
    /// smtp: name of the secret that holds the password.
    #[serde(default)]
    pub password_secret: Option<String>,
}

/// How news are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Channel {
    /// A POST of the news as JSON.
    Webhook,
    /// A POST of `{"text": …}`, as Slack, Mattermost and Rocket.Chat take it.
    Slack,
    /// A mail.
    Smtp,
}

/// What is said of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum News {
    /// It failed, or a drill did not pass.
    Failed,
    /// It succeeded after having failed.
    Recovered,
    /// It succeeded.
    Succeeded,
    /// It was skipped: missed, or not approved in time.
    Skipped,
    /// It waits for a person.
    Approval,
}

/// How a connection to a mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Encryption {
    /// STARTTLS, refused if the server has none.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// None: only for a mail server on this machine.
    None,
}

/// A dead man's switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heartbeat {
    /// Name of the secret that holds the URL, which is fetched with GET.
    pub url_secret: String,
    /// How often, in minutes.
    pub every_minutes: u32,
    /// Only while the last snapshot that succeeded is younger than this, in hours.
    pub while_snapshot_younger_than_hours: u32,
}

impl Policy {
    /// Whether it holds for this cluster.
    pub fn holds_for(&self, cluster: &str) -> bool {
        self.clusters.is_empty() || self.clusters.iter().any(|c| c == cluster)
    }

    /// Names of all secrets it refers to, and what for.
    pub fn secrets(&self) -> BTreeMap<&str, &'static str> {
        let routes = self.notifications.iter();
        let mut names: BTreeMap<&str, &'static str> = routes
            .flat_map(|r| {
                let url = r.url_secret.as_deref().map(|name| (name, "a notification's URL"));
                url.into_iter().chain(r.password_secret.as_deref().map(|name| (name, "a mail server's password")))
            })
            .collect();
        names.extend(self.heartbeat.as_ref().map(|h| (h.url_secret.as_str(), "the heartbeat's URL")));
        names
    }
}

fn default_segment_kib() -> u32 {
    1024
}
fn default_segment_milliseconds() -> u32 {
    2000
}
fn default_spool_mib() -> u32 {
    1024
}
fn default_late_minutes() -> u32 {
    60
}
