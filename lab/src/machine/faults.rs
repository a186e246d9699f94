//! Faults of machines, disks and networks: each is what really happens, made from outside.

use std::sync::atomic::Ordering;

use super::*;
use crate::link::{self, Port};

impl Lab {
    /// Replaces all faults. Whatever can't be had fails, and the caller takes the fault back.
    pub(super) async fn suffer(self: &Arc<Self>, faults: &RoomFaults) -> Result<(), LabError> {
        let before = std::mem::replace(&mut *lock(&self.faults), faults.clone());
        self.impair_links().await?;
        if before.object_store != faults.object_store {
            link::divert_object_store(faults.object_store).await?;
        }
        for location in faults.dark.iter().filter(|location| !before.dark.contains(location)) {
            self.balancers.restart_in(location).await;
        }
        let all: Vec<_> = lock(&self.machines).values().cloned().collect();
        for held in all {
            let mut machine = held.lock().await;
            let location = machine.spec.location.clone();
            let (was, is) = (before.frozen.contains(&location), faults.frozen.contains(&location));
            if was != is && machine.running.is_some() {
                machine.group.freeze(is)?;
            }
            for (volume, plugged) in &machine.volumes {
                let (was, is) = (before.broken_volumes.contains(volume), faults.broken_volumes.contains(volume));
                if let Some(device) = plugged.device.as_ref().filter(|_| was != is) {
                    device.fail(is)?;
                }
            }
            let id = machine.spec.id;
            let (was, is) = (before.full_disks.contains(&id), faults.full_disks.contains(&id));
            if let Some(disk) = machine.disk.as_ref().filter(|_| was != is) {
                disk.fill(is)?;
            }
            if before.skew(id) != faults.skew(id) {
                self.set_clock(&mut machine).await?;
            }
            if faults.dark.contains(&location) {
                self.darken(&mut machine).await?;
            } else {
                self.lighten(&mut machine).await?;
            }
        }
        Ok(())
    }

    /// Lets the clock of a machine that runs be as far off as it is told to.
    pub(super) async fn set_clock(&self, machine: &mut Machine) -> Result<(), LabError> {
        let skew = lock(&self.faults).skew(machine.spec.id);
        if machine.running.is_none() || (skew == 0 && machine.clock.is_none()) {
            return Ok(());
        }
        let root = disk::Files(&machine.dir).root();
        let keeper = match machine.clock.take() {
            Some(keeper) => keeper,
            None => Keeper::start(machine.group.clone(), &root)?,
        };
        // Without an offset it goes on only while something in the machine still has the wrong time, because it stands still.
        if !keeper.set(skew).await? || skew != 0 {
            machine.clock = Some(keeper);
        }
        Ok(())
    }

    async fn darken(&self, machine: &mut Machine) -> Result<(), LabError> {
        if machine.running.is_none() {
            return Ok(());
        }
        self.cut_power(machine).await?;
        lock(&self.darkened).push(machine.spec.id);
        // The receiver ends with the lab.
        let _ = self.events.send(MachineEvent::Stopped(machine.spec.id)).await;
        Ok(())
    }

    /// Boots what ran when the power went.
    async fn lighten(self: &Arc<Self>, machine: &mut Machine) -> Result<(), LabError> {
        let id = machine.spec.id;
        let ran = lock(&self.darkened).contains(&id);
        lock(&self.darkened).retain(|m| *m != id);
        if ran && machine.running.is_none() {
            self.boot(machine).await?;
            let _ = self.events.send(MachineEvent::Started(id)).await;
        }
        Ok(())
    }

    /// Whether anything starts in a location.
    pub(super) fn check_location(&self, location: &str) -> Result<(), LabError> {
        if lock(&self.faults).dark.iter().any(|l| l == location) {
            return Err(LabError::new(format!("location {location} has no power (a fault of the lab)")));
        }
        self.check_responds(location)
    }

    /// Whether a location does what it is told to.
    pub(super) fn check_responds(&self, location: &str) -> Result<(), LabError> {
        if lock(&self.faults).frozen.iter().any(|l| l == location) {
            return Err(LabError::new(format!("location {location} does not respond (a fault of the lab)")));
        }
        Ok(())
    }

    /// Lets the networks suffer; machines and load balancers may have come and gone since the last time.
    pub(super) async fn impair_links(&self) -> Result<(), LabError> {
        let (links, still) = {
            let faults = lock(&self.faults);
            (faults.links.clone(), [faults.frozen.as_slice(), &faults.dark].concat())
        };
        let all: Vec<_> = lock(&self.machines).iter().map(|(id, machine)| (*id, Arc::clone(machine))).collect();
        let mut ports = Vec::new();
        if !links.is_empty() || !still.is_empty() {
            for (id, machine) in all {
                let location = machine.lock().await.spec.location.clone();
                ports.push(Port { machine: id, location, silent: false });
            }
            ports.extend(self.balancers.ports(&still).await);
        } else if !self.impaired.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.impaired.store(!links.is_empty() || !still.is_empty(), Ordering::SeqCst);
        link::impair(&links, &ports, &self.wiring.networks().await, &self.delays).await
    }
}
