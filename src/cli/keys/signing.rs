//! The signing key: made, shown, replaced, and applied to what was there before it.

use clap::Subcommand;

use crate::backup::{Adopted, Identities, Recipients, adopt};
use crate::cli::connect::connect;
use crate::cli::credentials::load_secrets;
use crate::cli::{CliError, Context, ExitKind, validate};
use crate::secrets::{keep_signing_key, write_file};
use crate::sign::{SigningKey, Trust};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a signing key: the secret half goes into secrets.yaml.age, the public half into cluster.yaml.
    Init {
        /// Makes a new key although there is one. The old one's signatures stay good until it is taken out of cluster.yaml.
        #[arg(long)]
        rotate: bool,
    },
    /// Shows the public keys whose signatures count.
    Show,
    /// Signs what the bucket holds without signature, from before there was a key. What is wrongly signed is named and
    /// left as it is.
    Adopt {
        /// Only says what would be signed.
        #[arg(long)]
        dry_run: bool,
        /// Don't ask. Signing says: this is ours.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::Init { rotate } => init(context, rotate),
        Command::Show => show(context),
        Command::Adopt { dry_run, yes } => adopt_all(context, dry_run, yes),
    }
}

fn init(context: &Context, rotate: bool) -> Result<(), CliError> {
    let dir = &context.global.dir;
    let path = dir.join("cluster.yaml");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display())))?;
    let cluster = validate::check(&text, &path)?;
    let recipients = Recipients::load(&dir.join(&cluster.backup.recipients_file))?;
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    let trust = Trust::parse(&cluster.backup.signed_by)?;
    // A run that was cut between the two files is continued: the key that is kept already is declared.
    let kept = load_secrets(context)?.signing_key()?;
    let (key, is_new) = match kept {
        Some(key) if trust.names(key.public()) && !rotate => {
            let message = format!("there is a signing key already: {}", key.public().id());
            return Err(CliError::new(ExitKind::Usage, message).hint("nothing was changed; --rotate makes another"));
        }
        Some(key) if !trust.names(key.public()) => (key, false),
        _ => (SigningKey::generate()?, true),
    };
    let changed = declare(&text, &key.public().to_string(), &cluster.backup.signed_by).ok_or_else(|| {
        CliError::new(ExitKind::Usage, format!("{} has no block `backup:` that could be added to", path.display()))
            .hint("nothing was changed; write the section as a block, with `signedBy: []` in it")
    })?;
    validate::check(&changed, &path)?;
    if is_new {
        keep_signing_key(dir, &identities, &recipients, &key)?;
    }
    write_file(&path, 0o644, changed.as_bytes(), true)?;
    if context.global.json {
        println!("{}", serde_json::json!({"key": key.public().to_string(), "id": key.public().id()}));
        return Ok(());
    }
    println!(
        "Signing key {} is in secrets.yaml.age, its public half in cluster.yaml:\n  {}",
        key.public().id(),
        key.public()
    );
    println!("Commit both. What the bucket holds already is refused until `hk-dr keys signing adopt` has signed it.");
    Ok(())
}

/// Adds a key to `backup.signedBy` in the text, first; everything else stays as it is. `None` where the text is of no form
/// that can be added to.
fn declare(text: &str, key: &str, others: &[String]) -> Option<String> {
    let all = std::iter::once(key).chain(others.iter().map(String::as_str)).collect::<Vec<_>>().join(", ");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let backup = lines.iter().position(|line| line.trim_end() == "backup:")?;
    let inside = |line: &String| line.starts_with(' ') || line.starts_with('#') || line.trim().is_empty();
    let length = lines[backup + 1..].iter().take_while(|line| inside(line)).count();
    let section = backup + 1..backup + 1 + length;
    let there = section.clone().find(|index| lines[*index].trim_start().starts_with("signedBy:"));
    match there {
        Some(index) => {
            let indent = lines[index].len() - lines[index].trim_start().len();
            let value = lines[index].split_once(':').map_or("", |(_, value)| value.trim());
            // A list over several lines is a person's to change.
            (value.starts_with('[') && value.ends_with(']')).then_some(())?;
            lines[index] = format!("{}signedBy: [{all}]", " ".repeat(indent));
        }
        None => {
            let first =
                section.map(|index| &lines[index]).find(|line| !line.trim().is_empty() && line.starts_with(' '))?;
            let indent = first.len() - first.trim_start().len();
            lines.insert(backup + 1, format!("{}signedBy: [{all}]", " ".repeat(indent)));
        }
    }
    Some(lines.join("\n") + "\n")
}

fn show(context: &Context) -> Result<(), CliError> {
    let cluster = validate::load_cluster(context)?;
    let keys = cluster.backup.signed_by;
    if context.global.json {
        println!("{}", serde_json::json!({ "signed_by": keys }));
    } else if keys.is_empty() {
        println!("Nothing is signed: cluster.yaml names no key. `hk-dr keys signing init` makes one.");
    } else {
        println!("minisign -V -P KEY -m FILE checks what one of these keys signed:");
        keys.iter().for_each(|key| println!("  {key}"));
    }
    Ok(())
}

fn adopt_all(context: &Context, dry_run: bool, yes: bool) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster;
    let trust = Trust::parse(&cluster.backup.signed_by)?;
    let Some(signer) = connected.signer.as_ref().filter(|_| !trust.is_empty()) else {
        return Err(CliError::new(ExitKind::Usage, "there is no signing key")
            .hint("nothing was signed; `hk-dr keys signing init` makes one"));
    };
    // Each bucket by itself: what one has unsigned may be signed in another.
    let adopt = |dry_run| {
        context.block_on(async {
            let mut all = Adopted::default();
            for bucket in &connected.buckets.bare {
                let one = adopt(bucket.store().as_ref(), &cluster.name, &trust, signer, dry_run).await?;
                all.signed.extend(one.signed);
                all.already += one.already;
                all.refused.extend(one.refused);
            }
            Ok::<_, crate::ports::PortError>(all)
        })
    };
    let mut adopted = adopt(true)?;
    if !dry_run && !adopted.signed.is_empty() {
        if !yes {
            let message = format!("{} objects have no signature, and --yes was not given", adopted.signed.len());
            return Err(CliError::new(ExitKind::Usage, message)
                .hint("nothing was signed; --dry-run lists them: whoever signs says that they are this team's")
                .hint("then: hk-dr keys signing adopt --yes"));
        }
        adopted = adopt(false)?;
    }
    if context.global.json {
        println!("{}", serde_json::json!(adopted));
    } else {
        let verb = if dry_run { "would be signed" } else { "signed" };
        adopted.signed.iter().for_each(|key| println!("{verb}: {key}"));
        println!("{} {verb}, {} were signed before", adopted.signed.len(), adopted.already);
    }
    if adopted.refused.is_empty() {
        return Ok(());
    }
    let mut error = CliError::new(ExitKind::Unsigned, format!("{} objects are wrongly signed", adopted.refused.len()));
    error.hints = adopted.refused.iter().map(|(key, why)| format!("{key}: {why}")).collect();
    Err(error.hint("they were left as they are: find out who wrote them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: demo\n# where copies go\nbackup:\n  # a comment\n  bucket: b\nworkers: []\n";

    #[test]
    fn the_key_is_added_to_the_text_and_all_else_stays() {
        let one = declare(TEXT, "RWA", &[]).unwrap();
        assert_eq!(one, TEXT.replace("backup:\n", "backup:\n  signedBy: [RWA]\n"));
        let two = declare(&one, "RWB", &["RWA".to_owned()]).unwrap();
        assert_eq!(two, one.replace("[RWA]", "[RWB, RWA]"));
        assert_eq!(declare("backup: {bucket: b}\n", "RWA", &[]), None);
        assert_eq!(declare("backup:\n  bucket: b\n  signedBy:\n    - RWA\n", "RWB", &["RWA".to_owned()]), None);
        assert_eq!(declare("name: demo\n", "RWA", &[]), None);
    }
}
