mod recipients;
mod rotate;
mod signing;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret as _;
use clap::Subcommand;

use super::credentials::{overrides, overrides_from};
use super::{CliError, Context, ExitKind};
use crate::backup::{Identities, Recipients};
use crate::secrets::{Overrides, SECRETS_FILE, keep_copy_keys, seal, write_file};
use crate::ssh;

pub(super) use rotate::{by_runbook as rotate_by, ended as rotation_ended, plan_by_runbook as plan_rotation_by};

const RECIPIENTS_FILE: &str = "recipients.txt";
pub(super) const SSH_PUBLIC_FILE: &str = "ssh.pub";
/// More than this on standard input is not a handful of credentials.
const STDIN_BYTES_MAX: u64 = 64 << 10;

/// The team's keys: who can open what Git and the bucket hold, and how hk-dr reaches servers.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the cluster's SSH key and secrets.yaml.age.
    ///
    /// The cloud token and the bucket's keys come from the environment (HCLOUD_TOKEN, AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY; optionally HCLOUD_ENDPOINT, AWS_ENDPOINT_URL) or, with --stdin, from lines NAME=VALUE on
    /// standard input; never from the command line, which every user of the machine can see.
    Init {
        /// Makes a new age identity in FILE (mode 0600) and adds it to recipients.txt. Repeatable; two are needed in all.
        #[arg(long, value_name = "FILE")]
        new_identity: Vec<PathBuf>,
        /// Adds an age recipient (a colleague's, or one kept offline) to recipients.txt. Repeatable.
        #[arg(long, value_name = "AGE1…")]
        recipient: Vec<String>,
        /// Reads NAME=VALUE lines from standard input.
        #[arg(long)]
        stdin: bool,
        /// Replaces secrets.yaml.age and the SSH key. Servers that know the old key only can't be reached any more.
        #[arg(long)]
        force: bool,
    },
    /// Shows the public parts: recipients and SSH key.
    Show,
    /// Puts the credential of one of `backup.copies` into secrets.yaml.age, from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY in the environment or, with --stdin, from lines NAME=VALUE.
    Bucket {
        /// The copy's name in cluster.yaml.
        name: String,
        /// Reads NAME=VALUE lines from standard input.
        #[arg(long)]
        stdin: bool,
    },
    /// The key that signs backups and evidence, so that nobody who only writes to the bucket can forge them.
    Signing(signing::Args),
    /// Changes who can open secrets.yaml.age, the cluster's secrets in the bucket, and every backup from now on.
    ///
    /// What exists already is not re-uploaded: snapshots and segments open for whom they were made, and go by the retention
    /// rules. Take a snapshot afterwards: the new set begins with it. Replacing one's own key takes two steps: add the new one,
    /// then remove the old one with --identity NEW, which proves that the new one opens everything.
    Recipients(recipients::Args),
    /// Puts a new key in the place of the one in use.
    ///
    /// ssh: a new pair is made and let in to every server, tried, registered in the cloud; then the old one is taken off every
    /// server and tried once more: it must be refused. Both are in secrets.yaml.age until that is proven. Commit the Git
    /// directory afterwards.
    Rotate(rotate::Args),
}

/// Runs the command.
///
/// # Errors
/// `Usage` if something is missing or exists already; nothing is written then.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let dir = &context.global.dir;
    match args.command {
        Command::Init { new_identity, recipient, stdin, force } => {
            let values = if stdin { from_stdin()? } else { overrides() };
            init(dir, &new_identity, &recipient, &values, force)?;
            show(dir, context)
        }
        Command::Show => show(dir, context),
        Command::Bucket { name, stdin } => {
            let values = if stdin { from_stdin()? } else { overrides() };
            bucket(context, &name, &values)
        }
        Command::Signing(args) => signing::run(args, context),
        Command::Recipients(args) => recipients::run(&args, context),
        Command::Rotate(args) => rotate::run(&args, context),
    }
}

fn bucket(context: &Context, name: &str, values: &Overrides) -> Result<(), CliError> {
    let cluster = super::validate::load_cluster(context)?;
    let names: Vec<&str> = cluster.backup.copies.iter().map(|copy| copy.name.as_str()).collect();
    if !names.contains(&name) {
        let message = format!("cluster.yaml declares no copy `{name}` in backup.copies");
        return Err(CliError::new(ExitKind::Usage, message).hint(format!("there are: {}", names.join(", "))));
    }
    let (Some(access), Some(secret)) = (&values.s3_access_key, &values.s3_secret_key) else {
        return Err(CliError::new(ExitKind::Usage, "AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is not set")
            .hint("nothing was written; set both in the environment, or pass NAME=VALUE lines with --stdin"));
    };
    let dir = &context.global.dir;
    let identities = Identities::load_given(context.global.identity.as_deref())?;
    let recipients = Recipients::load(&dir.join(&cluster.backup.recipients_file))?;
    keep_copy_keys(dir, &identities, &recipients, name, (access, secret))?;
    if context.global.json {
        println!("{}", serde_json::json!({"copy": name}));
    } else {
        println!("The credential of copy {name} is in {SECRETS_FILE}. Commit it; `hk-dr mirror` fills the bucket.");
    }
    Ok(())
}

fn from_stdin() -> Result<Overrides, CliError> {
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::stdin()
        .take(STDIN_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| CliError::new(ExitKind::Usage, format!("cannot read standard input: {e}")))?;
    let values: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.trim().trim_start_matches("export ").split_once('=')).collect();
    Ok(overrides_from(|name| values.get(name).map(|value| value.trim_matches(['"', '\'']).to_owned())))
}

fn init(
    dir: &Path,
    new_identities: &[PathBuf],
    new_recipients: &[String],
    values: &Overrides,
    force: bool,
) -> Result<(), CliError> {
    // Everything that can be refused is refused before the first file is written.
    let secrets_file = dir.join(SECRETS_FILE);
    if !force && secrets_file.exists() {
        let message = format!("{} exists already and was not touched", secrets_file.display());
        return Err(
            CliError::new(ExitKind::Usage, message).hint("--force replaces it, and the cluster's SSH key with it")
        );
    }
    if let Some(taken) = new_identities.iter().find(|path| path.exists()) {
        let message = format!("{} exists already and was not touched", taken.display());
        return Err(CliError::new(ExitKind::Usage, message).hint(
            "an identity is never overwritten: it may be the only one that opens a backup; choose another name",
        ));
    }
    for (value, name) in [
        (&values.cloud_token, "HCLOUD_TOKEN"),
        (&values.s3_access_key, "AWS_ACCESS_KEY_ID"),
        (&values.s3_secret_key, "AWS_SECRET_ACCESS_KEY"),
    ] {
        if value.is_none() {
            return Err(CliError::new(ExitKind::Usage, format!("{name} is not set; nothing was written"))
                .hint("set it in the environment, or pass NAME=VALUE lines with --stdin"));
        }
    }
    let recipients_file = dir.join(RECIPIENTS_FILE);
    let mut lines = match std::fs::read_to_string(&recipients_file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            "# Who can open secrets.yaml.age and the backups: one age recipient a line.\n".to_owned()
        }
        Err(e) => {
            let message = format!("cannot read {}: {e}", recipients_file.display());
            return Err(CliError::new(ExitKind::Usage, message));
        }
    };
    if !lines.ends_with('\n') {
        lines.push('\n');
    }
    let identities: Vec<_> = new_identities.iter().map(|path| (path, age::x25519::Identity::generate())).collect();
    for name in new_recipients.iter().cloned().chain(identities.iter().map(|(_, i)| i.to_public().to_string())) {
        if !lines.lines().any(|line| line.trim() == name) {
            lines.push_str(&name);
            lines.push('\n');
        }
    }
    let recipients = Recipients::parse(&lines).map_err(|e| {
        CliError::from(e.context(RECIPIENTS_FILE)).hint("--new-identity FILE makes one, --recipient AGE1… adds one")
    })?;
    let pair = ssh::keypair()?;
    let sealed = seal(values, &pair.private, &recipients)?;

    for (path, identity) in &identities {
        let text = zeroize::Zeroizing::new(format!(
            "# public key: {}\n{}\n",
            identity.to_public(),
            identity.to_string().expose_secret()
        ));
        write_file(path, 0o600, text.as_bytes(), false)?;
    }
    write_file(&recipients_file, 0o644, lines.as_bytes(), true)?;
    write_file(&dir.join(SSH_PUBLIC_FILE), 0o644, format!("{}\n", pair.public).as_bytes(), true)?;
    // Last: where it is, everything it needs is.
    write_file(&secrets_file, 0o644, &sealed, force)?;
    for (path, _) in &identities {
        let inside = path.canonicalize().ok().zip(dir.canonicalize().ok()).is_some_and(|(p, d)| p.starts_with(d));
        if inside {
            eprintln!("warning: {} is in the Git directory: keep it elsewhere, never in Git", path.display());
        }
    }
    Ok(())
}

fn show(dir: &Path, context: &Context) -> Result<(), CliError> {
    let recipients = Recipients::load(&dir.join(RECIPIENTS_FILE))?.names();
    let path = dir.join(SSH_PUBLIC_FILE);
    let public = std::fs::read_to_string(&path).map_err(|e| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display()))
            .hint("`hk-dr keys init` makes it")
    })?;
    let (public, fingerprint) = (public.trim(), ssh::fingerprint(&public)?);
    if context.global.json {
        let value = serde_json::json!({
            "recipients": recipients, "ssh_public_key": public, "ssh_fingerprint": format!("SHA256:{fingerprint}")});
        println!("{value}");
    } else {
        println!("secrets.yaml.age and backups open with the identity of any of:");
        for recipient in recipients {
            println!("  {recipient}");
        }
        println!("servers are reached with this SSH key (SHA256:{fingerprint}):\n  {public}");
    }
    Ok(())
}
