use super::connect::Connected;
use super::recovered::Recovered;
use super::{CliError, Context};
use crate::backup::log::Point;
use crate::backup::objects::{self, ObjectName};
use crate::ports::{Collection, ErrorCode, Kube, PortError};

/// One object as it was at a revision or time.
#[derive(clap::Args)]
pub(super) struct PastObject {
    /// The kind as kubectl names it: pods, deployment, certificates.cert-manager.io.
    kind: String,
    name: String,
    /// The object's namespace, if it has one.
    #[arg(short, long)]
    namespace: Option<String>,
    /// A revision, a time, or `latest`.
    #[arg(long, value_name = "REVISION|TIME")]
    at: Point,
}

impl PastObject {
    /// Finds it and lets an API server over the recovered state say what it is.
    pub(super) async fn read(
        &self,
        connected: &Connected,
        context: &Context,
    ) -> Result<(ObjectName, Collection, serde_json::Value), CliError> {
        let recovered = Recovered::at(self.at, connected, context).await?;
        let backend = recovered.backend()?;
        let (name, stored) = objects::find(&backend, &self.kind, self.namespace.as_deref(), &self.name)?;
        let collection = objects::collection(&name, &stored)?;
        let api = recovered.api(connected).await?;
        let found = api.kube.get(&collection, &name.name).await?;
        let found = found.ok_or_else(|| {
            let message = format!("{name} is stored, but no API serves it");
            PortError::new(ErrorCode::NotFound, message).hint(
                "nothing was changed; the definition of its kind (CRD) may be missing at that point: try another --at",
            )
        })?;
        Ok((name, collection, found))
    }
}
