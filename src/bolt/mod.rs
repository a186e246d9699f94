//! etcd's backend file (the bbolt page format): a reader over a file, and a scanner that learns what a file holds while
//! its pages stream by once.
//!
//! Nothing in here trusts the file: every offset is checked, and damage is reported with the page it was found in.

mod error;
mod key_value;
mod meta;
mod page;
mod reader;
mod scan;
#[cfg(test)]
pub(crate) mod tests;

pub use error::BoltError;
pub use key_value::{Revision, Stored};
pub use reader::{Backend, BackendInfo};
pub use scan::{Scanner, Summary};
