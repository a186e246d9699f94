//! The machines of one lab: the real effects behind the cloud's API.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use crate::backend::{Effect, MachineEvent, MachineSpec, Metadata, RoomFaults};
use crate::balancer::Balancers;
use crate::cgroup::{Cgroups, Group, Limits};
use crate::clock::Keeper;
use crate::error::{Attempt, LabError};
use crate::fabric::wiring::Wiring;
use crate::fabric::{self, firewall};
use crate::link::Delays;
use crate::nspawn;
use crate::registry::{Registry, Resident};
use crate::volume::{self, LoopDevice};

mod disk;
mod effects;
mod faults;
mod rescue;

/// A killed machine is gone in 0.2 s; a busy host takes longer.
const GONE_DEADLINE: Duration = Duration::from_secs(20);
/// systemd's power-off signal, SIGRTMIN+4. The C library keeps the first two real-time signals for itself.
const POWER_OFF_SIGNAL: i32 = 34 + 4;
/// sda is the root disk.
const LETTERS: std::ops::RangeInclusive<char> = 'b'..='z';

/// The machines of one lab, for use inside its outer namespace.
#[derive(Clone)]
pub struct Machines {
    lab: Arc<Lab>,
}

struct Lab {
    golden: PathBuf,
    disks: PathBuf,
    cgroups: Cgroups,
    registry: Registry,
    machines: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Machine>>>>,
    wiring: Arc<Wiring>,
    balancers: Balancers,
    events: mpsc::Sender<MachineEvent>,
    faults: Mutex<RoomFaults>,
    /// Whether any network has rules of faults.
    impaired: AtomicBool,
    delays: Delays,
    /// Machines that ran when their location lost its power.
    darkened: Mutex<Vec<u64>>,
}

struct Machine {
    spec: MachineSpec,
    dir: PathBuf,
    group: Group,
    running: Option<Running>,
    volumes: BTreeMap<u64, Plugged>,
    /// In use while the machine runs.
    disk: Option<disk::Disk>,
    /// What boots next instead of the disk.
    rescue: Option<Metadata>,
    /// While its clock is off, or was during this boot.
    clock: Option<Keeper>,
}

/// One boot, from nspawn's start to its end.
struct Running {
    nspawn: i32,
    leader: i32,
    ended: watch::Receiver<bool>,
}

/// A volume in a machine. The device exists while the machine runs.
struct Plugged {
    letter: char,
    /// The machine is to mount it when it boots next.
    automount: bool,
    device: Option<LoopDevice>,
}

impl Machines {
    /// `golden`: the image. `disks`: a directory on a real file system. At most 1024 events wait in `events`.
    ///
    /// # Errors
    /// Control groups are not usable, or directories can't be made.
    pub fn new(
        lab: &str,
        golden: &Path,
        disks: &Path,
        registry: Registry,
    ) -> Result<(Self, mpsc::Receiver<MachineEvent>), LabError> {
        for path in [golden, disks] {
            // They would end an option of the overlay mount.
            if !disk::fits_options(path) {
                return Err(LabError::new(format!("{} has a comma, colon or backslash in its name", path.display()))
                    .hint("choose another cache or state directory"));
            }
        }
        for dir in ["machines", "volumes", "images"] {
            fs::create_dir_all(disks.join(dir)).attempt(|| format!("make {}", disks.join(dir).display()))?;
        }
        disk::share(&disks.join("machines"))?;
        let (events, receiver) = mpsc::channel(1024);
        let wiring = Arc::<Wiring>::default();
        let lab = Lab {
            golden: golden.to_owned(),
            disks: disks.to_owned(),
            cgroups: Cgroups::of(lab)?,
            registry,
            machines: Mutex::default(),
            balancers: Balancers::new(Arc::clone(&wiring)),
            wiring,
            events,
            faults: Mutex::default(),
            impaired: AtomicBool::new(false),
            delays: Delays::default(),
            darkened: Mutex::default(),
        };
        Ok((Self { lab: Arc::new(lab) }, receiver))
    }
}

impl Lab {
    fn machine(&self, id: u64) -> Result<Arc<tokio::sync::Mutex<Machine>>, LabError> {
        lock(&self.machines).get(&id).cloned().ok_or_else(|| LabError::new(format!("there is no machine {id}")))
    }

    fn image(&self, volume: u64) -> PathBuf {
        self.disks.join("volumes").join(format!("{volume}.img"))
    }

    /// An image made of a machine.
    fn snapshot(&self, image: u64) -> PathBuf {
        self.disks.join("images").join(format!("{image}.img"))
    }

    /// A machine's directory.
    fn home(&self, id: u64) -> PathBuf {
        self.disks.join("machines").join(id.to_string())
    }

    /// The machine in which a volume is.
    async fn holder(&self, volume: u64) -> Option<Arc<tokio::sync::Mutex<Machine>>> {
        let all: Vec<_> = lock(&self.machines).values().cloned().collect();
        for machine in all {
            if machine.lock().await.volumes.contains_key(&volume) {
                return Some(machine);
            }
        }
        None
    }

    /// Starts a machine that is off, with its volumes, and watches over it.
    async fn boot(self: &Arc<Self>, machine: &mut Machine) -> Result<(), LabError> {
        let id = machine.spec.id;
        self.check_location(&machine.spec.location)?;
        let (root, binds) = match self.prepare(machine).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.settle(machine).await?;
                return Err(error);
            }
        };
        let booted = nspawn::boot(&nspawn::Boot {
            id,
            hostname: &machine.spec.name,
            root: &root,
            console: &machine.dir.join("console.log"),
            netns: &fabric::machine(id),
            group: &machine.group,
            binds: &binds,
        })
        .await;
        let (child, leader) = match booted {
            Ok(booted) => booted,
            Err(error) => {
                self.settle(machine).await?;
                return Err(error);
            }
        };
        let nspawn = child.id().ok_or_else(|| LabError::new("the machine ended at once"))? as i32;
        let (ended_sender, ended) = watch::channel(false);
        machine.running = Some(Running { nspawn, leader, ended });
        tokio::spawn(watch_over(Arc::downgrade(self), id, nspawn, child, ended_sender));
        let equipped = self.equip(machine, leader).await;
        if equipped.is_err() {
            self.cut_power(machine).await?;
        }
        equipped
    }

    /// Lays the network and puts the disk, or a rescue system, in place: the root to boot, and (here, in the machine) what else is to be seen.
    async fn prepare(&self, machine: &mut Machine) -> Result<(PathBuf, Vec<(PathBuf, &'static str)>), LabError> {
        let (disk, wired) = tokio::join!(disk::Disk::mount(&machine.dir), self.wiring.plug_in(machine.spec.id));
        let full = lock(&self.faults).full_disks.contains(&machine.spec.id);
        machine.disk.insert(disk?).fill(full)?;
        wired?;
        let files = disk::Files(&machine.dir);
        if let Some(access) = machine.rescue.take() {
            let root = rescue::build(&machine.dir, &self.golden, &machine.spec.name, &access).await?;
            return Ok((root, vec![(files.root(), rescue::OWN_ROOT)]));
        }
        rescue::set_first_password(&machine.dir).await?;
        // Containers' roots are overlays themselves, which need a real file system below.
        let binds = vec![
            (files.inside().join("containerd"), "/var/lib/containerd"),
            (files.inside().join("kubelet"), "/var/lib/kubelet"),
        ];
        Ok((files.root(), binds))
    }

    async fn equip(&self, machine: &mut Machine, leader: i32) -> Result<(), LabError> {
        let volumes: Vec<u64> = machine.volumes.keys().copied().collect();
        for volume in volumes {
            self.plug(machine, volume)?;
        }
        self.set_clock(machine).await?;
        machine.let_go(leader)?;
        self.register(machine)
    }

    /// Makes a volume's device and shows it to a running machine.
    fn plug(&self, machine: &mut Machine, volume: u64) -> Result<(), LabError> {
        let image = self.image(volume);
        let Some(Running { leader, .. }) = machine.running else { return Ok(()) };
        let Some(plugged) = machine.volumes.get_mut(&volume) else { return Ok(()) };
        let device = LoopDevice::attach(&image)?;
        if lock(&self.faults).broken_volumes.contains(&volume) {
            device.fail(true)?;
        }
        machine.group.allow_device(device.major, device.minor)?;
        volume::plug(leader, plugged.letter, volume, (device.major, device.minor))?;
        plugged.device = Some(device);
        if std::mem::take(&mut plugged.automount) {
            volume::mark_for_mount(leader, volume)?;
        }
        Ok(())
    }

    fn register(&self, machine: &Machine) -> Result<(), LabError> {
        self.registry.write(&Resident {
            id: machine.spec.id,
            name: machine.spec.name.clone(),
            leader: machine.running.as_ref().map(|r| r.leader),
            entrances: machine.group.entrance_paths(),
        })
    }

    /// Ends a boot by force, as when the power goes, and waits until nothing of it is left.
    async fn cut_power(&self, machine: &mut Machine) -> Result<(), LabError> {
        let Some(mut running) = machine.running.take() else { return Ok(()) };
        // First of all: connections must not be closed by what dies now, they just end.
        self.wiring.pull_out(machine.spec.id).await?;
        let processes = machine.group.processes();
        for plugged in machine.volumes.values().filter_map(|p| p.device.as_ref()) {
            volume::cut_off(&processes, plugged.major, plugged.minor);
        }
        if let Some(disk) = &machine.disk {
            disk.cut_off();
        }
        for pid in [running.leader, running.nspawn] {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // With control groups of version 1 what is frozen cannot die.
        let _ = machine.group.freeze(false);
        let late = tokio::time::timeout(GONE_DEADLINE, running.ended.wait_for(|ended| *ended)).await.is_err();
        if late {
            return Err(LabError::new(format!("machine {} is still there 20 s after its kill", machine.spec.id)));
        }
        self.settle(machine).await
    }

    /// After the end of a boot: network, devices and groups as before the first.
    async fn settle(&self, machine: &mut Machine) -> Result<(), LabError> {
        machine.clock = None;
        self.wiring.pull_out(machine.spec.id).await?;
        for plugged in machine.volumes.values_mut() {
            if let Some(device) = plugged.device.take() {
                machine.group.deny_device(device.major, device.minor)?;
                // The kernel unmounts a dead machine's file systems a moment after its death.
                let end = Instant::now() + GONE_DEADLINE;
                while device.is_mounted() && Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                device.release();
            }
        }
        let (group, dir) = (machine.group.clone(), machine.dir.clone());
        blocking(move || {
            group.clear(GONE_DEADLINE)?;
            rescue::dismantle(&dir)
        })
        .await?;
        if let Some(disk) = machine.disk.take() {
            disk.unmount().await?;
        }
        self.register(machine)
    }

    /// Removes disk, interfaces and groups of a machine that is off.
    async fn erase(&self, machine: &Machine) -> Result<(), LabError> {
        self.wiring.remove(machine.spec.id).await?;
        firewall::set(machine.spec.id, None).await?;
        self.registry.remove(machine.spec.id)?;
        let (group, dir) = (machine.group.clone(), machine.dir.clone());
        blocking(move || {
            group.remove(GONE_DEADLINE)?;
            disk::remove_all(&dir)
        })
        .await
    }
}

impl Machine {
    fn free_letter(&self) -> Result<char, LabError> {
        let taken: Vec<char> = self.volumes.values().map(|p| p.letter).collect();
        LETTERS
            .into_iter()
            .find(|l| !taken.contains(l))
            .ok_or_else(|| LabError::new(format!("machine {} has no letter left for a volume", self.spec.id)))
    }

    /// Tells the machine's first boot unit that its disks are plugged in.
    fn let_go(&self, leader: i32) -> Result<(), LabError> {
        let marker = format!("/proc/{leader}/root/dev/.lab-ready");
        fs::write(&marker, "").attempt(|| "tell the machine that its disks are there".into())
    }
}

/// Waits for the end of a boot that nobody ordered: boots again or tells the cloud.
async fn watch_over(lab: Weak<Lab>, id: u64, nspawn: i32, mut child: Child, ended: watch::Sender<bool>) {
    let status = child.wait().await;
    // Nobody waits when the end was not ordered.
    let _ = ended.send(true);
    let Some(lab) = lab.upgrade() else { return };
    let Ok(machine) = lab.machine(id) else { return };
    let mut machine = machine.lock().await;
    if machine.running.as_ref().is_none_or(|r| r.nspawn != nspawn) {
        return;
    }
    machine.running = None;
    let reboot = status.as_ref().is_ok_and(|s| s.code() == Some(nspawn::EXIT_REBOOT));
    if !reboot {
        let how = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        eprintln!("machine {id} ({}) ended by itself: {how}", machine.spec.name);
    }
    let mut outcome = lab.settle(&mut machine).await;
    if outcome.is_ok() && reboot {
        outcome = lab.boot_again(&mut machine).await;
        if outcome.is_ok() {
            drop(machine);
            let _ = lab.events.send(MachineEvent::Rebooted(id)).await;
            return;
        }
    }
    if let Err(error) = outcome {
        eprintln!("machine {id} ({}): {error}", machine.spec.name);
    }
    drop(machine);
    // The receiver ends with the lab.
    let _ = lab.events.send(MachineEvent::Stopped(id)).await;
}

impl Lab {
    /// Boxed, because a boot starts a watch that may boot again.
    fn boot_again<'a>(
        self: &'a Arc<Self>,
        machine: &'a mut Machine,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), LabError>> + Send + 'a>> {
        Box::pin(self.boot(machine))
    }
}

/// Work that sleeps or walks directories, off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LabError> + Send + 'static,
) -> Result<T, LabError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(LabError::new(format!("a task failed: {error}"))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
