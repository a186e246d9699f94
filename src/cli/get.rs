use super::connect::connect;
use super::past_object::PastObject;
use super::snapshot::print_json;
use super::{CliError, Context, ExitKind};

/// Show one object as it was at a revision or time, as YAML that kubectl takes. The cluster is not asked.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    object: PastObject,
}

/// Prints the object.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (_, _, object) = context.block_on(args.object.read(&connected, context))?;
    if context.global.json {
        return print_json(&object);
    }
    let text = serde_saphyr::to_string(&object)
        .map_err(|e| CliError::new(ExitKind::Failed, format!("the object cannot be written as YAML: {e}")))?;
    print!("{text}");
    Ok(())
}
