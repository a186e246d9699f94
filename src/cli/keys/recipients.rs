//! Who can open what Git and the bucket hold, changed.

use crate::backup::{BucketVault, Catalog, Identities, Recipients};
use crate::cli::connect::{Connected, connect};
use crate::cli::{CliError, Context, ExitKind};
use crate::secrets::{rotation, write_file};
use crate::volumes::Repository;

/// Whom to let in, and whom no longer.
#[derive(clap::Args)]
pub(super) struct Args {
    /// An age recipient who can open everything from now on. Repeatable.
    #[arg(long, value_name = "AGE1…")]
    add: Vec<String>,
    /// One who cannot open what is made from now on. Repeatable.
    #[arg(long, value_name = "AGE1…")]
    remove: Vec<String>,
    /// Say what would change, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Changes the recipients. Running it again after it was interrupted ends what it began.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    let path = context.global.dir.join(&connected.declared.cluster.backup.recipients_file);
    let text = std::fs::read_to_string(&path)
        .map_err(|e| CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display())))?;
    let changed = change(&text, &args.add, &args.remove)?;
    let recipients = Recipients::parse(&changed).map_err(|e| CliError::from(e.context("the changed recipients")))?;
    let names = recipients.names();
    if !identities.open_one_of(&names) {
        let message = "the identity in use would open nothing any more";
        return Err(CliError::new(ExitKind::Usage, message).hint(
            "nothing was changed; add the new recipient first, then remove the old one with --identity NEW_FILE: that proves \
             that the new identity opens everything",
        ));
    }
    if !args.dry_run {
        // The list in Git comes last: until then, running this again repeats everything.
        rotation::reseal(&context.global.dir, &identities, &recipients)?;
        let cluster = &connected.declared.cluster.name;
        context.block_on(async {
            Repository::rewrap(connected.store.as_ref(), cluster, &identities, &recipients).await?;
            vault(&connected, &identities, recipients).rewrap().await
        })?;
        write_file(&path, 0o644, changed.as_bytes(), true)?;
    }
    let (old, closed) = context.block_on(snapshots(&connected, &names))?;
    if context.global.json {
        let value =
            serde_json::json!({"recipients": names, "changed": !args.dry_run, "snapshots": old, "closed": closed});
        println!("{value}");
        return Ok(());
    }
    let verb = if args.dry_run { "Would open" } else { "Open now" };
    println!("{verb} with the identity of any of: secrets.yaml.age, the cluster's secrets, and every backup to come:");
    names.iter().for_each(|name| println!("  {name}"));
    println!(
        "{old} snapshots are there; {closed} of them open for none of these: keep an old identity until retention has \
         removed them."
    );
    if !args.dry_run {
        println!("Commit secrets.yaml.age and {}; then `hk-dr snapshot` begins the new set.", path.display());
        println!("Restart what ships the log, or the service, so that it encrypts to the new recipients as well.");
        if !args.remove.is_empty() {
            println!(
                "Who was removed may have kept what they could open: change the credentials in secrets.yaml.age too."
            );
        }
    }
    Ok(())
}

fn vault(connected: &Connected, identities: &Identities, recipients: Recipients) -> BucketVault {
    BucketVault {
        store: std::sync::Arc::clone(&connected.store),
        cluster: connected.declared.cluster.name.clone(),
        recipients,
        identities: Some(identities.clone()),
        clock: std::sync::Arc::clone(&connected.world.clock),
    }
}

/// How many snapshots there are, and how many open for none of these recipients.
async fn snapshots(connected: &Connected, names: &[String]) -> Result<(usize, usize), CliError> {
    let (entries, _) = Catalog::new(connected.store.as_ref(), &connected.declared.cluster.name).list().await?;
    let opens = |recipients: &[String]| recipients.iter().any(|name| names.contains(name));
    let closed = entries.iter().filter(|entry| !opens(&entry.manifest.recipients)).count();
    Ok((entries.len(), closed))
}

/// The file with lines added and removed; comments and order stay.
fn change(text: &str, add: &[String], remove: &[String]) -> Result<String, CliError> {
    let usage = |message: String| CliError::new(ExitKind::Usage, message).hint("nothing was changed");
    if let Some(both) = add.iter().find(|name| remove.contains(name)) {
        return Err(usage(format!("{both} is to be added and removed")));
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| !remove.iter().any(|name| line.trim() == name)).collect();
    for name in add {
        if !lines.iter().any(|line| line.trim() == name) {
            lines.push(name);
        }
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_order_stay_and_repeating_it_changes_nothing() {
        let text = "# the team\nage1a\nage1b\n";
        let add = ["age1c".to_owned()];
        let once = change(text, &add, &["age1a".to_owned()]).unwrap();
        assert_eq!(once, "# the team\nage1b\nage1c\n");
        assert_eq!(change(&once, &add, &["age1a".to_owned()]).unwrap(), once);
        assert!(change(text, &add, &add).is_err());
    }
}
