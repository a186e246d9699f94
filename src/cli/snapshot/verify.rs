use super::{Choice, print_json};
use crate::backup::{Catalog, Identities, verify};
use crate::cli::connect::connect;
use crate::cli::{CliError, Context};

pub(super) fn run(choice: &Choice, context: &Context) -> Result<(), CliError> {
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    let connected = connect(context)?;
    let store = connected.store.as_ref();
    let scratch = context.state_dir().join("scratch");
    let (id, verification) = context.block_on(async {
        let entry = Catalog::new(store, &connected.declared.cluster.name).find(&choice.snapshot).await?;
        let read = verify(store, &entry.manifest, &identities, &scratch, connected.world.clock.as_ref()).await?;
        Ok::<_, crate::ports::PortError>((entry.manifest.id, read))
    })?;
    if context.global.json {
        return print_json(&verification);
    }
    println!(
        "Snapshot {id} reads back whole: revision {}, {} keys, {} files in the recovery set.",
        verification.revision,
        verification.keys,
        verification.recovery_files.len()
    );
    for (kind, count) in &verification.kinds {
        println!("{count:>8}  {kind}");
    }
    println!("It stays unproven until it has been restored.");
    Ok(())
}
