//! What policies do with volumes: what `hk-dr volume` does.

use std::collections::BTreeSet;

use super::work::{Commands, port};
use crate::cli::volume::{BackedUp, back_up, chosen, repository};
use crate::config::{RecoveryPointChoice, VolumeConfig, VolumeLevel};
use crate::plan::schedule::draw;
use crate::ports::{ErrorCode, PortError, PortResult};
use crate::serve::{Order, Report};
use crate::volumes::{Backup, Level, Records, Repository, Verified, VerifyRequest, plan_pruning, prune, verify};

impl Commands {
    fn volume_records(&self) -> Records<'_> {
        Records { store: self.connected.store.as_ref(), cluster: self.cluster() }
    }

    async fn repository(&self) -> PortResult<Repository> {
        repository(&self.connected, &self.context, None).await.map_err(port)
    }

    pub(super) async fn back_volumes_up(&self, order: &Order) -> PortResult<Report> {
        let wanted = &order.schedule.volumes;
        let mut volumes: Vec<&VolumeConfig> = self.connected.declared.cluster.volumes.iter().collect();
        volumes.retain(|volume| wanted.is_empty() || wanted.contains(&volume.name));
        if volumes.is_empty() {
            let note = "cluster.yaml declares no volumes: there was nothing to back up".to_owned();
            return Ok(Report { good: true, run: None, note });
        }
        let mut made: Vec<Backup> = Vec::new();
        if order.attempt > 1 {
            // An attempt that died after some of its backups were recorded has done that much.
            let (entries, _) = self.volume_records().list().await?;
            let since = entries.into_iter().map(|entry| entry.backup).filter(|backup| backup.taken_at >= order.began);
            made.extend(since.filter(|backup| volumes.iter().any(|volume| volume.name == backup.volume)));
            volumes.retain(|volume| !made.iter().any(|backup| backup.volume == volume.name));
        }
        let mut failed = Vec::new();
        if !volumes.is_empty() {
            let done: BackedUp = back_up(&self.connected, &self.context, &volumes).await.map_err(port)?;
            made.extend(done.made);
            failed = done.failed;
        }
        let names: Vec<&str> = made.iter().map(|backup| backup.id.as_str()).collect();
        let mut note = match names.is_empty() {
            true => "no volume was backed up".to_owned(),
            false => format!("volumes backed up: {}", names.join(", ")),
        };
        let mut good = failed.is_empty();
        if order.schedule.verify && !made.is_empty() {
            let verified = self.look_at(&made, Level::Read).await?;
            good &= verified.bad().next().is_none() && verified.elsewhere.is_none();
            note += &said(&verified);
        }
        for (volume, error) in failed {
            let error = port(error);
            let hint = error.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            note += &format!("; {volume} FAILED: {}{hint}", error.message);
        }
        Ok(Report { good, run: None, note })
    }

    pub(super) async fn verify_volumes(&self, order: &Order) -> PortResult<Report> {
        let level = match order.schedule.level {
            VolumeLevel::Read => Level::Read,
            VolumeLevel::Restore => Level::Restore,
        };
        let (entries, unreadable) = self.volume_records().list().await?;
        let pick = |volume: &str, backups: usize| match order.schedule.point {
            RecoveryPointChoice::Latest => 0,
            RecoveryPointChoice::Random => {
                let drawn = draw(&format!("{}.{volume}", order.key()), u64::try_from(backups).unwrap_or(1));
                usize::try_from(drawn).unwrap_or_default()
            }
        };
        let backups = chosen(&entries, &order.schedule.volumes, level, pick);
        let there: BTreeSet<&str> = backups.iter().map(|backup| backup.volume.as_str()).collect();
        let missing: Vec<&str> =
            order.schedule.volumes.iter().map(String::as_str).filter(|name| !there.contains(name)).collect();
        if backups.is_empty() || !missing.is_empty() {
            let of = if missing.is_empty() { "any volume".to_owned() } else { missing.join(", ") };
            let message = format!("there is no backup of {of} that can be read");
            let hint = unreadable.first().map_or_else(
                || "nothing was done; `hk-dr volume backup` makes one".to_owned(),
                |refused| format!("nothing was done; {}", refused.message),
            );
            return Err(PortError::new(ErrorCode::NotFound, message).hint(hint));
        }
        let verified = self.look_at(&backups, level).await?;
        let good = verified.bad().next().is_none() && verified.elsewhere.is_none();
        let done = if level == Level::Restore { "restored and compared" } else { "read back" };
        let note = format!("{} backups of volumes {done}{}", verified.found.len(), said(&verified));
        Ok(Report { good, run: None, note })
    }

    async fn look_at(&self, backups: &[Backup], level: Level) -> PortResult<Verified> {
        let repository = self.repository().await?;
        let scratch = self.context.state_dir().join("scratch");
        let clock = self.connected.world.clock.as_ref();
        verify(&VerifyRequest { repository: &repository, backups, level, scratch: &scratch, clock }).await
    }

    pub(super) async fn prune_volumes(&self) -> PortResult<Report> {
        if self.volume_records().list().await?.0.is_empty() {
            return Ok(Report { good: true, run: None, note: "there are no backups of volumes".to_owned() });
        }
        let repository = self.repository().await?;
        let clock = &self.connected.world.clock;
        let pruning = plan_pruning(&repository, &self.volume_retention, clock.now()).await?;
        let pruned = prune(&repository, &pruning, clock).await?;
        let kept = pruning.decisions.len() - pruning.gone();
        let mut note = format!(
            "{} backups of volumes and {} leftovers removed, {} bytes given back, {kept} backups kept",
            pruned.backups, pruned.leftovers, pruned.freed_bytes
        );
        if !pruning.unreadable.is_empty() {
            note += &format!("; {} records cannot be read and are kept", pruning.unreadable.len());
        }
        Ok(Report { good: true, run: None, note })
    }
}

/// What is wrong, or that nothing is.
fn said(verified: &Verified) -> String {
    let mut text = String::new();
    for (id, problem) in verified.bad() {
        text += &format!("; {id} is BAD: {problem}");
    }
    if let Some(problem) = &verified.elsewhere {
        text += &format!("; the repository is damaged where none of these needs it: {problem}");
    }
    if text.is_empty() { ", all of it whole".to_owned() } else { text }
}
