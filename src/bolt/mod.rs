//! etcd's backend file (the bbolt page format): a reader over a file, and a scanner that learns what a file holds while
//! its pages stream by once, and a writer that makes such a file from nothing.
//!
//! Nothing in here trusts the file: every offset is checked, and damage is reported with the page it was found in.

mod behind;
mod error;
mod head;
mod key_value;
mod meta;
mod page;
mod reader;
mod scan;
#[cfg(test)]
pub(crate) mod tests;
mod write;

pub use error::BoltError;
pub use head::Head;
pub use key_value::{Revision, Stored, decode, encode, encode_lease, key_and_lease, revision, revision_key};
pub use reader::{Backend, BackendInfo, Entries};
pub use scan::{Scanner, Summary};
pub use write::{Untrailed, Writer, Written};
