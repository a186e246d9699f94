use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::aftermath::{put_webhooks_back, resume_suspended};
use super::cluster_clean::Cleaned;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::ClusterSettle;
use crate::ports::{Collection, ErrorClass, Kube, PortResult};

/// Puts back what was relaxed for the recovery as soon as what it stood for answers, and says what is left to a person.
pub struct ClusterSettleStep;

const ASK_EVERY: Duration = Duration::from_secs(1);

#[async_trait]
impl StepKind for ClusterSettleStep {
    type Params = ClusterSettle;
    type Output = Cleaned;

    async fn observe(&self, _: &StepContext<'_>, _: &ClusterSettle) -> PortResult<Observed<Cleaned>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ClusterSettle) -> PortResult<Cleaned> {
        let kube = cx.world.kube(&cx.server(&params.master_server).await?.host()).await?;
        settle(kube.as_ref(), Duration::from_secs(params.within_seconds.into()), params.resumes).await
    }
}

/// Asks until every backend has answered, or the time is over; then lets what was suspended act again.
pub(super) async fn settle(kube: &dyn Kube, within: Duration, resumes: bool) -> PortResult<Cleaned> {
    let end = Instant::now() + within;
    let mut settled = Cleaned::default();
    let left = loop {
        match put_webhooks_back(kube, false).await {
            Ok(webhooks) => {
                settled.done.extend(webhooks.put_back.into_iter().map(|name| format!("{name} fails closed again")));
                if webhooks.left.is_empty() || Instant::now() >= end {
                    break webhooks.left;
                }
            }
            // Also when a controller has written its own change in between.
            Err(error) if error.class() != ErrorClass::Permanent && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
        sleep(ASK_EVERY).await;
    };
    if resumes {
        // Last of all: they act on everything that was put right.
        let resumed = resume_suspended(kube).await?;
        if !resumed.is_empty() {
            settled.findings.push(format!(
                "{} act again: what Git has now is applied, also where it is newer than the snapshot",
                resumed.join(", ")
            ));
        }
        settled.done.extend(resumed.into_iter().map(|name| format!("{name} runs again")));
    }
    settled.edits = u32::try_from(settled.done.len()).unwrap_or(u32::MAX);
    settled.findings.extend(left.into_iter().map(|(name, backend)| {
        format!(
            "webhook {name} was relaxed (failurePolicy Ignore instead of Fail) and stays so: its backend {backend} does \
             not answer; when it does, `hk-dr webhooks --put-back`"
        )
    }));
    let namespaces = Collection { api_version: "v1".into(), plural: "namespaces".into(), namespace: None };
    settled.findings.extend(kube.list(&namespaces).await?.iter().filter_map(stuck));
    Ok(settled)
}

/// What holds a namespace up that is being deleted.
fn stuck(namespace: &Value) -> Option<String> {
    namespace["metadata"]["deletionTimestamp"].as_str()?;
    let name = namespace["metadata"]["name"].as_str()?;
    let conditions = namespace["status"]["conditions"].as_array().into_iter().flatten();
    let why: Vec<&str> = conditions.filter(|c| c["status"] == "True").filter_map(|c| c["message"].as_str()).collect();
    let why = if why.is_empty() { "nothing is said of why".to_owned() } else { why.join("; ") };
    Some(format!("namespace {name} is still being deleted: {why}"))
}
