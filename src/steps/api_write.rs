use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::waiting::until;
use super::{Observed, StepContext, StepKind};
use crate::plan::params::ApiWrite;
use crate::ports::{Collection, ErrorClass, Kube, PortResult};

/// Writes an object through one API server, reads it back and deletes it.
pub struct ApiWriteStep;

const WRITTEN_WITHIN: Duration = Duration::from_secs(90);
const TRY_EVERY: Duration = Duration::from_millis(50);

#[async_trait]
impl StepKind for ApiWriteStep {
    type Params = ApiWrite;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &ApiWrite) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ApiWrite) -> PortResult<()> {
        let kube = cx.world.kube(&cx.server(&params.server).await?.host()).await?;
        let collection =
            Collection { api_version: "v1".into(), plural: "configmaps".into(), namespace: Some("default".into()) };
        let name = format!("hk-dr-write-{}", params.server);
        until("waiting for an acknowledged write", WRITTEN_WITHIN, TRY_EVERY, || async {
            match written(kube.as_ref(), &collection, &name, cx.run).await {
                // For a moment after its start an API server may not know yet who may do what.
                Err(error) if error.class() != ErrorClass::Transient => Ok(Err(error.message)),
                other => other,
            }
        })
        .await?;
        kube.delete(&collection, &name, None).await.map(|_| ())
    }
}

async fn written(kube: &dyn Kube, collection: &Collection, name: &str, run: &str) -> PortResult<Result<(), String>> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"run": run},
    });
    kube.apply(collection, &object).await?;
    Ok(match kube.get(collection, name).await? {
        Some(read) if read["data"]["run"] == run => Ok(()),
        Some(_) => Err("something else was read back".into()),
        None => Err("what was written was not there".into()),
    })
}
