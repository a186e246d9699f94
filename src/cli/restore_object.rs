use serde_json::Value;

use super::connect::{Connected, connect};
use super::past_object::PastObject;
use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};
use crate::backup::field_changes;
use crate::distribution::server_name;
use crate::ports::{Collection, ErrorCode, Kube, PortError, PortResult};
use crate::steps::ServerOutput;
use std::sync::Arc;

/// Bring one object of the living cluster back to what it was at a revision or time. Fields are applied by the server
/// (field manager hk-dr); what it had no word about then stays as it is.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    object: PastObject,
    /// Only show which fields would change. Exit code 2 if any.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Apply. Without it the fields are shown.
    #[arg(long)]
    yes: bool,
    /// Show what Secrets hold.
    #[arg(long)]
    show_secrets: bool,
}

/// Finds the object as it was, compares it with the living one, and applies it.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (changes, label) = context.block_on(async {
        let (name, collection, then) = args.object.read(&connected, context).await?;
        let wanted = restorable(&then);
        let live = serving(&connected, &collection, &name.name).await?;
        let now = live.1.map_or(Value::Null, |object| restorable(&object));
        let changes = field_changes(&now, &wanted, !args.show_secrets);
        if args.yes && !changes.is_empty() {
            live.0
                .apply(&collection, &wanted)
                .await
                .map_err(|e| e.context(format!("nothing of {name} was changed")))?;
        }
        Ok::<_, CliError>((changes, name.to_string()))
    })?;
    if context.global.json {
        print_json(&serde_json::json!({"object": label, "changes": changes, "applied": args.yes}))?;
    } else {
        for change in &changes {
            println!("{}\n  - {}\n  + {}", change.path, change.before, change.after);
        }
        let verb = if args.yes { "were brought back" } else { "differ" };
        println!("{} fields of {label} {verb}.", changes.len());
    }
    if args.yes || changes.is_empty() {
        return Ok(());
    }
    let error = CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None };
    Err(if args.dry_run { error } else { error.hint("nothing was changed; --yes applies it") })
}

/// What a person means by an object: without what the server gives it, and without owners, whose ids may be gone (a garbage
/// collector would delete it again at once).
fn restorable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in [
            "resourceVersion",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "managedFields",
            "ownerReferences",
            "selfLink",
        ] {
            metadata.remove(field);
        }
    }
    object
}

/// The first master whose API server answers, and the object as it is there.
async fn serving(
    connected: &Connected,
    collection: &Collection,
    name: &str,
) -> PortResult<(Arc<dyn Kube>, Option<Value>)> {
    let world = &connected.world;
    let mut last = PortError::new(ErrorCode::NotFound, "no master of the cluster exists");
    for master in &world.cluster.masters {
        let asked = async {
            let found = world.cloud.server_by_name(&server_name(&world.cluster, &master.name)).await?;
            let Some(server) = found else { return Ok(None) };
            let kube = world.kube(&ServerOutput::of(&world.cluster, &server)?.host()).await?;
            let object = kube.get(collection, name).await?;
            Ok::<_, PortError>(Some((kube, object)))
        };
        match asked.await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(e) => last = e,
        }
    }
    Err(last.context("the living cluster cannot be asked").hint("nothing was changed; `hk-dr status` says how it is"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_gives_is_no_difference() {
        let then = json!({"kind": "ConfigMap", "metadata": {"name": "a", "uid": "1", "resourceVersion": "5",
            "managedFields": [], "ownerReferences": [{"uid": "x"}], "labels": {"l": "1"}}, "data": {"k": "1"}});
        let now = json!({"kind": "ConfigMap", "metadata": {"name": "a", "uid": "2", "resourceVersion": "9",
            "creationTimestamp": "z", "labels": {"l": "1"}}, "data": {"k": "2"}, "status": {}});
        let changes = field_changes(&restorable(&now), &restorable(&then), true);
        let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, ["data.k"]);
        assert_eq!(
            restorable(&then),
            json!({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {"l": "1"}}, "data": {"k": "1"}})
        );
    }
}
