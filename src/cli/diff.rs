use std::collections::BTreeMap;
use std::str::FromStr;

use super::connect::{Connected, connect};
use super::members::etcd_of;
use super::recovered::Recovered;
use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};
use crate::backup::log::Point;
use crate::backup::objects::{self, Change, Comparer, Contents, ObjectName, differences};
use crate::backup::{FieldChange, field_changes};
use crate::distribution::server_name;
use crate::ports::{Collection, ErrorCode, Kube, PortError};
use crate::steps::ServerOutput;

/// Compare two recovery points, or one with the living cluster: what came, went and changed? Exit code 2 if they differ.
#[derive(clap::Args)]
pub struct Args {
    /// A revision, a time, `latest`, or `live`.
    first: Side,
    /// The same; by default the living cluster.
    #[arg(default_value = "live")]
    second: Side,
    /// Only objects of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Show how one object differs, field by field: KIND/NAME.
    #[arg(long, value_name = "KIND/NAME", conflicts_with = "kind")]
    fields: Option<String>,
    /// With --fields: the object's namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// With --fields: show the values of Secrets.
    #[arg(long, requires = "fields")]
    show_secrets: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Live,
    At(Point),
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "live" { Ok(Self::Live) } else { text.parse().map(Self::At) }
    }
}

/// Compares.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let differ = match &args.fields {
        Some(object) => fields(args, object, &connected, context)?,
        None => all(args, &connected, context)?,
    };
    if differ { Err(CliError::new(ExitKind::Differs, String::new())) } else { Ok(()) }
}

fn all(args: &Args, connected: &Connected, context: &Context) -> Result<bool, CliError> {
    let comparer = Comparer::default();
    let (first, second) = context.block_on(async {
        let first = contents(args.first, &comparer, connected, context).await?;
        Ok::<_, CliError>((first, contents(args.second, &comparer, connected, context).await?))
    })?;
    let mut found = differences(&first.0, &second.0);
    if let Some(kind) = &args.kind {
        found.retain(|(name, _)| name.is_meant(kind, name.namespace.as_deref(), &name.name));
    }
    if context.global.json {
        let objects: Vec<_> = found
            .iter()
            .map(|(name, change)| {
                serde_json::json!({"kind": name.kind, "namespace": name.namespace, "name": name.name, "change": change})
            })
            .collect();
        let value = serde_json::json!({
            "first": {"revision": first.1}, "second": {"revision": second.1}, "differences": objects});
        print_json(&value)?;
        return Ok(!found.is_empty());
    }
    let mut kinds: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (name, change) in &found {
        let mark = match change {
            Change::Removed => '-',
            Change::Added => '+',
            Change::Changed => '~',
        };
        println!("{mark} {name}");
        kinds.entry(&name.kind).or_default()[*change as usize] += 1;
    }
    for (kind, [removed, added, changed]) in kinds {
        println!("  {kind}: {added} added, {removed} removed, {changed} changed");
    }
    println!("Revision {} against {}: {} objects differ.", first.1, second.1, found.len());
    Ok(!found.is_empty())
}

async fn contents(
    side: Side,
    comparer: &Comparer,
    connected: &Connected,
    context: &Context,
) -> Result<(Contents, i64), CliError> {
    match side {
        Side::Live => Ok(comparer.live(etcd_of(connected).await?.as_ref()).await?),
        Side::At(point) => {
            let recovered = Recovered::at(point, connected, context).await?;
            Ok((comparer.file(&recovered.backend()?)?, recovered.recalled.made.revision))
        }
    }
}

fn fields(args: &Args, object: &str, connected: &Connected, context: &Context) -> Result<bool, CliError> {
    let (kind, name) = object.split_once('/').ok_or_else(|| {
        CliError::new(ExitKind::Usage, format!("--fields {object:?} is not KIND/NAME, such as deployment/web"))
    })?;
    let namespace = args.namespace.as_deref();
    let changes = context.block_on(async {
        let mut seen: Option<(ObjectName, Collection)> = None;
        let mut values = Vec::new();
        // A recovered state knows the object's API version; the living cluster is asked after it.
        for side in [args.first, args.second] {
            let Side::At(point) = side else { continue };
            let recovered = Recovered::at(point, connected, context).await?;
            let backend = recovered.backend()?;
            match objects::find(&backend, kind, namespace, name) {
                Ok((found, stored)) => {
                    let collection = objects::collection(&found, &stored)?;
                    let api = recovered.api(connected).await?;
                    values.push((side, api.kube.get(&collection, &found.name).await?.unwrap_or_default()));
                    seen = Some((found, collection));
                }
                Err(e) if e.code == ErrorCode::NotFound => values.push((side, serde_json::Value::Null)),
                Err(e) => return Err(CliError::from(e)),
            }
        }
        let Some((found, collection)) = seen else {
            let message = format!("{kind} {name} is in none of the recovered states");
            return Err(PortError::new(ErrorCode::NotFound, message).hint("-n names its namespace").into());
        };
        let mut of = Vec::new();
        for side in [args.first, args.second] {
            of.push(match side {
                Side::Live => live(&collection, &found, connected).await?,
                Side::At(_) => values.remove(0).1,
            });
        }
        Ok::<Vec<FieldChange>, CliError>(field_changes(&of[0], &of[1], !args.show_secrets))
    })?;
    if context.global.json {
        print_json(&changes)?;
    } else {
        for change in &changes {
            println!("{}\n  - {}\n  + {}", change.path, change.before, change.after);
        }
        println!("{} fields of {object} differ.", changes.len());
    }
    Ok(!changes.is_empty())
}

async fn live(
    collection: &Collection,
    name: &ObjectName,
    connected: &Connected,
) -> Result<serde_json::Value, CliError> {
    let world = &connected.world;
    let mut last = PortError::new(ErrorCode::NotFound, "no master of the cluster exists in the cloud");
    for master in &world.cluster.masters {
        let Some(server) = world.cloud.server_by_name(&server_name(&world.cluster, &master.name)).await? else {
            continue;
        };
        let asked = async {
            let kube = world.kube(&ServerOutput::of(&world.cluster, &server)?.host()).await?;
            kube.get(collection, &name.name).await
        };
        match asked.await {
            Ok(found) => return Ok(found.unwrap_or_default()),
            Err(e) => last = e,
        }
    }
    Err(last.into())
}
