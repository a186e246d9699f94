use crate::cli::connect::{Connected, connect};
use crate::cli::drive::{Manner, confirm, draw, execute_drawn};
use crate::cli::{CliError, Context, ExitKind, build};
use crate::drawing::{Course, Wanted};
use crate::secrets::{rotation, write_file};
use crate::ssh;

/// What is rotated, and how.
#[derive(clap::Args)]
pub struct Args {
    /// Which key.
    #[arg(value_enum)]
    what: What,
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
    /// Show the plan and stop.
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum What {
    /// The cluster's SSH key.
    Ssh,
}

/// Rotates.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let What::Ssh = args.what;
    let mut connected = connect(context)?;
    let secrets = crate::cli::credentials::load_secrets(context)?;
    let current = secrets.ssh_private_key()?;
    // One that was interrupted before goes on with the pair it made.
    let (before, new) = match secrets.ssh_previous_private_key() {
        Some(previous) => {
            connected.ssh_public_key = ssh::public_key(current)?;
            (ssh::public_key(previous)?, None)
        }
        None => {
            let pair = ssh::keypair()?;
            connected.ssh_public_key = pair.public.clone();
            (ssh::public_key(current)?, Some(pair))
        }
    };
    let wanted = Wanted::SshRotation { before };
    let plan = context.block_on(draw(&connected, &wanted, &Course::default()))?;
    if args.dry_run {
        if context.global.json {
            println!("{}", serde_json::json!(plan));
        } else {
            print!("{}", crate::cli::plan::render(&plan));
        }
        return Ok(());
    }
    let manner = Manner { yes: args.yes, step: false };
    if !plan.steps.is_empty() {
        confirm(context, &plan, &manner)?;
    }
    if let Some(pair) = new {
        rotation::begin(&context.global.dir, identity(context)?, &connected.declared.recipients, &pair.private)?;
    }
    let public = connected.ssh_public_key.clone();
    // Behind the private part: a public key whose private part is nowhere would lock everybody out.
    write_file(&context.global.dir.join(super::SSH_PUBLIC_FILE), 0o644, format!("{public}\n").as_bytes(), true)?;
    if plan.steps.is_empty() {
        ended(context, &connected)?;
        build::report(context, None, "no server knows a key; the new one is in secrets.yaml.age");
        return Ok(());
    }
    // With both keys at hand.
    let connected = connect(context)?;
    let run = execute_drawn(context, &connected, &wanted, plan, &manner)?;
    build::report(
        context,
        Some(&run),
        "the new SSH key is in use and the old one is refused; commit ssh.pub and secrets.yaml.age",
    );
    Ok(())
}

/// Behind the run of a rotation: the old key is refused everywhere, nobody needs it.
pub fn ended(context: &Context, connected: &Connected) -> Result<(), CliError> {
    rotation::end(&context.global.dir, identity(context)?, &connected.declared.recipients).map_err(CliError::from)
}

fn identity(context: &Context) -> Result<&std::path::Path, CliError> {
    context.global.identity.as_deref().ok_or_else(|| {
        CliError::new(ExitKind::Usage, "the new key goes into secrets.yaml.age, and no age identity was given")
            .hint("nothing was touched; pass --identity FILE, or set HK_DR_IDENTITY")
    })
}
