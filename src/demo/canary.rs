//! Canaries: one small object a second through the API, and a file that says when each write was acknowledged. What was
//! acknowledged and is not there after a recovery was lost: the newest that survived is the recovery point.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::DemoError;
use super::uses::{hosts, masters};
use crate::ports::Collection;
use crate::steps::World;

/// Where canaries live.
pub const NAMESPACE: &str = "hk-dr-canary";
const EVERY: Duration = Duration::from_secs(1);
/// A write that takes longer is no canary of its second any more.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// One acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub name: String,
    /// When the API had answered, by this machine's clock.
    pub acknowledged_at: Timestamp,
    /// etcd's revision of the write.
    pub revision: i64,
}

/// The collection of canaries.
pub fn collection() -> Collection {
    Collection { api_version: "v1".into(), plural: "configmaps".into(), namespace: Some(NAMESPACE.into()) }
}

/// Writes canaries until it is ended; appends each acknowledged one to the file.
///
/// # Errors
/// No master, or the file can't be written. A write that fails is tried on the next master a second later.
pub async fn write_canaries(world: &World, log: &Path) -> Result<(), DemoError> {
    let mut file = open(log)?;
    let masters = masters(world, &hosts(world).await?);
    let mut apis = Vec::new();
    for master in &masters {
        apis.push(world.kube(master).await?);
    }
    if apis.is_empty() {
        return Err(DemoError::new("there is no master to write canaries to"));
    }
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut turn, collection) = (0, collection());
    for number in 1u32.. {
        ticks.tick().await;
        let name = format!("canary-{number:06}");
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"sent-at": world.clock.now().to_string()},
        });
        let write = apis[turn % apis.len()].create(&collection, &object);
        let Ok(Ok(answer)) = tokio::time::timeout(WRITE_WITHIN, write).await else {
            turn += 1;
            continue;
        };
        let revision = answer["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
        let canary = Canary { name, acknowledged_at: world.clock.now(), revision: revision.unwrap_or(0) };
        append(&mut file, &canary).map_err(|e| DemoError::io(format!("write {}", log.display()), &e))?;
    }
    Ok(())
}

fn open(log: &Path) -> Result<File, DemoError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .map_err(|e| DemoError::io(format!("open {}", log.display()), &e))
}

fn append(file: &mut File, canary: &Canary) -> std::io::Result<()> {
    let mut line = serde_json::to_string(canary)?;
    line.push('\n');
    file.write_all(line.as_bytes())
}

/// The acknowledged canaries, oldest first. A last line that was cut off is no acknowledged write.
pub fn read(log: &Path) -> Result<Vec<Canary>, DemoError> {
    let text = std::fs::read_to_string(log).map_err(|e| DemoError::io(format!("read {}", log.display()), &e))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The newest canary that is among those present.
pub fn newest_survivor(written: &[Canary], is_present: impl Fn(&str) -> bool) -> Option<&Canary> {
    written.iter().filter(|canary| is_present(&canary.name)).max_by_key(|canary| canary.acknowledged_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(number: u32) -> Canary {
        Canary {
            name: format!("canary-{number}"),
            acknowledged_at: Timestamp::from_second(1000 + i64::from(number)).unwrap(),
            revision: 100 + i64::from(number),
        }
    }

    #[test]
    fn what_was_acknowledged_is_what_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("canaries");
        let mut file = open(&log).unwrap();
        append(&mut file, &canary(1)).unwrap();
        append(&mut file, &canary(2)).unwrap();
        file.write_all(b"{\"name\":\"cana").unwrap();
        assert_eq!(read(&log).unwrap(), [canary(1), canary(2)]);
    }

    #[test]
    fn the_recovery_point_is_the_newest_canary_that_is_there() {
        let written = [canary(1), canary(2), canary(3)];
        assert_eq!(newest_survivor(&written, |name| name != "canary-3"), Some(&written[1]));
        assert_eq!(newest_survivor(&written, |_| false), None);
    }
}
