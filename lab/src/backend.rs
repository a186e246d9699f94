//! What the API asks of the machines. The API decides (names, limits, states, addresses); a backend makes it real.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// What a machine is made of. Ids are the API's.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub id: u64,
    pub name: String,
    pub image: String,
    /// Disk contents to start from instead of the system image: an image made by `create_image`.
    pub snapshot: Option<u64>,
    pub public_ipv4: Option<Ipv4Addr>,
    /// The first address of its /64; the machine configures `::1` of it.
    pub public_ipv6: Option<Ipv6Addr>,
    pub cores: u32,
    pub memory_mb: u64,
    pub disk_gb: u32,
    pub location: String,
}

/// What the metadata service at 169.254.169.254 tells one machine, looked up by the machine's id.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    pub hostname: String,
    pub instance_id: u64,
    pub public_ipv4: Option<Ipv4Addr>,
    pub region: String,
    pub availability_zone: String,
    /// OpenSSH public keys.
    pub public_keys: Vec<String>,
    pub user_data: String,
    /// Root's first password, given when there is no key. Injected at the first boot only.
    pub root_password: Option<String>,
}

/// One rule of the firewalls of a machine. Directions as the machine sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    pub direction: Direction,
    pub protocol: Protocol,
    /// First and last port; `None` for protocols without ports.
    pub ports: Option<(u16, u16)>,
    /// Sources of incoming, destinations of outgoing traffic, in CIDR form, both families. Never empty.
    pub networks: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    In,
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Esp,
    Gre,
}

/// A load balancer as it should be; setting it again replaces all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerSpec {
    pub id: u64,
    pub location: String,
    pub public_ipv4: Option<Ipv4Addr>,
    /// The address itself, not a network.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The network it is attached to, and its address there.
    pub private: Option<(u64, Ipv4Addr)>,
    /// `round_robin` or `least_connections`.
    pub least_connections: bool,
    pub services: Vec<BalancerService>,
    /// Where targets answer: addresses, public or private, already chosen by the API.
    pub targets: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerService {
    pub kind: BalancerKind,
    pub listen_port: u16,
    pub destination_port: u16,
    /// Tells targets the client's address by the PROXY protocol.
    pub proxyprotocol: bool,
    pub health_check: HealthCheck,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancerKind {
    Tcp,
    /// With `certificates` (PEM: chain, then key) it ends TLS.
    Http {
        certificates: Vec<String>,
        redirect_http: bool,
        sticky: Option<StickyCookie>,
        timeout_idle_seconds: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyCookie {
    pub name: String,
    pub lifetime_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub port: u16,
    pub interval_seconds: u32,
    pub timeout_seconds: u32,
    pub retries: u32,
    pub http: Option<HttpCheck>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    pub domain: Option<String>,
    pub path: String,
    pub response: Option<String>,
    /// Such as `200` or `2??`.
    pub status_codes: Vec<String>,
    pub tls: bool,
}

/// What the checks saw last: by listen port and target. `None`: not checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHealth {
    pub listen_port: u16,
    pub target: IpAddr,
    pub healthy: Option<bool>,
}

/// What a machine or a load balancer did since it started; the API makes rates of two samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Processor time of all cores.
    pub cpu_seconds: f64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
    pub disk_reads: u64,
    pub disk_writes: u64,
    pub network_in_bytes: u64,
    pub network_out_bytes: u64,
    pub network_in_packets: u64,
    pub network_out_packets: u64,
    /// Load balancers: open now, opened and requested since the start.
    pub open_connections: u64,
    pub connections: u64,
    pub requests: u64,
}

/// An effect that failed. The message ends up in the action's error.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// Short for results of effects.
pub type Effect<T = ()> = Result<T, BackendError>;

/// A machine went down or came up by itself (poweroff or reboot from inside, or a crash).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// Powered off from inside, or without power.
    Stopped(u64),
    /// Runs again: its location has power again.
    Started(u64),
    /// Booted again because it was told to from inside.
    Rebooted(u64),
}

/// What the machines' room is to suffer from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoomFaults {
    /// Locations in which nothing runs on, and nothing ends.
    pub frozen: Vec<String>,
    /// Locations without power.
    pub dark: Vec<String>,
    pub links: Vec<LinkFault>,
    /// Volumes that answer I/O errors.
    pub broken_volumes: Vec<u64>,
    /// Machines whose root disks have no free space.
    pub full_disks: Vec<u64>,
    /// Machines whose wall clocks are off, and by how many milliseconds. Those of one machine add up.
    pub skewed_clocks: Vec<(u64, i64)>,
    /// Requests to S3 pass the lab's proxy.
    pub object_store: bool,
}

impl RoomFaults {
    /// By how many milliseconds a machine's clock is off.
    pub fn skew(&self, machine: u64) -> i64 {
        self.skewed_clocks.iter().filter(|(id, _)| *id == machine).map(|(_, skew)| skew).sum()
    }
}

/// Something between a location and an other end, in both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkFault {
    pub location: String,
    pub to: LinkEnd,
    pub impairment: Impairment,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    Location(String),
    /// All other locations.
    Others,
    /// What is outside of the cloud, and the cloud's own public services.
    Internet,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Impairment {
    Cut,
    Loss { percent: f64 },
    Rate { kbit: u32 },
    Delay { milliseconds: u32 },
}

/// The effects. All calls return when the effect is complete.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Makes the machine's disk from its image and its network; does not boot it. `metadata` is served to it from now on.
    async fn create_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect;
    /// As `create_machine` after the lab was started anew: the disk is there, unless its making was cut short.
    async fn restore_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        self.create_machine(spec, metadata).await
    }
    /// Boots. Returns when the machine's init runs, not when its services do.
    async fn power_on(&self, id: u64) -> Effect;
    /// Cuts the power.
    async fn power_off(&self, id: u64) -> Effect;
    /// Presses the power button; the machine may ignore it. A `MachineEvent::Stopped` follows if it obeys.
    async fn shutdown(&self, id: u64) -> Effect;
    /// Power off and on.
    async fn reset(&self, id: u64) -> Effect;
    /// Ctrl-Alt-Del.
    async fn reboot(&self, id: u64) -> Effect;
    /// Destroys machine, disk and interfaces. Volumes were detached before.
    async fn delete_machine(&self, id: u64) -> Effect;

    /// `format`: none, `ext4` or `xfs`.
    async fn create_volume(&self, id: u64, size_gb: u32, format: Option<&str>) -> Effect;
    /// As `create_volume` after the lab was started anew: its data is there, unless its making was cut short.
    async fn restore_volume(&self, id: u64, size_gb: u32, format: Option<&str>) -> Effect {
        self.create_volume(id, size_gb, format).await
    }
    /// Removes the disks of all machines, volumes and images but these: what an earlier life of the lab left half done.
    async fn keep_only(&self, machines: &[u64], volumes: &[u64], images: &[u64]) -> Effect {
        let _ = (machines, volumes, images);
        Ok(())
    }
    /// Hot-attaches: inside, `/dev/disk/by-id/scsi-0HC_Volume_<id>` appears.
    async fn attach_volume(&self, id: u64, machine: u64) -> Effect;
    /// Lets a machine mount an attached volume at /mnt/HC_Volume_<id>, now or when it boots, and from then on at each
    /// boot. One without a file system is left alone.
    async fn automount_volume(&self, id: u64, machine: u64) -> Effect {
        let _ = (id, machine);
        not_here("mounting of volumes")
    }
    /// Surprise removal: what was not synced is lost.
    async fn detach_volume(&self, id: u64, machine: u64) -> Effect;
    async fn delete_volume(&self, id: u64) -> Effect;
    async fn resize_volume(&self, id: u64, size_gb: u32) -> Effect;

    /// `range` in CIDR form; the gateway is its first address.
    async fn create_network(&self, id: u64, range: &str) -> Effect;
    async fn delete_network(&self, id: u64) -> Effect;
    /// Hot-plugs a private interface with this address; `range` is routed to it.
    async fn attach_network(&self, machine: u64, network: u64, address: Ipv4Addr, range: &str) -> Effect;
    async fn detach_network(&self, machine: u64, network: u64) -> Effect;
    /// Replaces the network's routes: each destination (CIDR) is reached through the machine with that address.
    async fn set_routes(&self, network: u64, routes: &[(String, Ipv4Addr)]) -> Effect {
        let _ = (network, routes);
        not_here("network routes")
    }

    /// Sets the rules that filter its public traffic, statefully; private traffic is never filtered. `None`: no firewall,
    /// everything passes. With rules, what none of them lets in is dropped; outgoing traffic is filtered if a rule is outgoing.
    async fn set_firewall(&self, machine: u64, rules: Option<&[FirewallRule]>) -> Effect {
        let _ = (machine, rules);
        not_here("firewalls")
    }
    /// Routes a floating address (IPv4, or the first of an IPv6 /64) to a machine or nowhere. Inside nothing is configured.
    async fn route_floating_ip(&self, address: IpAddr, machine: Option<u64>) -> Effect {
        let _ = (address, machine);
        not_here("floating IPs")
    }
    /// Changes the public addresses of a machine that is off.
    async fn set_public_addresses(&self, machine: u64, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Effect {
        let _ = (machine, ipv4, ipv6);
        not_here("changing public addresses")
    }
    /// Replaces the further addresses that a private network routes to a machine. Inside nothing is configured.
    async fn set_alias_ips(&self, machine: u64, network: u64, aliases: &[Ipv4Addr]) -> Effect {
        let _ = (machine, network, aliases);
        not_here("alias IPs")
    }

    async fn set_balancer(&self, spec: &BalancerSpec) -> Effect {
        let _ = spec;
        not_here("load balancers")
    }
    async fn delete_balancer(&self, id: u64) -> Effect {
        let _ = id;
        not_here("load balancers")
    }
    async fn balancer_health(&self, id: u64) -> Effect<Vec<TargetHealth>> {
        let _ = id;
        not_here("load balancers")
    }
    async fn balancer_counters(&self, id: u64) -> Effect<Counters> {
        let _ = id;
        not_here("load balancers")
    }

    /// Copies a machine's root disk into an image. Returns its size in GB.
    async fn create_image(&self, image: u64, machine: u64) -> Effect<f64> {
        let _ = (image, machine);
        not_here("images of servers")
    }
    async fn delete_image(&self, image: u64) -> Effect {
        let _ = image;
        not_here("images of servers")
    }
    /// Gives a machine a new root disk, then boots it. Volumes, addresses and networks stay.
    async fn rebuild_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect {
        let _ = (spec, metadata);
        not_here("rebuilding servers")
    }
    /// From the next boot on the machine boots a rescue system with these keys (and password) instead of its disk, once;
    /// `None` takes that back.
    async fn set_rescue(&self, machine: u64, rescue: Option<&Metadata>) -> Effect {
        let _ = (machine, rescue);
        not_here("rescue systems")
    }
    /// Sets root's password in a running machine.
    async fn set_root_password(&self, machine: u64, password: &str) -> Effect {
        let _ = (machine, password);
        not_here("passwords")
    }
    /// Changes what a machine that is off has.
    async fn resize_machine(&self, machine: u64, cores: u32, memory_mb: u64, disk_gb: u32) -> Effect {
        let _ = (machine, cores, memory_mb, disk_gb);
        not_here("resizing servers")
    }
    /// Replaces all faults of machines, disks and networks.
    async fn set_faults(&self, faults: &RoomFaults) -> Effect {
        if *faults == RoomFaults::default() { Ok(()) } else { not_here("faults of machines, disks and networks") }
    }
    async fn machine_counters(&self, machine: u64) -> Effect<Counters> {
        let _ = machine;
        not_here("metrics")
    }
}

fn not_here<T>(what: &str) -> Effect<T> {
    Err(BackendError(format!("this backend has no {what}")))
}
