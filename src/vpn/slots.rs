use std::fs::File;
use std::path::PathBuf;

use crate::distribution::pki::VPN_SLOTS;
use crate::ports::{ErrorCode, PortError, PortResult};

/// hk-dr has several keys of its own at the VPN host. Each process uses one, because the host sends to whoever spoke last
/// with a key: two processes with the same would take each other's answers.
///
/// On one machine a lock keeps them apart; two machines draw from the same keys by chance, and draw again when a tunnel dies.
pub struct Slots {
    dir: PathBuf,
}

/// A key of this process until it is dropped.
pub struct Slot {
    pub(super) number: u32,
    _lock: File,
}

impl Slots {
    /// Locks lie in this directory, which is made when it is first needed.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// One that no other process of this machine has.
    pub(super) fn take(&self) -> PortResult<Slot> {
        let local = |e: std::io::Error| {
            let message = format!("could not lock one of hk-dr's keys for the VPN in {}: {e}", self.dir.display());
            PortError::new(ErrorCode::Local, message)
        };
        std::fs::create_dir_all(&self.dir).map_err(local)?;
        let first = rand::random_range(0..VPN_SLOTS);
        for number in (0..VPN_SLOTS).map(|offset| (first + offset) % VPN_SLOTS) {
            let path = self.dir.join(format!("slot-{number}"));
            let file = File::options().create(true).append(true).open(path).map_err(local)?;
            match file.try_lock() {
                Ok(()) => return Ok(Slot { number, _lock: file }),
                Err(std::fs::TryLockError::WouldBlock) => {}
                Err(std::fs::TryLockError::Error(error)) => return Err(local(error)),
            }
        }
        Err(PortError::new(ErrorCode::LimitExceeded, format!("{VPN_SLOTS} processes of hk-dr use the VPN already"))
            .hint("end those that hang, then run again"))
    }
}
