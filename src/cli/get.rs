use super::connect::connect;
use super::recovered::Recovered;
use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};
use crate::backup::log::Point;
use crate::backup::objects;
use crate::ports::{ErrorCode, Kube, PortError};

/// Show one object as it was at a revision or time, as YAML that kubectl takes. The cluster is not asked.
#[derive(clap::Args)]
pub struct Args {
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

/// Finds the object and lets an API server over the recovered state say what it is.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let object = context.block_on(async {
        let recovered = Recovered::at(args.at, &connected, context).await?;
        let backend = recovered.backend()?;
        let (name, stored) = objects::find(&backend, &args.kind, args.namespace.as_deref(), &args.name)?;
        let collection = objects::collection(&name, &stored)?;
        let api = recovered.api(&connected).await?;
        let found = api.kube.get(&collection, &name.name).await?;
        found.ok_or_else(|| {
            CliError::from(PortError::new(ErrorCode::NotFound, format!("{name} is stored, but no API serves it")))
        })
    })?;
    if context.global.json {
        return print_json(&object);
    }
    let text = serde_saphyr::to_string(&object)
        .map_err(|e| CliError::new(ExitKind::Failed, format!("the object cannot be written as YAML: {e}")))?;
    print!("{text}");
    Ok(())
}
