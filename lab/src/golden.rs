//! The image every machine starts from: a Debian tree, made once per recipe and shared read-only.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::error::{Attempt, LabError};

/// What a server has. The containerd part is for workers; the API does not know which server becomes one. cloud-init runs
/// only for user data that is written for it; python3-cffi-backend is named because debootstrap does not find who provides
/// what one of its dependencies needs.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,openssh-server,iproute2,nftables,ca-certificates,e2fsprogs,procps,kmod,\
                        wireguard-go,wireguard-tools,curl,openssl,containerd,runc,containernetworking-plugins,cloud-init,\
                        python3-cffi-backend";

/// The edits and the files they install. Part of the digest: who changes them gets a new image.
const FILES: [(&str, &str); 10] = [
    ("edit.sh", include_str!("../golden/edit.sh")),
    ("lab-prep", include_str!("../golden/lab-prep")),
    ("lab-prep.service", include_str!("../golden/lab-prep.service")),
    ("lab-init", include_str!("../golden/lab-init")),
    ("lab-init.service", include_str!("../golden/lab-init.service")),
    ("lab-automount", include_str!("../golden/lab-automount")),
    ("lab-cloud", include_str!("../golden/lab-cloud")),
    ("lab-cloud.service", include_str!("../golden/lab-cloud.service")),
    ("cloud.cfg", include_str!("../golden/cloud.cfg")),
    ("containerd.toml", include_str!("../golden/containerd.toml")),
];

/// The host's own distribution: its mirror is known to work from here.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    suite: String,
    mirror: String,
    components: &'static str,
}

/// Makes the image below the cache if it is missing, and returns its path. One maker at a time; others wait for it.
///
/// # Errors
/// The host's apt configuration names no mirror, or debootstrap fails (its last lines are in the message).
pub fn ensure(cache_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, LabError> {
    let images = cache_dir.join("golden");
    fs::create_dir_all(&images).attempt(|| format!("make {}", images.display()))?;
    let os = fs::read_to_string("/etc/os-release").attempt(|| "read /etc/os-release".into())?;
    let suite = os_field(&os, "VERSION_CODENAME")
        .ok_or_else(|| LabError::new("/etc/os-release has no VERSION_CODENAME").hint("use Debian or Ubuntu"))?;
    let image = images.join(digest(&suite));
    if image.exists() {
        return Ok(image);
    }
    let lock = File::create(images.join("lock")).attempt(|| "make the lock of the golden images".into())?;
    let _lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((lock, _)) => {
            progress("golden image: another process is making it, waiting");
            Flock::lock(lock, FlockArg::LockExclusive)
                .map_err(|(_, error)| LabError::new(format!("cannot lock the golden images: {error}")))?
        }
    };
    if image.exists() {
        return Ok(image);
    }
    let source = source(&suite, &os)?;
    let draft = images.join("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).attempt(|| format!("remove {}", draft.display()))?;
    }
    install(&source, &draft, progress)?;
    progress("golden image: editing");
    edit(&draft)?;
    fs::rename(&draft, &image).attempt(|| format!("name the golden image {}", image.display()))?;
    Ok(image)
}

fn digest(suite: &str) -> String {
    let mut hash = Sha256::new();
    for part in [suite, PACKAGES].into_iter().chain(FILES.iter().flat_map(|(name, text)| [*name, *text])) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn source(suite: &str, os: &str) -> Result<Source, LabError> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
        .output()
        .attempt(|| "ask apt-get for the host's mirrors".into())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mirror = mirror_in(&text, suite).ok_or_else(|| {
        LabError::new(format!("the host's apt configuration names no mirror for {suite} main"))
            .hint("add one to /etc/apt and run `hk-dr lab up` again")
    })?;
    let ubuntu = os_field(os, "ID").is_some_and(|id| id == "ubuntu");
    let components = if ubuntu { "main,universe" } else { "main" };
    Ok(Source { suite: suite.to_owned(), mirror, components })
}

/// The first site with the suite itself (not its updates) and the component main.
fn mirror_in(targets: &str, suite: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (site, release, component) = (words.next()?, words.next()?, words.next()?);
        (release == suite && component == "main").then(|| site.to_owned())
    })
}

fn os_field(os: &str, name: &str) -> Option<String> {
    let value = os.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

fn install(source: &Source, draft: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    progress("golden image: installing Debian packages (a minute or two, once)");
    // In namespaces of its own: whatever ends this process ends the installation, and what it has mounted goes with it.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "debootstrap"])
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), &format!("--components={}", source.components)])
        .arg(&source.suite)
        .arg(draft)
        .arg(&source.mirror)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let die_with_parent = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into);
    // SAFETY: between fork and exec only prctl(2) is called and nothing is allocated.
    unsafe { command.pre_exec(die_with_parent) };
    let mut child = command.spawn().attempt(|| "start debootstrap".into())?;
    let mut last: Vec<String> = Vec::new();
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for line in BufReader::new(child.stdout.take().ok_or_else(no_output)?).lines() {
        let line = line.attempt(|| "read debootstrap's output".into())?;
        // "I: Retrieving libc6 2.36-9": the verb is enough, one line every 25 packages.
        let verb = line.trim_start_matches("I: ").split(' ').next().unwrap_or_default().to_lowercase();
        if line.starts_with("I: ") && verb.ends_with("ing") {
            let count = counts.entry(verb.clone()).or_default();
            *count += 1;
            if count.is_multiple_of(25) {
                progress(&format!("golden image: {verb}, {count} packages"));
            }
        }
        last.push(line);
        if last.len() > 5 {
            last.remove(0);
        }
    }
    let status = child.wait().attempt(|| "wait for debootstrap".into())?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::new(format!("debootstrap failed ({status}): {}", last.join(" | ")))
        .hint(format!("{} holds its log below debootstrap/; run `hk-dr lab up` again", draft.display())))
}

fn no_output() -> LabError {
    LabError::new("debootstrap has no output")
}

fn edit(draft: &Path) -> Result<(), LabError> {
    let files = tempfile::tempdir().attempt(|| "make a temporary directory".into())?;
    for (name, text) in FILES {
        fs::write(files.path().join(name), text).attempt(|| format!("write {name}"))?;
    }
    let output = Command::new("sh")
        .arg(files.path().join("edit.sh"))
        .arg(draft)
        .arg(files.path())
        .output()
        .attempt(|| "edit the golden image".into())?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::new(format!("editing the golden image failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_suite_itself() {
        let targets = "http://a.example/security bookworm-security main\n\
                       http://b.example/extra bookworm contrib\n\
                       http://c.example/debian bookworm main\n";
        assert_eq!(mirror_in(targets, "bookworm").as_deref(), Some("http://c.example/debian"));
        assert_eq!(mirror_in(targets, "trixie"), None);
    }

    #[test]
    fn fields_of_os_release_come_with_and_without_quotes() {
        let os = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(os_field(os, "VERSION_CODENAME").as_deref(), Some("bookworm"));
        assert_eq!(os_field(os, "NAME").as_deref(), Some("Debian GNU/Linux"));
        assert_eq!(os_field(os, "VERSION"), None);
    }
}
