//! Carries out what `plan::aftermath` decides, and finds out which webhooks' backends answer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use serde_json::Value;

use super::waiting::until;
use crate::plan::aftermath::{Act, Aftermath, Backend, Edit, Found, LOOKED_AT, backends, put_back, resumed};
use crate::ports::{Collection, ErrorCode, Kube, PortResult};

/// Changes under way at the same time.
const AT_ONCE: usize = 8;
/// How long a change is tried: an API server hears of a webhook that was relaxed a moment later.
const CHANGED_WITHIN: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(200);

const WEBHOOKS: [&str; 2] = ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"];

/// All that is looked at. A kind that is not served has no objects.
///
/// # Errors
/// The API server does not answer.
pub async fn look(kube: &dyn Kube) -> PortResult<Found> {
    let mut found = Found::new();
    for (version, plural, namespace) in LOOKED_AT {
        found.insert(plural.to_owned(), list(kube, version, plural, namespace).await?);
    }
    Ok(found)
}

async fn list(kube: &dyn Kube, version: &str, plural: &str, namespace: Option<&str>) -> PortResult<Vec<Value>> {
    let at = Collection {
        api_version: version.to_owned(),
        plural: plural.to_owned(),
        namespace: namespace.map(str::to_owned),
    };
    match kube.list(&at).await {
        Err(error) if error.code == ErrorCode::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Carries out all edits: one kind after the other, several objects of a kind at once. Returns a line for each.
///
/// # Errors
/// `Conflict` if somebody else changed an object since it was looked at: look again, then decide.
pub async fn carry_out(kube: &dyn Kube, aftermath: &Aftermath) -> PortResult<Vec<String>> {
    for kind in aftermath.edits.chunk_by(|a, b| a.at.plural == b.at.plural) {
        let objects = kind.chunk_by(|a, b| (&a.at, &a.name) == (&b.at, &b.name));
        let changes: Vec<_> = objects.map(|edits| change_all(kube, edits).boxed()).collect();
        futures::stream::iter(changes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    Ok(aftermath.edits.iter().map(line).collect())
}

/// What concerns one object, in its order.
async fn change_all(kube: &dyn Kube, edits: &[Edit]) -> PortResult<()> {
    for edit in edits {
        let changed = until("change what is of the cluster's former life", CHANGED_WITHIN, TRY_EVERY, || async {
            change(kube, edit).await.map(Ok)
        });
        changed.await.map_err(|e| e.context(line(edit)))?;
    }
    Ok(())
}

fn line(edit: &Edit) -> String {
    let done = match edit.act {
        Act::Delete { .. } => "delete",
        Act::Patch(_) => "change",
        Act::Recreate(_) => "make anew",
    };
    let namespace = edit.at.namespace.as_ref().map_or(String::new(), |namespace| format!("{namespace}/"));
    format!("{done} {} {namespace}{}: {}", edit.at.plural, edit.name, edit.why)
}

async fn change(kube: &dyn Kube, edit: &Edit) -> PortResult<()> {
    let gone = |result: PortResult<()>| match result {
        // It went by itself since it was looked at.
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => other,
    };
    match &edit.act {
        Act::Delete { grace } => kube.delete(&edit.at, &edit.name, *grace).await.map(|_| ()),
        Act::Patch(patch) => gone(kube.patch(&edit.at, &edit.name, patch).await.map(|_| ())),
        Act::Recreate(object) => {
            kube.delete(&edit.at, &edit.name, Some(0)).await?;
            match kube.create(&edit.at, object).await {
                // Its kubelet was quicker, or an earlier attempt's answer was lost.
                Err(error) if error.code == ErrorCode::Conflict => Ok(()),
                other => other.map(|_| ()),
            }
        }
    }
}

/// What became of relaxed webhooks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Webhooks {
    /// Those that fail closed again, by name.
    pub put_back: Vec<String>,
    /// Those that stay relaxed, and the backend that does not answer.
    pub left: BTreeMap<String, String>,
}

/// Lets relaxed webhooks fail closed again, of those whose backends answer; with `force` all of them.
///
/// # Errors
/// The API server does not answer; `Conflict` if somebody else changed a configuration meanwhile.
pub async fn put_webhooks_back(kube: &dyn Kube, force: bool) -> PortResult<Webhooks> {
    let mut done = Webhooks::default();
    for plural in WEBHOOKS {
        for configuration in list(kube, "admissionregistration.k8s.io/v1", plural, None).await? {
            let relaxed = backends(&configuration);
            let mut answering = BTreeSet::new();
            for backend in relaxed.values() {
                if force || answers(kube, backend).await? {
                    answering.insert(backend.clone());
                }
            }
            let Some((patch, left)) = put_back(&configuration, &|backend| answering.contains(backend)) else {
                continue;
            };
            if let Some(patch) = patch {
                let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
                let at = Collection {
                    api_version: "admissionregistration.k8s.io/v1".into(),
                    plural: plural.into(),
                    namespace: None,
                };
                kube.patch(&at, name, &patch).await?;
            }
            done.put_back.extend(relaxed.keys().filter(|name| !left.contains(name)).cloned());
            for name in left {
                let place = relaxed.get(&name).map(|b| format!("{}/{}:{}", b.namespace, b.service, b.port));
                done.left.insert(name, place.unwrap_or_default());
            }
        }
    }
    Ok(done)
}

/// Names of webhooks that are relaxed now, with their backends.
///
/// # Errors
/// The API server does not answer.
pub async fn relaxed_webhooks(kube: &dyn Kube) -> PortResult<BTreeMap<String, Backend>> {
    let mut all = BTreeMap::new();
    for plural in WEBHOOKS {
        for configuration in list(kube, "admissionregistration.k8s.io/v1", plural, None).await? {
            all.append(&mut backends(&configuration));
        }
    }
    Ok(all)
}

/// Workloads that a recovery suspended, and where they are.
const SUSPENDABLE: [&str; 2] = ["deployments", "statefulsets"];

/// Namespace and name of GitOps controllers, autoscalers and their like that are suspended now.
///
/// # Errors
/// The API server does not answer.
pub async fn suspended_workloads(kube: &dyn Kube) -> PortResult<Vec<String>> {
    Ok(suspended(kube).await?.iter().map(|(_, workload)| called(workload)).collect())
}

/// Lets all of them run as before. Returns their namespaces and names.
///
/// # Errors
/// The API server does not answer; `Conflict` if somebody else changed one meanwhile.
pub async fn resume_suspended(kube: &dyn Kube) -> PortResult<Vec<String>> {
    let mut done = Vec::new();
    for (plural, workload) in suspended(kube).await? {
        let Some(patch) = resumed(&workload) else { continue };
        let namespace = workload["metadata"]["namespace"].as_str().map(str::to_owned);
        let at = Collection { api_version: "apps/v1".into(), plural: plural.into(), namespace };
        match kube.patch(&at, workload["metadata"]["name"].as_str().unwrap_or_default(), &patch).await {
            // Somebody took it away meanwhile.
            Err(error) if error.code == ErrorCode::NotFound => continue,
            other => other?,
        };
        done.push(called(&workload));
    }
    Ok(done)
}

async fn suspended(kube: &dyn Kube) -> PortResult<Vec<(&'static str, Value)>> {
    let mut all = Vec::new();
    for plural in SUSPENDABLE {
        let workloads = list(kube, "apps/v1", plural, None).await?;
        all.extend(workloads.into_iter().filter(|w| resumed(w).is_some()).map(|w| (plural, w)));
    }
    Ok(all)
}

fn called(workload: &Value) -> String {
    let text = |field: &str| workload["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// Whether something answers behind a service, asked the way the API server asks webhooks. That its endpoints are ready
/// may be what the snapshot said.
async fn answers(kube: &dyn Kube, backend: &Backend) -> PortResult<bool> {
    let services =
        |plural: String| Collection { api_version: "v1".into(), plural, namespace: Some(backend.namespace.clone()) };
    if kube.get(&services("services".into()), &backend.service).await?.is_none() {
        return Ok(false);
    }
    let proxied = services(format!("services/https:{}:{}/proxy", backend.service, backend.port));
    // Not `get`: to it whatever is not found is an answer, also one of the API server itself.
    Ok(match kube.list(&proxied).await {
        Ok(_) => true,
        // An answer all the same: to this question it has no object.
        Err(error) => match error.code {
            ErrorCode::Invalid | ErrorCode::Unauthorized | ErrorCode::Forbidden | ErrorCode::RateLimited => true,
            // Unless it is the API server that knows no endpoints of that service.
            ErrorCode::NotFound => !error.message.contains(&format!("\"{}\" not found", backend.service)),
            ErrorCode::ServerError => error.message.contains("the answer is not JSON"),
            _ => false,
        },
    })
}
