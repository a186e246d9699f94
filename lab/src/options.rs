use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// Which lab, and where it keeps what.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// At most 32 lower-case letters, digits and dashes.
    pub name: String,
    /// Golden images and pinned binaries; survives the lab.
    pub cache_dir: PathBuf,
    /// Disks of machines, volumes and buckets, on a real file system; the lab removes its own part below.
    pub state_dir: PathBuf,
}

impl LabOptions {
    /// Checks the name.
    ///
    /// # Errors
    /// It is empty, too long, or has other characters.
    pub fn check(&self) -> Result<(), LabError> {
        check_name(&self.name)
    }

    /// Where this lab's disks are.
    pub(crate) fn disks(&self) -> PathBuf {
        self.state_dir.join("labs").join(&self.name)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), LabError> {
    let fine = !name.is_empty()
        && name.len() <= 32
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fine {
        return Ok(());
    }
    Err(LabError::new(format!("{name:?} cannot name a lab"))
        .hint("use at most 32 lower-case letters, digits and dashes, not starting with a dash"))
}

/// Where all labs of this host register. Labs need root, so there is one such place.
pub(crate) fn labs_dir() -> PathBuf {
    PathBuf::from("/run/hk-dr/labs")
}

/// How to use a running lab. Holds secrets: kept in a file with mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct LabInfo {
    pub name: String,
    /// The process on the host that watches over the lab.
    pub guardian_pid: i32,
    /// Process 1 of the lab, as the host numbers it.
    pub init_pid: i32,
    pub disks: PathBuf,
    /// The cloud API on the host's loopback.
    pub api_published: SocketAddr,
    /// S3 on the host's loopback.
    pub s3_published: SocketAddr,
    pub token: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    /// Its state and disks outlive it: `lab up` with the same name brings it back.
    #[serde(default)]
    pub durable: bool,
}

impl LabInfo {
    /// What a client of the cloud needs, as environment variables: from the host, or from a place in the lab.
    #[must_use]
    pub fn environment(&self, in_lab: bool) -> Vec<(&'static str, String)> {
        let (api, s3) = if in_lab {
            ("192.0.2.10".to_owned(), "192.0.2.20:7070".to_owned())
        } else {
            (self.api_published.to_string(), self.s3_published.to_string())
        };
        vec![
            ("HCLOUD_ENDPOINT", format!("http://{api}/v1")),
            ("HCLOUD_TOKEN", self.token.clone()),
            ("AWS_ENDPOINT_URL", format!("http://{s3}")),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", self.region.clone()),
        ]
    }

    /// Reads it from a lab's directory.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join("lab.json")).ok()?).ok()
    }
}

/// What the process that becomes the lab needs to know. No secrets: it travels as an argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub name: String,
    pub disks: PathBuf,
    pub golden: PathBuf,
    pub versitygw: PathBuf,
    /// Keeps state and disks when the lab ends, however it ends.
    #[serde(default)]
    pub durable: bool,
    /// Standard input is a [`crate::control::Tether`]'s other end.
    #[serde(default)]
    pub tethered: bool,
}

/// What a durable lab keeps of how it is used: below its disks, mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Access {
    pub token: String,
    pub access_key: String,
    pub secret_key: String,
    /// Where it was published last; it tries to be there again.
    pub api_port: u16,
    pub s3_port: u16,
}

/// The whole state of a durable lab's API, below its disks.
pub(crate) fn state_file(disks: &Path) -> PathBuf {
    disks.join("state.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_a_directory_and_a_control_group() {
        for good in ["lab", "a", "demo-2", "x0123456789012345678901234567890"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", "x01234567890123456789012345678901"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
