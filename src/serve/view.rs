use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::backup::{Catalog, Proof, log};
use crate::config::PolicyTargets;
use crate::drill::Evidence;
use crate::plan::schedule::Book;
use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult};
use crate::volumes::{self, Records};

/// Drills that are shown and measured.
const DRILLS_MAX: usize = 60;
/// Largest evidence that is read.
const EVIDENCE_BYTES_MAX: u64 = 8 << 20;

/// All that is known, at one time.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    pub at: Timestamp,
    pub hk_dr_version: &'static str,
    /// Machine and process.
    pub holder: String,
    pub clusters: Vec<ClusterView>,
    /// Notifications that nobody got.
    pub letters_lost: u64,
}

/// One cluster.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClusterView {
    pub name: String,
    pub targets: PolicyTargets,
    /// When the bucket was last looked at with success.
    pub observed_at: Option<Timestamp>,
    /// Why not since.
    pub trouble: Option<String>,
    /// Newest first.
    pub snapshots: Vec<SnapshotView>,
    /// Names of the volumes that cluster.yaml declares.
    pub declared_volumes: Vec<String>,
    /// Backups of volumes, also of such that are declared no more; newest first.
    pub volume_backups: Vec<VolumeBackupView>,
    pub log: Option<LogView>,
    /// Newest first.
    pub drills: Vec<Evidence>,
    pub schedules: Vec<ScheduleView>,
    pub running: Vec<RunView>,
    pub gauges: Gauges,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotView {
    pub id: String,
    pub taken_at: Timestamp,
    pub revision: i64,
    pub stored_bytes: u64,
    /// Restored with success, at some level.
    pub proven: bool,
    pub proof: String,
}

/// A backup of a volume.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeBackupView {
    pub id: String,
    pub volume: String,
    pub taken_at: Timestamp,
    pub files: u64,
    pub bytes: u64,
    /// Restored with success.
    pub proven: bool,
    /// Somebody found it damaged.
    pub bad: bool,
    pub proof: String,
}

/// The continuous log.
#[derive(Debug, Clone, Serialize)]
pub struct LogView {
    /// Everything before is in the bucket.
    pub covered_at: Timestamp,
    pub covered_revision: i64,
    pub open_gaps: usize,
    pub writer: Option<String>,
    pub problem: Option<String>,
}

/// A schedule and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct ScheduleView {
    pub policy: String,
    pub name: String,
    pub action: String,
    pub cron: String,
    pub time_zone: String,
    /// When its next runs may begin.
    pub next: Vec<Timestamp>,
    /// The blackout that holds it now.
    pub held_by: Option<String>,
    pub book: Option<Book>,
}

/// A run on this machine that has not ended.
#[derive(Debug, Clone, Serialize)]
pub struct RunView {
    pub id: String,
    pub what: String,
    pub began: Option<Timestamp>,
    /// Titles and states: `waiting`, `running`, `failed`, `done`.
    pub steps: Vec<(String, &'static str)>,
}

/// What only a cluster's connections know.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Gauges {
    /// Requests that the cloud still grants this project, roughly.
    pub cloud_requests_left: Option<f64>,
    /// When the first of the cluster's certificates ends.
    pub certificate_ends: Option<Timestamp>,
}

impl ClusterView {
    /// What would be lost if the cluster were lost now, in seconds.
    pub fn recovery_point(&self, now: Timestamp) -> Option<f64> {
        let newest = self.snapshots.first().map(|s| s.taken_at);
        let covered = self.log.as_ref().map(|log| log.covered_at);
        covered.max(newest).map(|at| seconds(at, now))
    }

    /// Age of the newest snapshot.
    pub fn snapshot_age(&self, now: Timestamp) -> Option<f64> {
        self.snapshots.first().map(|s| seconds(s.taken_at, now))
    }

    /// Age of the newest snapshot that was restored with success.
    pub fn proven_age(&self, now: Timestamp) -> Option<f64> {
        self.snapshots.iter().find(|s| s.proven).map(|s| seconds(s.taken_at, now))
    }

    /// Age of a volume's newest backup that nobody found damaged.
    pub fn volume_age(&self, volume: &str, now: Timestamp) -> Option<f64> {
        let mut whole = self.volume_backups.iter().filter(|b| b.volume == volume && !b.bad);
        whole.next().map(|b| seconds(b.taken_at, now))
    }

    /// Age of a volume's newest backup that was restored with success.
    pub fn volume_proven_age(&self, volume: &str, now: Timestamp) -> Option<f64> {
        let mut proven = self.volume_backups.iter().filter(|b| b.volume == volume && b.proven);
        proven.next().map(|b| seconds(b.taken_at, now))
    }

    /// The newest drill of each runbook.
    pub fn newest_drills(&self) -> BTreeMap<&str, &Evidence> {
        self.drills.iter().rev().map(|drill| (drill.runbook.as_str(), drill)).collect()
    }

    /// Time since a drill passed.
    pub fn drill_age(&self, now: Timestamp) -> Option<f64> {
        let passed = self.drills.iter().filter(|d| d.verdict == crate::drill::Verdict::Passed);
        passed.filter_map(ended).max().map(|at| seconds(at, now))
    }
}

/// When a drill ended.
pub fn ended(evidence: &Evidence) -> Option<Timestamp> {
    evidence.ended.as_ref().and_then(|text| text.parse().ok())
}

/// From one to another, in seconds; never negative.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Looks at a cluster's bucket, and adds what is found to `view`. `known`: evidence that was read before, by key.
///
/// # Errors
/// The bucket is away; `view` stays as it was.
pub async fn observe(
    store: &dyn ObjectStore,
    view: &mut ClusterView,
    known: &mut BTreeMap<String, Evidence>,
    now: Timestamp,
) -> PortResult<()> {
    let (entries, _) = Catalog::new(store, &view.name).list().await?;
    let log = match log::status(store, &view.name, now).await {
        Ok(status) => Some(LogView {
            covered_at: status.covered_at,
            covered_revision: status.covered_revision,
            open_gaps: status.gaps.iter().filter(|gap| gap.closed_by.is_none()).count(),
            problem: status.writer.as_ref().and_then(|w| w.problem.clone()),
            writer: status.writer.map(|w| w.holder),
        }),
        // Without a snapshot there is no log.
        Err(e) if e.code == ErrorCode::NotFound => None,
        Err(e) => return Err(e),
    };
    let (volumes, _) = Records { store, cluster: &view.name }.list().await?;
    read_evidence(store, &view.name, known).await?;
    view.volume_backups = volumes.into_iter().map(of_volume).collect();
    view.snapshots = entries
        .into_iter()
        .map(|entry| SnapshotView {
            taken_at: entry.manifest.taken_at,
            revision: entry.manifest.revision,
            stored_bytes: entry.manifest.etcd.stored_bytes + entry.manifest.recovery.stored_bytes,
            proven: matches!(entry.proof, Proof::Proven { .. }),
            proof: entry.proof.to_string(),
            id: entry.manifest.id,
        })
        .collect();
    view.log = log;
    // Runs are named by the time at which they were planned.
    view.drills = known.values().rev().take(DRILLS_MAX).cloned().collect();
    view.observed_at = Some(now);
    view.trouble = None;
    Ok(())
}

fn of_volume(entry: volumes::Entry) -> VolumeBackupView {
    VolumeBackupView {
        taken_at: entry.backup.taken_at,
        files: entry.backup.files,
        bytes: entry.backup.bytes,
        proven: matches!(entry.proof, Proof::Proven { .. }),
        bad: matches!(entry.proof, Proof::Bad { .. }),
        proof: entry.proof.to_string(),
        volume: entry.backup.volume,
        id: entry.backup.id,
    }
}

/// Reads the evidence of runs that is not known yet. What is damaged is left out: it is shown by `hk-dr report verify`.
pub async fn read_evidence(
    store: &dyn ObjectStore,
    cluster: &str,
    known: &mut BTreeMap<String, Evidence>,
) -> PortResult<()> {
    let objects = store.list(&format!("{cluster}/runs/")).await?;
    let mut there: Vec<String> =
        objects.into_iter().map(|object| object.key).filter(|key| key.ends_with("/evidence.json")).collect();
    let surplus = there.len().saturating_sub(DRILLS_MAX * 4);
    there.drain(..surplus);
    known.retain(|key, _| there.contains(key));
    for key in there {
        // A run that had not ended may be measured again.
        if known.get(&key).is_some_and(|evidence| evidence.steps.iter().all(|step| step.ended.is_some())) {
            continue;
        }
        let text = match store.get(&key, EVIDENCE_BYTES_MAX).await {
            Ok(text) => text,
            Err(e)
                if matches!(
                    e.code,
                    ErrorCode::NotFound | ErrorCode::LimitExceeded | ErrorCode::Unsigned | ErrorCode::Corrupt
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e),
        };
        if let Ok(evidence) = serde_json::from_slice(&text) {
            known.insert(key, evidence);
        }
    }
    Ok(())
}

/// What is promised by several policies together: the strictest.
pub fn strictest<'a>(targets: impl Iterator<Item = &'a PolicyTargets>) -> PolicyTargets {
    let least = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
    targets.fold(PolicyTargets::default(), |all, one| PolicyTargets {
        recovery_point_seconds: least(all.recovery_point_seconds, one.recovery_point_seconds),
        recovery_seconds: least(all.recovery_seconds, one.recovery_seconds),
        snapshot_age_hours: least(all.snapshot_age_hours, one.snapshot_age_hours),
        proven_age_hours: least(all.proven_age_hours, one.proven_age_hours),
        drill_age_days: least(all.drill_age_days, one.drill_age_days),
        volume_age_hours: least(all.volume_age_hours, one.volume_age_hours),
        volume_proven_age_hours: least(all.volume_proven_age_hours, one.volume_proven_age_hours),
    })
}

/// What went wrong, for people who look at the page.
pub(super) fn trouble(error: &PortError) -> String {
    super::tend::told(error)
}
