//! The emulated API over HTTP, with a fake backend: no machine is booted, no root is needed. Every answer is also held
//! against the published OpenAPI document where that is to be had.

mod addresses;
mod balancers;
mod browser;
mod client;
mod coverage;
mod disks;
mod document;
mod faults;
mod firewalls;
mod keys_and_groups;
mod lists;
mod metadata;
mod networks;
mod page;
mod projects;
mod protocol;
mod python;
mod servers;
mod tour;
mod volumes;
