//! The log against a real etcd and a real S3 server.

mod flips;
mod outages;
mod support;
mod whole;
