use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::view::{ClusterView, View, ended, seconds};
use crate::drill::Verdict;

type Labels = Vec<(String, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// A registry that is made for one answer: what is not known now has no value, instead of an old one.
struct Sheet(Registry);

impl Sheet {
    fn gauge(&mut self, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.0.register(name, help, family.clone());
        family
    }
}

fn set(family: &Gauges, labels: &Labels, value: Option<f64>) {
    if let Some(value) = value {
        family.get_or_create(labels).set(value);
    }
}

fn with(labels: &Labels, more: &[(&str, &str)]) -> Labels {
    labels.iter().cloned().chain(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts and seconds since 1970 are far below 2^52")]
fn number(value: i64) -> f64 {
    value as f64
}

/// What `/metrics` answers, in the OpenMetrics text format.
pub fn metrics(view: &View) -> String {
    let mut sheet = Sheet(Registry::with_prefix("hk_dr"));
    let lost: Counter = Counter::default();
    lost.inc_by(view.letters_lost);
    sheet.0.register("notifications_lost", "Notifications that nobody got", lost);
    let service = sheet.gauge("service_info", "Version of the service");
    set(&service, &vec![("version".into(), view.hk_dr_version.into())], Some(1.0));
    backups(&mut sheet, view);
    volumes(&mut sheet, view);
    drills(&mut sheet, view);
    schedules(&mut sheet, view);
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut text, &sheet.0);
    text
}

fn of(cluster: &ClusterView) -> Labels {
    vec![("cluster".into(), cluster.name.clone())]
}

fn backups(sheet: &mut Sheet, view: &View) {
    let up = sheet.gauge("bucket_up", "1 if the bucket could be read at the last look");
    let observed = sheet.gauge("observed_age_seconds", "Since the bucket was last read");
    let count = sheet.gauge("snapshots", "Snapshots in the bucket, by whether one was restored with success");
    let age = sheet.gauge("snapshot_age_seconds", "Age of the newest snapshot");
    let age_target = sheet.gauge("snapshot_age_target_seconds", "What is promised");
    let proven =
        sheet.gauge("snapshot_proven_age_seconds", "Age of the newest snapshot that was restored with success");
    let proven_target = sheet.gauge("snapshot_proven_age_target_seconds", "What is promised");
    let lag = sheet.gauge("log_lag_seconds", "How far the log in the bucket is behind the cluster");
    let gaps = sheet.gauge("log_open_gaps", "Gaps of the log that no snapshot closes");
    let point = sheet.gauge("recovery_point_seconds", "What would be lost if the cluster were lost now");
    let point_target = sheet.gauge("recovery_point_target_seconds", "What is promised");
    let requests = sheet.gauge("cloud_requests_left", "Requests that the cloud still grants, roughly");
    let certificates = sheet.gauge("certificate_expiry_timestamp_seconds", "When the first certificate ends");
    for cluster in &view.clusters {
        let labels = of(cluster);
        let hours = |hours: Option<u32>| hours.map(|h| f64::from(h) * 3600.0);
        set(&up, &labels, Some(if cluster.trouble.is_none() && cluster.observed_at.is_some() { 1.0 } else { 0.0 }));
        set(&observed, &labels, cluster.observed_at.map(|at| seconds(at, view.at)));
        for (name, is_proven) in [("true", true), ("false", false)] {
            let found = cluster.snapshots.iter().filter(|s| s.proven == is_proven).count();
            set(&count, &with(&labels, &[("proven", name)]), Some(number(i64::try_from(found).unwrap_or(i64::MAX))));
        }
        set(&age, &labels, cluster.snapshot_age(view.at));
        set(&age_target, &labels, hours(cluster.targets.snapshot_age_hours));
        set(&proven, &labels, cluster.proven_age(view.at));
        set(&proven_target, &labels, hours(cluster.targets.proven_age_hours));
        set(&lag, &labels, cluster.log.as_ref().map(|log| seconds(log.covered_at, view.at)));
        let open = cluster.log.as_ref().map(|log| number(i64::try_from(log.open_gaps).unwrap_or(i64::MAX)));
        set(&gaps, &labels, open);
        set(&point, &labels, cluster.recovery_point(view.at));
        set(&point_target, &labels, cluster.targets.recovery_point_seconds.map(f64::from));
        set(&requests, &labels, cluster.gauges.cloud_requests_left);
        set(&certificates, &labels, cluster.gauges.certificate_ends.map(|at| number(at.as_second())));
    }
}

fn volumes(sheet: &mut Sheet, view: &View) {
    let declared = sheet.gauge("volume_declared", "1 for each volume that cluster.yaml declares");
    let count = sheet.gauge("volume_backups", "Backups of a volume, by whether one was restored with success");
    let age = sheet.gauge("volume_backup_age_seconds", "Age of a volume's newest backup that nobody found damaged");
    let age_target = sheet.gauge("volume_backup_age_target_seconds", "What is promised");
    let proven = sheet
        .gauge("volume_backup_proven_age_seconds", "Age of a volume's newest backup that was restored with success");
    let proven_target = sheet.gauge("volume_backup_proven_age_target_seconds", "What is promised");
    for cluster in &view.clusters {
        let hours = |hours: Option<u32>| hours.map(|h| f64::from(h) * 3600.0);
        set(&age_target, &of(cluster), hours(cluster.targets.volume_age_hours));
        set(&proven_target, &of(cluster), hours(cluster.targets.volume_proven_age_hours));
        // Until the bucket was read it is not known that there are none.
        for volume in cluster.declared_volumes.iter().filter(|_| cluster.observed_at.is_some()) {
            let labels = with(&of(cluster), &[("volume", volume)]);
            set(&declared, &labels, Some(1.0));
            for (name, is_proven) in [("true", true), ("false", false)] {
                let of_volume = cluster.volume_backups.iter().filter(|b| b.volume == *volume && b.proven == is_proven);
                let found = i64::try_from(of_volume.count()).unwrap_or(i64::MAX);
                set(&count, &with(&labels, &[("proven", name)]), Some(number(found)));
            }
            set(&age, &labels, cluster.volume_age(volume, view.at));
            set(&proven, &labels, cluster.volume_proven_age(volume, view.at));
        }
    }
}

fn drills(sheet: &mut Sheet, view: &View) {
    let recovery = sheet.gauge("drill_recovery_seconds", "Recovery time that the newest drill measured");
    let target = sheet.gauge("drill_recovery_target_seconds", "What is promised");
    let point = sheet.gauge("drill_recovery_point_seconds", "Age of what the newest drill lost");
    let age = sheet.gauge("drill_age_seconds", "Since the newest drill of this runbook ended");
    let passed = sheet.gauge("drill_passed", "1 if the newest drill of this runbook passed");
    let since = sheet.gauge("drill_passed_age_seconds", "Since any drill passed");
    let since_target = sheet.gauge("drill_age_target_seconds", "What is promised");
    for cluster in &view.clusters {
        let labels = of(cluster);
        set(&since, &labels, cluster.drill_age(view.at));
        set(&since_target, &labels, cluster.targets.drill_age_days.map(|days| f64::from(days) * 86_400.0));
        set(&target, &labels, cluster.targets.recovery_seconds.map(f64::from));
        for (runbook, drill) in cluster.newest_drills() {
            let labels = with(&labels, &[("runbook", runbook)]);
            set(&recovery, &labels, drill.recovery.seconds);
            set(&point, &labels, drill.recovery_point.seconds);
            set(&age, &labels, ended(drill).map(|at| seconds(at, view.at)));
            set(&passed, &labels, Some(if drill.verdict == Verdict::Passed { 1.0 } else { 0.0 }));
        }
    }
}

fn schedules(sheet: &mut Sheet, view: &View) {
    let success = sheet.gauge("schedule_success_age_seconds", "Since a run of this schedule succeeded");
    let failures = sheet.gauge("schedule_failures", "Failures since the last success");
    let next = sheet.gauge("schedule_next_timestamp_seconds", "When the next run may begin");
    let running = sheet.gauge("schedule_running", "1 while a run is under way");
    let waiting = sheet.gauge("schedule_waits_for_approval", "1 while a run waits for a person");
    let total: Family<Labels, Counter> = Family::default();
    sheet.0.register("schedule_runs_failed", "Runs of this schedule that failed", total.clone());
    for cluster in &view.clusters {
        for schedule in &cluster.schedules {
            let labels = with(
                &of(cluster),
                &[("policy", &schedule.policy), ("schedule", &schedule.name), ("action", &schedule.action)],
            );
            let time = |at: &Timestamp| number(at.as_second());
            set(&next, &labels, schedule.next.first().map(time));
            let Some(book) = &schedule.book else { continue };
            set(&success, &labels, book.last_success.map(|at| seconds(at, view.at)));
            set(&failures, &labels, Some(f64::from(book.failures)));
            set(&running, &labels, Some(if book.current.is_some() { 1.0 } else { 0.0 }));
            let asked = book.asked.as_ref().is_some_and(|asked| asked.approved_by.is_none());
            set(&waiting, &labels, Some(if asked { 1.0 } else { 0.0 }));
            total.get_or_create(&labels).inc_by(book.failures_total);
        }
    }
}
