//! Root disks: ext4 in a sparse file of the size that the server type promises. It holds the machine's layer above the
//! golden image and what cannot live on an overlay. So a full disk is ENOSPC inside, a cut of power loses what was not
//! synced, and an image of a server is a copy of one file.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::blocking;
use crate::error::{Attempt, LabError};
use crate::run;
use crate::volume::{self, LoopDevice};

const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;
/// The kernel lets go of a dead machine's file systems a moment after its death.
const GONE_DEADLINE: Duration = Duration::from_secs(20);
/// Takes the free space of a disk that is to be full. Outside of the layer: no machine sees it.
const BALLAST: &str = "ballast";

/// e2fsck's status 1 means that it put something right, such as a journal that had to be played back.
const GROW: &str = "e2fsck -f -p \"$1\" >/dev/null; [ $? -le 1 ] && exec resize2fs \"$1\"";

/// The files of one machine.
pub(super) struct Files<'a>(pub &'a Path);

impl Files<'_> {
    pub fn image(&self) -> PathBuf {
        self.0.join("disk.img")
    }
    /// Where the ext4 is mounted while the machine runs.
    pub fn inside(&self) -> PathBuf {
        self.0.join("mnt")
    }
    /// Where the machine's root is mounted while it runs.
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
    /// Names the golden image below the machine's layer: a layer fits no other.
    pub fn golden(&self) -> PathBuf {
        self.0.join("golden")
    }
    /// Root's first password, until the first boot.
    pub fn password(&self) -> PathBuf {
        self.0.join("password")
    }
    /// There while the file is larger than its file system.
    fn grown(&self) -> PathBuf {
        self.0.join("grown")
    }
}

/// What a new disk starts from.
pub(super) enum Origin {
    Golden(PathBuf),
    /// A file made by `copy`, and beside it the name of its golden image.
    Image(PathBuf),
}

/// Lets unmounts below a directory reach every machine. nspawn moves its root over the namespace it began in, so that each
/// machine carries hidden mounts of all disks that were in use when it booted: they would hold those disks.
pub(super) fn share(dir: &Path) -> Result<(), LabError> {
    let none = None::<&str>;
    mount(Some(dir), dir, none, MsFlags::MS_BIND, none)
        .and_then(|()| mount(none, dir, none, MsFlags::MS_SHARED, none))
        .attempt(|| format!("share the mounts below {}", dir.display()))
}

/// Makes a machine's directory with its disk: whole, or not at all.
pub(super) async fn create(dir: &Path, size_gb: u32, origin: Origin, password: Option<&str>) -> Result<(), LabError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let draft = dir.with_file_name(format!(".{name}"));
    remove_all(&draft)?;
    for part in ["mnt", "root"] {
        fs::create_dir_all(draft.join(part)).attempt(|| format!("make {}", draft.display()))?;
    }
    make(&Files(&draft), size_gb, origin).await?;
    if let Some(password) = password {
        write_secret(&Files(&draft).password(), password)?;
    }
    fs::rename(&draft, dir).attempt(|| format!("make {}", dir.display()))
}

/// Puts a new disk in the place of the one a machine has. The machine is off.
pub(super) async fn replace(dir: &Path, size_gb: u32, origin: Origin, password: Option<&str>) -> Result<(), LabError> {
    let draft = dir.join("new");
    remove_all(&draft)?;
    fs::create_dir_all(&draft).attempt(|| format!("make {}", draft.display()))?;
    make(&Files(&draft), size_gb, origin).await?;
    let (old, new) = (Files(dir), Files(&draft));
    remove_file(&old.password())?;
    if let Some(password) = password {
        write_secret(&old.password(), password)?;
    }
    for (from, to) in [(new.golden(), old.golden()), (new.grown(), old.grown()), (new.image(), old.image())] {
        if from.exists() {
            fs::rename(&from, &to).attempt(|| format!("make {}", to.display()))?;
        }
    }
    remove_all(&draft)
}

async fn make(files: &Files<'_>, size_gb: u32, origin: Origin) -> Result<(), LabError> {
    let image = files.image();
    let name = image.display().to_string();
    match origin {
        Origin::Golden(golden) => {
            fs::write(files.golden(), golden.as_os_str().as_encoded_bytes())
                .attempt(|| "name the golden image".into())?;
            volume::resize(&image, size_gb)?;
            // A sparse file reads as zeroes: nothing to initialise, now or in the background.
            let options = "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard";
            run::tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-i", "65536", "-J", "size=16", "-E", options, &name], "")
                .await?;
        }
        Origin::Image(source) => {
            copy(&source, &image).await?;
            let golden = source.with_extension("golden");
            fs::copy(&golden, files.golden()).attempt(|| format!("copy {}", golden.display()))?;
            volume::resize(&image, size_gb)?;
            fs::write(files.grown(), "").attempt(|| "note the disk's growth".into())?;
        }
    }
    Ok(())
}

/// Copies a sparse file; shares its blocks where the file system can.
async fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run::tool("cp", &["--sparse=always", "--reflink=auto", &from, &to], "").await.map(|_| ())
}

/// Grows the disk of a machine that is off; its file system follows at the next boot.
pub(super) fn grow(dir: &Path, size_gb: u32) -> Result<(), LabError> {
    let files = Files(dir);
    let now = fs::metadata(files.image()).attempt(|| format!("look at {}", files.image().display()))?.len();
    if u64::from(size_gb) << 30 > now {
        fs::write(files.grown(), "").attempt(|| "note the disk's growth".into())?;
        volume::resize(&files.image(), size_gb)?;
    }
    Ok(())
}

/// A disk in use: mounted, with the machine's root on it.
pub(super) struct Disk {
    device: LoopDevice,
    dir: PathBuf,
}

impl Disk {
    /// Mounts a machine's disk and its root.
    pub async fn mount(dir: &Path) -> Result<Self, LabError> {
        let dir = dir.to_owned();
        if Files(&dir).grown().exists() {
            // While it is not in use: a file system that once lost its power does not grow in use.
            let image = Files(&dir).image().display().to_string();
            run::tool("sh", &["-c", GROW, "sh", &image], "").await?;
            remove_file(&Files(&dir).grown())?;
        }
        let disk = blocking(move || Self::mount_device(&dir)).await?;
        let dir = disk.dir.clone();
        let mounted = blocking(move || mount_root(&Files(&dir))).await;
        if let Err(error) = mounted {
            disk.unmount().await?;
            return Err(error);
        }
        Ok(disk)
    }

    fn mount_device(dir: &Path) -> Result<Self, LabError> {
        let files = Files(dir);
        let device = LoopDevice::attach(&files.image())?;
        // Nothing of a root disk outlives the host, so its syncs need not wait for the host's disk: they are as good as
        // done when they are in the host's memory. What was not even synced is lost all the same when the power goes.
        let options = Some("nobarrier");
        mount(Some(&device.path()), &files.inside(), Some("ext4"), MsFlags::MS_NOATIME, options)
            .attempt(|| format!("mount {}", files.image().display()))?;
        Ok(Self { device, dir: dir.to_owned() })
    }

    /// Cuts it off: what was not synced is lost, and who still uses it gets EIO.
    pub fn cut_off(&self) {
        volume::shut_down(&Files(&self.dir).inside());
    }

    /// Takes it out of use. Its users are gone, or are about to.
    pub async fn unmount(self) -> Result<(), LabError> {
        blocking(move || {
            let files = Files(&self.dir);
            unmount(&files.root())?;
            unmount(&files.inside())?;
            let end = Instant::now() + GONE_DEADLINE;
            while self.device.is_mounted() {
                if Instant::now() > end {
                    let file = files.image().display().to_string();
                    return Err(LabError::new(format!("the file system in {file} is still in use after 20 s")));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            self.device.detach();
            Ok(())
        })
        .await
    }

    /// Takes all free space, or gives it back.
    pub fn fill(&self, full: bool) -> Result<(), LabError> {
        let inside = Files(&self.dir).inside();
        let ballast = inside.join(BALLAST);
        if !full {
            return remove_file(&ballast);
        }
        let file = File::options().create(true).append(true).mode(0o600).open(&ballast);
        let file = file.attempt(|| "make the ballast".into())?;
        // The map of what the ballast takes needs room itself: take less and less until nothing is left.
        let mut step = nix::sys::statvfs::statvfs(&inside)
            .attempt(|| format!("look at {}", inside.display()))
            .map(|s| s.blocks_available() * s.fragment_size())?;
        let mut taken = file.metadata().attempt(|| "look at the ballast".into())?.len();
        while step >= 4096 {
            // SAFETY: plain numbers; the descriptor is open.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, taken as i64, step as i64) };
            if result == 0 {
                taken += step;
            } else if Errno::last() == Errno::ENOSPC {
                // A failed attempt may have taken a part: it is kept, as the file's length tells.
                taken = file.metadata().attempt(|| "look at the ballast".into())?.len();
                step = step / 2 / 4096 * 4096;
            } else {
                return Err(io::Error::last_os_error()).attempt(|| "fill the disk".into());
            }
        }
        Ok(())
    }
}

fn mount_root(files: &Files<'_>) -> Result<(), LabError> {
    let inside = files.inside();
    for name in ["up", "work", "containerd", "kubelet"] {
        fs::create_dir_all(inside.join(name)).attempt(|| format!("make {}", inside.join(name).display()))?;
    }
    let golden = fs::read_to_string(files.golden()).attempt(|| format!("read {}", files.golden().display()))?;
    if !Path::new(&golden).exists() {
        return Err(LabError::new(format!(
            "the machine image {golden} is gone, and a server's disk needs the one it began with"
        ))
        .hint("use the cache directory that the lab began with, or end the lab: hk-dr lab down --delete"));
    }
    overlay(Path::new(&golden), &inside, &files.root(), "")
}

/// Mounts a layer (`up` and `work` below `layer`) over the golden image.
pub(super) fn overlay(golden: &Path, layer: &Path, at: &Path, more: &str) -> Result<(), LabError> {
    let (up, work) = (layer.join("up"), layer.join("work"));
    let options = format!("lowerdir={},upperdir={},workdir={}{more}", golden.display(), up.display(), work.display());
    mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .attempt(|| format!("mount the machine's root on {}", at.display()))
}

/// Unmounts; waits for users that are about to go, then detaches. What is not mounted is fine.
pub(super) fn unmount(path: &Path) -> Result<(), LabError> {
    let end = Instant::now() + GONE_DEADLINE;
    loop {
        match umount2(path, MntFlags::empty()) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => return umount2(path, MntFlags::MNT_DETACH).attempt(|| format!("unmount {}", path.display())),
        }
    }
}

/// Copies a machine's disk into an image file, with the name of its golden image beside it. A disk in use stands still
/// meanwhile. Returns what the image takes, in GB.
pub(super) async fn snapshot(dir: &Path, image: &Path, in_use: bool) -> Result<f64, LabError> {
    let files = Files(dir);
    let frozen = if in_use { Some(Frozen::new(&files.inside())?) } else { None };
    let draft = image.with_extension("draft");
    let copied = copy(&files.image(), &draft).await;
    drop(frozen);
    copied?;
    fs::copy(files.golden(), image.with_extension("golden")).attempt(|| "name the image's golden image".into())?;
    fs::rename(&draft, image).attempt(|| format!("make {}", image.display()))?;
    let blocks = fs::metadata(image).attempt(|| format!("look at {}", image.display()))?.blocks();
    Ok(blocks as f64 * 512.0 / 1e9)
}

/// A file system that nobody writes to; it goes on when this ends.
struct Frozen(File);

impl Frozen {
    fn new(path: &Path) -> Result<Self, LabError> {
        let dir = File::open(path).attempt(|| format!("open {}", path.display()))?;
        // SAFETY: takes no argument that is read.
        if unsafe { libc::ioctl(dir.as_raw_fd(), FIFREEZE, 0) } != 0 {
            return Err(io::Error::last_os_error()).attempt(|| format!("let {} stand still", path.display()));
        }
        Ok(Self(dir))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: takes no argument that is read. A failure means that it is not frozen.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
    }
}

pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), LabError> {
    use std::io::Write as _;
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).attempt(|| format!("write {}", path.display()))
}

pub(super) fn remove_file(path: &Path) -> Result<(), LabError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what is in a directory but the files and directories of these ids.
pub(super) fn keep_only(dir: &Path, ids: &[u64]) -> Result<(), LabError> {
    for entry in fs::read_dir(dir).attempt(|| format!("list {}", dir.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kept = match name.split_once('.') {
            // Drafts begin with a dot or end so.
            Some((_, "draft")) => false,
            Some((id, _)) => ids.iter().any(|i| i.to_string() == id),
            None => ids.iter().any(|i| i.to_string() == name),
        };
        if !kept && entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_all(&entry.path())?;
        } else if !kept {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn remove_all(path: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Tells whether a path is of use as part of an overlay's options.
pub(super) fn fits_options(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    CString::new(bytes).is_ok() && !bytes.iter().any(|b| b",:\\".contains(b))
}
