//! What is written into a machine's root before it boots: root's password, and the rescue system that boots once instead
//! of the machine's disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::disk::{self, Files, overlay};
use crate::backend::Metadata;
use crate::error::{Attempt, LabError};
use crate::run;

/// Where the machine's own root is found in the rescue system.
pub(super) const OWN_ROOT: &str = "/mnt";
/// Written changes of a rescue system are in memory.
const TMPFS: &str = "mode=755,size=1g";
/// The metadata service tells of the disk's system, not of the rescue system: it asks nobody.
const INIT: &str = "#!/bin/sh
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -C '' -f /etc/ssh/ssh_host_ed25519_key
exit 0
";
const LOGIN_BY_PASSWORD: &str = "PermitRootLogin yes\nPasswordAuthentication yes\n";

/// Sets root's password in a root directory and lets sshd take it. Passwords go over standard input.
pub(super) async fn set_password(root: &Path, password: &str) -> Result<(), LabError> {
    if password.contains(['\n', ':']) {
        return Err(LabError::new("a password has no line breaks and no colons"));
    }
    run::tool("chpasswd", &["--root", &root.display().to_string()], &format!("root:{password}\n")).await?;
    // Before the image's own file, by name: the first word counts.
    let path = root.join("etc/ssh/sshd_config.d/00-password.conf");
    fs::write(&path, LOGIN_BY_PASSWORD).attempt(|| format!("write {}", path.display()))
}

/// The first boot of a machine that was given a password.
pub(super) async fn set_first_password(dir: &Path) -> Result<(), LabError> {
    let files = Files(dir);
    let Ok(password) = fs::read_to_string(files.password()) else { return Ok(()) };
    set_password(&files.root(), &password).await?;
    disk::remove_file(&files.password())
}

/// Makes the root of a rescue system; `dismantle` removes it.
pub(super) async fn build(dir: &Path, golden: &Path, hostname: &str, access: &Metadata) -> Result<PathBuf, LabError> {
    let top = dir.join("rescue");
    fs::create_dir_all(&top).attempt(|| format!("make {}", top.display()))?;
    mount(Some("tmpfs"), &top, Some("tmpfs"), MsFlags::empty(), Some(TMPFS))
        .attempt(|| format!("mount {}", top.display()))?;
    for name in ["up", "work", "root"] {
        fs::create_dir(top.join(name)).attempt(|| format!("make {}", top.join(name).display()))?;
    }
    let root = top.join("root");
    overlay(golden, &top, &root, ",volatile")?;
    let write = |path: &str, text: &str, mode: u32| {
        let path = root.join(path);
        let parent = path.parent().unwrap_or(&root);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .attempt(|| format!("write {}", path.display()))
    };
    write("usr/local/sbin/lab-init", INIT, 0o755)?;
    write("etc/hostname", "rescue\n", 0o644)?;
    write("etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 rescue {hostname}\n"), 0o644)?;
    write("root/.ssh/authorized_keys", &(access.public_keys.join("\n") + "\n"), 0o600)?;
    write(
        "etc/motd",
        &format!("\nRescue system of {hostname}. Its own root is at {OWN_ROOT}. The next boot is from its disk.\n\n"),
        0o644,
    )?;
    fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700))
        .attempt(|| "close root's keys".into())?;
    if let Some(password) = &access.root_password {
        set_password(&root, password).await?;
    }
    Ok(root)
}

/// Removes a rescue system, if there is one.
pub(super) fn dismantle(dir: &Path) -> Result<(), LabError> {
    let top = dir.join("rescue");
    if top.exists() {
        disk::unmount(&top.join("root"))?;
        disk::unmount(&top)?;
        disk::remove_all(&top)?;
    }
    Ok(())
}
