//! Control groups, version 1 (one tree a controller) and 2 (one tree) behind one face.
//!
//! A machine has two levels: limits sit on `hk-dr-lab/<lab>/<machine>`, its processes live in `…/guest` below, which is
//! what the machine sees as its root: it cannot lift its own limits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Attempt, LabError};

mod devices;
mod usage;

/// The top of all labs' groups.
const TOP: &str = "hk-dr-lab";
/// Where a machine's processes live, below its limits.
const GUEST: &str = "guest";
/// One period of the CPU quota, microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// More processes and threads than any machine of the lab needs, few enough that a fork bomb stays in.
const PIDS_MAX: u32 = 16_384;

/// What a machine may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub memory_bytes: u64,
    pub cores: u32,
}

/// One mounted tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    mount: PathBuf,
    /// Controllers of version 1, comma-separated in the mount's options; empty for version 2 and for named trees.
    controllers: Vec<String>,
    version: u8,
}

/// The control groups of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    trees: Vec<Tree>,
    lab: String,
}

impl Cgroups {
    /// Finds the mounted trees.
    ///
    /// # Errors
    /// There is no tree with a memory controller.
    pub(crate) fn of(lab: &str) -> Result<Self, LabError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").attempt(|| "read /proc/self/mountinfo".into())?;
        let trees = parse(&mounts);
        let usable = trees.iter().any(|t| t.version == 2 || t.controllers.iter().any(|c| c == "memory"));
        if !usable {
            return Err(LabError::new("no control groups are mounted below /sys/fs/cgroup")
                .hint("mount them (Debian: the package cgroupfs-mount, or run systemd)"));
        }
        Ok(Self { trees, lab: lab.to_owned() })
    }

    /// Whether limits are set in a tree of version 2 (none of version 1 has the memory controller).
    fn unified(&self) -> bool {
        !self.trees.iter().any(|t| t.controllers.iter().any(|c| c == "memory"))
    }

    /// Makes a machine's group with its limits and its device policy.
    pub(crate) fn create(&self, machine: u64, limits: Limits) -> Result<Group, LabError> {
        let group = Group { cgroups: self.clone(), machine };
        for tree in &self.trees {
            let top = tree.mount.join(TOP);
            let lab = top.join(&self.lab);
            self.make(tree, &tree.mount, &top)?;
            self.make(tree, &top, &lab)?;
            self.make(tree, &lab, &group.level(tree))?;
        }
        // Before the guest's level exists: version 1 refuses a new device policy on a group with children.
        group.limit(limits)?;
        for tree in &self.trees {
            self.make(tree, &group.level(tree), &group.guest(tree))?;
        }
        Ok(group)
    }

    fn make(&self, tree: &Tree, parent: &Path, level: &Path) -> Result<(), LabError> {
        if tree.version == 2 && self.unified() {
            // Best effort a controller: what the host does not hand out, the machine does not get limited by.
            for controller in ["memory", "pids", "cpu", "cpuset", "io"] {
                let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        match fs::create_dir(level) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).attempt(|| format!("make the control group {}", level.display()));
            }
            _ => {}
        }
        if tree.controllers.iter().any(|c| c == "cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = fs::read_to_string(parent.join(file)).attempt(|| format!("read {file}"))?;
                set(level, file, value.trim())?;
            }
        }
        Ok(())
    }

    /// Lets whatever stands still go on: with version 1, what is frozen cannot even die.
    pub(crate) fn thaw_all(&self) {
        for tree in self.trees.iter().filter(|t| t.controllers.iter().any(|c| c == "freezer")) {
            for machine in children(&tree.mount.join(TOP).join(&self.lab)) {
                // Gone meanwhile is as good.
                let _ = fs::write(machine.join("freezer.state"), "THAWED");
            }
        }
    }

    /// Removes all groups of this lab; waits until the kernel has let go of the last process, `deadline` at most.
    ///
    /// # Errors
    /// A process is still there at the deadline.
    pub(crate) fn remove_all(&self, deadline: Duration) -> Result<(), LabError> {
        let end = Instant::now() + deadline;
        self.thaw_all();
        for tree in &self.trees {
            let top = tree.mount.join(TOP);
            remove_tree(&top.join(&self.lab), end)?;
            // The last lab takes the top along; others' groups keep it.
            let _ = fs::remove_dir(&top);
        }
        Ok(())
    }
}

/// The control groups of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    cgroups: Cgroups,
    machine: u64,
}

impl Group {
    fn level(&self, tree: &Tree) -> PathBuf {
        tree.mount.join(TOP).join(&self.cgroups.lab).join(self.machine.to_string())
    }

    fn guest(&self, tree: &Tree) -> PathBuf {
        self.level(tree).join(GUEST)
    }

    fn tree(&self, controller: &str) -> Option<&Tree> {
        self.cgroups.trees.iter().find(|t| t.controllers.iter().any(|c| c == controller))
    }

    fn limit(&self, limits: Limits) -> Result<(), LabError> {
        let quota = u64::from(limits.cores) * CPU_PERIOD_US;
        if self.cgroups.unified() {
            for tree in self.cgroups.trees.iter().filter(|t| t.version == 2) {
                let level = self.level(tree);
                set(&level, "memory.max", &limits.memory_bytes.to_string())?;
                set(&level, "pids.max", &PIDS_MAX.to_string())?;
                set(&level, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
                devices::attach(&level)?;
            }
            return Ok(());
        }
        for (controller, file, value) in [
            ("memory", "memory.limit_in_bytes", limits.memory_bytes.to_string()),
            ("pids", "pids.max", PIDS_MAX.to_string()),
            ("cpu", "cpu.cfs_quota_us", quota.to_string()),
        ] {
            if let Some(tree) = self.tree(controller) {
                set(&self.level(tree), file, &value)?;
            }
        }
        if let Some(tree) = self.tree("devices") {
            let level = self.level(tree);
            set(&level, "devices.deny", "a")?;
            for rule in devices::rules() {
                set(&level, "devices.allow", &rule.to_string())?;
            }
        }
        Ok(())
    }

    /// Changes memory and processors of a machine that is off.
    pub(crate) fn resize(&self, limits: Limits) -> Result<(), LabError> {
        let quota = u64::from(limits.cores) * CPU_PERIOD_US;
        if self.cgroups.unified() {
            for tree in self.cgroups.trees.iter().filter(|t| t.version == 2) {
                let level = self.level(tree);
                set(&level, "memory.max", &limits.memory_bytes.to_string())?;
                set(&level, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
            }
            return Ok(());
        }
        for (controller, file, value) in [
            ("memory", "memory.limit_in_bytes", limits.memory_bytes.to_string()),
            ("cpu", "cpu.cfs_quota_us", quota.to_string()),
        ] {
            if let Some(tree) = self.tree(controller) {
                set(&self.level(tree), file, &value)?;
            }
        }
        Ok(())
    }

    /// Lets the machine's processes stand still, or go on.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), LabError> {
        // Version 2 freezes without any controller, and what is frozen there can still be killed.
        if let Some(tree) = self.cgroups.trees.iter().find(|t| t.version == 2) {
            return set(&self.level(tree), "cgroup.freeze", if frozen { "1" } else { "0" });
        }
        match self.tree("freezer") {
            Some(tree) => set(&self.level(tree), "freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
            None => Err(LabError::new("this host's control groups have no freezer")),
        }
    }

    /// Whether they stand still.
    pub(crate) fn is_frozen(&self) -> bool {
        let (tree, file) = match self.cgroups.trees.iter().find(|t| t.version == 2) {
            Some(tree) => (Some(tree), "cgroup.freeze"),
            None => (self.tree("freezer"), "freezer.state"),
        };
        let state = tree.and_then(|tree| fs::read_to_string(self.level(tree).join(file)).ok());
        state.is_some_and(|state| !matches!(state.trim(), "0" | "THAWED"))
    }

    /// Lets the machine use one block device.
    pub(crate) fn allow_device(&self, major: u32, minor: u32) -> Result<(), LabError> {
        self.device("devices.allow", major, minor)
    }

    /// Takes the permission back. Open descriptors keep working.
    pub(crate) fn deny_device(&self, major: u32, minor: u32) -> Result<(), LabError> {
        self.device("devices.deny", major, minor)
    }

    fn device(&self, file: &str, major: u32, minor: u32) -> Result<(), LabError> {
        if self.cgroups.unified() {
            for tree in self.cgroups.trees.iter().filter(|t| t.version == 2) {
                devices::change(&self.level(tree), major, minor, file == "devices.allow")?;
            }
            return Ok(());
        }
        let Some(tree) = self.tree("devices") else { return Ok(()) };
        let rule = format!("b {major}:{minor} rwm");
        set(&self.level(tree), file, &rule)?;
        if file == "devices.allow" {
            // An allowance does not trickle down by itself to groups that exist.
            let guest = self.guest(tree);
            set(&guest, file, &rule)?;
            allow_below(&guest, &rule);
        }
        Ok(())
    }

    /// Files to write "0" to, so that the writing process joins.
    pub(crate) fn entrances(&self) -> Result<Vec<File>, LabError> {
        let open = |tree: &Tree| {
            let path = self.guest(tree).join("cgroup.procs");
            File::options().write(true).open(&path).attempt(|| format!("open {}", path.display()))
        };
        self.cgroups.trees.iter().map(open).collect()
    }

    /// All processes in the group, as this namespace numbers them.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let Some(tree) = self.tree("pids").or_else(|| self.cgroups.trees.iter().find(|t| t.version == 2)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        collect_processes(&self.level(tree), &mut found);
        found
    }

    /// Paths of the files that let a process join a running machine, for `lab exec`.
    pub(crate) fn entrance_paths(&self) -> Vec<PathBuf> {
        // In a unified tree only leaves take processes: the machine's own init is in one.
        let leaf = if self.cgroups.unified() { "payload/init.scope/cgroup.procs" } else { "cgroup.procs" };
        self.cgroups.trees.iter().map(|t| self.guest(t).join(leaf)).collect()
    }

    /// Removes what the machine made inside its group, so that it boots into a clean one.
    ///
    /// # Errors
    /// A process is still there at the deadline.
    pub(crate) fn clear(&self, deadline: Duration) -> Result<(), LabError> {
        let end = Instant::now() + deadline;
        for tree in &self.cgroups.trees {
            for child in children(&self.guest(tree)) {
                remove_tree(&child, end)?;
            }
        }
        Ok(())
    }

    /// Removes the group.
    ///
    /// # Errors
    /// A process is still there at the deadline.
    pub(crate) fn remove(&self, deadline: Duration) -> Result<(), LabError> {
        let end = Instant::now() + deadline;
        self.cgroups.trees.iter().try_for_each(|tree| remove_tree(&self.level(tree), end))
    }
}

fn set(dir: &Path, file: &str, value: &str) -> Result<(), LabError> {
    fs::write(dir.join(file), value).attempt(|| format!("write {value} to {}", dir.join(file).display()))
}

/// Best effort: the machine may remove its groups meanwhile, or have narrowed what they may open.
fn allow_below(dir: &Path, rule: &str) {
    for child in children(dir) {
        let _ = fs::write(child.join("devices.allow"), rule);
        allow_below(&child, rule);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn collect_processes(dir: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for child in children(dir) {
        collect_processes(&child, found);
    }
}

/// Removes a group and those below it, trying again while dying processes are still counted in.
fn remove_tree(dir: &Path, end: Instant) -> Result<(), LabError> {
    for child in children(dir) {
        remove_tree(&child, end)?;
    }
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).attempt(|| format!("remove the control group {}", dir.display())),
        }
    }
}

/// The trees in a mountinfo file, each once.
fn parse(mountinfo: &str) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let version = match right.next() {
            Some("cgroup") => 1,
            Some("cgroup2") => 2,
            _ => continue,
        };
        let options = right.nth(1).unwrap_or_default();
        let controllers: Vec<String> = match version {
            1 => options.split(',').filter(|o| !o.contains('=') && !is_option(o)).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let tree = Tree { mount: PathBuf::from(mount), controllers, version };
        let seen = trees.iter().any(|t| {
            t.mount == tree.mount
                || (t.version == 2 && version == 2)
                || (!tree.controllers.is_empty() && t.controllers == tree.controllers)
        });
        if !seen {
            trees.push(tree);
        }
    }
    trees
}

fn is_option(word: &str) -> bool {
    matches!(word, "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "none" | "nsdelegate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_a_tree_a_controller_and_a_unified_one() {
        let trees = parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:3 - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n",
        );
        assert_eq!(trees.len(), 4);
        assert_eq!(trees[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(trees[2].controllers, Vec::<String>::new());
        assert!(!Cgroups { trees, lab: "x".into() }.unified());
    }

    #[test]
    fn a_host_with_systemd_has_one_tree() {
        let trees = parse("31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(trees.len(), 1);
        assert!(Cgroups { trees, lab: "x".into() }.unified());
    }
}
