//! hk-dr's own way through the VPN: WireGuard inside this process. It needs no privilege, changes nothing on the machine it
//! runs on, and can't be in the way of a person's own tunnel.
//!
//! - `tunnel`: one WireGuard session with a TCP/IP stack behind it. `device`: packets between the two.
//! - `slots`: which of hk-dr's own keys this process uses: two processes with one key would take each other's session.
//! - `door`: a port on loopback for programs that know nothing of it.
//! - `route`: [`VpnRoute`], which decides per address whether to go through the tunnel, and finds the VPN host.

mod carry;
mod device;
mod door;
mod route;
mod slots;
#[cfg(test)]
mod tests;
mod tunnel;

pub use door::Door;
pub use route::VpnRoute;
pub use slots::Slots;
pub use tunnel::{Tunnel, TunnelConfig};
