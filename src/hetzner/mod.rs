//! Hetzner Cloud: a small client of our own for the resources hk-dr uses.
//!
//! - `cloud`: [`HetznerCloud`], which implements the port. `create`: what creating has to watch out for.
//! - `actions`: one poller for everything that is under way. `http`: requests, retries, pages. `budget`: the rate limit.
//! - `wire`: the JSON, read tolerantly. `error`: what the API's codes mean here.
//! - `perimeter`: firewalls and routes. `front`: load balancers and floating IPs.
//! - `fake`: [`FakeCloud`], the cloud in memory. `contract`: what both must do.
//!
//! Architecture invariant: no type of `wire` leaves this module; nothing is created twice for one unique name.

mod actions;
mod budget;
mod cloud;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod contract_front;
#[cfg(test)]
mod contract_perimeter;
mod create;
mod error;
mod fake;
mod fake_front;
mod fake_perimeter;
mod front;
mod http;
mod perimeter;
mod prices;
#[cfg(test)]
mod tests;
mod wire;

pub use cloud::{DEFAULT_ENDPOINT, HetznerCloud};
pub use fake::{Call, FakeCloud};
pub use http::requests;
