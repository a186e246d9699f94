//! What the API asks of the machines. The API decides (names, limits, states, addresses); a backend makes it real.

use std::net::Ipv4Addr;

use async_trait::async_trait;

/// What a machine is made of. Ids are the API's.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub id: u64,
    pub name: String,
    pub image: String,
    pub public_ipv4: Option<Ipv4Addr>,
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
    /// Powered off from inside.
    Stopped(u64),
}

/// The effects. All calls return when the effect is complete.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Makes the machine's disk from its image and its network; does not boot it. `metadata` is served to it from now on.
    async fn create_machine(&self, spec: &MachineSpec, metadata: &Metadata) -> Effect;
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
    /// Hot-attaches: inside, `/dev/disk/by-id/scsi-0HC_Volume_<id>` appears.
    async fn attach_volume(&self, id: u64, machine: u64) -> Effect;
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
        Err(BackendError("this backend has no network routes".into()))
    }
}
