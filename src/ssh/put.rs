use bytes::Bytes;
use zeroize::Zeroizing;

use super::exec::{self, quoted};
use crate::ports::{ByteStream, ErrorCode, Host, Output, PortError, PortResult, RemoteFile};

/// Most bytes in one call, all files together: they are held in memory. Larger things are fed or fetched.
const TOTAL_MAX_BYTES: usize = 64 << 20;

/// Files on their way: a script, and behind it a tar archive of all files under temporary names beside their targets.
/// The machine unpacks the archive, syncs every file, and only then renames them one after the other.
pub(super) struct Request {
    script: String,
    archive: Zeroizing<Vec<u8>>,
}

impl Request {
    pub(super) fn new(files: &[RemoteFile]) -> PortResult<Self> {
        let total: usize = files.iter().map(|f| f.content.len()).sum();
        if total > TOTAL_MAX_BYTES {
            return Err(PortError::new(
                ErrorCode::LimitExceeded,
                format!("{} MiB of files are more than {} MiB", total >> 20, TOTAL_MAX_BYTES >> 20),
            ));
        }
        // Room for all, so that growing leaves no copies of secrets behind.
        let room = total + files.len() * 4096 + 4096;
        let mut archive = Zeroizing::new(Vec::with_capacity(room));
        let mut builder = tar::Builder::new(&mut *archive);
        let mark: u64 = rand::random();
        let (mut temporary, mut renames, mut directories) = (String::new(), String::new(), String::new());
        for (index, file) in files.iter().enumerate() {
            let (directory, _) = split(&file.path)?;
            let name = format!("{directory}/.hk-dr-{mark:016x}-{index}");
            append(&mut builder, &name, file)
                .map_err(|e| PortError::new(ErrorCode::Invalid, format!("could not pack {}: {e}", file.path)))?;
            temporary.push_str(&format!(" {}", quoted(&name)));
            renames.push_str(&format!("mv -fT -- {} {}\n", quoted(&name), quoted(&file.path)));
            let directory = format!(" {}", quoted(if directory.is_empty() { "/" } else { directory }));
            if !directories.contains(&directory) {
                directories.push_str(&directory);
            }
        }
        builder.finish().map_err(|e| PortError::new(ErrorCode::Invalid, format!("could not pack files: {e}")))?;
        drop(builder);
        // tar opens each file with no more than its final mode and makes missing directories by the umask. `-m`: the file is
        // of now, by the machine's clock. systemd sees by a newer time that a unit changed, and keeps the old one otherwise.
        let script = format!(
            "umask 022\ntrap 'rm -f --{temporary_in_quotes}' EXIT\nset -e\ntar -x -m -f - -C / --no-same-owner -p\nsync --{temporary}\n\
             {renames}sync --{directories}\n",
            temporary_in_quotes = temporary.replace('\'', "'\\''"),
        );
        Ok(Self { script, archive })
    }

    /// The fixed command: reads the script by its length, then runs it with the archive on standard input.
    pub(super) fn command(&self) -> String {
        format!(r#"s=$(head -c {}) && eval "$s""#, self.script.len())
    }

    pub(super) fn into_input(self) -> ByteStream {
        let script = exec::input(self.script.into_bytes());
        // The archive is wiped when the last packet of it was handed over.
        let archive = exec::input(Bytes::from_owner(self.archive));
        Box::pin(futures::StreamExt::chain(script, archive))
    }
}

/// Turns the script's end into a result.
pub(super) fn check(host: &Host, output: &Output) -> PortResult<()> {
    if output.status == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let code = if said.contains("No space left") || said.contains("Read-only file system") {
        ErrorCode::LimitExceeded
    } else {
        ErrorCode::ServerError
    };
    Err(PortError::new(
        code,
        format!("could not write files on {} (exit {}): {}", host.name, output.status, said.trim()),
    ))
}

fn append(archive: &mut tar::Builder<&mut Vec<u8>>, name: &str, file: &RemoteFile) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(file.mode & 0o7777);
    header.set_size(file.content.len() as u64);
    header.set_mtime(0);
    archive.append_data(&mut header, name.trim_start_matches('/'), file.content.as_slice())
}

/// Directory and name of an absolute path that goes nowhere unexpected.
fn split(path: &str) -> PortResult<(&str, &str)> {
    let strange = |c: char| c == '\0' || c == '\n';
    match path.rsplit_once('/') {
        Some((directory, name))
            if path.starts_with('/')
                && !name.is_empty()
                && !path.contains(strange)
                && !path.split('/').skip(1).any(|part| part.is_empty() || part == "." || part == "..") =>
        {
            Ok((directory, name))
        }
        _ => Err(PortError::new(ErrorCode::Invalid, format!("{path:?} is not a plain absolute path of a file"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        assert_eq!(split("/etc/kubernetes/pki/ca.crt").unwrap(), ("/etc/kubernetes/pki", "ca.crt"));
        assert_eq!(split("/file").unwrap(), ("", "file"));
        for path in ["etc/x", "/etc/", "", "/etc/../x", "/etc//x", "/a\nb", "/./x"] {
            assert_eq!(split(path).unwrap_err().code, ErrorCode::Invalid, "{path:?}");
        }
    }

    /// What systemd goes by when it is asked whether a unit's file is another one than it has read.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file's time is the file system's, not a plan's")]
    fn a_file_that_took_the_place_of_another_is_newer() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var-lib-etcd.mount");
        std::fs::write(&path, "What=old").unwrap();
        let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
        let content = Zeroizing::new(b"What=new".to_vec());
        let request = Request::new(&[RemoteFile { path: path.display().to_string(), mode: 0o644, content }]).unwrap();
        let mut shell = std::process::Command::new("sh")
            .args(["-c", &request.command()])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        input.write_all(request.script.as_bytes()).unwrap();
        input.write_all(&request.archive).unwrap();
        drop(input);
        assert!(shell.wait().unwrap().success());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "What=new");
        assert!(std::fs::metadata(&path).unwrap().modified().unwrap() > hour_ago);
    }

    #[test]
    fn more_than_the_limit_is_refused_before_anything_is_sent() {
        let file = RemoteFile { path: "/x".into(), mode: 0o600, content: Zeroizing::new(vec![0; TOTAL_MAX_BYTES + 1]) };
        assert_eq!(Request::new(&[file]).err().unwrap().code, ErrorCode::LimitExceeded);
    }
}
