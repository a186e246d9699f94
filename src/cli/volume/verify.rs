use std::collections::BTreeSet;

use super::repository;
use crate::backup::Proof;
use crate::cli::connect::connect;
use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context, ExitKind};
use crate::volumes::{Backup, Entry, Level, VerifyRequest, verify};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume (default: each that has backups).
    volume: Option<String>,
    /// Which of its backups (default: the newest).
    #[arg(long, value_name = "ID", requires = "volume")]
    backup: Option<String>,
    /// How much is to be proven.
    #[arg(long, value_enum, default_value_t = Depth::Read)]
    level: Depth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Depth {
    /// Every file has its parts in the index. Records only that something is damaged.
    Check,
    /// Every byte of the repository is read and is whole: then it is `verified`, as is each backup that nobody had read.
    Read,
    /// It is restored below the state directory of this machine, each file compared with the backup's digests and
    /// everything else with its listing: then it is `proven`. A restore onto a volume proves as much.
    Restore,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let level = match args.level {
        Depth::Check => Level::Check,
        Depth::Read => Level::Read,
        Depth::Restore => Level::Restore,
    };
    let verified = context.block_on(async {
        let repository = repository(&connected, context, None).await?;
        let records = repository.records();
        let backups = match (&args.volume, &args.backup) {
            (Some(volume), wanted) => {
                vec![records.find(volume, wanted.as_deref().unwrap_or("latest")).await?.backup]
            }
            (None, _) => chosen(&records.list().await?.0, &[], level, |_, _| 0),
        };
        if backups.is_empty() {
            return Err(CliError::new(ExitKind::Data, "there is no backup of a volume that can be read")
                .hint("nothing was done; `hk-dr volume list` says what there is, `hk-dr volume backup` makes one"));
        }
        let scratch = context.state_dir().join("scratch");
        let clock = connected.world.clock.as_ref();
        let request = VerifyRequest { repository: &repository, backups: &backups, level, scratch: &scratch, clock };
        Ok(verify(&request).await?)
    })?;
    if context.global.json {
        print_json(&verified)?;
    } else {
        for (id, found) in verified.found.iter().filter(|(_, found)| found.problem.is_none()) {
            match (args.level, found.compared) {
                (Depth::Check, _) => {
                    println!("Every file of backup {id} has its parts in the repository; nobody read them.");
                }
                (Depth::Restore, Some(entries)) => println!(
                    "Backup {id} was restored here, and each of its {entries} files and directories compared: it is proven."
                ),
                _ => println!("Every byte of the repository reads back whole: backup {id} is verified."),
            }
        }
    }
    if let Some((id, problem)) = verified.bad().next() {
        let all = verified.bad().count();
        let more = if all > 1 { format!(" ({all} backups are)") } else { String::new() };
        return Err(CliError::new(ExitKind::Data, format!("backup {id} is damaged{more}: {problem}"))
            .hint("it is marked as bad; restore from another bucket or with an older backup, and look at the bucket"));
    }
    match verified.elsewhere {
        None => Ok(()),
        Some(problem) => Err(CliError::new(ExitKind::Data, format!("the repository is damaged: {problem}"))
            .hint(
                "the backups that were looked at read whole, and nothing was recorded: others may need what is damaged",
            )
            .hint(
                "`hk-dr mirror --deep` mends it from another bucket; `hk-dr volume verify` without a name finds which",
            )),
    }
}

/// What is verified when nobody names a backup: of each volume the one that `draw` picks from its backups, newest first
/// (names are given to it too). Reading reads all of the repository, so that those that nobody has read are judged with it.
pub(in crate::cli) fn chosen(
    entries: &[Entry],
    volumes: &[String],
    level: Level,
    draw: impl Fn(&str, usize) -> usize,
) -> Vec<Backup> {
    let wanted = |entry: &&Entry| volumes.is_empty() || volumes.contains(&entry.backup.volume);
    let entries: Vec<&Entry> = entries.iter().filter(wanted).collect();
    let names: BTreeSet<&str> = entries.iter().map(|entry| entry.backup.volume.as_str()).collect();
    let mut chosen: Vec<&Entry> = Vec::new();
    for name in names {
        let of_volume: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.backup.volume == name).collect();
        chosen.extend(of_volume.get(draw(name, of_volume.len())).copied());
    }
    if level == Level::Read {
        let unread = |entry: &&Entry| matches!(entry.proof, Proof::Unproven | Proof::Bad { .. });
        for entry in entries.iter().copied().filter(unread) {
            if !chosen.iter().any(|there| there.backup.id == entry.backup.id) {
                chosen.push(entry);
            }
        }
    }
    chosen.into_iter().map(|entry| entry.backup.clone()).collect()
}
