//! A backup onto another volume, wherever its server is.

use std::time::Duration;

use serde::Serialize;

use super::proof::damage;
use super::records::{Backup, Checked, RESTORE};
use super::restic::{Repository, TRANSFER_DEADLINE, environment, program_on, quoted};
use crate::ports::{Clock, ErrorCode, Host, PortError, PortResult, RemoteFile, Shell};

const MOUNT_DEADLINE: Duration = Duration::from_secs(180);

/// What is restored, and to where.
pub struct RestoreRequest<'a> {
    pub repository: &'a Repository,
    pub backup: &'a Backup,
    pub host: &'a Host,
    pub shell: &'a dyn Shell,
    pub clock: &'a dyn Clock,
    /// The device of an attached, empty volume; none: something is mounted at `path` already.
    pub device: Option<&'a str>,
    /// Where it is mounted. It must be empty.
    pub path: &'a str,
    /// Whether what is found out about the backup is recorded.
    pub record: bool,
}

/// A restore that ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub backup: String,
    pub server: String,
    pub path: String,
    /// Files and directories that are there.
    pub entries: u64,
}

/// Makes a file system on the device if it has nothing on it, mounts it for good, restores into it, and has restic compare
/// every file with the backup. Recorded, if that is wanted: it is proven then.
pub async fn restore(request: &RestoreRequest<'_>) -> PortResult<Restored> {
    let RestoreRequest { repository, backup, host, shell, path, .. } = request;
    let doing = format!("restoring {} to {path} of {}", backup.id, host.name);
    if let Some(device) = request.device {
        mount(*shell, host, device, path).await.map_err(|e| e.context(&doing))?;
    }
    repository.relay.forget_trouble();
    let before = repository.before_reading(request.clock).await?;
    let program = program_on(*shell, host).await?;
    let offer = shell.offer(host, repository.relay.address()).await?;
    // The backup has its files below the path that they were at: that is bound to the new place while restic works.
    let script = format!(
        "{environment}\
         mountpoint -q {path} || {{ echo 'nothing is mounted at' {path} >&2; exit 64; }}\n\
         [ -z \"$(ls -A {path} | grep -vx lost+found)\" ] || {{ echo {path} 'is not empty' >&2; exit 65; }}\n\
         root=$(mktemp -d /run/hk-dr-restore-XXXXXX)\n\
         mkdir -p \"$root\"{old} && mount --bind {path} \"$root\"{old} || exit 67\n\
         status=0\n\
         {program} restore --quiet --verify --target \"$root\" {snapshot} >&2 || status=$?\n\
         umount \"$root\"{old} && find \"$root\" -mindepth 1 -depth -type d -delete && rmdir \"$root\" || status=67\n\
         find {path} -mindepth 1 | wc -l\n\
         sync -f {path}\n\
         exit $status\n",
        environment = environment(repository, offer.port),
        path = quoted(path),
        old = quoted(&backup.path),
        snapshot = quoted(&backup.snapshot),
    );
    let output = shell.run(host, &script, TRANSFER_DEADLINE).await.map_err(|e| e.context(&doing))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    match output.status {
        0 => {}
        64 | 65 => {
            return Err(PortError::new(ErrorCode::Invalid, format!("{doing}: {last}"))
                .hint("nothing was written; restore onto a new volume, or into an empty one"));
        }
        _ => {
            let failed = repository.undisturbed(&before, repository.failed(&doing, &output.stderr)).await;
            return Err(blamed(request, failed).await);
        }
    }
    let entries = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_default();
    if request.record {
        repository.records().judge(&backup.id, &Checked::good(RESTORE, request.clock.now())).await?;
    }
    Ok(Restored { backup: backup.id.clone(), server: host.name.clone(), path: (*path).to_owned(), entries })
}

/// Whose fault it is. That of the backup is recorded.
async fn blamed(request: &RestoreRequest<'_>, failed: PortError) -> PortError {
    let RestoreRequest { repository, backup, .. } = request;
    match damage(repository, &backup.snapshot, failed).await {
        Ok(problem) => {
            let error = PortError::new(ErrorCode::Corrupt, format!("backup {} is damaged: {problem}", backup.id))
                .hint("what was restored so far is incomplete: use an older backup, or another bucket");
            if !request.record {
                return error;
            }
            let found = Checked::bad(RESTORE, request.clock.now(), problem);
            match repository.records().judge(&backup.id, &found).await {
                Ok(()) => error,
                Err(unnoted) => error.context(format!("this could not be noted in the bucket ({unnoted})")),
            }
        }
        Err(other) => other,
    }
}

/// A file system on an empty device, and a unit that mounts it at every boot.
async fn mount(shell: &dyn Shell, host: &Host, device: &str, path: &str) -> PortResult<()> {
    let named =
        shell.run(host, &format!("systemd-escape --path --suffix=mount {}", quoted(path)), MOUNT_DEADLINE).await?;
    let unit = String::from_utf8_lossy(&named.stdout).trim().to_owned();
    if named.status != 0 || unit.is_empty() {
        return Err(PortError::new(ErrorCode::Invalid, format!("systemd on {} knows no unit for {path}", host.name)));
    }
    let text = format!(
        "[Unit]\nDescription=Restored volume\n\n[Mount]\nWhat={device}\nWhere={path}\nType=ext4\nOptions=defaults,discard\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    let file = RemoteFile {
        path: format!("/etc/systemd/system/{unit}"),
        mode: 0o644,
        content: zeroize::Zeroizing::new(text.into_bytes()),
    };
    let script = format!(
        "set -eu\n\
         n=0; until [ -b {device} ]; do n=$((n+1)); [ $n -lt 300 ] || {{ echo no device >&2; exit 64; }}; sleep 0.1; done\n\
         if ! blkid -p {device} >/dev/null; then mkfs.ext4 -q -m 0 {device}; else echo 'it is not empty' >&2; exit 65; fi\n\
         mkdir -p {path}\n",
        device = quoted(device),
        path = quoted(path),
    );
    let made = shell.run(host, &script, MOUNT_DEADLINE).await?;
    if made.status != 0 {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        let message = format!("no file system was made on {device} of {}: {said}", host.name);
        return Err(
            PortError::new(ErrorCode::Invalid, message).hint("nothing was restored; the volume is still attached")
        );
    }
    shell.put_files(host, &[file]).await?;
    let started =
        format!("systemctl daemon-reload && systemctl --no-reload enable -q {0} && systemctl start {0}", quoted(&unit));
    let started = shell.run(host, &started, MOUNT_DEADLINE).await?;
    if started.status != 0 {
        let said = String::from_utf8_lossy(&started.stderr).trim().to_owned();
        return Err(PortError::new(ErrorCode::Invalid, format!("{device} was not mounted at {path}: {said}")));
    }
    Ok(())
}
