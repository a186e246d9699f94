//! One small object that the service writes again and again into a cluster it looks after. A rehearsal beside production
//! reads how old it is in the copy and how new it is in production: the time between them is what would have been lost.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ports::{Collection, Kube, PortResult};

/// Its name, beside the canaries of runs.
const NAME: &str = "hk-dr-canary";
/// Writes that may be missing before it counts as no longer written, and what a write may take, in seconds.
const MISSING_MAX: i64 = 3;
const WRITE_SECONDS: i64 = 10;

/// When it was written last, and how often it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub at: Timestamp,
    pub every_seconds: u32,
}

fn collection() -> Collection {
    Collection { api_version: "v1".into(), plural: "configmaps".into(), namespace: Some("default".into()) }
}

impl Mark {
    /// Whether somebody still wrote it at that time: one that nobody writes says nothing of what was lost.
    pub fn is_kept(&self, then: Timestamp) -> bool {
        let allowed = SignedDuration::from_secs(MISSING_MAX * i64::from(self.every_seconds) + WRITE_SECONDS);
        then.duration_since(self.at) <= allowed
    }

    /// Writes it.
    ///
    /// # Errors
    /// The API server does not acknowledge it.
    pub async fn write(&self, kube: &dyn Kube) -> PortResult<()> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": "default", "labels": {"hk-dr/canary": "service"}},
            "data": {"at": self.at.to_string(), "everySeconds": self.every_seconds.to_string()},
        });
        kube.apply(&collection(), &object).await.map(|_| ())
    }

    /// Reads it. None: nobody has written it, or it can't be read.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn read(kube: &dyn Kube) -> PortResult<Option<Self>> {
        Ok(kube.get(&collection(), NAME).await?.as_ref().and_then(Self::of))
    }

    fn of(object: &Value) -> Option<Self> {
        let text = |field: &str| object["data"][field].as_str();
        Some(Self { at: text("at")?.parse().ok()?, every_seconds: text("everySeconds")?.parse().ok()? })
    }
}
