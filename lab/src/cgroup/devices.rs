//! What devices a machine may open. Machines keep the right to make device nodes: without a policy one could read
//! another's disk, or the host's. Version 1 has files for it, version 2 wants a BPF program on the group.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use crate::error::{Attempt, LabError};

/// One allowance: reading and writing, and making nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    block: bool,
    /// None: any.
    major: Option<u32>,
    /// None: any.
    minor: Option<u32>,
    /// Making nodes only.
    mknod_only: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |v| v.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        let access = if self.mknod_only { "m" } else { "rwm" };
        write!(f, "{kind} {}:{} {access}", part(self.major), part(self.minor))
    }
}

/// What every machine may use: null, zero, full, random, urandom, kmsg, tty, console, ptmx, terminals, tun, fuse. The
/// console is there because runc hands it to every container.
pub(super) fn rules() -> Vec<Rule> {
    let char = |major, minor| Rule { block: false, major: Some(major), minor, mknod_only: false };
    let mut rules: Vec<Rule> = [3, 5, 7, 8, 9, 11].into_iter().map(|minor| char(1, Some(minor))).collect();
    rules.extend([
        char(5, Some(0)),
        char(5, Some(1)),
        char(5, Some(2)),
        char(136, None),
        char(10, Some(200)),
        char(10, Some(229)),
    ]);
    for block in [false, true] {
        rules.push(Rule { block, major: None, minor: None, mknod_only: true });
    }
    rules
}

/// Major and minor number.
type Device = (u32, u32);

/// The block devices allowed beyond the rules, and the program that says so.
type Attached = (Vec<Device>, OwnedFd);

/// What is attached, a group each.
static ATTACHED: LazyLock<Mutex<HashMap<PathBuf, Attached>>> = LazyLock::new(Mutex::default);

/// Puts the policy on a group of version 2.
pub(super) fn attach(group: &Path) -> Result<(), LabError> {
    replace(group, Vec::new())
}

/// Allows or denies one block device in a group of version 2.
pub(super) fn change(group: &Path, major: u32, minor: u32, allow: bool) -> Result<(), LabError> {
    let mut devices = {
        let attached = ATTACHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        attached.get(group).map(|(devices, _)| devices.clone()).unwrap_or_default()
    };
    devices.retain(|d| *d != (major, minor));
    if allow {
        devices.push((major, minor));
    }
    replace(group, devices)
}

fn replace(group: &Path, devices: Vec<(u32, u32)>) -> Result<(), LabError> {
    let mut all = rules();
    all.extend(devices.iter().map(|(major, minor)| Rule {
        block: true,
        major: Some(*major),
        minor: Some(*minor),
        mknod_only: false,
    }));
    let dir = File::open(group).attempt(|| format!("open {}", group.display()))?;
    let program = load(&program(&all)).attempt(|| "load the device policy into the kernel".into())?;
    let mut attached = ATTACHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let old = attached.remove(group);
    attach_program(&dir, &program, old.as_ref().map(|(_, program)| program))
        .attempt(|| format!("put the device policy on {}", group.display()))?;
    attached.insert(group.to_owned(), (devices, program));
    Ok(())
}

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;
const DEVCG_DEV_BLOCK: i32 = 1;
const DEVCG_DEV_CHAR: i32 = 2;
const DEVCG_ACC_MKNOD: i32 = 1;

/// One instruction: opcode, registers (source in the high half), jump offset, immediate.
fn instruction(opcode: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = opcode;
    bytes[1] = registers;
    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..8].copy_from_slice(&immediate.to_le_bytes());
    bytes
}

/// The policy as instructions: each rule answers 1 if it matches, the end answers 0.
fn program(rules: &[Rule]) -> Vec<u8> {
    const LOAD: u8 = 0x61; // 32 bits from memory
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    // r1: context {access << 16 | type, major, minor}. r2: type, r3: access, r4: major, r5: minor.
    let mut code = vec![
        instruction(LOAD, 0x12, 0, 0),
        instruction(COPY, 0x23, 0, 0),
        instruction(AND, 0x02, 0, 0xffff),
        instruction(SHIFT_RIGHT, 0x03, 0, 16),
        instruction(LOAD, 0x14, 4, 0),
        instruction(LOAD, 0x15, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { DEVCG_DEV_BLOCK } else { DEVCG_DEV_CHAR };
        let mut tests = vec![(0x02, kind)];
        if rule.mknod_only {
            tests.push((0x03, DEVCG_ACC_MKNOD));
        }
        tests.extend(rule.major.map(|major| (0x04, major as i32)));
        tests.extend(rule.minor.map(|minor| (0x05, minor as i32)));
        let count = tests.len();
        for (place, (register, value)) in tests.into_iter().enumerate() {
            // A mismatch jumps behind this rule: the remaining tests and the two instructions of the answer.
            let behind = (count - place - 1 + 2) as i16;
            code.push(instruction(JUMP_UNLESS_EQUAL, register, behind, value));
        }
        code.push(instruction(SET, 0x00, 0, 1));
        code.push(instruction(EXIT, 0, 0, 0));
    }
    code.push(instruction(SET, 0x00, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0));
    code.concat()
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

fn load(code: &[u8]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: (code.len() / 8) as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `attributes` and what it points to (code, license) during the call only; both live on.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns; descriptors fit in an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attach_program(group: &File, program: &OwnedFd, replaced: Option<&OwnedFd>) -> io::Result<()> {
    let attributes = Attach {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    // SAFETY: the kernel reads `attributes` during the call only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<Attach>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions the policy uses.
    fn answer(code: &[u8], block: bool, access: u32, major: u32, minor: u32) -> i64 {
        let kind = if block { 1 } else { 2 };
        let context = [access << 16 | kind, major, minor];
        let mut r = [0i64; 11];
        let mut at = 0usize;
        loop {
            let i = &code[at * 8..at * 8 + 8];
            let (to, from) = ((i[1] & 15) as usize, (i[1] >> 4) as usize);
            let offset = i16::from_le_bytes([i[2], i[3]]);
            let value = i64::from(i32::from_le_bytes([i[4], i[5], i[6], i[7]]));
            at += 1;
            match i[0] {
                0x61 => r[to] = i64::from(context[offset as usize / 4]),
                0xbf => r[to] = r[from],
                0x57 => r[to] &= value,
                0x77 => r[to] >>= value,
                0xb7 => r[to] = value,
                0x55 if r[to] != value => at += offset as usize,
                0x55 => {}
                0x95 => return r[0],
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_machine_opens_its_own_disk_and_no_other() {
        let mut all = rules();
        all.push(Rule { block: true, major: Some(7), minor: Some(3), mknod_only: false });
        let code = program(&all);
        let (mknod, read, write) = (1, 2, 4);
        assert_eq!(answer(&code, true, read | write, 7, 3), 1);
        assert_eq!(answer(&code, true, read, 7, 4), 0);
        assert_eq!(answer(&code, true, read, 254, 0), 0);
        assert_eq!(answer(&code, true, mknod, 254, 0), 1, "making a node is harmless");
        assert_eq!(answer(&code, true, mknod | read, 254, 0), 0);
        assert_eq!(answer(&code, false, read | write, 1, 3), 1, "/dev/null");
        assert_eq!(answer(&code, false, read | write, 136, 77), 1, "terminals");
        assert_eq!(answer(&code, false, read, 1, 1), 0, "/dev/mem");
    }

    /// On a host with version 2 (or both), as root: the kernel takes the program, and holds to it.
    #[test]
    fn the_kernel_enforces_the_program() {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let Some(root) = roots.map(Path::new).into_iter().find(|r| r.join("cgroup.procs").exists()) else {
            eprintln!("skipped: no control groups of version 2 here");
            return;
        };
        let group = root.join(format!("hk-dr-lab-test-{}", std::process::id()));
        if !nix::unistd::geteuid().is_root() || std::fs::create_dir(&group).is_err() {
            eprintln!("skipped: not allowed to make control groups");
            return;
        }
        let opens = |device: &str| {
            let script = format!("echo 0 > {}/cgroup.procs && exec 3< {device}", group.display());
            let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh runs");
            output.status.success()
        };
        let before = (opens("/dev/null"), opens("/dev/loop-control"));
        attach(&group).expect("the program is attached");
        let fenced = (opens("/dev/null"), opens("/dev/loop-control"), opens("/dev/loop0"));
        change(&group, 7, 0, true).expect("the program is replaced");
        let allowed = opens("/dev/loop0");
        change(&group, 7, 0, false).expect("the program is replaced");
        let denied = opens("/dev/loop0");
        std::fs::remove_dir(&group).expect("the group is empty");
        assert_eq!(before, (true, true));
        assert_eq!(fenced, (true, false, false));
        assert!(allowed && !denied);
    }
}
