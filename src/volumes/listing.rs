//! What is in a directory against what a backup says should be.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::restic::{Repository, TRANSFER_DEADLINE, not_started};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Differences that are kept in words.
const KEPT: usize = 20;

/// What the comparison came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// Everything that the backup lists.
    pub entries: u64,
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<String>,
}

impl Compared {
    fn differs(&mut self, what: String) {
        self.differing += 1;
        if self.differences.len() < KEPT {
            self.differences.push(what);
        }
    }
}

/// A line of `restic ls --json`.
#[derive(Debug, Clone, Deserialize)]
struct Listed {
    struct_type: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    size: u64,
    /// As Go's `os.FileMode` has it.
    #[serde(default)]
    mode: u32,
    mtime: Option<jiff::Timestamp>,
}

/// What is there, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    kind: &'static str,
    uid: u32,
    gid: u32,
    size: u64,
    mode: u32,
    mtime: i64,
}

impl Found {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let kind = metadata.file_type();
        let kinds = [
            (kind.is_dir(), "dir"),
            (kind.is_symlink(), "symlink"),
            (kind.is_fifo(), "fifo"),
            (kind.is_char_device(), "chardev"),
            (kind.is_block_device(), "dev"),
            (kind.is_socket(), "socket"),
        ];
        Self {
            kind: kinds.into_iter().find(|(is, _)| *is).map_or("file", |(_, name)| name),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.size(),
            mode: metadata.mode() & 0o7777,
            mtime: metadata.mtime(),
        }
    }
}

/// Go keeps the three bits above the permissions elsewhere (<https://pkg.go.dev/io/fs#FileMode>).
fn mode_of(go: u32) -> u32 {
    let special = [(23, 0o4000), (22, 0o2000), (20, 0o1000)];
    (go & 0o777) | special.into_iter().filter(|(bit, _)| go & (1 << bit) != 0).map(|(_, mode)| mode).sum::<u32>()
}

/// In what they differ. Owners, and the bits that act in their name, can be given back by root only.
fn difference(listed: &Listed, found: &Found, as_root: bool) -> Option<String> {
    let path = &listed.path;
    if listed.kind != found.kind {
        return Some(format!("{path} is a {}, it was a {}", found.kind, listed.kind));
    }
    if listed.kind == "file" && listed.size != found.size {
        return Some(format!("{path} has {} bytes, it had {}", found.size, listed.size));
    }
    if as_root && (listed.uid, listed.gid) != (found.uid, found.gid) {
        return Some(format!("{path} belongs to {}:{}, it did to {}:{}", found.uid, found.gid, listed.uid, listed.gid));
    }
    let (was, is) = (mode_of(listed.mode), found.mode);
    // Where the bits above the permissions may not be set, the whole mode is not.
    let settable = as_root || was & 0o7000 == 0;
    if listed.kind != "symlink" && settable && was != is {
        return Some(format!("{path} has mode {is:o}, it had {was:o}"));
    }
    // Whole seconds: not every file system keeps more, and a fraction before 1970 is rounded the other way.
    match listed.mtime {
        Some(mtime) if (mtime.as_second() - found.mtime).abs() > 1 => {
            Some(format!("{path} is of {}, it was of {}", found.mtime, mtime.as_second()))
        }
        _ => None,
    }
}

/// Compares a directory with everything that a snapshot lists: nothing is missing, nothing is another, nothing is there
/// beside it. One entry at a time is held, however many there are.
pub(super) async fn compare(repository: &Repository, snapshot: &str, root: &Path) -> PortResult<Compared> {
    let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("compare {}: {e}", root.display()));
    let mut command = repository.command(&["ls", "--json", snapshot]);
    // It would say nothing with the option that all others have.
    command.stderr(std::process::Stdio::null());
    let mut child = command.spawn().map_err(|e| not_started(&e))?;
    let unheard = || PortError::new(ErrorCode::Local, "restic ls: its answer cannot be read");
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(unheard)?).lines();
    // SAFETY: it has no arguments and cannot fail.
    let as_root = unsafe { libc::geteuid() } == 0;
    let (mut compared, mut there) = (Compared::default(), 0);
    let reading = async {
        while let Some(line) = lines.next_line().await.map_err(local)? {
            let listed: Listed = serde_json::from_str(&line).map_err(|e| {
                PortError::new(ErrorCode::Invalid, format!("restic's listing is of a form that is not known: {e}"))
            })?;
            if listed.struct_type != "node" {
                continue;
            }
            compared.entries += 1;
            // restic keeps sockets and does not make them again: they mean nothing without who listens.
            if listed.kind == "socket" {
                continue;
            }
            there += 1;
            // A name that is no UTF-8 cannot be said in JSON: only that something is there counts.
            if listed.path.contains(char::REPLACEMENT_CHARACTER) {
                continue;
            }
            match tokio::fs::symlink_metadata(root.join(listed.path.trim_start_matches('/'))).await {
                Ok(metadata) => {
                    if let Some(difference) = difference(&listed, &Found::of(&metadata), as_root) {
                        compared.differs(difference);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    compared.differs(format!("{} is missing", listed.path));
                }
                Err(e) => return Err(local(e)),
            }
        }
        child.wait().await.map_err(local)
    };
    let ended = tokio::time::timeout(TRANSFER_DEADLINE, reading).await;
    let ended = ended.map_err(|_| PortError::new(ErrorCode::Timeout, "restic ls did not end in 12 hours"))??;
    if !ended.success() {
        return Err(repository.failed("restic ls", b"it could not list the snapshot"));
    }
    let below = root.to_owned();
    let counted = tokio::task::spawn_blocking(move || count(&below)).await;
    let counted = counted.map_err(|e| PortError::new(ErrorCode::Local, format!("counting files died: {e}")))?;
    let counted = counted.map_err(local)?;
    if counted > there {
        compared.differs(format!("{} entries are there that the backup does not list", counted - there));
    }
    Ok(compared)
}

/// Everything below a directory.
fn count(root: &Path) -> std::io::Result<u64> {
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    let mut all = 0;
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            all += 1;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"name":"d","type":"dir","path":"/mnt/d","uid":12,"gid":34,"mode":2151678440,
        "permissions":"dgrwxr-x---","mtime":"2001-02-03T04:05:06.789+01:00","struct_type":"node"}"#;

    #[test]
    fn each_thing_that_can_differ_is_noticed() {
        let listed: Listed = serde_json::from_str(LINE).unwrap();
        let found = Found { kind: "dir", uid: 12, gid: 34, size: 4096, mode: 0o2750, mtime: 981_169_506 };
        assert_eq!(difference(&listed, &found, true), None);
        let differs = |found: Found| difference(&listed, &found, true).unwrap_or_else(|| panic!("{found:?}"));
        assert!(differs(Found { kind: "symlink", ..found.clone() }).contains("is a symlink, it was a dir"));
        assert!(differs(Found { uid: 0, ..found.clone() }).contains("belongs to 0:34"));
        assert!(differs(Found { mode: 0o750, ..found.clone() }).contains("mode 750, it had 2750"));
        assert!(differs(Found { mtime: 981_169_600, ..found.clone() }).contains("is of 981169600"));
        assert_eq!(difference(&listed, &Found { uid: 0, mode: 0o750, ..found.clone() }, false), None);
        let plain = Listed { mode: 0o750, ..listed.clone() };
        assert!(difference(&plain, &Found { mode: 0o700, ..found.clone() }, false).is_some());
        let file = Listed { kind: "file".into(), size: 7, ..listed };
        let shorter = Found { kind: "file", size: 6, ..found };
        assert_eq!(difference(&file, &shorter, true).unwrap(), "/mnt/d has 6 bytes, it had 7");
    }
}
