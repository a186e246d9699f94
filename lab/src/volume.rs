//! Volumes: sparse files behind loop devices. The descriptor that holds a loop device is the emulator's: when it dies,
//! the kernel takes the device down (autoclear), so nothing leaks.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Attempt, LabError};
use crate::run;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Both ext4 and XFS know it: go down at once.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// … without writing the journal out, as when the power goes.
const SHUTDOWN_NO_LOG_FLUSH: u32 = 2;
/// Another lab may grab the free device between question and use.
const ATTEMPTS_MAX: u32 = 64;

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A loop device in use; it ends with this value, or with the last user after that.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    device: File,
    number: i32,
    pub major: u32,
    pub minor: u32,
}

impl LoopDevice {
    /// Puts a file behind a free loop device.
    ///
    /// # Errors
    /// Root or /dev/loop-control is missing, or no device is free.
    pub(crate) fn attach(image: &Path) -> Result<Self, LabError> {
        let file =
            File::options().read(true).write(true).open(image).attempt(|| format!("open {}", image.display()))?;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .attempt(|| "open /dev/loop-control (the loop module)".into())?;
        for _ in 0..ATTEMPTS_MAX {
            // SAFETY: takes no argument and answers with a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error()).attempt(|| "find a free loop device".into());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // O_EXCL is not asked for: LOOP_CONFIGURE itself refuses a device in use.
            let device = match File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path) {
                Ok(device) => device,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).attempt(|| format!("open {}", path.display())),
            };
            let config = LoopConfig {
                fd: file.as_raw_fd() as u32,
                block_size: 0,
                info: LoopInfo {
                    device: 0,
                    inode: 0,
                    rdevice: 0,
                    offset: 0,
                    size_limit: 0,
                    number: 0,
                    encrypt_type: 0,
                    encrypt_key_size: 0,
                    flags: LO_FLAGS_AUTOCLEAR,
                    file_name: name_of(image),
                    crypt_name: [0; 64],
                    encrypt_key: [0; 32],
                    init: [0; 2],
                },
                reserved: [0; 8],
            };
            // SAFETY: the kernel reads `config` during the call only; its layout is the kernel's.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
                let rdev = device.metadata().attempt(|| format!("look at {}", path.display()))?.rdev();
                return Ok(Self { device, number, major: libc::major(rdev), minor: libc::minor(rdev) });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error).attempt(|| format!("put {} behind {}", image.display(), path.display()));
            }
        }
        Err(LabError::new(format!("no loop device was free in {ATTEMPTS_MAX} attempts")))
    }

    /// Tells the kernel that the file behind has grown.
    pub(crate) fn grow(&self) -> Result<(), LabError> {
        // SAFETY: takes no argument.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY) };
        if result < 0 {
            return Err(io::Error::last_os_error()).attempt(|| "grow the loop device".into());
        }
        Ok(())
    }

    /// Lets the device answer I/O errors, or serve again: it shrinks to almost nothing, and the kernel refuses whatever
    /// lies beyond its end.
    pub(crate) fn fail(&self, failing: bool) -> Result<(), LabError> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut info: LoopInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills `info` during the call only; its layout is the kernel's.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) } != 0 {
            return Err(io::Error::last_os_error()).attempt(|| "look at a loop device".into());
        }
        info.size_limit = if failing { 512 } else { 0 };
        // SAFETY: the kernel reads `info` during the call only.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) } != 0 {
            return Err(io::Error::last_os_error()).attempt(|| "change a loop device".into());
        }
        Ok(())
    }

    /// Lets go of the device after its file systems were shut down: nothing of it reaches the file any more, even if
    /// somebody keeps it open.
    pub(crate) fn release(self) {
        // What the journal had already committed may be on its way; it must not trickle in after the next user's writes.
        // An error is what a shut-down device answers: nothing more to write then either.
        let _ = self.device.sync_all();
        // SAFETY: takes no argument. A device that is still open goes away with its last user.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) };
    }

    /// Its name below /dev.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// Lets go of a device that has no users any more.
    pub(crate) fn detach(self) {
        // SAFETY: takes no argument. A device that is still open goes away with its last user.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) };
    }

    /// Whether a file system (or another exclusive user) sits on the device.
    pub(crate) fn is_mounted(&self) -> bool {
        let opened = File::options().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(self.path());
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }
}

/// What `losetup` shows: at most 63 bytes.
fn name_of(image: &Path) -> [u8; 64] {
    let mut name = [0; 64];
    let bytes = image.as_os_str().as_encoded_bytes();
    let length = bytes.len().min(63);
    name[..length].copy_from_slice(&bytes[..length]);
    name
}

/// Makes a volume's sparse file, with a file system if asked: whole, or not at all.
pub(crate) async fn create(image: &Path, size_gb: u32, format: Option<&str>) -> Result<(), LabError> {
    let draft = image.with_extension("draft");
    resize(&draft, size_gb)?;
    let name = draft.display().to_string();
    match format {
        None => {}
        // Lazy: the inode tables are zero already in a sparse file.
        Some("ext4") => {
            let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
            run::tool("mkfs.ext4", &["-q", "-F", "-E", options, &name], "").await?;
        }
        Some("xfs") => {
            run::tool("mkfs.xfs", &["-q", "-f", "-K", &name], "").await?;
        }
        Some(other) => return Err(LabError::new(format!("unknown volume format {other}"))),
    }
    fs::rename(&draft, image).attempt(|| format!("make {}", image.display()))
}

/// Grows (or makes) a volume's sparse file.
pub(crate) fn resize(image: &Path, size_gb: u32) -> Result<(), LabError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(image)
        .attempt(|| format!("make {}", image.display()))?;
    file.set_len(u64::from(size_gb) << 30).attempt(|| format!("size {}", image.display()))
}

/// Cuts the file systems on a device off, in every mount namespace of the given processes: what was not synced is lost,
/// and who still uses them gets EIO.
pub(crate) fn cut_off(processes: &[i32], major: u32, minor: u32) {
    let device = format!("{major}:{minor}");
    let mut seen = Vec::new();
    for pid in processes {
        let Ok(space) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.contains(&space) {
            continue;
        }
        seen.push(space);
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            if fields.nth(2) != Some(&device) {
                continue;
            }
            let Some(mount) = fields.nth(1) else { continue };
            let path = format!("/proc/{pid}/root{}", unescape(mount));
            shut_down(Path::new(&path));
        }
    }
}

/// Shuts down the file system that is mounted at a path, for all its mounts. Further attempts fail, and that is fine.
pub(crate) fn shut_down(mounted: &Path) {
    if let Ok(dir) = File::open(mounted) {
        let how = SHUTDOWN_NO_LOG_FLUSH;
        // SAFETY: the kernel reads the number during the call only.
        unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const how) };
    }
}

/// The kernel writes blanks in paths as `\040`.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Puts a device node and its stable name into a machine.
pub(crate) fn plug(leader: i32, letter: char, volume: u64, device: (u32, u32)) -> Result<(), LabError> {
    let dev = PathBuf::from(format!("/proc/{leader}/root/dev"));
    let node = dev.join(format!("sd{letter}"));
    remove_node(&node)?;
    nix::sys::stat::mknod(
        &node,
        nix::sys::stat::SFlag::S_IFBLK,
        nix::sys::stat::Mode::from_bits_truncate(0o660),
        libc::makedev(device.0, device.1),
    )
    .attempt(|| format!("make the device node of volume {volume} in the machine"))?;
    let by_id = dev.join("disk/by-id");
    fs::create_dir_all(&by_id).attempt(|| "make /dev/disk/by-id in the machine".into())?;
    let link = by_id.join(link_name(volume));
    remove_node(&link)?;
    std::os::unix::fs::symlink(format!("../../sd{letter}"), &link)
        .attempt(|| format!("name volume {volume} in the machine"))
}

/// Lets a machine that boots mount a volume (`golden/lab-init`).
pub(crate) fn mark_for_mount(leader: i32, volume: u64) -> Result<(), LabError> {
    let marks = PathBuf::from(format!("/proc/{leader}/root/dev/.lab-automount"));
    fs::create_dir_all(&marks)
        .and_then(|()| fs::write(marks.join(volume.to_string()), ""))
        .attempt(|| format!("tell the machine to mount volume {volume}"))
}

/// Takes them out again.
pub(crate) fn unplug(leader: i32, letter: char, volume: u64) -> Result<(), LabError> {
    let dev = PathBuf::from(format!("/proc/{leader}/root/dev"));
    remove_node(&dev.join("disk/by-id").join(link_name(volume)))?;
    remove_node(&dev.join(format!("sd{letter}")))
}

fn link_name(volume: u64) -> String {
    format!("scsi-0HC_Volume_{volume}")
}

fn remove_node(path: &Path) -> Result<(), LabError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Loop devices whose file lies below `dir`, as /dev paths.
pub(crate) fn loops_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if Path::new(file.trim_end().trim_end_matches(" (deleted)")).starts_with(dir) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.retain(|path| fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device()));
    found
}
