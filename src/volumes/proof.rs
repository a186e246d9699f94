//! What a backup is worth: looked at, read, or restored into a place of its own and compared.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::listing::compare;
use super::records::{Backup, Checked, READ, RESTORE};
use super::restic::Repository;
use crate::ports::{Clock, ErrorCode, PortError, PortResult};

/// Differences that are named.
const NAMED: usize = 5;

/// How much is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The structure: every file of every snapshot has its parts in the index. Proves nothing that is recorded.
    Check,
    /// Every byte of the repository.
    Read,
    /// Each backup is restored, and all of it compared.
    Restore,
}

/// What is to be verified.
pub struct VerifyRequest<'a> {
    pub repository: &'a Repository,
    pub backups: &'a [Backup],
    pub level: Level,
    /// Where backups are restored to, below a directory that only its owner reads and that goes afterwards.
    pub scratch: &'a Path,
    pub clock: &'a dyn Clock,
}

/// What was found out. It is recorded beside the backups.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Names of backups, and what was found out about each.
    pub found: Vec<(String, Checked)>,
    /// The repository is damaged where none of the backups that are not in `found` has anything.
    pub elsewhere: Option<String>,
}

impl Verified {
    /// Backups that are damaged, and how.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &str)> {
        self.found.iter().filter_map(|(id, found)| Some((id.as_str(), found.problem.as_deref()?)))
    }
}

/// Verifies backups and records what was found. A failure that says nothing about the data is an error and records nothing.
pub async fn verify(request: &VerifyRequest<'_>) -> PortResult<Verified> {
    match request.level {
        Level::Check | Level::Read => {
            let before = request.repository.before_reading(request.clock).await?;
            let verified = match read_through(request).await {
                Ok(verified) => verified,
                Err(e) => return Err(request.repository.undisturbed(&before, e).await),
            };
            record(request, &before, &verified.found).await?;
            Ok(verified)
        }
        Level::Restore => {
            let mut verified = Verified::default();
            for backup in request.backups {
                let before = request.repository.before_reading(request.clock).await?;
                let found = match restored(request, backup).await {
                    Ok(found) => (backup.id.clone(), found),
                    Err(e) => return Err(request.repository.undisturbed(&before, e).await),
                };
                record(request, &before, std::slice::from_ref(&found)).await?;
                verified.found.push(found);
            }
            Ok(verified)
        }
    }
}

async fn record(
    request: &VerifyRequest<'_>,
    before: &super::turn::Before,
    found: &[(String, Checked)],
) -> PortResult<()> {
    if let Some((_, Checked { problem: Some(problem), .. })) = found.iter().find(|(_, found)| found.problem.is_some()) {
        let damaged = PortError::new(ErrorCode::Corrupt, problem.clone());
        let blamed = request.repository.undisturbed(before, damaged).await;
        if blamed.code != ErrorCode::Corrupt {
            return Err(blamed);
        }
    }
    for (id, found) in found {
        // A look at the structure proves nothing, but finds what is bad.
        if request.level != Level::Check || found.problem.is_some() {
            request.repository.records().judge(id, found).await?;
        }
    }
    Ok(())
}

/// All of the repository once; only where that finds damage each backup by itself.
async fn read_through(request: &VerifyRequest<'_>) -> PortResult<Verified> {
    let VerifyRequest { repository, clock, .. } = request;
    let mut verified = Verified::default();
    let mut there = Vec::new();
    // One whose file is damaged is not listed either.
    let listed: BTreeSet<String> = repository.snapshots().await?.into_iter().map(|snapshot| snapshot.id).collect();
    for backup in request.backups {
        if listed.contains(&backup.snapshot) {
            there.push(backup);
            continue;
        }
        let problem = "restic's snapshot is missing or damaged".to_owned();
        verified.found.push((backup.id.clone(), Checked::bad(READ, clock.now(), problem)));
    }
    let args: &[&str] = match request.level {
        Level::Check => &["check"],
        Level::Read | Level::Restore => &["check", "--read-data"],
    };
    let damaged = match repository.local(args).await {
        Ok(_) => {
            let good = there.iter().map(|backup| (backup.id.clone(), Checked::good(READ, clock.now())));
            verified.found.extend(good);
            return Ok(verified);
        }
        Err(e) if e.code == ErrorCode::ServerError => e,
        Err(e) => return Err(e),
    };
    for backup in there {
        match damage(repository, &backup.snapshot, damaged.clone()).await {
            Ok(problem) => {
                verified.found.push((backup.id.clone(), Checked::bad(READ, clock.now(), problem)));
            }
            Err(e) if e.code == ErrorCode::Local => verified.elsewhere = Some(damaged.message.clone()),
            Err(e) => return Err(e),
        }
    }
    Ok(verified)
}

/// Why restic failed, if it is because of what the snapshot itself has in the repository: all of that is read.
///
/// # Errors
/// `Local`: the snapshot reads whole. Otherwise nobody knows: the bucket failed.
pub(super) async fn damage(repository: &Repository, snapshot: &str, failed: PortError) -> PortResult<String> {
    if failed.code != ErrorCode::ServerError {
        return Err(failed);
    }
    match repository.local_unheard(&["dump", "--archive", "tar", snapshot, "/"]).await {
        Ok(()) => Err(PortError { code: ErrorCode::Local, ..failed }
            .hint("the backup itself reads whole and keeps its status; look at the place where it was restored")),
        Err(e) if e.code == ErrorCode::ServerError => Ok(e.message),
        Err(e) => Err(e),
    }
}

/// Restores a backup into a directory of its own and compares: restic each file's content with the digests that the
/// backup lists for it (`--verify`), we everything else with that list.
async fn restored(request: &VerifyRequest<'_>, backup: &Backup) -> PortResult<Checked> {
    let VerifyRequest { repository, scratch, clock, .. } = request;
    let doing = format!("restoring {} below {}", backup.id, scratch.display());
    let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("{doing}: {e}"));
    std::fs::create_dir_all(scratch).map_err(local)?;
    clear_abandoned(scratch);
    let free = free_bytes(scratch).map_err(local)?;
    if free < backup.bytes {
        let message = format!("{doing} takes {} bytes, and {free} are free there", backup.bytes);
        return Err(PortError::new(ErrorCode::Local, message).hint(
            "nothing was restored or recorded; --state names another directory, and `hk-dr volume restore` proves it on \
             a new volume",
        ));
    }
    let dir = tempfile::Builder::new().prefix(&own_prefix(std::process::id())).tempdir_in(scratch).map_err(local)?;
    let target = dir.path().to_string_lossy();
    if let Err(failed) = repository.local(&["restore", "--verify", "--target", &target, &backup.snapshot]).await {
        return match damage(repository, &backup.snapshot, failed.context(&doing)).await {
            Ok(problem) => Ok(Checked::bad(RESTORE, clock.now(), problem)),
            Err(e) => Err(e),
        };
    }
    let compared = compare(repository, &backup.snapshot, dir.path()).await?;
    if compared.differing > 0 {
        let named = compared.differences.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        let problem =
            format!("{} of {} entries did not come back as they were: {named}", compared.differing, compared.entries);
        return Ok(Checked::bad(RESTORE, clock.now(), problem));
    }
    Ok(Checked { compared: Some(compared.entries), ..Checked::good(RESTORE, clock.now()) })
}

fn own_prefix(process: u32) -> String {
    format!("volume-{process}-")
}

/// What processes left that were killed: as large as a volume, and plain.
fn clear_abandoned(scratch: &Path) {
    let Ok(entries) = std::fs::read_dir(scratch) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix("volume-")?.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            // Another may remove it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn free_bytes(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all of it may be zero: it holds numbers only.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and `found` lives as long as the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_goes_and_what_a_living_one_has_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let of = |process: u32| scratch.path().join(format!("{}x", own_prefix(process)));
        let (dead, own) = (of(u32::MAX), of(std::process::id()));
        for dir in [&dead, &own, &scratch.path().join("plain-abc")] {
            std::fs::create_dir_all(dir.join("mnt")).unwrap();
        }
        clear_abandoned(scratch.path());
        assert!(!dead.exists() && own.exists() && scratch.path().join("plain-abc").exists());
        assert!(free_bytes(scratch.path()).unwrap() > 0);
    }
}
