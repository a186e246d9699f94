use async_trait::async_trait;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::disk::Origin;
use super::*;
use crate::backend::{Backend, BalancerSpec, Counters, FirewallRule, Metadata, RoomFaults, TargetHealth};
use crate::fabric::counters;
use crate::run;

#[async_trait]
impl Backend for Machines {
    async fn create_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        let dir = self.lab.home(spec.id);
        disk::create(&dir, spec.disk_gb, self.lab.origin(spec)?, metadata.root_password.as_deref()).await?;
        Ok(self.lab.furnish(spec).await?)
    }

    async fn restore_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        if !self.lab.home(spec.id).exists() {
            return self.create_machine(spec, metadata).await;
        }
        Ok(self.lab.furnish(spec).await?)
    }

    async fn power_on(&self, id: u64) -> Effect {
        let machine = self.lab.machine(id)?;
        let mut machine = machine.lock().await;
        if machine.running.is_none() {
            self.lab.boot(&mut machine).await?;
        }
        Ok(())
    }

    async fn power_off(&self, id: u64) -> Effect {
        let machine = self.lab.machine(id)?;
        let mut machine = machine.lock().await;
        self.lab.check_responds(&machine.spec.location)?;
        Ok(self.lab.cut_power(&mut machine).await?)
    }

    async fn shutdown(&self, id: u64) -> Effect {
        let machine = self.lab.machine(id)?;
        let machine = machine.lock().await;
        if let Some(running) = &machine.running {
            // SAFETY: a plain system call; the process is ours, and if it just died the call fails harmlessly.
            unsafe { libc::kill(running.leader, POWER_OFF_SIGNAL) };
        }
        Ok(())
    }

    async fn reset(&self, id: u64) -> Effect {
        let machine = self.lab.machine(id)?;
        let mut machine = machine.lock().await;
        self.lab.check_location(&machine.spec.location)?;
        self.lab.cut_power(&mut machine).await?;
        Ok(self.lab.boot(&mut machine).await?)
    }

    async fn reboot(&self, id: u64) -> Effect {
        let machine = self.lab.machine(id)?;
        let machine = machine.lock().await;
        if let Some(running) = &machine.running {
            // Gone already: then its end is noticed elsewhere.
            let _ = kill(Pid::from_raw(running.leader), Signal::SIGINT);
        }
        Ok(())
    }

    async fn delete_machine(&self, id: u64) -> Effect {
        let held = self.lab.machine(id)?;
        let mut machine = held.lock().await;
        self.lab.cut_power(&mut machine).await?;
        self.lab.erase(&machine).await?;
        lock(&self.lab.machines).remove(&id);
        Ok(())
    }

    async fn create_volume(&self, id: u64, size_gb: u32, format: Option<&str>) -> Effect {
        Ok(volume::create(&self.lab.image(id), size_gb, format).await?)
    }

    async fn restore_volume(&self, id: u64, size_gb: u32, format: Option<&str>) -> Effect {
        if self.lab.image(id).exists() {
            return Ok(volume::resize(&self.lab.image(id), size_gb)?);
        }
        self.create_volume(id, size_gb, format).await
    }

    async fn keep_only(&self, machines: &[u64], volumes: &[u64], images: &[u64]) -> Effect {
        for (dir, keep) in [("machines", machines), ("volumes", volumes), ("images", images)] {
            disk::keep_only(&self.lab.disks.join(dir), keep)?;
        }
        Ok(())
    }

    async fn attach_volume(&self, id: u64, machine: u64) -> Effect {
        if self.lab.holder(id).await.is_some() {
            return Err(LabError::new(format!("volume {id} is attached already")).into());
        }
        let machine = self.lab.machine(machine)?;
        let mut machine = machine.lock().await;
        let letter = machine.free_letter()?;
        machine.volumes.insert(id, Plugged { letter, automount: false, device: None });
        if let Err(error) = self.lab.plug(&mut machine, id) {
            machine.volumes.remove(&id);
            return Err(error.into());
        }
        Ok(())
    }

    async fn automount_volume(&self, id: u64, machine: u64) -> Effect {
        let held = self.lab.machine(machine)?;
        let leader = {
            let mut machine = held.lock().await;
            let leader = machine.running.as_ref().map(|r| r.leader);
            if let Some(plugged) = machine.volumes.get_mut(&id).filter(|_| leader.is_none()) {
                plugged.automount = true;
            }
            leader
        };
        if let Some(leader) = leader {
            let (leader, id) = (leader.to_string(), id.to_string());
            run::tool("nsenter", &["-t", &leader, "-a", "/usr/local/sbin/lab-automount", &id], "").await?;
        }
        Ok(())
    }

    async fn detach_volume(&self, id: u64, machine: u64) -> Effect {
        let held = self.lab.machine(machine)?;
        let mut machine = held.lock().await;
        let Some(plugged) = machine.volumes.remove(&id) else {
            return Err(LabError::new(format!("volume {id} is not attached to this machine")).into());
        };
        if let (Some(device), Some(running)) = (plugged.device, &machine.running) {
            volume::cut_off(&machine.group.processes(), device.major, device.minor);
            volume::unplug(running.leader, plugged.letter, id)?;
            machine.group.deny_device(device.major, device.minor)?;
            blocking(move || {
                device.release();
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn delete_volume(&self, id: u64) -> Effect {
        let image = self.lab.image(id);
        fs::remove_file(&image).attempt(|| format!("remove {}", image.display()))?;
        Ok(())
    }

    async fn resize_volume(&self, id: u64, size_gb: u32) -> Effect {
        volume::resize(&self.lab.image(id), size_gb)?;
        if let Some(machine) = self.lab.holder(id).await
            && let Some(device) = machine.lock().await.volumes.get(&id).and_then(|p| p.device.as_ref())
        {
            device.grow()?;
        }
        Ok(())
    }

    async fn create_network(&self, id: u64, range: &str) -> Effect {
        self.lab.wiring.create_network(id, range).await?;
        Ok(self.lab.impair_links().await?)
    }

    async fn delete_network(&self, id: u64) -> Effect {
        Ok(self.lab.wiring.delete_network(id).await?)
    }

    async fn attach_network(&self, machine: u64, network: u64, address: Ipv4Addr, range: &str) -> Effect {
        Ok(self.lab.wiring.attach(machine, network, address, Some(range)).await?)
    }

    async fn detach_network(&self, machine: u64, network: u64) -> Effect {
        Ok(self.lab.wiring.detach(machine, network).await?)
    }

    async fn set_routes(&self, network: u64, routes: &[(String, Ipv4Addr)]) -> Effect {
        Ok(self.lab.wiring.set_routes(network, routes).await?)
    }

    async fn set_alias_ips(&self, machine: u64, network: u64, aliases: &[Ipv4Addr]) -> Effect {
        Ok(self.lab.wiring.set_aliases(machine, network, aliases).await?)
    }

    async fn set_public_addresses(&self, machine: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Effect {
        let held = self.lab.machine(machine)?;
        let mut held = held.lock().await;
        (held.spec.public_ipv4, held.spec.public_ipv6) = (ipv4, ipv6);
        Ok(self.lab.wiring.set_public(machine, ipv4, ipv6).await?)
    }

    async fn route_floating_ip(&self, address: IpAddr, machine: Option<u64>) -> Effect {
        Ok(self.lab.wiring.route_floating(address, machine).await?)
    }

    async fn set_firewall(&self, machine: u64, rules: Option<&[FirewallRule]>) -> Effect {
        Ok(firewall::set(machine, rules).await?)
    }

    async fn set_balancer(&self, spec: &BalancerSpec) -> Effect {
        self.lab.balancers.set(spec).await?;
        Ok(self.lab.impair_links().await?)
    }

    async fn delete_balancer(&self, id: u64) -> Effect {
        Ok(self.lab.balancers.delete(id).await?)
    }

    async fn balancer_health(&self, id: u64) -> Effect<Vec<TargetHealth>> {
        Ok(self.lab.balancers.health(id).await?)
    }

    async fn balancer_counters(&self, id: u64) -> Effect<Counters> {
        Ok(self.lab.balancers.counters(id).await?)
    }

    async fn machine_counters(&self, machine: u64) -> Effect<Counters> {
        let group = self.lab.machine(machine)?.lock().await.group.clone();
        let (used, traffic) = blocking(move || Ok((group.usage(), counters::of(machine)?))).await?;
        Ok(Counters {
            cpu_seconds: used.cpu_seconds,
            disk_read_bytes: used.read_bytes,
            disk_written_bytes: used.written_bytes,
            disk_reads: used.reads,
            disk_writes: used.writes,
            network_in_bytes: traffic.in_bytes,
            network_out_bytes: traffic.out_bytes,
            network_in_packets: traffic.in_packets,
            network_out_packets: traffic.out_packets,
            ..Counters::default()
        })
    }

    async fn set_faults(&self, faults: &RoomFaults) -> Effect {
        Ok(self.lab.suffer(faults).await?)
    }

    async fn create_image(&self, image: u64, machine: u64) -> Effect<f64> {
        let held = self.lab.machine(machine)?;
        let held = held.lock().await;
        Ok(disk::snapshot(&held.dir, &self.lab.snapshot(image), held.disk.is_some()).await?)
    }

    async fn delete_image(&self, image: u64) -> Effect {
        let file = self.lab.snapshot(image);
        disk::remove_file(&file)?;
        Ok(disk::remove_file(&file.with_extension("golden"))?)
    }

    async fn rebuild_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        let held = self.lab.machine(spec.id)?;
        let mut machine = held.lock().await;
        let origin = self.lab.origin(spec)?;
        self.lab.check_location(&machine.spec.location)?;
        self.lab.cut_power(&mut machine).await?;
        machine.spec = spec.clone();
        machine.rescue = None;
        disk::replace(&machine.dir, spec.disk_gb, origin, metadata.root_password.as_deref()).await?;
        Ok(self.lab.boot(&mut machine).await?)
    }

    async fn set_rescue(&self, machine: u64, rescue: Option<&Metadata>) -> Effect {
        let held = self.lab.machine(machine)?;
        held.lock().await.rescue = rescue.cloned();
        Ok(())
    }

    async fn set_root_password(&self, machine: u64, password: &str) -> Effect {
        let held = self.lab.machine(machine)?;
        let machine = held.lock().await;
        let Some(running) = &machine.running else {
            return Err(LabError::new("the machine is off: a password can only be set in one that runs").into());
        };
        rescue::set_password(&PathBuf::from(format!("/proc/{}/root", running.leader)), password).await?;
        // sshd reads its configuration when it starts. One that does not run reads it then.
        let leader = running.leader.to_string();
        let _ = run::tool("nsenter", &["-t", &leader, "-a", "systemctl", "reload", "ssh"], "").await;
        Ok(())
    }

    async fn resize_machine(&self, machine: u64, cores: u32, memory_mb: u64, disk_gb: u32) -> Effect {
        let held = self.lab.machine(machine)?;
        let mut machine = held.lock().await;
        if machine.running.is_some() {
            return Err(LabError::new("the machine runs: switch it off first").into());
        }
        machine.group.resize(Limits { memory_bytes: memory_mb << 20, cores })?;
        disk::grow(&machine.dir, disk_gb)?;
        machine.spec = MachineSpec { cores, memory_mb, disk_gb, ..machine.spec.clone() };
        Ok(())
    }
}

impl Lab {
    /// What a machine's disk begins with.
    fn origin(&self, spec: &MachineSpec) -> Result<Origin, LabError> {
        let Some(image) = spec.snapshot else { return Ok(Origin::Golden(self.golden.clone())) };
        let file = self.snapshot(image);
        if file.exists() {
            return Ok(Origin::Image(file));
        }
        Err(LabError::new(format!("the disk of image {image} is not there")))
    }

    /// Gives a machine that has its disk the rest: limits and network. It is known from then on.
    async fn furnish(&self, spec: &MachineSpec) -> Result<(), LabError> {
        let id = spec.id;
        let limits = Limits { memory_bytes: spec.memory_mb << 20, cores: spec.cores };
        let cgroups = self.cgroups.clone();
        let group = blocking(move || cgroups.create(id, limits)).await?;
        self.wiring.add(id, spec.public_ipv4, spec.public_ipv6).await;
        let machine = Machine {
            spec: spec.clone(),
            dir: self.home(id),
            group,
            running: None,
            volumes: BTreeMap::new(),
            disk: None,
            rescue: None,
            clock: None,
        };
        self.register(&machine)?;
        lock(&self.machines).insert(id, Arc::new(tokio::sync::Mutex::new(machine)));
        self.impair_links().await
    }
}
