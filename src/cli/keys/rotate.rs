use crate::cli::connect::{Connected, connect};
use crate::cli::drive::{Manner, confirm, draw, execute_drawn};
use crate::cli::{CliError, Context, ExitKind, build};
use crate::drawing::{Course, Wanted};
use crate::plan::{Plan, RunbookChoice};
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

/// A key that is to go, and the one that takes its place.
struct Prepared {
    /// Knows the new key's public part.
    connected: Connected,
    before: String,
    /// None: a rotation that was interrupted before goes on with the pair it made.
    new: Option<ssh::KeyPair>,
}

fn prepare(context: &Context) -> Result<Prepared, CliError> {
    let mut connected = connect(context)?;
    let secrets = crate::cli::credentials::load_secrets(context)?;
    let current = secrets.ssh_private_key()?;
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
    Ok(Prepared { connected, before, new })
}

impl Prepared {
    /// Keeps the new key beside the old one, and connects with both at hand.
    fn begin(self, context: &Context) -> Result<Connected, CliError> {
        if let Some(pair) = self.new {
            let recipients = &self.connected.declared.recipients;
            rotation::begin(&context.global.dir, identity(context)?, recipients, &pair.private)?;
        }
        let public = self.connected.ssh_public_key;
        // Behind the private part: a public key whose private part is nowhere would lock everybody out.
        write_file(&context.global.dir.join(super::SSH_PUBLIC_FILE), 0o644, format!("{public}\n").as_bytes(), true)?;
        connect(context)
    }
}

/// Rotates.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let What::Ssh = args.what;
    let prepared = prepare(context)?;
    let wanted = Wanted::SshRotation { before: prepared.before.clone() };
    let plan = context.block_on(draw(&prepared.connected, &wanted, &Course::default()))?;
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
    let connected = prepared.begin(context)?;
    if plan.steps.is_empty() {
        ended(context, &connected)?;
        build::report(context, None, "no server knows a key; the new one is in secrets.yaml.age");
        return Ok(());
    }
    let run = execute_drawn(context, &connected, &wanted, plan, &manner)?;
    build::report(
        context,
        Some(&run),
        "the new SSH key is in use and the old one is refused; commit ssh.pub and secrets.yaml.age",
    );
    Ok(())
}

/// The plan of a runbook that rotates the key. Touches nothing: the new key is forgotten.
pub fn plan_by_runbook(choice: &RunbookChoice, context: &Context) -> Result<Plan, CliError> {
    let prepared = prepare(context)?;
    let wanted = prepared.wanted(choice);
    context.block_on(draw(&prepared.connected, &wanted, &Course::default()))
}

/// Rotates as a runbook has it. Returns the run.
pub fn by_runbook(choice: &RunbookChoice, context: &Context, manner: &Manner) -> Result<String, CliError> {
    let prepared = prepare(context)?;
    let wanted = prepared.wanted(choice);
    let plan = context.block_on(draw(&prepared.connected, &wanted, &Course::default()))?;
    confirm(context, &plan, manner)?;
    let connected = prepared.begin(context)?;
    execute_drawn(context, &connected, &wanted, plan, manner)
}

impl Prepared {
    fn wanted(&self, choice: &RunbookChoice) -> Wanted {
        Wanted::Runbook(RunbookChoice { ssh_before: Some(self.before.clone()), ..choice.clone() })
    }
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
