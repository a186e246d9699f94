use super::repository;
use crate::cli::connect::connect;
use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context, ExitKind};
use crate::ports::ErrorCode;
use crate::volumes::{CheckLevel, Checked, Records, check};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume.
    volume: String,
    /// Which of its backups.
    #[arg(long, value_name = "ID", default_value = "latest")]
    backup: String,
    /// How much is to be proven.
    #[arg(long, value_enum, default_value_t = Level::Read)]
    level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// Every file has its parts in the index. Records nothing.
    Check,
    /// Every byte of the repository is read and is whole: then it is `verified`. `proven` it is by a restore.
    Read,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let records = Records { store: connected.store.as_ref(), cluster: &connected.declared.cluster.name };
    let (id, outcome) = context.block_on(async {
        let entry = records.find(&args.volume, &args.backup).await?;
        let repository = repository(&connected, context, None).await?;
        let level = if args.level == Level::Read { CheckLevel::Read } else { CheckLevel::Check };
        let outcome = check(&repository, &entry.backup.snapshot, level).await;
        let problem = match &outcome {
            Ok(()) => None,
            Err(e) if e.code == ErrorCode::Corrupt => Some(e.message.clone()),
            // Nothing was learned.
            Err(e) => return Err(CliError::from(e.clone())),
        };
        // A look at the structure proves nothing, but finds what is bad.
        if args.level == Level::Read || problem.is_some() {
            let at = connected.world.clock.now();
            records.judge(&entry.backup.id, &Checked { at, level: "read".to_owned(), problem }).await?;
        }
        Ok((entry.backup.id, outcome))
    })?;
    if let Err(error) = outcome {
        return Err(CliError::new(ExitKind::Data, format!("backup {id} is damaged: {}", error.message))
            .hint("it is marked as bad; restore from another bucket or with an older backup, and look at the bucket"));
    }
    if context.global.json {
        let level = if args.level == Level::Read { "read" } else { "check" };
        return print_json(&serde_json::json!({"backup": id, "level": level}));
    }
    match args.level {
        Level::Check => println!("Every file of backup {id} has its parts in the repository; nobody read them."),
        Level::Read => println!("Every byte of the repository reads back whole: backup {id} is verified."),
    }
    Ok(())
}
